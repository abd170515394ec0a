"""Answers what usage cost."""

from __future__ import annotations

from llm_cost_ops._gen.messages import (
    CostGroup,
    CostSummary,
    GetCostSummaryRequest,
    GetCostSummaryResponse,
)
from llm_cost_ops.engine.windows import bucket_label, buckets_between
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.service.listing import filter_of, meta_of
from llm_cost_ops.service.summing import Total, dimensions_of, key_list, other_currencies
from llm_cost_ops.stores import Store

__all__ = ["CostService"]


class CostService:
    """Sums exactly, in total and by group."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get_cost_summary(
        self, request: GetCostSummaryRequest, context: CallContext
    ) -> GetCostSummaryResponse:
        """Sum a period."""
        dimensions, time = dimensions_of(request.group_by, allow_time=True)
        where = filter_of(request)
        currency = request.currency or "USD"
        additive = "tag" not in dimensions
        buckets = None
        if time:
            span = await self._store.span(where, context)
            buckets = buckets_between(*span, time, request.time_zone) if span else []
        rows = await self._store.summarize(where, tuple(dimensions), buckets, context)
        # Groups by tag count a record once per tag, so their rows do not make the total.
        plain = rows if additive else await self._store.summarize(where, (), None, context)
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
                additive=additive,
                unpriced_requests=total.unpriced_requests,
                other_currencies=other_currencies((sums for _, _, sums in plain), currency),
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
