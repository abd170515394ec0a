"""record(), flush() and attribution, on every transport and in both colours; and the ends of a process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig
from tests.conformance.clients import TRANSPORTS, running_server

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

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = client.flush(20)
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
        report = await client.flush(20)
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
        report = client.flush(20)
    assert report.rejected_count == 3
    assert "input_tokns" in told[0]
    assert any("organization_id" in reason for reason in told)
    assert any("input_tokens" in reason for reason in told[1:])


def test_a_record_is_the_callers_to_change(urls: dict[str, str]) -> None:
    from llm_cost_ops import UsageRecord

    with CostOpsClient(base_url=urls["inprocess"]) as client:
        record = UsageRecord(organization_id="change", **CALL)
        client.usage.record(record)
        assert client.flush(20).delivered == 1
        assert record.idempotency_key == ""


END = """
    import os, signal, sys, time
    from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig
    config = ClientConfig(
        base_url={url!r}, organization_id={organization!r}, recorder=RecorderConfig(spool={spool!r})
    )
    client = CostOpsClient(config=config)
    for _ in range(100):
        client.usage.record(provider="openai", model_id="gpt-4o", input_tokens=1)
    {end}
    """
FORK = """child = os.fork()
client.usage.record(provider="openai", model_id="gpt-4o", input_tokens=1)
client.close()
if child == 0: os._exit(0)
os.waitpid(child, 0)"""
EXITS = {
    "exits": 3,
    "raises": 1,
    "is interrupted": -signal.SIGINT,
    "is terminated": -signal.SIGTERM,
    "is killed": -signal.SIGKILL,
}
ENDS = {
    "falls off its end": "pass",
    "exits": "sys.exit(3)",
    "raises": "raise RuntimeError('over')",
    # A shell that starts jobs in the background has them ignore SIGINT.
    "is interrupted": "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "os.kill(os.getpid(), signal.SIGINT); time.sleep(5)",
    "is terminated": "client.close_on_sigterm(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)",
    "forks": FORK,
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "leaves at once": "os._exit(0)",
}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["up", "down"])
@pytest.mark.parametrize("spooled", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_the_ends_of_a_process(
    urls: dict[str, str], end: str, spooled: bool, server: str, tmp_path: Path
) -> None:
    organization = f"{end}-{spooled}-{server}"
    url = urls["http"] if server == "up" else "http://127.0.0.1:9"
    spool = str(tmp_path / "spool") if spooled else None
    settings = {"url": url, "organization": organization, "spool": spool, "end": ENDS[end]}
    code = textwrap.dedent(END).format(**settings)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == EXITS.get(end, 0), done.stderr
    count = 102 if end == "forks" else 100
    if spooled:
        config = ClientConfig(base_url=urls["http"], recorder=RecorderConfig(spool=spool))
        with CostOpsClient(config=config) as client:
            client.flush(20)
        assert requests(urls["http"], organization) == count
        assert list((tmp_path / "spool").iterdir()) == []
    elif server == "up" and end not in ("is killed", "leaves at once"):
        assert requests(urls["http"], organization) == count
    elif server == "down" and end not in ("is killed", "leaves at once"):
        assert "were not sent" in done.stderr
