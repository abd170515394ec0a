"""What a type checker must refuse, line by line, with mypy's code for it. Not run: see test_typing.py."""

from __future__ import annotations

from collections.abc import Mapping

from llm_cost_ops import (
    AsyncCostOpsClient,
    ClientConfig,
    CostOpsClient,
    RetryConfig,
    UsageRecord,
    usage_from_response,
)


def sync(client: CostOpsClient, record: UsageRecord) -> None:
    client.usage.submit(record, input_tokens="many")  # refused: arg-type
    client.usage.submit(organisation_id="o", provider="p", model_id="m")  # refused: call-arg
    client.usage.submit_batch(record)  # refused: arg-type
    client.usage.record(provider="p", modell_id="m")  # refused: call-arg
    client.usage.record(provider="p", input_tokens="many")  # refused: arg-type
    client.usage.list(sort="newest")  # refused: arg-type
    client.usage.list(order="down")  # refused: arg-type
    client.usage.list(timeout="5")  # refused: arg-type
    client.pricing.create(provider="p", model_id="m", input_price_per_1k=0.002)  # refused: arg-type
    client.pricing.create(provider="p")  # refused: call-arg
    client.costs.total()  # refused: attr-defined
    client.costs.get(group_by=5)  # refused: arg-type
    client.analytics.get("2026-01-01", interval="fortnight")  # refused: arg-type
    client.analytics.get("2026-01-01", metrics=["cost"])  # refused: list-item
    client.analytics.get(interval="day")  # refused: call-arg
    total: float = client.costs.get().total_cost  # refused: assignment
    record.input_tokens = "many"  # refused: assignment
    del total


def misspelt() -> None:
    from llm_cost_ops import CostOpsClinet  # refused: attr-defined
    from llm_cost_ops.server import asgi_apps  # refused: attr-defined
    from llm_cost_ops.testing import Faults  # refused: attr-defined

    del CostOpsClinet, asgi_apps, Faults


def raw(client: CostOpsClient) -> None:
    answer = client.with_raw_response.usage.submit(organization_id="o", model_id="m")
    _ = answer.usage_id  # refused: attr-defined
    client.with_raw_response.usage.submit(organization="o")  # refused: call-arg
    status: str = answer.status  # refused: assignment
    del status


def configuration(response: Mapping[str, object]) -> None:
    RetryConfig(3)  # refused: call-arg
    RetryConfig(max_retries="3")  # refused: arg-type
    ClientConfig(api_key=lambda: 5)  # refused: arg-type,return-value
    ClientConfig(base_uri="sqlite://")  # refused: call-arg
    CostOpsClient(api_key=5)  # refused: arg-type
    CostOpsClient(timeout="5")  # refused: arg-type
    usage_from_response(response, organisation_id="o")  # refused: call-arg
    usage_from_response(response, input_tokens="many")  # refused: arg-type


async def asynchronous(client: AsyncCostOpsClient) -> None:
    summary = client.costs.get()
    _ = summary.total_cost  # refused: attr-defined
    await client.usage.submit(model="m")  # refused: call-arg
    answer = await client.with_raw_response.costs.get()
    _ = answer.parsed.totalcost  # refused: attr-defined
