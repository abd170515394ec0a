"""Answers what usage cost."""

from __future__ import annotations

import copy
from datetime import UTC, datetime

from llm_cost_ops._gen.messages import (
    CostGroup,
    CostSummary,
    EstimateCostRequest,
    EstimateCostResponse,
    GetCostRequest,
    GetCostResponse,
    GetCostSummaryRequest,
    GetCostSummaryResponse,
    RepriceUsageRequest,
    RepriceUsageResponse,
    VerifyCostRequest,
    VerifyCostResponse,
)
from llm_cost_ops.engine.money import to_units
from llm_cost_ops.engine.windows import bucket_label, buckets_between
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.service.listing import filter_of, meta_of
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.service.receipts import verify
from llm_cost_ops.service.repricing import reprice
from llm_cost_ops.service.summing import (
    Total,
    currency_of,
    dimensions_of,
    fraction,
    key_list,
    other_currencies,
    summed,
)
from llm_cost_ops.service.usage import check_dearest, in_utc
from llm_cost_ops.stores import Store

__all__ = ["CostService"]


class CostService:
    """Sums exactly, in total and by group; gives, checks and estimates single costs; prices again."""

    def __init__(self, store: Store, prices: Prices) -> None:
        self._store = store
        self._prices = prices

    async def get_cost(self, request: GetCostRequest, context: CallContext) -> GetCostResponse:
        """Give the cost in force of one record, with its lines where they can be made again."""
        found = await verify(self._store, request.usage_id, context)
        return GetCostResponse(data=found.recorded, meta=meta_of(context))

    async def verify_cost(self, request: VerifyCostRequest, context: CallContext) -> VerifyCostResponse:
        """Calculate a recorded cost again, and compare."""
        found = await verify(self._store, request.usage_id, context)
        return VerifyCostResponse(data=found, meta=meta_of(context))

    async def estimate_cost(self, request: EstimateCostRequest, context: CallContext) -> EstimateCostResponse:
        """Price a call that was not made."""
        assert request.usage is not None
        now = datetime.fromtimestamp(context.runtime.now(), UTC)
        book = await self._prices.refresh(context)
        record = copy.copy(request.usage)
        record.timestamp = now if record.timestamp is None else in_utc(record.timestamp)
        cost = book.cost(record)
        if cost.total_cost is not None:
            check_dearest(to_units(cost.total_cost), cost.currency)
        cost.usage_id = ""
        cost.calculated_at = now
        return EstimateCostResponse(data=cost, meta=meta_of(context))

    async def reprice_usage(self, request: RepriceUsageRequest, context: CallContext) -> RepriceUsageResponse:
        """Price recorded usage again."""
        report = await reprice(self._store, self._prices, request, context)
        return RepriceUsageResponse(data=report, meta=meta_of(context))

    async def get_cost_summary(
        self, request: GetCostSummaryRequest, context: CallContext
    ) -> GetCostSummaryResponse:
        """Sum a period."""
        dimensions, time = dimensions_of(request.group_by, allow_time=True)
        where = filter_of(request)
        currency = currency_of(request.currency)
        buckets = None
        if time:
            span = await self._store.span(where, context)
            buckets = buckets_between(*span, time, request.time_zone) if span else []
        rows, plain = await summed(self._store, where, dimensions, buckets, context)
        total = Total()
        for _, _, sums in plain:
            total.add(sums, currency)
        groups: dict[tuple[str, ...], Total] = {}
        for keys, bucket, sums in rows if dimensions or time else ():
            label = (bucket_label(buckets[bucket], time, request.time_zone),) if buckets else ()
            groups.setdefault((*label, *keys), Total()).add(sums, currency)
        return GetCostSummaryResponse(
            data=CostSummary(
                total_cost=total.cost,
                currency=currency,
                total_tokens=total.tokens,
                total_requests=total.requests,
                period_start=where.start,
                period_end=where.end,
                breakdown=_breakdown(groups, [time] * bool(time) + dimensions, by_time=bool(time)),
                # A record counts once under each of its tags.
                additive="tag" not in dimensions,
                unpriced_requests=total.unpriced_requests,
                other_currencies=other_currencies((sums for _, _, sums in plain), currency),
                priced_fraction=fraction(total.requests - total.unpriced_requests, total.requests),
            ),
            meta=meta_of(context),
        )


def _breakdown(
    groups: dict[tuple[str, ...], Total], dimensions: list[str], *, by_time: bool
) -> list[CostGroup]:
    """The groups by time where there is time in them, and the dearest first."""
    ordered = sorted(
        groups.items(), key=lambda item: (item[0][0] if by_time else "", -item[1].units, item[0])
    )
    return [
        CostGroup(
            dimension=",".join(dimensions),
            value=",".join(values),
            cost=total.cost,
            tokens=total.tokens,
            requests=total.requests,
            keys=key_list(dimensions, values),
            input_tokens=total.input_tokens,
            output_tokens=total.output_tokens,
            cached_tokens=total.cached_tokens,
            unpriced_requests=total.unpriced_requests,
        )
        for values, total in ordered
    ]
