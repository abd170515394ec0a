"""Lists of entries, appended by the batch of a ledger."""

from __future__ import annotations

from collections.abc import Sequence

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.protocols import Batch
from llm_cost_ops.ledger.types import Appended, Entry
from llm_cost_ops.rpc.context import CallContext

__all__ = ["append_as_batch"]


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
