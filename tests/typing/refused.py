"""What a type checker must refuse, line by line, with this code. Not run: see test_typing.py."""

from __future__ import annotations

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient, RetryConfig, UsageRecord


def sync(client: CostOpsClient, record: UsageRecord) -> None:
    client.usage.submit(record, input_tokens="many")  # refused: arg-type
    client.usage.submit(organisation_id="o", provider="p", model_id="m")  # refused: call-arg
    client.usage.submit_batch(record)  # refused: arg-type
    client.pricing.create(provider="p", model_id="m", input_price_per_1k=0.002)  # refused: arg-type
    client.costs.total()  # refused: attr-defined
    total: float = client.costs.get().total_cost  # refused: assignment
    record.input_tokens = "many"  # refused: assignment
    RetryConfig(3)  # refused: call-arg
    RetryConfig(max_retries="3")  # refused: arg-type
    del total


async def asynchronous(client: AsyncCostOpsClient) -> None:
    summary = client.costs.get()
    _ = summary.total_cost  # refused: attr-defined
