"""Copies a ledger into another, from SQLite to PostgreSQL or back: by the same append as everybody's."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm_cost_ops._gen.messages import CostStatus, RevisionKind, SubmitStatus, UsageRecord
from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.ledger import (
    Appended,
    Committed,
    Entry,
    Filter,
    Ledger,
    Recorded,
    Revised,
    Revision,
    open_ledger,
)
from llm_cost_ops.pricing.money import to_units
from llm_cost_ops.pricing.pricebook import Pricing
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import SyncRuntime, drive
from llm_cost_ops.rpc.status import RpcError

__all__ = ["copy"]

_PAGE = 500
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
_STATUSES = tuple(status.value for status in CostStatus)


def copy(options: argparse.Namespace) -> int:
    """The `db copy` command; the exit status is 1 when the sums of the two are not the same afterwards."""
    if options.source == options.target:
        raise ConfigurationError("a database is not copied into itself", parameter="target")
    source, target = open_ledger(options.source), open_ledger(options.target)
    try:
        return _Copy(source, target).run()
    except RpcError as error:
        raise error_from_rpc(error) from error
    finally:
        drive(source.aclose())
        drive(target.aclose())


def _context() -> CallContext:
    runtime = SyncRuntime()
    return CallContext(GET_HEALTH, runtime, Metadata(), runtime.monotonic() + _TIMEOUT)


class _Copy:
    """Begun again it finds what is there already: records by their keys, revisions by their numbers."""

    def __init__(self, source: Ledger, target: Ledger) -> None:
        self._source = source
        self._target = target
        self._created = self._duplicates = self._revisions = self._without_key = 0

    def run(self) -> int:
        console = Console(stderr=True, highlight=False)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,} of {task.total:,}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        total = drive(self._source.sums.count(Filter(statuses=_STATUSES), _context()))
        self._copy_cards()
        with bar if console.is_terminal else nullcontext():
            task = bar.add_task("copying", total=total)
            position = None
            while True:
                found, position = drive(self._source.committed(position, _PAGE, _context()))
                if not found:
                    break
                self._copy_page(found)
                bar.update(task, completed=self._created + self._duplicates)
        print(
            f"{self._created:,} records and {self._revisions:,} revisions copied; "
            f"{self._duplicates:,} records were there"
        )
        if self._without_key:
            print(f"{self._without_key:,} records have no key, and new ids made of their old ones")
        return self._compare()

    def _copy_cards(self) -> None:
        for card in sorted(drive(self._source.all_cards(_context())), key=lambda card: card.version):
            if drive(self._target.get_card(card.id, _context())) is None:
                fingerprint = blake2b(f"copied {card.id}".encode(), digest_size=16).digest()
                drive(self._target.add_card(card, "", fingerprint, _context()))

    def _copy_page(self, found: list[Committed]) -> None:
        """Append the records of a page, then the revisions that records of this or an earlier one have."""
        first = [item.record for item in found if item.revision == 1]
        answers = self._append([self._entry(record) for record in first])
        for record, answer in zip(first, answers, strict=True):
            if answer.status == SubmitStatus.CONFLICT:
                raise ConfigurationError(
                    f"the target has another record under the key of {record.id} of {record.organization_id}",
                    parameter="target",
                )
            self._created += answer.status == SubmitStatus.CREATED
            self._duplicates += answer.status == SubmitStatus.DUPLICATE
        for record in {item.record.id: item.record for item in found if item.revision > 1}.values():
            self._copy_revisions(record)

    def _append(self, entries: list[Entry]) -> list[Appended]:
        async def append() -> list[Appended]:
            return await self._target.append(entries, _context()) or []

        return drive(append())

    def _entry(self, record: UsageRecord) -> Entry:
        """The record as it was sent, with its first cost."""
        assert record.ingested_at is not None
        current = self._recorded(record)
        self._without_key += not record.idempotency_key
        by = _pricing(record, current if current.revision == 1 else None)
        key = record.idempotency_key or f"copied {record.id}"
        return Entry(_sent(record), key, record.ingested_at, _units(record), by)

    def _recorded(self, record: UsageRecord) -> Recorded:
        ask = partial(self._source.get_cost, record.organization_id, record.id)
        found = drive(ask(_context()))
        assert found is not None
        return found

    def _copy_revisions(self, record: UsageRecord) -> None:
        organization, current = record.organization_id, self._recorded(record)
        made = drive(self._source.revisions(organization, record.id, _context()))
        [there] = self._append([self._entry(made[0].record)])
        kept = len(drive(self._target.revisions(organization, there.usage_id, _context())))
        for before, revised in pairwise(made):
            if revised.number > kept:
                revision = _revision(before, revised, there.usage_id, current)
                self._revisions += drive(self._target.revise(revision, _context()))

    def _compare(self) -> int:
        everything = Filter(statuses=_STATUSES)
        sums = [
            drive(ledger.sums.summarize(everything, _GROUPS, None, _context()))
            for ledger in (self._source, self._target)
        ]
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


def _sent(record: UsageRecord) -> UsageRecord:
    """The record without what a ledger adds to it."""
    bare = UsageRecord()
    names = ("id", "idempotency_key", "ingested_at", "estimated_cost", "currency", "cost_status")
    return replace(record, **{name: getattr(bare, name) for name in names})


def _units(record: UsageRecord) -> int | None:
    return None if record.estimated_cost is None else to_units(record.estimated_cost)


def _pricing(record: UsageRecord, priced: Recorded | None) -> Pricing:
    """How a record was priced; without its card where that is not the cost in force any more."""
    if priced is None:
        return Pricing(CostStatus(record.cost_status), record.currency)
    return Pricing(
        priced.status,
        priced.currency,
        priced.card_id,
        priced.card_version,
        priced.fallbacks,
        priced.origin_version,
        card=priced.card,
        digest=priced.digest,
    )


def _revision(before: Revised, revised: Revised, usage_id: str, current: Recorded) -> Revision:
    record: Any = None
    if revised.kind in (RevisionKind.CORRECTED, RevisionKind.SUPERSEDED):
        record = _sent(revised.record)
    return Revision(
        organization_id=revised.record.organization_id,
        usage_id=usage_id,
        after=before.number,
        kind=revised.kind,
        record=record,
        units=_units(revised.record),
        by=_pricing(revised.record, current if current.revision == revised.number else None),
        reason=revised.reason,
        actor=revised.actor,
        made_at=revised.made_at,
    )
