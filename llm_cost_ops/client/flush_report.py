"""What became of what was recorded."""

from __future__ import annotations

import msgspec

from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["MAX_REJECTED", "FlushReport", "Rejected"]

MAX_REJECTED = 1000
"""A report keeps so many rejected records; the counts are complete."""


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A record that will never count, and why. `record` is None where the arguments made none."""

    record: UsageRecord | None
    reason: str


class FlushReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of all that was recorded so far in this process, or taken over from a dead one's spool.

    `recorded` = `delivered` + `duplicates` + `conflicts` + `rejected_count` + `dropped` + `spooled` +
    `pending`. `spooled` records lie in the spool, `pending` ones in memory. `rejected` are the last thousand.
    """

    delivered: int
    duplicates: int
    conflicts: int
    rejected_count: int
    rejected: list[Rejected]
    spooled: int
    dropped: int
    pending: int

    @property
    def recorded(self) -> int:
        """How many records were given."""
        sent = self.delivered + self.duplicates + self.conflicts + self.rejected_count
        return sent + self.dropped + self.spooled + self.pending
