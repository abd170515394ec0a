"""record(), flush() and attribution, on every transport and in both colours; and the ends of a process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig
from tests.conformance.clients import COLOURS, TRANSPORTS, running_server
from tests.faulty_peers import FaultyPeer, silent
from tests.waiting import MAX_WAIT, in_threads

CALL: dict[str, Any] = {
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("recording")
    with running_server(folder, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0") as found:
        yield {**found, "inprocess": f"sqlite:///{folder / 'embedded.db'}"}


def requests(url: str, organization: str, **filters: Any) -> int:
    with CostOpsClient(base_url=url) as client:
        return client.costs.get(organization_id=organization, **filters).total_requests


@pytest.mark.parametrize("spooled", [False, True])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sync_client_records_from_threads(
    urls: dict[str, str], transport: str, spooled: bool, tmp_path: Path
) -> None:
    organization = f"sync-{transport}-{spooled}"
    recorder = RecorderConfig(spool=str(tmp_path / "spool") if spooled else None)
    config = ClientConfig(base_url=urls[transport], organization_id=organization, recorder=recorder)
    with CostOpsClient(config=config) as client:

        def work() -> None:
            for _ in range(50):
                client.usage.record(**CALL)

        in_threads([work] * 8)
        report = client.flush(MAX_WAIT)
    assert (report.delivered, report.recorded, report.dropped) == (400, 400, 0)
    assert requests(urls[transport], organization) == 400


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_async_client_records_and_attributes(urls: dict[str, str], transport: str) -> None:
    organization = f"async-{transport}"
    config = ClientConfig(base_url=urls[transport], organization_id=organization, labels={"env": "test"})
    async with AsyncCostOpsClient(config=config) as client:

        async def one(number: int) -> None:
            with client.attribute(user_id=f"u-{number % 2}", labels={"feature": "search"}):
                await asyncio.sleep(0)
                client.usage.record(**CALL)
                await client.usage.submit(**CALL)

        await asyncio.gather(*(one(number) for number in range(20)))
        client.usage.record(**CALL, user_id="own", labels={"env": "mine"})
        report = await client.flush(MAX_WAIT)
        assert (report.delivered, report.pending) == (21, 0)
        summary = await client.costs.get(organization_id=organization, group_by="user")
        assert {group.value: group.requests for group in summary.breakdown} == {
            "u-0": 20,
            "u-1": 20,
            "own": 1,
        }
        summary = await client.costs.get(
            organization_id=organization, label={"feature": "search", "env": "test"}
        )
        assert summary.total_requests == 40
        summary = await client.costs.get(organization_id=organization, label={"env": "mine"})
        assert summary.total_requests == 1


def test_wrong_arguments_are_told_and_raise_nothing(urls: dict[str, str]) -> None:
    told: list[str] = []
    recorder = RecorderConfig(on_error=lambda _, reason: told.append(reason))
    with CostOpsClient(config=ClientConfig(base_url=urls["http"], recorder=recorder)) as client:
        client.usage.record(organization_id="o", provider="p", model_id="m", input_tokns=3)
        client.usage.record(provider="p", model_id="m", input_tokens=3)
        client.usage.record(organization_id="o", provider="p", model_id="m", input_tokens=-3)
        report = client.flush(MAX_WAIT)
    assert report.rejected_count == 3
    assert "input_tokns" in told[0]
    assert any("organization_id" in reason for reason in told)
    assert any("input_tokens" in reason for reason in told[1:])


def test_a_record_is_the_callers_to_change(urls: dict[str, str]) -> None:
    from llm_cost_ops import UsageRecord

    with CostOpsClient(base_url=urls["inprocess"]) as client:
        record = UsageRecord(organization_id="change", **CALL)
        client.usage.record(record)
        assert client.flush(MAX_WAIT).delivered == 1
        assert record.idempotency_key == ""


SLOWEST_END = 25.0
"""Seconds: 2 for what is to be sent, and more for a machine that is busy; a call alone would wait for 30."""

END = """
    import os, signal, sys, time
    import asyncio
    from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig
    config = ClientConfig(
        base_url={url!r}, organization_id={organization!r}, recorder=RecorderConfig(spool={spool!r})
    )
    def record(client):
        for _ in range(100):
            client.usage.record(provider="openai", model_id="gpt-4o", input_tokens=1)
        print(time.monotonic(), flush=True)
    """
BODY = {
    "sync": """
    client = CostOpsClient(config=config)
    record(client)
    {end}
    {after}
    """,
    "async": """
    async def main():
        client = AsyncCostOpsClient(config=config)
        record(client)
        {end}
        return client
    client = asyncio.run(main())
    {after}
    """,
}
# The child of a warm client records too, and both close theirs. (An event loop that runs survives no fork.)
FORK = (
    "child = os.fork(); child and print(time.monotonic(), flush=True); "
    "client.usage.record(provider='openai', model_id='gpt-4o', input_tokens=1); "
    "{closing}; child or os._exit(0); os.waitpid(child, 0)"
)
CLOSE = {"sync": "client.close()", "async": "asyncio.run(client.close())"}
# asyncio.run makes an exception of an interrupt, with which a process ends as with any other.
EXITS: dict[str, tuple[int, ...]] = {
    "exits": (3,),
    "raises": (1,),
    "is interrupted": (-signal.SIGINT, 1),
    "is terminated": (-signal.SIGTERM,),
    "is killed": (-signal.SIGKILL,),
}
ENDS = {
    "falls off its end": "pass",
    "exits": "sys.exit(3)",
    "raises": "raise RuntimeError('over')",
    # A shell that starts jobs in the background has them ignore SIGINT.
    "is interrupted": "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "os.kill(os.getpid(), signal.SIGINT); time.sleep(120)",
    "is terminated": "client.close_on_sigterm(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(120)",
    "forks": "pass",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "leaves at once": "os._exit(0)",
}
LOST_IN_MEMORY = ("is killed", "leaves at once")


class Ended(NamedTuple):
    """How a process ended, and how many seconds after it began to."""

    status: int
    seconds: float
    said: str


def ended(code: str) -> Ended:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    now = time.monotonic()
    assert done.stdout, done.stderr
    return Ended(done.returncode, now - float(done.stdout.split()[-1]), done.stderr)


@pytest.fixture(scope="module")
def servers(urls: dict[str, str]) -> Iterator[dict[str, str]]:
    """A server, none, and one that takes requests and never answers."""
    with FaultyPeer(silent) as peer:
        yield {"up": urls["http"], "down": "http://127.0.0.1:9", "silent": peer.url}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["up", "down", "silent"])
@pytest.mark.parametrize("end", ENDS)
def test_the_ends_of_a_process(
    urls: dict[str, str], servers: dict[str, str], end: str, server: str, tmp_path: Path
) -> None:
    def one(colour: str, spooled: bool) -> Ended:
        after = FORK.format(closing=CLOSE[colour]) if end == "forks" else "pass"
        organization = f"{end}-{server}-{colour}-{spooled}"
        spool = str(tmp_path / colour) if spooled else None
        code = textwrap.dedent(END) + textwrap.dedent(BODY[colour])
        made = {"end": ENDS[end], "after": after}
        return ended(code.format(url=servers[server], organization=organization, spool=spool, **made))

    kinds = [(colour, spooled) for colour in COLOURS for spooled in (False, True)]
    with ThreadPoolExecutor() as pool:
        found = dict(zip(kinds, pool.map(lambda kind: one(*kind), kinds), strict=True))
    count = 102 if end == "forks" else 100
    for (colour, spooled), how in found.items():
        organization = f"{end}-{server}-{colour}-{spooled}"
        assert how.status in EXITS.get(end, (0,)), how.said
        assert how.seconds < SLOWEST_END, (colour, spooled)
        if spooled:
            recorder = RecorderConfig(spool=str(tmp_path / colour))
            with CostOpsClient(config=ClientConfig(base_url=urls["http"], recorder=recorder)) as client:
                client.flush(MAX_WAIT)
            assert requests(urls["http"], organization) == count
            assert list((tmp_path / colour).iterdir()) == []
        elif end in LOST_IN_MEMORY:
            assert requests(urls["http"], organization) <= count
        elif server == "up":
            assert requests(urls["http"], organization) == count
        else:
            assert "were not sent" in how.said
