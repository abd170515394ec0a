"""What was committed, in the order of the commits, and where its consumers go on.

There is one writer at a time, so that a number is given out after every smaller one was committed: a position
is the last number of usage and the last one of revision. A revision stands behind the record that was the
newest when it was made.
"""

from __future__ import annotations

import re
import sqlite3

from llm_cost_ops.ledger.sqlite.rows import RECORD_COLUMNS, decode_record
from llm_cost_ops.ledger.types import Committed
from llm_cost_ops.rpc.status import invalid_argument

__all__ = ["committed", "consumer_position", "move_consumer"]

_POSITION = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})", re.ASCII)
_COST = "cost_micros, {0}.cost_picos, s.currency, s.status"
# The record as it was in a revision: that of the last one up to it which changed it, or the first.
_CONTENT = (
    "ifnull((SELECT w.record FROM revision w WHERE w.usage = v.usage AND w.number <= v.number "
    "AND w.record NOT NULL ORDER BY w.number DESC LIMIT 1), "
    "(SELECT record FROM first_record f WHERE f.usage = v.usage))"
)
_CREATED = (
    f"SELECT u.seq, 0, 1, f.record, {RECORD_COLUMNS}, u.{_COST.format('u')} FROM usage u "
    "JOIN series s ON s.id = u.series LEFT JOIN first_record f ON f.usage = u.seq "
    "WHERE u.seq > ? ORDER BY u.seq LIMIT ?"
)
_REVISED = (
    f"SELECT v.behind, v.seq, v.number, {_CONTENT}, {RECORD_COLUMNS}, v.{_COST.format('v')} FROM revision v "
    "JOIN usage u ON u.seq = v.usage JOIN series s ON s.id = v.series WHERE v.seq > ? ORDER BY v.seq LIMIT ?"
)


def committed(
    connection: sqlite3.Connection, after: str | None, limit: int
) -> tuple[list[Committed], str | None]:
    """At most `limit` records and revisions behind a position, and the position of the last."""
    usage, revision = _numbers(after)
    rows = connection.execute(_CREATED, (usage, limit)).fetchall()
    rows += connection.execute(_REVISED, (revision, limit)).fetchall()
    # Revisions come behind all records up to `behind`: their second number is above 0.
    rows.sort(key=lambda row: row[:2])
    found = []
    for usage_seq, revision_seq, number, content, *record in rows[:limit]:
        if revision_seq:
            revision = revision_seq
        else:
            usage = usage_seq
        row = (*record[:4], content or record[4], *record[5:7])
        found.append(Committed(decode_record(row, *record[7:]), number))
    return found, f"{usage}.{revision}" if found else after


def consumer_position(connection: sqlite3.Connection, name: str) -> str | None:
    """Where a consumer goes on; None for one that never moved."""
    row = connection.execute("SELECT usage, revision FROM consumer WHERE name = ?", (name,)).fetchone()
    return None if row is None else f"{row[0]}.{row[1]}"


def move_consumer(cursor: sqlite3.Cursor, name: str, position: str) -> None:
    """Keep where a consumer goes on, unless it is further already."""
    cursor.execute(
        "INSERT INTO consumer VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET usage = excluded.usage, "
        "revision = excluded.revision WHERE (excluded.usage, excluded.revision) > (usage, revision)",
        (name, *_numbers(position)),
    )


def _numbers(position: str | None) -> tuple[int, int]:
    if position is None:
        return 0, 0
    match = _POSITION.fullmatch(position)
    if match is None:
        raise invalid_argument("position", "is not one that this ledger gave")
    return int(match[1]), int(match[2])
