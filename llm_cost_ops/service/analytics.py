"""Answers how usage and cost move over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_cost_ops._gen.messages import (
    Analytics,
    AnalyticsSummary,
    GetAnalyticsRequest,
    GetAnalyticsResponse,
    Interval,
    MetricValues,
    ResponseMeta,
    TimeSeriesPoint,
)
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.times import buckets_between
from llm_cost_ops.service.pages import filter_of
from llm_cost_ops.service.sums import Total, average, currency_of, dimensions_of, key_list, summed
from llm_cost_ops.wire.validation import no_member

__all__ = ["AnalyticsService"]

_METRICS: dict[str, Callable[[Total], Any]] = {
    "total_cost": lambda total: total.cost,
    "total_tokens": lambda total: total.tokens,
    "total_requests": lambda total: total.requests,
    "input_tokens": lambda total: total.input_tokens,
    "output_tokens": lambda total: total.output_tokens,
    "cached_tokens": lambda total: total.cached_tokens,
    "unpriced_requests": lambda total: total.unpriced_requests,
    "average_cost_per_request": lambda total: total.average_cost,
    "average_tokens_per_request": lambda total: average(total.tokens, total.requests),
}
_DEFAULT_METRICS = ["total_cost", "total_tokens", "total_requests"]


class AnalyticsService:
    """Measures buckets of time, and the whole period."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def get_analytics(self, request: GetAnalyticsRequest, context: CallContext) -> GetAnalyticsResponse:
        """Give a series; without group_by every bucket is in it, used or not."""
        metrics = request.metrics or _DEFAULT_METRICS
        for name in metrics:
            if name not in _METRICS:
                raise invalid_argument("metrics", f"must be one of {', '.join(_METRICS)}, not {name!r}")
        dimensions, _ = dimensions_of(request.group_by, allow_time=False)
        where = filter_of(request)
        assert where.start is not None
        end = where.end or context.now()
        interval = Interval.DAY if request.interval == Interval.UNSPECIFIED else request.interval
        if interval not in (Interval.HOUR, Interval.DAY, Interval.WEEK, Interval.MONTH):
            raise invalid_argument("interval", no_member(interval.value, Interval))
        currency = currency_of(request.currency)
        buckets = buckets_between(where.start, end, interval.value, request.time_zone)
        rows, plain = await summed(self._ledger, where, dimensions, buckets, context)
        total = Total()
        for _, _, sums in plain:
            total.add(sums, currency)
        points: dict[tuple[int, tuple[str, ...]], Total] = {}
        if not dimensions:
            points = {(index, ()): Total() for index in range(len(buckets))}
        for keys, bucket, sums in rows:
            points.setdefault((bucket, keys), Total()).add(sums, currency)
        series = [
            TimeSeriesPoint(
                timestamp=buckets[bucket][0],
                metrics=MetricValues(**{name: _METRICS[name](point) for name in metrics}),
                group=key_list(dimensions, keys),
            )
            for (bucket, keys), point in sorted(points.items())
        ]
        return GetAnalyticsResponse(
            data=Analytics(
                time_series=series,
                summary=_summary(total, currency),
                interval=interval,
                period_start=where.start,
                period_end=end,
            ),
            meta=ResponseMeta(request_id=context.request_id),
        )


def _summary(total: Total, currency: str) -> AnalyticsSummary:
    return AnalyticsSummary(
        total_cost=total.cost,
        total_tokens=total.tokens,
        total_requests=total.requests,
        average_cost_per_request=total.average_cost,
        average_tokens_per_request=_METRICS["average_tokens_per_request"](total),
        unpriced_requests=total.unpriced_requests,
        currency=currency,
    )
