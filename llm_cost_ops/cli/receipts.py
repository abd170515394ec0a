"""Tables of what a call would cost, and of what repricing changed."""

from __future__ import annotations

import argparse
import os

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_cost_ops.cli.options import filters_of, pairs
from llm_cost_ops.cli.reports import money
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.rules.times import parse_start
from llm_cost_ops.types import CostRecord

__all__ = ["estimate", "reprice"]


def estimate(options: argparse.Namespace) -> int:
    """The `estimate` command; without a database it asks the bundled catalog alone."""
    if not (options.db or options.base_url or os.environ.get("LLM_COST_OPS_BASE_URL")):
        options.base_url = "sqlite://"
    try:
        at = parse_start(options.at, field="at") if options.at else None
        meters = {name: int(count) for name, count in pairs(options.meter, "meter").items()}
    except RpcError as error:
        raise error_from_rpc(error) from error
    except ValueError as error:
        raise ConfigurationError(f"--meter: {error}", parameter="meter") from error
    with open_client(options, without="sqlite://") as client:
        cost = client.costs.estimate(
            organization_id=options.organization,
            provider=options.provider,
            model_id=options.model,
            input_tokens=options.input,
            output_tokens=options.output,
            cached_tokens=options.cached,
            cache_write_tokens=options.cache_write,
            reasoning_tokens=options.reasoning,
            meters=meters,
            service_tier=options.service_tier,
            processing=options.processing,
            region=options.region,
            speed=options.speed,
            timestamp=at,
        )
    _show(Console(), cost)
    return 0


def _show(console: Console, cost: CostRecord) -> None:
    if cost.total_cost is None:
        console.print("[yellow]No price is known for this call.[/]")
        return
    table = Table(box=SIMPLE_HEAD, show_footer=True)
    table.add_column("meter", footer="total", no_wrap=True)
    table.add_column("quantity", justify="right", no_wrap=True)
    table.add_column("price", justify="right", no_wrap=True)
    table.add_column(f"cost, {cost.currency}", footer=money(cost.total_cost), justify="right", no_wrap=True)
    for line in cost.lines:
        price = "-" if line.unit_price is None else f"{money(line.unit_price)} / {line.per:,}"
        table.add_row(
            escape(line.meter), f"{line.quantity:,f}", price, money(line.cost) if line.priced else "no price"
        )
    console.print(table)
    origin = f", {cost.origin_version}" if cost.origin_version else ""
    console.print(f"{cost.status.value}, by the card {cost.rate_card_id}{origin}", markup=False)
    if cost.fallback_dimensions:
        console.print(f"The card stands in for another {' and '.join(cost.fallback_dimensions)}.")


def reprice(options: argparse.Namespace) -> int:
    """The `reprice` command."""
    with open_client(options) as client:
        report = client.costs.reprice(**filters_of(options), as_of=options.as_of, dry_run=options.dry_run)
    console = Console()
    if report.differences:
        table = Table(box=SIMPLE_HEAD)
        for name in ("provider", "model"):
            table.add_column(name, no_wrap=True)
        for name in ("records", "before", "after", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("currency")
        table.add_column("unpriced", justify="right")
        for row in report.differences:
            table.add_row(
                escape(row.provider),
                escape(row.model_id),
                f"{row.records:,}",
                *(money(amount) for amount in (row.before, row.after, row.difference)),
                row.currency,
                f"{row.unpriced_before:,} → {row.unpriced_after:,}",
            )
        console.print(table)
    verb = "would get" if report.dry_run else "got"
    console.print(f"{report.changed:,} of {report.examined:,} records {verb} another cost")
    return 0
