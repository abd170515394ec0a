"""What the service is asked for a period, and the groups and series that come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from operator import attrgetter

import msgspec
from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    Analytics,
    CostGroup,
    CostSummary,
    CurrencyTotal,
    GetAnalyticsRequest,
    GetCostSummaryRequest,
    Interval,
    MetricValues,
)
from llm_cost_ops._gen.methods import GET_ANALYTICS, GET_COST_SUMMARY
from llm_cost_ops.dashboard.caller import Caller
from llm_cost_ops.dashboard.figures import change, ratio
from llm_cost_ops.dashboard.view import FILTERS, Span, View
from llm_cost_ops.rules.times import buckets_between

__all__ = ["OTHERS", "Figures", "Group", "Report", "Series", "read_averages", "read_report"]

OTHERS = "All others"

# Series that a reader can tell apart by their colours; what is left is one more.
MAX_SERIES = 7
# With more groups the series of the largest alone are read: all would be a sum for each group and bucket.
_MAX_GROUPS_IN_SERIES = 60

_METRICS = [
    "total_cost",
    "total_requests",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "unpriced_requests",
    "average_cost_per_request",
]
_ZERO = Decimal(0)


class Figures(msgspec.Struct, kw_only=True):
    """Sums of calls. `cost` is that of the priced ones, in the currency of the view.

    `elsewhere` counts those that have a cost in another currency, where that is known.
    """

    cost: Decimal = _ZERO
    requests: int = 0
    unpriced: int = 0
    elsewhere: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens

    @property
    def uncached_tokens(self) -> int:
        """Input that no cache had."""
        return self.input_tokens - self.cached_tokens

    @property
    def cost_per_request(self) -> Decimal | None:
        """Cost of a call that has one in the currency of the view."""
        return ratio(self.cost, self.requests - self.unpriced - self.elsewhere)

    @property
    def tokens_per_request(self) -> Decimal | None:
        """Tokens of a call."""
        return ratio(self.tokens, self.requests)

    @property
    def cache_share(self) -> Decimal | None:
        """Which part of the input a cache had."""
        return ratio(self.cached_tokens, self.input_tokens)

    @property
    def unpriced_share(self) -> Decimal | None:
        """Which part of the calls has no price."""
        return ratio(self.unpriced, self.requests)


class Group(Figures, kw_only=True):
    """The calls with one value in what is grouped by; `value` is "" where they have none.

    `trend` has what the page is about for each bucket, None where it was not read. `before` is the same
    figure in the period before, None where it was not read: a sum over users is the dearest there is.
    """

    value: str
    trend: list[Decimal] | None = None
    before: Decimal | None = None


class Series(msgspec.Struct, kw_only=True):
    """A value for each bucket, or None where there is none. `value` is that of the group."""

    name: str
    value: str
    points: Sequence[Decimal | None]


class Report(msgspec.Struct, kw_only=True):
    """A period: its total, that of the period before, its groups, and its buckets by name and start.

    `others` are costs in other currencies, `reported` the part of the total that providers stated.
    `additive` is False where a call is in several groups.
    """

    span: Span
    interval: str
    currency: str
    total: Figures
    before: Figures
    groups: list[Group]
    others: list[CurrencyTotal]
    reported: Decimal
    additive: bool
    labels: list[str]
    starts: list[datetime]
    buckets: list[Figures]
    series: list[Series]

    @property
    def cost_change(self) -> Decimal | None:
        """How the cost has changed, as a part of that before."""
        return change(self.total.cost, self.before.cost)

    @property
    def requests_change(self) -> Decimal | None:
        """How the number of calls has changed, as a part of that before."""
        return change(self.total.requests, self.before.requests)


async def read_report(view: View, now: datetime, caller: Caller, metric: str = "cost") -> Report:
    """Ask the service for all that a page about `metric` shows: an attribute of Figures."""
    span = view.span(now)
    interval = view.interval_of(span)
    read = await _read(view, span, interval, caller)
    groups = sorted(read.groups, key=lambda group: (-_value(group, metric), group.value))
    # Of many groups no filter lets only those through that have no value.
    top = [group.value for group in groups if _value(group, metric) and (read.whole or group.value)]
    del top[MAX_SERIES:]
    if read.parts is None:
        read.parts = _by_group(await _analytics(view, span, interval, [view.by], top, caller), read.starts)
    nothing = [Figures()] * len(read.starts)
    trends = {
        group.value: [_value(found, metric) for found in read.parts.get(group.value, nothing)]
        for group in groups
        if read.whole or group.value in top
    }
    before = {found.value: found for found in map(_group, read.earlier.breakdown)}
    for group in groups:
        group.trend = trends.get(group.value)
        if read.compared:
            group.before = _value(before.get(group.value, Figures()), metric)
    totals = [_value(found, metric) for found in read.buckets]
    earlier = read.earlier
    return Report(
        span=span,
        interval=interval,
        currency=read.summary.currency,
        total=replace(_added(read.buckets), cost=read.summary.total_cost, elsewhere=_elsewhere(read.summary)),
        before=Figures(
            cost=earlier.total_cost,
            requests=earlier.total_requests,
            unpriced=earlier.unpriced_requests,
            elsewhere=_elsewhere(earlier),
        ),
        groups=groups,
        others=read.summary.other_currencies,
        reported=read.summary.reported_cost,
        additive=view.by != "tag",
        labels=[_label(start, interval, view, years=span.start.year != now.year) for start in read.starts],
        starts=read.starts,
        buckets=read.buckets,
        series=_series(top, trends, totals, additive=view.by != "tag"),
    )


async def read_averages(view: View, now: datetime, caller: Caller) -> list[Decimal | None]:
    """What a call cost in each bucket, of those that have a cost in the currency of the view."""
    span = view.span(now)
    series = await _analytics(view, span, view.interval_of(span), [], (), caller)
    found = [point.metrics for point in series.time_series]
    return [None if metrics is None else metrics.average_cost_per_request for metrics in found]


class _Read(msgspec.Struct, kw_only=True):
    """What was read of a period. `parts` are the buckets by group, None where they are not read yet.

    `whole` says that they are, or will be, those of every group; `compared` that `earlier` has groups.
    """

    summary: CostSummary
    earlier: CostSummary
    groups: list[Group]
    starts: list[datetime]
    buckets: list[Figures]
    parts: dict[str, list[Figures]] | None
    whole: bool
    compared: bool


async def _read(view: View, span: Span, interval: str, caller: Caller) -> _Read:
    """Ask no more than is needed: a sum over a rollup costs some milliseconds, one over records seconds."""
    if view.by == "tag":
        # Nothing adds tags up in advance: their records are read once, and the groups are made of it.
        return await _read_tags(view, span, interval, caller)
    compared = view.by != "user"
    summary, earlier = await asyncio.gather(
        _summary(view, span, [view.by], caller),
        _summary(view, span.before(), [view.by] if compared else [], caller),
    )
    groups = [_group(found) for found in summary.breakdown]
    whole = len(groups) <= _MAX_GROUPS_IN_SERIES
    series = await _analytics(view, span, interval, [view.by] if whole else [], (), caller)
    if whole:
        starts = [start for start, _ in buckets_between(span.start, span.end, interval, view.time_zone)]
        parts = _by_group(series, starts)
        buckets = [_added(found) for found in zip(*parts.values(), strict=True)] or [
            Figures() for _ in starts
        ]
    else:
        starts, buckets, parts = *_buckets(series), None
    return _Read(
        summary=summary,
        earlier=earlier,
        groups=groups,
        starts=starts,
        buckets=buckets,
        parts=parts,
        whole=whole,
        compared=compared,
    )


async def _read_tags(view: View, span: Span, interval: str, caller: Caller) -> _Read:
    summary, earlier, total, tagged = await asyncio.gather(
        _summary(view, span, [], caller),
        _summary(view, span.before(), [], caller),
        _analytics(view, span, interval, [], (), caller),
        _analytics(view, span, interval, ["tag"], (), caller),
    )
    starts, buckets = _buckets(total)
    parts = _by_group(tagged, starts)
    if summary.other_currencies:
        # The series does not say how many calls have a cost in another currency.
        by_tag = await _summary(view, span, ["tag"], caller)
        groups = [_group(found) for found in by_tag.breakdown]
    else:
        groups = [Group(value=tag, **msgspec.structs.asdict(_added(found))) for tag, found in parts.items()]
    return _Read(
        summary=summary,
        earlier=earlier,
        groups=groups,
        starts=starts,
        buckets=buckets,
        parts=parts,
        whole=True,
        compared=False,
    )


def _buckets(series: Analytics) -> tuple[list[datetime], list[Figures]]:
    points = series.time_series
    starts = [point.timestamp for point in points if point.timestamp is not None]
    return starts, [_figures(point.metrics) for point in points]


def _series(
    top: Sequence[str], trends: dict[str, list[Decimal]], totals: Sequence[Decimal], *, additive: bool
) -> list[Series]:
    """The series of the largest groups, and what is left of the total."""
    nothing = [_ZERO] * len(totals)
    series = [Series(name=value, value=value, points=trends.get(value, nothing)) for value in top]
    if additive:
        left = list(totals)
        for each in series:
            left = [total - (part or _ZERO) for total, part in zip(left, each.points, strict=True)]
        if any(left):
            series.append(Series(name=OTHERS, value="", points=left))
    return series


async def _summary(view: View, span: Span, group_by: list[str], caller: Caller) -> CostSummary:
    request = GetCostSummaryRequest(**view.filter_fields(span), group_by=group_by, currency=view.currency)
    answer = await caller.call(GET_COST_SUMMARY, request)
    assert answer.data is not None
    return answer.data


async def _analytics(
    view: View, span: Span, interval: str, group_by: list[str], only: Sequence[str], caller: Caller
) -> Analytics:
    """A series; `only` are the values of what is grouped by that are asked for."""
    fields = view.filter_fields(span)
    if only:
        fields[FILTERS[group_by[0]]] = list(only)
    request = GetAnalyticsRequest(
        **fields, interval=Interval(interval), metrics=_METRICS, group_by=group_by, currency=view.currency
    )
    answer = await caller.call(GET_ANALYTICS, request)
    assert answer.data is not None
    return answer.data


def _value(figures: Figures, metric: str) -> Decimal:
    return Decimal(attrgetter(metric)(figures))


def _group(found: CostGroup) -> Group:
    return Group(
        value=found.keys[-1].value,
        cost=found.cost,
        requests=found.requests,
        unpriced=found.unpriced_requests,
        elsewhere=_elsewhere(found),
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        cached_tokens=found.cached_tokens,
    )


def _elsewhere(found: CostSummary | CostGroup) -> int:
    return sum(other.requests for other in found.other_currencies)


def _figures(found: MetricValues | None) -> Figures:
    assert found is not None
    return Figures(
        cost=found.total_cost or _ZERO,
        requests=found.total_requests or 0,
        unpriced=found.unpriced_requests or 0,
        input_tokens=found.input_tokens or 0,
        output_tokens=found.output_tokens or 0,
        cached_tokens=found.cached_tokens or 0,
    )


def _added(several: Iterable[Figures]) -> Figures:
    total = Figures()
    for each in several:
        for name in Figures.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(each, name))
    return total


def _by_group(series: Analytics, starts: Sequence[datetime]) -> dict[str, list[Figures]]:
    """The buckets of each group, those without calls included."""
    places = {start: place for place, start in enumerate(starts)}
    parts: dict[str, list[Figures]] = {}
    for point in series.time_series:
        assert point.timestamp is not None
        found = parts.setdefault(point.group[-1].value, [Figures() for _ in starts])
        found[places[point.timestamp]] = _figures(point.metrics)
    return parts


def _label(start: datetime, interval: str, view: View, *, years: bool) -> str:
    local = start.astimezone(view.zone)
    if interval == "hour":
        return f"{local:%-d %b %H:%M}"
    return f"{local:%b %Y}" if interval == "month" else f"{local:%-d %b %Y}" if years else f"{local:%-d %b}"
