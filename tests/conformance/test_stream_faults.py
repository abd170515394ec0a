"""Streams of usage through what happens to connections and servers: each record counts, once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import ClientConfig, RetryConfig, UsageRecord
from llm_cost_ops.client.uploads import StreamReceipt
from tests.conformance.clients import COLOURS, open_client
from tests.faulty_proxy import FaultyProxy
from tests.ports import free_port
from tests.served import Restarted
from tests.waiting import until

WAYS = [(transport, colour) for transport in ("http", "grpc") for colour in COLOURS]
PATIENT = ClientConfig(
    timeout=600, retry=RetryConfig(initial_backoff=0.02, max_backoff=0.3, max_retries=1000, budget=10_000.0)
)


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@contextmanager
def serving(folder: Path) -> Iterator[Restarted]:
    server = Restarted(folder, durability="disk")
    try:
        yield server
    finally:
        server.kill(signal.SIGTERM)


def restart_after(server: Restarted, how: int, delay: float) -> None:
    time.sleep(delay)
    server.kill(how)
    time.sleep(0.2)
    server.start()


def records(organization: str, count: int) -> Iterator[UsageRecord]:
    for number in range(count):
        yield UsageRecord(
            organization_id=organization, provider="openai", model_id="gpt-4o", input_tokens=number + 1
        )


async def check_ledger(client: Any, organization: str, count: int, receipt: StreamReceipt) -> None:
    """The ledger holds each record once, whatever was sent again."""
    assert receipt.records == count
    assert receipt.created + receipt.duplicates == count
    assert receipt.problems == []
    summary = await client.costs.get(organization_id=organization)
    assert summary.total_requests == count
    assert summary.total_tokens == count * (count + 1) // 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_a_server_that_restarts_in_the_middle(
    way: tuple[str, str], how: int, tmp_path: Path, organization: str
) -> None:
    transport, colour = way
    with serving(tmp_path) as server:
        client = open_client(server.url(transport), colour, config=PATIENT)
        restarts: list[threading.Thread] = []

        def interrupted() -> Iterator[UsageRecord]:
            for number, record in enumerate(records(organization, 4000)):
                if number in (1000, 2500):
                    restarts.append(threading.Thread(target=restart_after, args=(server, how, number / 1e5)))
                    restarts[-1].start()
                if number == 2400:
                    restarts[0].join()
                yield record

        receipt = await client.usage.stream(interrupted(), segment=200)
        for restart in restarts:
            restart.join()
        await check_ledger(client, organization, 4000, receipt)
        await client.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_proxy_that_resets(
    way: tuple[str, str], seed: int, tmp_path: Path, organization: str
) -> None:
    transport, colour = way
    draw = random.Random(seed)
    cuts = ((draw.randrange(200, 30_000), draw.randrange(50, 4000)) for _ in range(30))
    with serving(tmp_path) as server, FaultyProxy(server.ports[transport], cuts) as proxy:
        client = open_client(f"{transport}://127.0.0.1:{proxy.port}", colour, config=PATIENT)
        receipt = await client.usage.stream(records(organization, 2000), segment=150)
        assert proxy.resets >= 10, "too few faults to count"
        await check_ledger(client, organization, 2000, receipt)
        await client.close()


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_thousand_of_a_thousand_after_a_short_outage(
    colour: str, tmp_path: Path, organization: str
) -> None:
    with serving(tmp_path) as server, FaultyProxy(server.ports["http"]) as proxy:
        client = open_client(f"http://127.0.0.1:{proxy.port}", colour, config=PATIENT)
        proxy.refusing.set()

        def outage() -> None:
            until(lambda: proxy.refused)
            proxy.refusing.clear()

        ending = threading.Thread(target=outage)
        ending.start()
        receipt = await client.usage.stream(records(organization, 1000))
        ending.join()
        assert receipt.created == 1000
        await check_ledger(client, organization, 1000, receipt)
        await client.close()


async def test_a_server_that_stays_away(way: tuple[str, str], organization: str) -> None:
    transport, colour = way
    brief = ClientConfig(retry=RetryConfig(initial_backoff=0.01, max_retries=2))
    client = open_client(f"{transport}://127.0.0.1:{free_port()}", colour, config=brief)
    with pytest.raises(Exception, match="no answer") as caught:
        await client.usage.stream(records(organization, 10))
    assert caught.value.__notes__ == ["0 records of the stream were answered for"]
    await client.close()
