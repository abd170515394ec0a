"""The commands about data's life: the audit log, erasing users, and for how long records are kept."""

from __future__ import annotations

import argparse
import sys
from itertools import islice

import msgspec

from llm_cost_ops.cli.options import times_of
from llm_cost_ops.cli.output import Column, Output, Table, form_of
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.types import RetentionPolicy

__all__ = ["audit", "privacy", "retention"]


def audit(options: argparse.Namespace) -> int:
    """The `audit` command."""
    with open_client(options) as client:
        pages = client.audit.list(
            organization_id=options.organization,
            action=options.done,
            actor=options.actor,
            subject=options.subject,
            page_size=min(options.limit + 1, 1000),
            **times_of(options),
        )
        events = list(islice(pages, options.limit + 1))
    output = Output(form_of(options))
    names = ("number", "time", "actor", "organization", "action", "subject", "details")
    optional = ("number", "subject", "details")
    table = Table(columns=[Column(name, fold=name == "details", optional=name in optional) for name in names])
    for event in events[: options.limit]:
        when = f"{event.made_at:%Y-%m-%dT%H:%M:%SZ}" if event.made_at else ""
        details = msgspec.json.encode(event.details or {}).decode()
        what = (event.organization_id or "*", event.action, event.subject, details)
        table.rows.append([event.number, when, event.actor, *what])
    if events or output.form != "text":
        output.table(table)
    else:
        output.line("Nothing was done that these filters let through.")
    if len(events) > options.limit:
        output.line(f"There are more: --limit shows them. These are the newest {options.limit:,}.")
    return 0


def privacy(options: argparse.Namespace) -> int:
    """The `privacy` command; the exit status is 1 when nothing named the user."""
    whose = ", ".join(options.organization) or "every organization that you may see"
    if not options.yes and not _agreed(f"Erase the user {options.user!r} from the records of {whose}?"):
        print("Nothing was erased.", file=sys.stderr)
        return 1
    with open_client(options) as client:
        # All records are looked through, however many they are.
        done = client.privacy.erase(user_id=options.user, organization_id=options.organization, timeout=None)
    print(f"{done.records:,} records named the user, and do no more: erasure {done.id} in the audit log")
    return 0 if done.records else 1


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to be asked: say --yes", parameter="yes")
    print(f"{question} It can't be undone. [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def retention(options: argparse.Namespace) -> int:
    """The `retention` command."""
    with open_client(options) as client:
        if options.action == "set":
            found = [client.retention.set(organization_id=options.organization, days=options.days)]
        elif options.action == "list":
            found = client.retention.list(organization_id=options.organization).policies
        else:
            # It takes as long as there are records.
            found = client.retention.apply(
                organization_id=options.organization, dry_run=options.dry_run, timeout=None
            ).policies
    output = Output(form_of(options))
    if found or output.form != "text":
        output.table(_policies(found, counted=options.action == "apply"))
    else:
        output.line("Nothing is past its days." if options.action == "apply" else "All records are kept.")
    if found and getattr(options, "dry_run", False):
        output.line("Nothing was removed: --dry-run was given.")
    return 0


def _policies(found: list[RetentionPolicy], *, counted: bool) -> Table:
    removed = Column("removed before", key="removed_before")
    table = Table(columns=[Column("organization"), Column("days", right=True), removed])
    if counted:
        table.columns.append(Column("records", right=True))
    for each in found:
        before = f"{each.removed_before:%Y-%m-%d}" if each.removed_before else ""
        table.rows.append([each.organization_id, each.days, before])
        if counted:
            table.rows[-1].append(each.records)
    return table
