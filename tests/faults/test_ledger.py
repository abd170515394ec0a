"""Submits while anything may fail: the ledger holds the calls that were acknowledged, and each once.

LONG_TESTS=1 makes 10,000 calls each way instead of 400. FAULTS_SEED repeats a run's faults.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    BatchingConfig,
    ClientConfig,
    CostOpsClient,
    CostOpsError,
    RetryConfig,
)
from llm_cost_ops.rpc.context import uuid7
from tests.faults.lossy import DELAY, LossyGrpc, LossyHttp
from tests.faulty_peers import FaultyPeer
from tests.served import Restarted
from tests.waiting import MAX_WAIT

CALLS = 10_000 if "LONG_TESTS" in os.environ else 400
CALLERS = 8
PATIENT = RetryConfig(max_retries=200, initial_backoff=0.005, max_backoff=0.2, budget=1_000_000)


class Calls:
    """What the callers did, by idempotency key."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {
            "organization_id": f"org-{uuid7()}",
            "provider": "openai",
            "model_id": "gpt-4o",
            "input_tokens": 1000,
        }
        self.made: list[str] = []
        self.acknowledged: dict[str, str] = {}
        self.unsure: set[str] = set()
        self.failed: Counter[str] = Counter()
        self.left = iter(range(CALLS))

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        """Outermost: it sees each call once, however often that is sent."""
        key = context.idempotency_key
        self.made.append(key)
        try:
            response = await continuation(request, context)
        except CostOpsError as error:
            self.failed[type(error).__name__] += 1
            if error.maybe_applied:
                self.unsure.add(key)
            raise
        assert key not in self.acknowledged
        self.acknowledged[key] = response.data.usage_id
        return response

    def options(self, number: int) -> dict[str, Any]:
        """Every tenth caller has no patience."""
        return {"retry": None, "timeout": DELAY / 2} if number % 10 == 0 else {}

    def run(self, config: ClientConfig) -> None:
        with CostOpsClient(config=config, interceptors=[self]) as client:

            def call() -> None:
                for number in self.left:
                    try:
                        client.usage.submit(**self.record, **self.options(number))
                    except CostOpsError as error:
                        expected(number, error)

            threads = [threading.Thread(target=call) for _ in range(CALLERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async def run_async(self, config: ClientConfig) -> None:
        async with AsyncCostOpsClient(config=config, interceptors=[self]) as client:

            async def call() -> None:
                for number in self.left:
                    try:
                        await client.usage.submit(**self.record, **self.options(number))
                    except CostOpsError as error:
                        expected(number, error)

            await asyncio.gather(*(call() for _ in range(CALLERS)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    made = Restarted(tmp_path_factory.mktemp("ledger"))
    yield made
    made.kill()


def expected(number: int, error: CostOpsError) -> None:
    """Who is patient gets through."""
    assert number % 10 == 0, error


def restart_midway(server: Restarted, calls: Calls) -> threading.Thread:
    """Kills the server, and starts it again, when a third and when two thirds of the calls were made."""

    def run() -> None:
        for mark in (CALLS // 3, 2 * CALLS // 3):
            while len(calls.made) < mark:
                time.sleep(0.005)
            server.kill()
            server.start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("batching", [False, True], ids=["alone", "batched"])
@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_ledger_is_what_was_acknowledged(
    server: Restarted, transport: str, colour: str, batching: bool
) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))
    lossy = (LossyHttp if transport == "http" else LossyGrpc)(server.ports[transport], seed)
    calls = Calls()
    started = time.monotonic()
    with FaultyPeer(lossy) as peer:
        url = f"{transport}://127.0.0.1:{peer.port}"
        batches = BatchingConfig(enabled=batching)
        config = ClientConfig(base_url=url, timeout=60.0, retry=PATIENT, batching=batches)
        restarts = restart_midway(server, calls)
        if colour == "sync":
            calls.run(config)
        else:
            asyncio.run(calls.run_async(config))
        restarts.join(MAX_WAIT)
    if isinstance(lossy, LossyGrpc):
        lossy.close()
    took = time.monotonic() - started

    with CostOpsClient(base_url=server.url("http")) as client:
        organization = calls.record["organization_id"]
        held = [
            (record.idempotency_key, record.id) for record in client.usage.list(organization_id=organization)
        ]
        summary = client.costs.get(organization_id=organization)
    ledger = dict(held)
    unsure = len(ledger.keys() & calls.unsure)
    told = f"{transport}, {colour}, seed {seed}: {len(calls.acknowledged)} acknowledged, {len(ledger)} held"
    told += f" ({unsure} of {len(calls.unsure)} unsure), failed {dict(calls.failed)}, {took:.1f} s"
    print(f"{told}\n    faults {dict(lossy.faults)}")  # noqa: T201  # the figures are what it is about
    assert len(calls.made) == len(set(calls.made)) == CALLS
    if batching:
        # Fewer requests, which carry keys of their own beside those of their records.
        assert sum(lossy.faults.values()) - lossy.faults["none"] >= 10
    else:
        check_that_enough_went_wrong(lossy.faults, lossy.chances)
        assert lossy.keys <= set(calls.made), "a key on the wire that no call was given"
    assert len(held) == len(ledger) == summary.total_requests, "counted twice"
    assert summary.total_cost == Decimal("0.0025") * len(ledger)
    assert calls.acknowledged.items() <= ledger.items(), "acknowledged and lost"
    assert ledger.keys() - calls.acknowledged.keys() <= calls.unsure, "applied, and said not to be"


def check_that_enough_went_wrong(faults: Counter[str], chances: dict[str, int]) -> None:
    """A run with too few faults shows nothing."""
    assert sum(faults.values()) - faults["none"] >= 0.25 * CALLS
    assert all(faults[kind] >= CALLS / 400 for kind in chances), faults
