"""In which context the batch runs that tasks' submits leave in: what traces is told by it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from llm_cost_ops import AsyncCostOpsClient, BatchingConfig, ClientConfig
from llm_cost_ops._gen.messages import (
    BatchSubmitUsageResponse,
    SubmitResult,
    SubmitStatus,
    SubmitUsageResponse,
    UsageReceipt,
)
from llm_cost_ops.rules.batches import counted

WHOSE = ContextVar("whose", default="")


class Service:
    """Notes in whose context it is called, and sets another there; answers the first call at `gate`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[tuple[str, int]] = []

    async def unary_unary(self, request: Any, context: Any) -> Any:
        batch = context.method.name == "BatchSubmitUsage"
        self.seen.append((WHOSE.get(), len(request.records) if batch else 1))
        WHOSE.set("the service's")
        await self.gate.wait()
        if not batch:
            return SubmitUsageResponse(data=UsageReceipt())
        made = SubmitResult(status=SubmitStatus.CREATED, usage=UsageReceipt())
        return BatchSubmitUsageResponse(data=counted([made] * len(request.records)))

    async def aclose(self) -> None:
        """Nothing to close."""


async def test_a_batch_runs_in_a_copy_of_the_context_of_its_first_caller() -> None:
    service = Service()
    config = ClientConfig(base_url="http://test", batching=BatchingConfig(max_in_flight=1))
    async with AsyncCostOpsClient(config=config, transport=service) as client:

        async def call(name: str) -> str:
            WHOSE.set(name)
            await client.usage.submit(organization_id="acme", provider="openai", model_id="gpt-4o")
            return WHOSE.get()

        tasks = [asyncio.create_task(call(name)) for name in "abc"]
        await asyncio.sleep(0)  # all three are where they wait
        service.gate.set()
        assert await asyncio.gather(*tasks) == ["the service's", "b", "c"], "the first went alone"
    assert service.seen == [("a", 1), ("b", 2)]
