"""What a type checker must accept, and the types that it must see. Not run: see test_typing.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, assert_type

import httpx

from llm_cost_ops import (
    AsyncCostOpsClient,
    ClientConfig,
    CostOpsClient,
    RetryConfig,
    UsageRecord,
    usage_from_response,
)
from llm_cost_ops.exceptions import APIError, CostOpsError, RateLimitError, ValidationError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.pager import Pager
from llm_cost_ops.rpc.raw import RawResponse
from llm_cost_ops.types import (
    Analytics,
    BatchReceipt,
    CostStatus,
    CostSummary,
    GetHealthResponse,
    Interval,
    ListPricesResponse,
    ListUsageResponse,
    RateCard,
    SubmitStatus,
    UsageReceipt,
)


def sync(client: CostOpsClient) -> None:
    receipt = client.usage.submit(
        organization_id="org-123",
        provider="openai",
        model_id="gpt-4o",
        input_tokens=1000,
        output_tokens=500,
        timestamp=datetime.now(UTC),
        metadata={"feature": "search"},
        tags=["a"],
        reported_cost="0.01",
        timeout=1.5,
    )
    client.usage.submit(organization_id="org-123", timestamp="2026-01-01")
    client.usage.submit(organization_id="org-123", timestamp=date(2026, 1, 1))
    assert_type(receipt, UsageReceipt)
    assert_type(receipt.estimated_cost, Decimal | None)
    assert_type(receipt.cost_status, CostStatus)
    assert_type(receipt.processed_at, datetime | None)
    record = UsageRecord(organization_id="org-123", provider="openai", model_id="gpt-4o")
    assert_type(client.usage.submit(record), UsageReceipt)
    batch = client.usage.submit_batch([record])
    assert_type(batch, BatchReceipt)
    assert_type(batch.results[0].status, SubmitStatus)
    history = client.usage.get_history(organization_id="org-123", page_size=10)
    assert_type(history, Pager[ListUsageResponse, UsageRecord])
    assert_type(history.data, list[UsageRecord])
    assert_type([record.model_id for record in client.usage.list(retry=None)], list[str])
    assert_type(next(history.pages()), ListUsageResponse)
    summary = client.costs.get(
        start_date=date(2026, 1, 1), end_date="2026-01-31", group_by=["provider", "day"]
    )
    assert_type(summary, CostSummary)
    assert_type(summary.breakdown[0].cost, Decimal)
    assert_type(client.analytics.get(start_date="2026-01-01", interval="day"), Analytics)
    assert_type(client.analytics.get(start_date="2026-01-01", interval=Interval.DAY), Analytics)
    card = client.pricing.create(provider="acme", model_id="acme-1", input_price_per_1k=Decimal("0.002"))
    assert_type(card, RateCard)
    assert_type(client.pricing.get("id"), RateCard)
    assert_type(client.pricing.list(provider="acme"), Pager[ListPricesResponse, RateCard])


def recorded(client: CostOpsClient, response: dict[str, object], when: str) -> None:
    client.usage.record(organization_id="o", provider="p", model_id="m", input_tokens=1, tags="a")
    record = usage_from_response(response, provider="openai", organization_id="o", timestamp=when)
    assert_type(record, UsageRecord)
    client.usage.record(record, user_id="u")
    client.usage.list(sort="ingested_at", order="asc")
    client.costs.get(group_by="label:team")
    client.analytics.get(
        start_date=when, metrics=["total_cost", "total_tokens"], group_by=["user", "label:a"]
    )


def raw(client: CostOpsClient) -> None:
    answer = client.with_raw_response.usage.submit(organization_id="o", model_id="m", input_tokens=1)
    assert_type(answer, RawResponse[UsageReceipt])
    assert_type(answer.parsed.estimated_cost, Decimal | None)
    assert_type(client.with_raw_response.usage.list(page_size=1), RawResponse[ListUsageResponse])
    assert_type(client.with_raw_response.health(timeout=1), RawResponse[GetHealthResponse])
    assert_type(client.health(), GetHealthResponse)


async def raw_asynchronous(client: AsyncCostOpsClient) -> None:
    raw = client.with_raw_response
    assert_type(await raw.costs.get(group_by="provider"), RawResponse[CostSummary])
    assert_type(await raw.usage.get_history(), RawResponse[ListUsageResponse])
    assert_type(await raw.with_options(timeout=1).pricing.get("id"), RawResponse[RateCard])


class Stamp:
    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        context.metadata.set("x-team", "search")
        return await continuation(request, context)


class OnlyStreams:
    def intercept_stream_stream(
        self, continuation: StreamContinuation[Any, Any], requests: AsyncIterable[Any], context: CallContext
    ) -> AsyncGenerator[Any, None]:
        return continuation(requests, context)


async def a_key() -> str:
    return "k"


def made(sync: httpx.Client, asynchronous: httpx.AsyncClient) -> None:
    CostOpsClient(interceptors=[Stamp(), OnlyStreams()], timeout=None, http_client=sync)
    AsyncCostOpsClient(interceptors=[Stamp()], http_client=asynchronous, api_key=a_key)
    CostOpsClient(api_key=lambda: "k", base_url="http://localhost").with_options(api_key="k", timeout=None)


async def asynchronous() -> None:
    async with AsyncCostOpsClient(config=ClientConfig(retry=RetryConfig(max_retries=1))) as client:
        assert_type(await client.costs.get(group_by="provider"), CostSummary)
        receipt = await client.usage.submit(organization_id="o", provider="p", model_id="m", input_tokens=1)
        assert_type(receipt, UsageReceipt)
        page = await client.usage.list(retry=RetryConfig(max_retries=9))
        assert_type(page.page, ListUsageResponse)
        async for record in client.usage.list(headers={"x-team": "a"}):
            assert_type(record, UsageRecord)


def errors(error: CostOpsError) -> None:
    if isinstance(error, RateLimitError):
        assert_type(error.retry_after, float | None)
    if isinstance(error, ValidationError):
        assert_type(error.errors, dict[str, list[str]])
    caught: APIError = RateLimitError("slow down")
    assert_type(caught.status_code, int | None)
