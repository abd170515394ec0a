"""The gRPC server is ended and started again under load: what was acknowledged counts, and counts once."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, CostOpsError, RetryConfig
from llm_cost_ops.rpc.context import uuid7
from tests.served import Restarted
from tests.waiting import MAX_WAIT, until


class Load:
    """Callers that submit one record after another until they are told to stop."""

    def __init__(self, config: ClientConfig) -> None:
        self.record = {"organization_id": f"org-{uuid7()}", "provider": "openai", "model_id": "gpt-4o"}
        self.acknowledged: list[str] = []
        self.failed: list[CostOpsError] = []
        self.stop = threading.Event()
        self._config = config

    def run(self, colour: str) -> None:
        if colour == "async":
            asyncio.run(self._run_async())
            return
        with CostOpsClient(config=self._config) as client:
            threads = [threading.Thread(target=self._call, args=(client,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _call(self, client: CostOpsClient) -> None:
        while not self.stop.is_set():
            try:
                self.acknowledged.append(client.usage.submit(**self.record).usage_id)
            except CostOpsError as error:
                self.failed.append(error)

    async def _run_async(self) -> None:
        async with AsyncCostOpsClient(config=self._config) as client:
            await asyncio.gather(*(self._call_async(client) for _ in range(8)))

    def wait_for(self, more: int) -> None:
        """Wait until so many more records were acknowledged, or a call failed."""
        wanted = len(self.acknowledged) + more
        until(lambda: len(self.acknowledged) >= wanted or self.failed)

    async def _call_async(self, client: AsyncCostOpsClient) -> None:
        while not self.stop.is_set():
            try:
                self.acknowledged.append((await client.usage.submit(**self.record)).usage_id)
            except CostOpsError as error:
                self.failed.append(error)


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_restarts(tmp_path: Path, colour: str, number: signal.Signals) -> None:
    server = Restarted(tmp_path)
    config = ClientConfig(
        base_url=server.url("grpc"),
        timeout=2 * MAX_WAIT,
        retry=RetryConfig(max_retries=200, initial_backoff=0.2, max_backoff=0.5, budget=1000),
    )
    load = Load(config)
    loader = threading.Thread(target=load.run, args=(colour,))
    loader.start()
    try:
        for _ in range(3):
            load.wait_for(20)
            server.kill(number)
            server.start()
        load.wait_for(20)
    finally:
        load.stop.set()
        loader.join(MAX_WAIT)
    try:
        with CostOpsClient(config=config) as client:
            total = client.costs.get(organization_id=load.record["organization_id"]).total_requests
        figures = f"{len(load.acknowledged)} acknowledged, {total} counted, {len(load.failed)} failed"
        print(f"{colour}, {number.name}: {figures}")  # noqa: T201  # the figures are what it is about
        assert load.failed == []
        assert len(set(load.acknowledged)) == len(load.acknowledged) == total > 50
    finally:
        server.kill()
