"""An outage of three seconds while 32 threads, or tasks, record and submit: all of 1,000 arrive, and once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    ClientConfig,
    CostOpsClient,
    RecorderConfig,
    RetryConfig,
)
from llm_cost_ops.client.flush_report import FlushReport
from tests.faults.lossy import RefusingGrpc, RefusingHttp
from tests.faulty_peers import FaultyPeer
from tests.served import Restarted
from tests.waiting import MAX_WAIT

CALLERS = 32
RECORDS = 1000
SECONDS = 3.0
BEFORE = 0.3
PAUSE = (SECONDS + 2 * BEFORE) / (RECORDS / CALLERS)
"""Between the calls of a caller that does not wait, so that they span the outage."""

PATIENT = RetryConfig(max_retries=200, max_backoff=0.5, budget=10_000)
CALL: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}


class Way:
    """One way to hand over 1,000 records: what was acknowledged, and how long each record() took."""

    def __init__(self, name: str, url: str, spool: Path | None, together: threading.Barrier) -> None:
        self.name = name
        self._together = together
        recorder = RecorderConfig(spool=None if spool is None else str(spool / name), shutdown_timeout=10.0)
        self.config = ClientConfig(
            base_url=url, organization_id=name, timeout=2 * MAX_WAIT, retry=PATIENT, recorder=recorder
        )
        self.left = iter(range(RECORDS))
        self.took: list[float] = []
        self.acknowledged: list[str] = []
        self.report: FlushReport | None = None
        self.failed: list[BaseException] = []

    def run(self) -> None:
        """Hand all over, and wait until they are there."""
        try:
            if self.name.startswith("async"):
                asyncio.run(self._run_async())
            else:
                self._run()
        except BaseException as error:  # noqa: BLE001  # for the test to look at, in its own thread
            self.failed.append(error)
            self._together.abort()

    def _record(self, record: Callable[..., None], number: int) -> None:
        began = time.monotonic()
        record(**CALL, session_id=str(number))
        self.took.append(time.monotonic() - began)

    def _run(self) -> None:
        with CostOpsClient(config=self.config) as client:
            client.usage.submit(**CALL, organization_id="warm")
            self._together.wait(MAX_WAIT)

            def call() -> None:
                for number in self.left:
                    if "submit" in self.name:
                        self.acknowledged.append(client.usage.submit(**CALL, session_id=str(number)).usage_id)
                    else:
                        self._record(client.usage.record, number)
                        time.sleep(PAUSE)

            def checked() -> None:
                try:
                    call()
                except BaseException as error:  # noqa: BLE001  # the same
                    self.failed.append(error)

            threads = [threading.Thread(target=checked) for _ in range(CALLERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.report = client.flush(MAX_WAIT)

    async def _run_async(self) -> None:
        async with AsyncCostOpsClient(config=self.config) as client:
            await client.usage.submit(**CALL, organization_id="warm")
            self._together.wait(MAX_WAIT)

            async def call() -> None:
                for number in self.left:
                    if "submit" in self.name:
                        receipt = await client.usage.submit(**CALL, session_id=str(number))
                        self.acknowledged.append(receipt.usage_id)
                    else:
                        self._record(client.usage.record, number)
                        await asyncio.sleep(PAUSE)

            await asyncio.gather(*(call() for _ in range(CALLERS)))
            self.report = await client.flush(MAX_WAIT)


WAYS = ("record", "record-spooled", "submit", "async-record", "async-record-spooled", "async-submit")


@contextmanager
def url_and_outage(server: Restarted, transport: str, outage: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """Where callers call, and what makes the outage and says how many requests it refused."""
    if outage == "down":

        def down() -> int:
            server.kill()
            time.sleep(SECONDS)
            server.start()
            return 0

        port = server.ports[transport]
        yield f"{transport}://127.0.0.1:{port}", down
        return
    http = transport == "http"
    front = RefusingHttp(server.ports["http"], 0) if http else RefusingGrpc(server.ports["grpc"], 0)

    def refuse() -> int:
        front.refusing = True
        time.sleep(SECONDS)
        front.refusing = False
        return front.faults["503"]

    with FaultyPeer(front) as peer:
        yield f"{transport}://127.0.0.1:{peer.port}", refuse
    if isinstance(front, RefusingGrpc):
        front.close()


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["503", "down"])
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_everything_arrives(server: Restarted, transport: str, outage: str, tmp_path: Path) -> None:
    with url_and_outage(server, transport, outage) as (url, fail):
        together = threading.Barrier(len(WAYS) + 1)
        ways = [Way(name, url, tmp_path if "spooled" in name else None, together) for name in WAYS]
        threads = [threading.Thread(target=way.run) for way in ways]
        for thread in threads:
            thread.start()
        together.wait(MAX_WAIT)
        time.sleep(BEFORE)
        refused = fail()
        for thread in threads:
            thread.join(2 * MAX_WAIT)
    assert [way.failed for way in ways] == [[]] * len(ways)
    assert refused >= len(WAYS) or outage == "down", "everybody met the outage"
    with CostOpsClient(base_url=server.url("http")) as client:
        for way in ways:
            held = [record.session_id for record in client.usage.list(organization_id=way.name)]
            assert sorted(map(int, held)) == list(range(RECORDS)), way.name
            assert client.costs.get(organization_id=way.name).total_requests == RECORDS, way.name
            if "submit" in way.name:
                assert len(set(way.acknowledged)) == RECORDS
            else:
                assert way.report is not None
                assert way.report.delivered + way.report.duplicates == way.report.recorded == RECORDS
                # A busy machine may stop a thread anywhere; a record() that waited would have stopped all.
                assert sum(took > SECONDS / 2 for took in way.took) < CALLERS / 2
    figures = ", ".join(f"{way.name} {max(way.took) * 1e3:.1f}" for way in ways if "record" in way.name)
    print(f"{transport}, {outage}: {refused} refused; the longest record() in ms: {figures}")  # noqa: T201  # the figures are what it is about
