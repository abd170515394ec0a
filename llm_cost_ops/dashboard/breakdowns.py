"""The pages about a period: cost, tokens and requests, in total, over time and by group; and their CSV."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from llm_cost_ops._gen.messages import CostGroup, GetCostSummaryRequest
from llm_cost_ops._gen.methods import GET_COST_SUMMARY
from llm_cost_ops.dashboard.drawing import chart_data, colours_of
from llm_cost_ops.dashboard.exchange import Answer
from llm_cost_ops.dashboard.page import Page, csv_answer, csv_line
from llm_cost_ops.dashboard.report import Report, Series, read_averages, read_report

__all__ = ["costs_csv", "costs_page", "requests_page", "tokens_page"]

_MAX_ROWS = 100
_KINDS = {"Input, not cached": 0, "Input from cache": 6, "Output": 1}
# To split so many calls by meter takes a part of a second: each is priced anew, in about 15 µs.
_MAX_METERED = 10_000


class _Chart(NamedTuple):
    """A plot: its heading, its data for the script, and its series for the table beside it."""

    title: str
    data: str
    series: list[Series]
    colours: dict[str, int]
    kind: str
    unit: str


async def costs_page(page: Page) -> Answer:
    """What calls cost."""
    report = await read_report(page.view, page.now, page.caller)
    title = f"Cost per {report.interval}"
    charts = [_chart(report, title, report.series, "bars", report.currency)]
    return _render(page, "costs.html", "Cost", report, charts)


async def requests_page(page: Page) -> Answer:
    """How many calls there were, and what one cost."""
    report = await read_report(page.view, page.now, page.caller, "requests")
    if report.others:
        averages = await read_averages(page.view, page.now, page.caller)
    else:
        averages = [found.cost_per_request for found in report.buckets]
    points = [None if each is None else round(each, 12) for each in averages]
    single = [Series(name="Cost per request", value="", points=points)]
    charts = [
        _chart(report, f"Requests per {report.interval}", report.series, "bars", "requests"),
        _chart(report, "Cost per priced request", single, "line", report.currency),
    ]
    return _render(page, "requests.html", "Requests", report, charts)


async def tokens_page(page: Page) -> Answer:
    """How many tokens went in and out, what of them a cache had, and what each meter cost."""
    report = await read_report(page.view, page.now, page.caller, "tokens")
    kinds = [
        Series(name=name, value="", points=[Decimal(getattr(found, field)) for found in report.buckets])
        for name, field in (
            ("Input, not cached", "uncached_tokens"),
            ("Input from cache", "cached_tokens"),
            ("Output", "output_tokens"),
        )
    ]
    shares = [found.cache_share for found in report.buckets]
    hits = [None if each is None else round(each * 100, 2) for each in shares]
    charts = [
        _chart(report, f"Tokens per {report.interval}", kinds, "bars", "tokens", _KINDS),
        _chart(
            report,
            "Cache-hit share of input",
            [Series(name="Cache-hit share", value="", points=hits)],
            "line",
            "%",
        ),
    ]
    asked = page.request.param("meters") == "1"
    meters = await _meters(page, report) if asked or report.total.requests <= _MAX_METERED else None
    return _render(page, "tokens.html", "Tokens", report, charts, meters=meters)


async def costs_csv(page: Page) -> Answer:
    """The groups of a page, every one of them, or its buckets with `rows=time`."""
    metric = page.request.param("metric", "cost")
    metric = metric if metric in ("cost", "requests", "tokens") else "cost"
    report = await read_report(page.view, page.now, page.caller, metric)
    by = page.view.by
    columns = (
        "cost",
        "currency",
        "requests",
        "unpriced_requests",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
    )
    over_time = page.request.param("rows") == "time"
    lines = [csv_line(("start" if over_time else by, *columns))]
    rows = (
        zip(report.starts, report.buckets, strict=True)
        if over_time
        else ((g.value, g) for g in report.groups)
    )
    for name, found in rows:
        label = name if isinstance(name, str) else name.astimezone(page.view.zone).isoformat()
        cells = (
            found.requests,
            found.unpriced,
            found.input_tokens,
            found.cached_tokens,
            found.output_tokens,
        )
        lines.append(csv_line((label, found.cost, report.currency, *cells)))
    return csv_answer(f"{'over-time' if over_time else by}.csv", b"".join(lines))


async def _meters(page: Page, report: Report) -> list[CostGroup]:
    fields = page.view.filter_fields(report.span)
    request = GetCostSummaryRequest(**fields, group_by=["meter"], currency=page.view.currency)
    answer = await page.caller.call(GET_COST_SUMMARY, request)
    assert answer.data is not None
    return answer.data.breakdown


def _chart(
    report: Report,
    title: str,
    series: list[Series],
    kind: str,
    unit: str,
    colours: dict[str, int] | None = None,
) -> _Chart:
    if colours is None:
        dearest = sorted(report.groups, key=lambda group: (-group.cost, group.value))
        colours = colours_of([each.name for each in series], [group.value for group in dearest])
    data = chart_data(report.labels, series, colours, kind=kind, unit=unit)
    return _Chart(title, data, series, colours, kind, unit)


def _render(
    page: Page,
    template: str,
    title: str,
    report: Report,
    charts: list[_Chart],
    meters: list[CostGroup] | None = None,
) -> Answer:
    return page.render(
        template,
        title,
        report=report,
        charts=charts,
        colours=charts[0].colours,
        groups=report.groups[:_MAX_ROWS],
        hidden=max(0, len(report.groups) - _MAX_ROWS),
        meters=meters,
    )
