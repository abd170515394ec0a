"""Removing rows that are past an organization's retention, some at a time.

What is left of a row keeps its id, so that the index on ids still refuses a key that was used, and nothing
else: its number is negative, its series 0, its time before every other. It lies apart from other rows, whose
pages become free. The sums of rollup stay, and what the rows were part of them is added to removed_sum, so
that sums can still be checked against rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime

from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import from_micros, to_micros
from llm_cost_ops.ledger.retention import REMOVED_AT
from llm_cost_ops.ledger.sqlite import day_sums
from llm_cost_ops.ledger.sqlite.audit import add_events
from llm_cost_ops.ledger.sqlite.sums import add_removed, fold
from llm_cost_ops.ledger.types import Retention

__all__ = ["count_older", "remove", "retentions", "set_retention"]

_OLDER = (
    f"FROM usage u WHERE u.org = (SELECT id FROM organization WHERE name = ?) AND u.ts > {REMOVED_AT} "
    "AND u.ts < ?"
)


def retentions(connection: sqlite3.Connection) -> list[Retention]:
    """What holds for each organization that has a retention, or had one."""
    rows = connection.execute("SELECT org, days, removed FROM retention ORDER BY org")
    return [
        Retention(
            organization_id=org, days=days, removed_before=None if removed is None else from_micros(removed)
        )
        for org, days, removed in rows
    ]


def set_retention(cursor: sqlite3.Cursor, organization: str, days: int, at: datetime, actor: str) -> None:
    """Keep an organization's records for so many days, 0 for ever."""
    cursor.execute("INSERT INTO retention VALUES (?, 0, NULL) ON CONFLICT DO NOTHING", (organization,))
    cursor.execute("UPDATE retention SET days = ? WHERE org = ? AND days <> ?", (days, organization, days))
    if cursor.rowcount:
        add_events(cursor, [audit.retention_set(organization, days, at, actor)])


def count_older(connection: sqlite3.Connection, organization: str, before: datetime) -> int:
    """How many records of an organization are from before a moment."""
    [number] = connection.execute(f"SELECT count(*) {_OLDER}", (organization, to_micros(before))).fetchone()
    return int(number)


def remove(
    cursor: sqlite3.Cursor, organization: str, before: datetime, limit: int, at: datetime, actor: str
) -> int:
    """Remove at most so many of an organization's records from before a moment; how many it were.

    The first says from when on older ones are missing, and tells of it.
    """
    moment = to_micros(before)
    rows = cursor.execute(f"SELECT u.seq {_OLDER} ORDER BY u.ts LIMIT ?", (organization, moment, limit))
    seqs = [seq for (seq,) in rows]
    if not seqs:
        return 0
    cursor.execute(
        "UPDATE retention SET removed = ? WHERE org = ? AND ifnull(removed, ?) < ?",
        (moment, organization, REMOVED_AT, moment),
    )
    if cursor.rowcount:
        day_sums.forget_before(cursor, organization, moment)
        add_events(cursor, [audit.retention_applied(organization, before, at, actor)])
    # Rows count in the sums once they are folded.
    fold(cursor)
    add_removed(cursor, seqs)
    _remove_rows(cursor, seqs)
    return len(seqs)


def _remove_rows(cursor: sqlite3.Cursor, seqs: Sequence[int]) -> None:
    among = f"IN ({', '.join('?' * len(seqs))})"
    for table in ("first_record", "erased"):
        cursor.execute(f"DELETE FROM {table} WHERE usage {among}", seqs)
    # The highest numbers of both tables are never given out again: where consumers go on is told by them.
    cursor.execute(
        f"DELETE FROM revision WHERE usage {among} AND seq < (SELECT max(seq) FROM revision)", seqs
    )
    cursor.execute("DELETE FROM revision WHERE usage = 0 AND seq < (SELECT max(seq) FROM revision)")
    cursor.execute(
        f"UPDATE revision SET usage = 0, reason = '', actor = '', record = NULL WHERE usage {among}", seqs
    )
    last = "(SELECT max(seq) FROM usage)"
    cursor.execute(f"DELETE FROM usage WHERE seq {among} AND key IS NULL AND seq < {last}", seqs)
    cursor.execute(
        f"UPDATE usage SET seq = iif(seq = {last}, seq, -seq), series = 0, pricing = 0, key = NULL, "
        f"ingested = 0, ts = {REMOVED_AT}, requests = 0, input = 0, output = 0, cached = 0, "
        "cost_micros = NULL, cost_picos = NULL, user = NULL, tags = NULL, labels = NULL, record = x'' "
        f"WHERE seq {among}",
        seqs,
    )
