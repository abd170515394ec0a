"""The pieces of time that a query sums up: the same on every ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.types import Filter

__all__ = ["Piece", "pieces_of"]

Piece = tuple[int, int | None, int | None]
"""The number of a bucket, and where the piece of it begins and ends; None is open.

In microseconds since 1970, or in quarters of an hour or days where those are summed.
"""


def pieces_of(where: Filter, buckets: Sequence[tuple[datetime, datetime]] | None) -> Iterable[Piece]:
    """The buckets, in microseconds, cut to the filter's interval."""
    start = None if where.start is None else to_micros(where.start)
    end = None if where.end is None else to_micros(where.end)
    if buckets is None:
        if start is None or end is None or start < end:
            yield 0, start, end
        return
    for index, (low, high) in enumerate(buckets):
        first = to_micros(low) if start is None else max(start, to_micros(low))
        last = to_micros(high) if end is None else min(end, to_micros(high))
        if first < last:
            yield index, first, last
