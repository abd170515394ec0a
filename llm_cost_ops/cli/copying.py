"""Copies a ledger into another database, from SQLite to PostgreSQL or back, and compares their sums."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.cli.ledgers import opened_ledger
from llm_cost_ops.cli.output import Output
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.ledger import Filter
from llm_cost_ops.ledger.transfer import Added, Transfer, open_transfer
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError

__all__ = ["copy"]

_PAGE = 1000
_TIMEOUT = 600.0
_GROUPS = (
    "organization",
    "provider",
    "model",
    "project",
    "operation",
    "service_tier",
    "processing",
    "region",
    "status",
)
_EVERYTHING = Filter(statuses=tuple(status.value for status in CostStatus))


def copy(options: argparse.Namespace) -> int:
    """The `db copy` command; the exit status is 1 when the two are not the same afterwards.

    Begun again it adds what is missing: records by their ids, revisions by their numbers.
    """
    if options.source == options.target:
        raise ConfigurationError("a database is not copied into itself", parameter="target")
    try:
        with (
            closing(open_transfer(options.source, make=False)) as source,
            closing(open_transfer(options.target, make=True)) as target,
        ):
            _refuse_removed(options.source)
            complete = target.add_shared(source.shared())
            _copy_records(source, target, _count(options.source))
        if not complete:
            print(
                "the API keys were not copied: the target has keys of its own, whose hashes have another "
                "secret. Make new ones there with `llm-cost-ops keys create`",
                file=sys.stderr,
            )
        return max(_compare(options.source, options.target), int(not complete))
    except RpcError as error:
        raise error_from_rpc(error) from error


def _refuse_removed(url: str) -> None:
    """ConfigurationError for a ledger of which records were removed: a copy would have smaller sums."""
    with opened_ledger(url, _TIMEOUT) as (ledger, context):
        kept = drive(ledger.retentions(context))
    names = ", ".join(each.organization_id for each in kept if each.removed_before is not None)
    if names:
        raise ConfigurationError(
            f"records of {names} were removed by a retention, and their sums and keys can't be copied: use "
            "`llm-cost-ops db backup`, or PostgreSQL's own tools",
            parameter="source",
        )


def _copy_records(source: Transfer, target: Transfer, total: int) -> None:
    copied = Added(0, 0)
    read = 0
    with Output(stream=sys.stderr).progress("copying", total) as advance:
        page, position = source.read(None, _PAGE)
        while page:
            added = target.add(page)
            copied = Added(copied.records + added.records, copied.revisions + added.revisions)
            read += len(page)
            advance(read, f"{read:,} of {total:,}")
            page, position = source.read(position, _PAGE)
    print(
        f"{copied.records:,} records and {copied.revisions:,} revisions copied; "
        f"{read - copied.records:,} records were there"
    )


def _count(url: str) -> int:
    with opened_ledger(url, _TIMEOUT) as (ledger, context):
        return drive(ledger.sums.count(_EVERYTHING, context)) or 0


def _compare(source_url: str, target_url: str) -> int:
    """Compare all sums, and say what is different; 0 when nothing is."""
    sums = []
    for url in (source_url, target_url):
        with opened_ledger(url, _TIMEOUT) as (ledger, context):
            # An answer may have so many groups: organizations are asked for one by one.
            found = drive(ledger.sums.summarize(_EVERYTHING, ("organization",), None, context))
            names = sorted({keys for keys, _, _ in found})
            wheres = [replace(_EVERYTHING, organization_ids=keys) for keys in names]
            sums.append(
                [
                    each
                    for where in wheres
                    for each in drive(ledger.sums.summarize(where, _GROUPS, None, context))
                ]
            )
    if sums[0] == sums[1]:
        print(f"the sums of both are the same, in {len(sums[0]):,} groups")
        return 0
    different = sum(group not in sums[1] for group in sums[0])
    extra = sum(group not in sums[0] for group in sums[1])
    print(
        f"{different:,} sums of the source are others in the target, and {extra:,} of the target are "
        "others in the source: the target had records of its own, or the source was written to meanwhile "
        "(then copy again)",
        file=sys.stderr,
    )
    return 1
