"""The cost of a record that is in force: that of its newest revision, or the first where there is none."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

__all__ = ["Newest", "newest"]


class Newest(NamedTuple):
    """SQL for the cost in force of `usage u`: what to join, and the columns."""

    join: str
    series: str
    pricing: str
    micro: str
    rest: str
    number: str


_FIRST = Newest("", "u.series", "u.pricing", "u.micro", "u.rest", "1")
_REVISED = Newest(
    " LEFT JOIN revision v ON v.usage = u.seq"
    " AND v.number = (SELECT max(w.number) FROM revision w WHERE w.usage = u.seq)",
    "ifnull(v.series, u.series)",
    "ifnull(v.pricing, u.pricing)",
    # Not ifnull: a revision may find that there is no price.
    "iif(v.usage IS NULL, u.micro, v.micro)",
    "iif(v.usage IS NULL, u.rest, v.rest)",
    "ifnull(v.number, 1)",
)


def newest(connection: sqlite3.Connection) -> Newest:
    """The SQL to use. As long as nothing was repriced, queries pay nothing for revisions."""
    [revised] = connection.execute("SELECT EXISTS (SELECT 1 FROM revision)").fetchone()
    return _REVISED if revised else _FIRST
