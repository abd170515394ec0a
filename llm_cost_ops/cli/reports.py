"""Tables of costs."""

from __future__ import annotations

import argparse
import sys
from decimal import Decimal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_cost_ops._gen.codecs import COST_SUMMARY
from llm_cost_ops.cli.options import filters_of
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.types import CostSummary

__all__ = ["cost_table", "is_elsewhere", "money", "print_total", "show_costs"]


def money(value: Decimal) -> str:
    """An amount with every digit that it has, and at least two after the point."""
    whole, _, fraction = f"{value:f}".partition(".")
    return f"{int(whole):,}.{fraction.ljust(2, '0')}" if whole != "-0" else f"-0.{fraction.ljust(2, '0')}"


def cost_table(title: str, summary: CostSummary, width: int) -> Table:
    """A row a group, and the total below; decimal points stand under each other.

    Bars show the share of the dearest group, where `width` columns leave room for them.
    """
    names = [key.dimension for key in summary.breakdown[0].keys] if summary.breakdown else ["group"]
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_footer=True)
    for index, name in enumerate(names):
        table.add_column(escape(name), footer="" if index else "total", no_wrap=True)
    costs = [money(group.cost) for group in summary.breakdown]
    total = money(summary.total_cost)
    whole = max(len(text.partition(".")[0]) for text in (*costs, total))
    places = max(len(text.partition(".")[2]) for text in (*costs, total))
    unpriced = summary.unpriced_requests > 0
    table.add_column("requests", footer=f"{summary.total_requests:,}", justify="right", no_wrap=True)
    table.add_column("tokens", footer=f"{summary.total_tokens:,}", justify="right", no_wrap=True)
    table.add_column(f"cost, {summary.currency}", footer=_aligned(total, whole), no_wrap=True)
    if unpriced:
        table.add_column("unpriced", footer=f"{summary.unpriced_requests:,}", justify="right", style="yellow")
    longest = max((sum(len(key.value) + 3 for key in group.keys) for group in summary.breakdown), default=0)
    room = width - longest - places - 45 - 10 * unpriced
    dearest = max((group.cost for group in summary.breakdown), default=Decimal(0))
    bars = summary.additive and dearest > 0 and room >= 6
    if bars:
        table.add_column("", style="cyan", no_wrap=True)
    for group, cost in zip(summary.breakdown, costs, strict=True):
        row = [escape(key.value) or "-" for key in group.keys]
        row += [f"{group.requests:,}", f"{group.tokens:,}", _aligned(cost, whole)]
        if unpriced:
            row.append(f"{group.unpriced_requests:,}" if group.unpriced_requests else "")
        if bars:
            row.append("█" * round(min(room, 20) * group.cost / dearest))
        table.add_row(*row)
    return table


def _aligned(text: str, whole: int) -> str:
    """The text with its point after `whole` characters."""
    return " " * (whole - len(text.partition(".")[0])) + text


def print_total(console: Console, summary: CostSummary) -> None:
    """The total, and what it does not cover."""
    if is_elsewhere(summary):
        console.print(f"nothing has a cost in {summary.currency}; there is:")
    else:
        calls = f"{_requests(summary.total_requests)} and {summary.total_tokens:,} tokens"
        console.print(f"[bold]{money(summary.total_cost)} {summary.currency}[/] for {calls}")
    if summary.unpriced_requests:
        has = "has" if summary.unpriced_requests == 1 else "have"
        console.print(
            f"[yellow]{_requests(summary.unpriced_requests)} {has} no price: the total is a lower bound.[/] "
            "Add one with client.pricing.create(…)."
        )
    if summary.reported_requests and not is_elsewhere(summary):
        of_them = f"{money(summary.reported_cost)} {summary.currency}"
        console.print(
            f"{of_them} of it is what providers reported, for {_requests(summary.reported_requests)}."
        )
    for other in summary.other_currencies:
        and_ = "    " if is_elsewhere(summary) else "and "
        console.print(f"{and_}{money(other.cost)} {other.currency} for {_requests(other.requests)}")
    if is_elsewhere(summary):
        console.print(f"Ask with --currency {summary.other_currencies[0].currency}.")


def is_elsewhere(summary: CostSummary) -> bool:
    """Whether there are calls, but all of them cost in other currencies than the one asked for."""
    return 0 < summary.total_requests <= sum(other.requests for other in summary.other_currencies)


def _requests(count: int) -> str:
    return f"{count:,} request{'s' * (count != 1)}"


def show_costs(options: argparse.Namespace) -> int:
    """The `costs` command."""
    with open_client(options) as client:
        summary = _asked(client, options)
    if options.json:
        sys.stdout.write(COST_SUMMARY.encode_json(summary).decode() + "\n")
        return 0
    console = Console()
    if summary.breakdown and not is_elsewhere(summary):
        console.print(cost_table("What it cost", summary, console.width))
    print_total(console, summary)
    return 0


def _asked(client: CostOpsClient, options: argparse.Namespace) -> CostSummary:
    return client.costs.get(
        **filters_of(options),
        group_by=[name.strip() for name in options.group_by.split(",")],
        currency=options.currency,
    )
