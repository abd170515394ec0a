"""The `usage` commands: taking a record out of the sums, correcting one, and what became of one."""

from __future__ import annotations

import argparse

import msgspec

from llm_cost_ops.cli.options import pairs
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.types import UsageRevision

__all__ = ["usage"]


def usage(options: argparse.Namespace) -> int:
    """The `usage` command."""
    action = {"void": _void, "correct": _correct, "revisions": _revisions}[options.action]
    with open_client(options) as client:
        for revision in action(client, options):
            print(revision.to_json() if options.json else _line(revision))
    return 0


def _void(client: CostOpsClient, options: argparse.Namespace) -> list[UsageRevision]:
    place = {"organization_id": options.organization, "reason": options.reason}
    return [client.usage.void(options.id, **place)]


def _correct(client: CostOpsClient, options: argparse.Namespace) -> list[UsageRevision]:
    changes = {name: _value(text) for name, text in pairs(options.set, "set").items()}
    place = {"organization_id": options.organization, "reason": options.reason}
    return [client.usage.correct(options.id, changes=changes, **place)]


def _value(text: str) -> object:
    """A number, list, object or null where it is one in JSON, else the text."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _revisions(client: CostOpsClient, options: argparse.Namespace) -> list[UsageRevision]:
    return client.usage.revisions(options.id, organization_id=options.organization).revisions


def _line(revision: UsageRevision) -> str:
    record = revision.usage
    assert record is not None
    assert revision.made_at is not None
    cost = "no price" if record.estimated_cost is None else f"{record.estimated_cost:f} {record.currency}"
    counts = f"{record.input_tokens or 0} in, {record.output_tokens or 0} out"
    said = f": {revision.reason}" if revision.reason else ""
    by = f" by {revision.actor}" if revision.actor else ""
    when = f"{revision.made_at:%Y-%m-%dT%H:%M:%SZ}"
    model = f"{record.provider}/{record.model_id}"
    made = f"{revision.revision}  {when}  {revision.kind.value}{by}"
    return f"{made}  {model}  {counts}  {cost} ({record.cost_status.value}){said}"
