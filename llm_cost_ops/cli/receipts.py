"""Tables of what a call would cost, and of what repricing changed."""

from __future__ import annotations

import argparse
import os

from llm_cost_ops._gen.codecs import COST_RECORD, REPRICE_REPORT
from llm_cost_ops.cli.options import filters_of, pairs
from llm_cost_ops.cli.output import Cell, Column, Output, Table, form_of, money
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.rules.times import parse_start
from llm_cost_ops.types import CostRecord, CostStatus, RepriceDifference

__all__ = ["estimate", "receipt_table", "reprice", "show_receipt"]


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
    output = Output(form_of(options))
    if output.form == "json":
        output.json_text(COST_RECORD.encode_json(cost))
    else:
        show_receipt(output, cost)
        if cost.total_cost is None and output.form == "text":
            output.line(
                f"Look for a model with `llm-cost-ops prices list {options.model}`, "
                "or add a price with `llm-cost-ops prices add`."
            )
    # A script must not take what is unknown, or a part, for the cost.
    return 1 if cost.status in (CostStatus.UNPRICED, CostStatus.PARTIAL) else 0


def show_receipt(output: Output, cost: CostRecord) -> None:
    """What each meter cost, and by which card."""
    if cost.total_cost is None and output.form == "text":
        output.line(("No price is known for this call.", "yellow"))
        return
    output.table(receipt_table(cost))
    if cost.rate_card_id:
        origin = f", {cost.origin_version}" if cost.origin_version else ""
        output.line(f"{cost.status.value}, by the card {cost.rate_card_id}{origin}")
    else:
        output.line(cost.status.value)
    if cost.fallback_dimensions:
        output.line(f"The card stands in for another {' and '.join(cost.fallback_dimensions)}.")


def receipt_table(cost: CostRecord) -> Table:
    """A row a meter, with the total below."""
    table = Table(
        columns=[
            Column("meter"),
            Column("quantity", right=True),
            Column("price", right=True),
            Column(f"cost, {cost.currency}", right=True, key="cost"),
        ],
        footer=["total", "", "", "" if cost.total_cost is None else cost.total_cost],
    )
    for line in cost.lines:
        price = "-" if line.unit_price is None else f"{money(line.unit_price)} / {line.per:,}"
        # A count as a decimal would be shown with two places.
        quantity: Cell = int(line.quantity) if line.quantity == int(line.quantity) else f"{line.quantity:f}"
        table.rows.append([line.meter, quantity, price, line.cost if line.priced else "no price"])
    return table


def reprice(options: argparse.Namespace) -> int:
    """The `reprice` command."""
    with open_client(options) as client:
        report = client.costs.reprice(**filters_of(options), as_of=options.as_of, dry_run=options.dry_run)
    output = Output(form_of(options))
    if output.form == "json":
        output.json_text(REPRICE_REPORT.encode_json(report))
        return 0
    if report.differences or output.form == "csv":
        output.table(_differences(report.differences))
    verb = "would get" if report.dry_run else "got"
    output.line(f"{report.changed:,} of {report.examined:,} records {verb} another cost")
    return 0


def _differences(differences: list[RepriceDifference]) -> Table:
    counted = (Column(name, right=True) for name in ("records", "before", "after", "difference"))
    table = Table(
        columns=[
            Column("provider"),
            Column("model"),
            *counted,
            Column("currency"),
            Column("unpriced", right=True),
        ]
    )
    for row in differences:
        unpriced = f"{row.unpriced_before:,} → {row.unpriced_after:,}"
        cells: list[Cell] = [
            row.provider,
            row.model_id,
            row.records,
            row.before,
            row.after,
            row.difference,
            row.currency,
        ]
        table.rows.append([*cells, unpriced])
    return table
