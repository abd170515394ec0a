"""The rows of the ledger in dicts, and its batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus, RevisionKind, UsageRecord
from llm_cost_ops.ledger import Appended, Entry, Filter
from llm_cost_ops.ledger.protocols import Alike
from llm_cost_ops.pricing.money import from_units
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.requests import known_total

__all__ = ["FIELDS", "Cost", "EntryBatch", "Row"]

FIELDS = {
    "organization": "organization_id",
    "provider": "provider",
    "model": "model_id",
    "project": "project_id",
    "user": "user_id",
    "operation": "operation",
    "service_tier": "service_tier",
    "processing": "processing",
    "region": "region",
}


class Cost(NamedTuple):
    """A revision: the record, and what it cost."""

    units: int | None
    by: Pricing
    calculated_at: datetime
    record: UsageRecord
    kind: RevisionKind = RevisionKind.RECORDED
    reason: str = ""
    actor: str = ""


class Row:
    """A record as it was sent, or superseded what was, and its revisions: the last one is in force."""

    def __init__(self, entry: Entry, made: str) -> None:
        self.id = made
        self.key = entry.key
        self.sent = entry.record
        self.ingested_at = entry.ingested_at
        self.timestamp = entry.record.timestamp or entry.ingested_at
        self.erased = self.removed = False
        self.costs = [Cost(entry.units, entry.by, entry.ingested_at, entry.record)]
        self.answer = self.costs[:1]

    def record(self, revision: int) -> UsageRecord:
        units, by, _, record, *_ = self.costs[revision - 1]
        return replace(
            record,
            id=self.id,
            idempotency_key=self.key,
            ingested_at=self.ingested_at,
            timestamp=self.timestamp,
            estimated_cost=None if units is None else from_units(units),
            currency=by.currency,
            cost_status=by.status,
        )

    @property
    def now(self) -> UsageRecord:
        """The record in force."""
        return self.costs[-1].record

    def passes(self, where: Filter) -> bool:
        sent = self.now
        if not where.statuses and self.costs[-1].by.status == CostStatus.VOIDED:
            return False
        for values, value in (
            (where.organization_ids, sent.organization_id),
            (where.providers, sent.provider),
            (where.model_ids, sent.model_id),
            (where.project_ids, sent.project_id),
            (where.user_ids, sent.user_id),
            (where.service_tiers, sent.service_tier),
            (where.processings, sent.processing),
            (where.regions, sent.region),
            (where.operations, str(sent.operation)),
            (where.statuses, str(self.costs[-1].by.status)),
        ):
            if values and value not in values:
                return False
        if where.tags and set(where.tags).isdisjoint(sent.tags):
            return False
        if any(sent.labels.get(key) != value for key, value in where.labels.items()):
            return False
        return (where.start is None or where.start <= self.timestamp) and (
            where.end is None or self.timestamp < where.end
        )

    def is_there(self, where: Filter) -> bool:
        """Whether it passes, and was not removed by a retention."""
        return not self.removed and self.passes(where)

    def may_be_superseded(self) -> bool:
        return all(cost.kind in (RevisionKind.RECORDED, RevisionKind.REPRICED) for cost in self.costs)

    def values(self, name: str) -> Sequence[str]:
        """The groups of one dimension that the record is in."""
        if name == "tag":
            return list(dict.fromkeys(self.now.tags)) or [""]
        if name.startswith("label:"):
            return [self.now.labels.get(name.removeprefix("label:"), "")]
        if name == "status":
            return [str(self.costs[-1].by.status)]
        if name not in FIELDS:
            raise invalid_argument("group_by", f"{name!r} is nothing that usage can be grouped by")
        return [str(getattr(self.now, FIELDS[name]))]


Append = Callable[[Sequence[Entry], CallContext, "int | None"], Awaitable["list[Appended] | None"]]


class EntryBatch:
    """A Batch that keeps its entries, for `append`, which is that of a Ledger."""

    __slots__ = ("_append", "_entries", "_key")

    def __init__(self, append: Append, key: str) -> None:
        self._append = append
        self._key = key
        self._entries: list[Entry] = []

    def add(
        self,
        record: UsageRecord,
        key: str | int,
        ingested_at: datetime,
        units: int | None,
        by: Pricing,
        _alike: Alike | None = None,
    ) -> str:
        """Take one more entry; see Batch."""
        if isinstance(key, int):
            key = f"{self._key}:{key}"
        kept = replace(record, total_tokens=known_total(record))
        self._entries.append(Entry(kept, key, ingested_at, units, by))
        return ""

    async def write(self, context: CallContext, revision: int | None = None) -> dict[int, Appended] | None:
        """Write the entries; see Batch."""
        appended = await self._append(self._entries, context, revision)
        return None if appended is None else dict(enumerate(appended))
