"""Tables of costs."""

from __future__ import annotations

import argparse
from datetime import timedelta
from decimal import Decimal

from llm_cost_ops._gen.codecs import COST_SUMMARY
from llm_cost_ops.cli.options import filters_of
from llm_cost_ops.cli.output import Bar, Cell, Column, Output, Table, form_of, money
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.rules.times import bucket_label, buckets_between, parse_start
from llm_cost_ops.types import CostSummary

__all__ = ["cost_bars", "cost_table", "is_elsewhere", "print_total", "show_costs"]

_INTERVALS = ("hour", "day", "week", "month")
_MAX_BARS = 1000


def cost_table(title: str, summary: CostSummary) -> Table:
    """A row a group, and the total below; bars show the share of the dearest group."""
    names = [key.dimension for key in summary.breakdown[0].keys] if summary.breakdown else ["group"]
    columns = [
        *(Column(name) for name in names),
        Column("requests", right=True),
        Column("tokens", right=True),
        Column(f"cost, {summary.currency}", right=True, key="cost"),
    ]
    footer: list[Cell] = ["total", *[""] * (len(names) - 1), summary.total_requests, summary.total_tokens]
    footer.append(summary.total_cost)
    unpriced = summary.unpriced_requests > 0
    if unpriced:
        columns.append(Column("unpriced", right=True, style="yellow"))
        footer.append(summary.unpriced_requests)
    table = Table(title=title, columns=columns, footer=footer)
    for group in summary.breakdown:
        row: list[Cell] = [key.value or "-" for key in group.keys]
        row += [group.requests, group.tokens, group.cost]
        table.rows.append([*row, *([group.unpriced_requests] if unpriced else [])])
    dearest = max((group.cost for group in summary.breakdown), default=Decimal(0))
    if summary.additive and dearest > 0:
        table.shares = [float(max(group.cost, Decimal(0)) / dearest) for group in summary.breakdown]
    return table


def cost_bars(summary: CostSummary, time_zone: str) -> list[Bar]:
    """A bar a group; where groups are times, hours or days without a call are there as well, with 0."""
    found = {", ".join(key.value or "-" for key in group.keys): group for group in summary.breakdown}
    keys = summary.breakdown[0].keys
    labels = list(found)
    if len(keys) == 1 and keys[0].dimension in _INTERVALS:
        labels = _without_gaps(labels, keys[0].dimension, time_zone)
    bars = []
    for label in labels:
        group = found.get(label)
        if group is None:
            bars.append(Bar(label, Decimal(0), money(Decimal(0))))
            continue
        count = group.unpriced_requests
        priced = count < group.requests or group.cost
        note = f"{_requests(count)} without a price" if count else ""
        bars.append(Bar(label, group.cost, money(group.cost) if priced else "no price", note))
    return bars


def _without_gaps(labels: list[str], interval: str, time_zone: str) -> list[str]:
    """The labels of every bucket from the first to the last; as they are where those would be too many."""
    day = "-01" if interval == "month" else ""
    try:
        start, end = (parse_start(label + day, time_zone) for label in (min(labels), max(labels)))
        buckets = buckets_between(
            start, end + timedelta(microseconds=1), interval, time_zone, limit=_MAX_BARS
        )
    except RpcError:
        return labels
    made = [bucket_label(bucket, interval, time_zone) for bucket in buckets]
    return made if set(labels) <= set(made) else labels


def print_total(output: Output, summary: CostSummary) -> None:
    """The total, and what it does not cover."""
    if is_elsewhere(summary):
        output.line(f"nothing has a cost in {summary.currency}; there is:")
    else:
        calls = f"{_requests(summary.total_requests)} and {summary.total_tokens:,} tokens"
        output.line((f"{money(summary.total_cost)} {summary.currency}", "bold"), f" for {calls}")
    if summary.unpriced_requests:
        has = "has" if summary.unpriced_requests == 1 else "have"
        count = _requests(summary.unpriced_requests)
        output.line(
            (f"{count} {has} no price: the total is a lower bound.", "yellow"),
            " Add one: llm-cost-ops prices add.",
        )
    if summary.reported_requests and not is_elsewhere(summary):
        of_them = f"{money(summary.reported_cost)} {summary.currency}"
        output.line(
            f"{of_them} of it is what providers reported, for {_requests(summary.reported_requests)}."
        )
    for other in summary.other_currencies:
        and_ = "    " if is_elsewhere(summary) else "and "
        output.line(f"{and_}{money(other.cost)} {other.currency} for {_requests(other.requests)}")
    if is_elsewhere(summary):
        output.line(f"Ask with --currency {summary.other_currencies[0].currency}.")


def is_elsewhere(summary: CostSummary) -> bool:
    """Whether there are calls, but all of them cost in other currencies than the one asked for."""
    return 0 < summary.total_requests <= sum(other.requests for other in summary.other_currencies)


def _requests(count: int) -> str:
    return f"{count:,} request{'s' * (count != 1)}"


def show_costs(options: argparse.Namespace) -> int:
    """The `costs` command."""
    with open_client(options) as client:
        summary = _asked(client, options)
    output = Output(form_of(options))
    if output.form == "json":
        output.json_text(COST_SUMMARY.encode_json(summary))
        return 0
    if options.plot:
        if summary.breakdown and not is_elsewhere(summary):
            output.bars(cost_bars(summary, options.time_zone))
    elif output.form == "csv" or (summary.breakdown and not is_elsewhere(summary)):
        output.table(cost_table("What it cost", summary))
    print_total(output, summary)
    return 0


def _asked(client: CostOpsClient, options: argparse.Namespace) -> CostSummary:
    return client.costs.get(
        **filters_of(options),
        group_by=[name.strip() for name in ",".join(options.group_by or ["provider,model"]).split(",")],
        currency=options.currency,
    )
