"""What became of what was recorded."""

from __future__ import annotations

from collections import deque

import msgspec

from llm_cost_ops._gen.messages import SubmitResult, SubmitStatus, UsageRecord
from llm_cost_ops.client.submitting import reason_of

__all__ = ["MAX_REJECTED", "FlushReport", "Rejected", "Tally"]

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


class Tally:
    """The counts of a report, while they change."""

    __slots__ = ("conflicts", "delivered", "dropped", "duplicates", "rejected", "rejects")

    def __init__(self) -> None:
        self.delivered = self.duplicates = self.conflicts = self.rejected = self.dropped = 0
        self.rejects: deque[Rejected] = deque(maxlen=MAX_REJECTED)

    def settle(self, record: UsageRecord | None, result: SubmitResult) -> None:
        """Count a record that was answered for."""
        if result.status == SubmitStatus.CREATED:
            self.delivered += 1
        elif result.status == SubmitStatus.DUPLICATE:
            self.duplicates += 1
        elif result.status == SubmitStatus.CONFLICT:
            self.conflicts += 1
            self.rejects.append(Rejected(record=record, reason=reason_of(result)))
        else:
            self.reject(Rejected(record=record, reason=reason_of(result)))

    def reject(self, rejected: Rejected) -> None:
        """Count a record that is refused."""
        self.rejected += 1
        self.rejects.append(rejected)
