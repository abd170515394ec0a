"""Clients that nobody closes: what they recorded is sent, and nothing of them is left."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig
from llm_cost_ops.client.attribution import Attributes, Attribution
from llm_cost_ops.client.recording import Recording
from llm_cost_ops.exceptions import NetworkError
from llm_cost_ops.types import BatchReceipt, SubmitResult, SubmitStatus, UsageRecord
from tests.waiting import MAX_WAIT, until

CALL: Any = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}


def _sync(url: str) -> None:
    client = CostOpsClient(base_url=url)
    client.usage.submit(**CALL)
    client.usage.record(**CALL)


def _async(url: str) -> None:
    async def use() -> None:
        client = AsyncCostOpsClient(base_url=url)
        await client.usage.submit(**CALL)
        client.usage.record(**CALL)

    asyncio.run(use())


def _async_submits(url: str) -> None:
    async def use() -> None:
        client = AsyncCostOpsClient(base_url=url)
        await client.usage.submit(**CALL)
        await client.usage.submit(**CALL)

    asyncio.run(use())


def _instrumented(url: str) -> None:
    import httpx

    client = CostOpsClient(base_url=url)
    client.usage.submit(**CALL)
    client.instrument(httpx.Client())
    client.usage.record(**CALL)


def _with_a_spool(url: str) -> None:
    config = ClientConfig(base_url=url, recorder=RecorderConfig(spool=url.removeprefix("sqlite:///") + ".d"))
    client = CostOpsClient(config=config)
    client.usage.submit(**CALL)
    client.usage.record(**CALL)


def _recorded(url: str) -> int:
    with CostOpsClient(base_url=url) as client:
        return client.costs.get(organization_id="acme").total_requests


def _ended(threads: set[threading.Thread]) -> bool:
    gc.collect()
    return threads.issuperset(threading.enumerate())


def _open() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


# Which Python 3.13 gives of its own, and pytest keeps with the connection, as long as it is caught.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("use", [_sync, _async, _async_submits, _instrumented, _with_a_spool])
def test_nothing_is_left_of_clients_that_were_not_closed(use: Callable[[str], None], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    threads = set(threading.enumerate())
    use(url)  # loads what stays
    until(lambda: _recorded(url) == 2 and _ended(threads))
    before = _open()
    for _ in range(3):
        use(url)
    until(lambda: _recorded(url) == 8 and _ended(threads))
    assert _open() <= before


class _Service:
    """Fails at first."""

    def __init__(self) -> None:
        self.fails = True
        self.tried = threading.Event()
        self.keys: list[str] = []
        self.closed = threading.Event()

    def send(self, records: list[UsageRecord], timeout: float | None) -> BatchReceipt:
        self.tried.set()
        if self.fails:
            raise NetworkError("down")
        self.keys += [record.idempotency_key for record in records]
        return BatchReceipt(results=[SubmitResult(status=SubmitStatus.CREATED) for _ in records])

    def close(self) -> None:
        self.closed.set()


def test_a_recorder_that_nobody_has_any_more_sends_what_it_has_and_ends() -> None:
    service = _Service()
    recording = Recording(RecorderConfig(), Attribution(Attributes()), lambda: service)
    recording.recorder.record(None, {**CALL, "idempotency_key": "a"})
    assert service.tried.wait(MAX_WAIT)
    recording.recorder.record(None, {**CALL, "idempotency_key": "b"})
    del recording
    gc.collect()
    service.fails = False
    assert service.closed.wait(MAX_WAIT)
    assert service.keys == ["a", "b"]
