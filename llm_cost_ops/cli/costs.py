"""The commands about costs: what usage cost, what a call would cost, and usage priced again."""

from __future__ import annotations

import argparse
import os

from llm_cost_ops._gen.codecs import COST_RECORD, COST_SUMMARY, REPRICE_REPORT
from llm_cost_ops.cli.options import filters_of, model_of, pairs
from llm_cost_ops.cli.output import Output, form_of
from llm_cost_ops.cli.tables import (
    cost_bars,
    cost_table,
    differences_table,
    is_elsewhere,
    meant,
    print_total,
    show_receipt,
)
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.rules.times import parse_start
from llm_cost_ops.types import CostStatus

__all__ = ["costs", "estimate", "reprice"]


def costs(options: argparse.Namespace) -> int:
    """The `costs` command."""
    with open_client(options) as client:
        summary = client.costs.get(
            **filters_of(options),
            group_by=[name.strip() for name in ",".join(options.group_by or ["provider,model"]).split(",")],
            currency=options.currency,
        )
    output = Output(form_of(options))
    if output.form == "json":
        output.json_text(COST_SUMMARY.encode_json(summary))
        return 0
    if options.plot:
        if summary.breakdown and not is_elsewhere(summary):
            output.bars(cost_bars(summary, options.time_zone))
    elif output.form == "csv" or (summary.breakdown and not is_elsewhere(summary)):
        output.table(cost_table("What it cost", summary, for_programs=output.form == "csv"))
    print_total(output, summary)
    if not summary.total_requests:
        output.line("Nothing is recorded that these filters let through.")
    return 0


def estimate(options: argparse.Namespace) -> int:
    """The `estimate` command; without a database it asks the bundled catalog alone."""
    if not (options.db or options.base_url or os.environ.get("LLM_COST_OPS_BASE_URL")):
        options.base_url = "sqlite://"
    try:
        at = parse_start(options.at, field="at") if options.at else None
        meters = {name: int(count) for name, count in pairs(options.meter, "meter", "NAME=COUNT").items()}
    except RpcError as error:
        raise error_from_rpc(error) from error
    except ValueError as error:
        raise ConfigurationError(f"--meter: {error}", parameter="meter") from error
    said = {
        "input_tokens": options.input,
        "output_tokens": options.output,
        "cached_tokens": options.cached,
        "cache_write_tokens": options.cache_write,
        "reasoning_tokens": options.reasoning,
    }
    counts = {name: count for name, count in said.items() if count is not None}
    if not meters and not counts:
        raise ConfigurationError("say how much is used: --input, --output or --meter", parameter="input")
    provider, model = model_of(options)
    with open_client(options, without="sqlite://") as client:
        cost = client.costs.estimate(
            organization_id=options.organization,
            provider=provider,
            model_id=model,
            **counts,
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
            from llm_cost_ops.catalog import load_catalog

            near = meant(load_catalog(), model)
            output.line(f"`llm-cost-ops prices add {provider}/{model}` adds one{near or '.'}")
    # A script must not take what is unknown, or a part, for the cost.
    return 1 if cost.status in (CostStatus.UNPRICED, CostStatus.PARTIAL) else 0


def reprice(options: argparse.Namespace) -> int:
    """The `reprice` command."""
    with open_client(options) as client:
        report = client.costs.reprice(**filters_of(options), as_of=options.as_of, dry_run=options.dry_run)
    output = Output(form_of(options))
    if output.form == "json":
        output.json_text(REPRICE_REPORT.encode_json(report))
        return 0
    if report.differences or output.form == "csv":
        output.table(differences_table(report.differences))
    verb = "would get" if report.dry_run else "got"
    output.line(f"{report.changed:,} of {report.examined:,} records {verb} another cost")
    return 0
