"""Batches and lists of entries: each made of the other, for ledgers that have one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from msgspec.structs import replace

from llm_cost_ops._gen.messages import SubmitStatus, UsageRecord
from llm_cost_ops.ledger.protocols import Alike, Batch
from llm_cost_ops.ledger.types import Appended, Entry
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rules.requests import known_total

__all__ = ["EntryBatch", "append_as_batch"]

Append = Callable[[Sequence[Entry], CallContext, "int | None"], Awaitable["list[Appended] | None"]]


async def append_as_batch(
    batch: Batch, entries: Sequence[Entry], context: CallContext, revision: int | None
) -> list[Appended] | None:
    """`Ledger.append` by an empty batch."""
    ids = [batch.add(each.record, each.key, each.ingested_at, each.units, each.by) for each in entries]
    settled = await batch.write(context, revision)
    if settled is None:
        return None
    created = SubmitStatus.CREATED
    return [
        settled.get(at)
        or Appended(created, made, each.units, each.by.currency, each.by.status, each.ingested_at)
        for at, (made, each) in enumerate(zip(ids, entries, strict=True))
    ]


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
