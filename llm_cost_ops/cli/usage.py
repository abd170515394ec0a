"""The `usage` commands: records listed, shown, corrected, taken out of the sums, and their history."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from itertools import islice

import msgspec

from llm_cost_ops.cli.options import filters_of, pairs
from llm_cost_ops.cli.output import Cell, Column, Output, Table, form_of
from llm_cost_ops.cli.tables import receipt_table, show_receipt
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.types import UsageRecord, UsageRevision

__all__ = ["usage"]

_FIRST = ("id", "organization_id", "provider", "model_id", "timestamp", "input_tokens", "output_tokens")
# Beside what the receipt shows.
_HIDDEN = {"unknown_", "estimated_cost", "currency", "cost_status", "total_tokens", *_FIRST}


def usage(options: argparse.Namespace) -> int:
    """The `usage` command."""
    if options.action == "list":
        return _list(options)
    if options.action == "show":
        return _show(options)
    action = {"void": _void, "correct": _correct, "revisions": _revisions}[options.action]
    with open_client(options) as client:
        found = action(client, options)
    output = Output(form_of(options))
    if output.form == "json":
        for revision in found:
            print(revision.to_json())
    else:
        output.table(_revisions_table(found))
    return 0


def _list(options: argparse.Namespace) -> int:
    with open_client(options) as client:
        pages = client.usage.get_history(**filters_of(options), page_size=min(options.limit + 1, 1000))
        found = list(islice(pages, options.limit + 1))
        removed = pages.pagination.removed_before
    output = Output(form_of(options))
    # An id is to be copied, so it is the last to be cut.
    table = Table(columns=[Column("time", optional=True), Column("id", fold=True)])
    table.columns += [Column(name, optional=True) for name in ("organization", "provider")]
    table.columns += [Column("model", fold=True)]
    table.columns += [Column(name, right=True, optional=True) for name in ("input", "output")]
    table.columns += [Column("cost", right=True)]
    table.columns += [Column(name, optional=True) for name in ("currency", "status")]
    for record in found[: options.limit]:
        cost = "" if record.estimated_cost is None else record.estimated_cost
        names = [record.organization_id, record.provider, record.model_id]
        counts = ["" if each is None else each for each in (record.input_tokens, record.output_tokens)]
        row = [
            _moment(record.timestamp),
            record.id,
            *names,
            *counts,
            cost,
            record.currency,
            record.cost_status.value,
        ]
        table.rows.append(row)
    if found or output.form != "text":
        output.table(table)
    else:
        output.line("Nothing is recorded that these filters let through.")
    if len(found) > options.limit:
        output.line(
            f"There are more: --limit shows them, and `export` all. These are the newest {options.limit:,}."
        )
    elif removed is not None:
        output.line(f"Records of before {removed:%Y-%m-%d} were removed by a retention; their sums are kept.")
    return 0


def _show(options: argparse.Namespace) -> int:
    with open_client(options) as client:
        revisions = client.usage.revisions(options.id, organization_id=options.organization).revisions
        checked = client.costs.verify(options.id, organization_id=options.organization)
    record, cost = revisions[-1].usage, checked.recorded
    assert record is not None
    assert cost is not None
    output = Output(form_of(options))
    if output.form == "json":
        answer = {"usage": record.to_dict(), "cost": cost.to_dict(), "matches": checked.matches}
        output.json_text(msgspec.json.encode(answer))
    elif output.form == "csv":
        output.table(receipt_table(cost))
    else:
        for line in _described(record):
            output.line(line)
        output.line()
        show_receipt(output, cost)
        same = (
            "Calculated again, it is the same." if checked.matches else f"It does not hold: {checked.reason}"
        )
        output.line((same, "" if checked.matches else "red"))
        if len(revisions) > 1:
            output.line(f"{len(revisions)} revisions: `llm-cost-ops usage revisions {record.id}` shows them.")
    return 0 if checked.matches else 1


def _described(record: UsageRecord) -> list[str]:
    """A record's fields that say something, a line each."""
    shown = {name: getattr(record, name) for name in _FIRST}
    rest = {name: getattr(record, name) for name in UsageRecord.__struct_fields__ if name not in _HIDDEN}
    fields = {**shown, **{name: value for name, value in rest.items() if value not in (None, "", 0, [], {})}}
    fields["input_tokens"], fields["output_tokens"] = (
        "not known" if count is None else f"{count:,}"
        for count in (record.input_tokens, record.output_tokens)
    )
    return [f"{name:<16} {_text(value)}" for name, value in fields.items() if _text(value) != "unspecified"]


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if at else ""


def _void(client: CostOpsClient, options: argparse.Namespace) -> list[UsageRevision]:
    place = {"organization_id": options.organization, "reason": options.reason}
    return [client.usage.void(options.id, **place)]


def _correct(client: CostOpsClient, options: argparse.Namespace) -> list[UsageRevision]:
    changes = {name: _value(text) for name, text in pairs(options.set, "set", "FIELD=VALUE").items()}
    place = {"organization_id": options.organization, "reason": options.reason}
    return [client.usage.correct(options.id, changes=changes, **place)]


def _value(text: str) -> object:
    """A number, list, object or null where it is one in JSON, else the text."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _revisions(client: CostOpsClient, options: argparse.Namespace) -> list[UsageRevision]:
    return client.usage.revisions(options.id, organization_id=options.organization).revisions


def _revisions_table(revisions: list[UsageRevision]) -> Table:
    table = Table(columns=[Column("revision", right=True), Column("time"), Column("kind")])
    table.columns += [Column("model", optional=True)]
    table.columns += [Column(name, right=True, optional=True) for name in ("input", "output")]
    table.columns += [Column("cost", right=True)]
    table.columns += [Column(name, optional=True) for name in ("currency", "status", "by")]
    table.columns += [Column("reason", fold=True)]
    for each in revisions:
        record = each.usage
        assert record is not None
        cost = "no price" if record.estimated_cost is None else record.estimated_cost
        row: list[Cell] = [each.revision, _moment(each.made_at), each.kind.value]
        row += [f"{record.provider}/{record.model_id}", record.input_tokens or 0, record.output_tokens or 0]
        row += [cost, record.currency, record.cost_status.value, each.actor, each.reason]
        table.rows.append(row)
    return table
