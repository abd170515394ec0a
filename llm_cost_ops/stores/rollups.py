"""The sums that queries read: of rows by series and quarter of an hour, by day, and by day and user.

They are behind the rows by a tail of fewer than FOLD_EVERY records, which queries add up themselves:
`folded` says up to which row the sums go, and moves with them in one transaction. So a write costs a row,
and sums and rows never disagree: they need no transaction in common, since whatever the sums lack is tail.

A sum that would leave 64 bits goes on in another part: `folded` names the part that is added to, and
queries add up all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from llm_cost_ops.engine.windows import QUARTER, QUARTERS_A_DAY

__all__ = ["DAYS", "QUARTERS", "USER_DAYS", "Place", "add", "fold", "fold_if_due", "lay_out_tail", "places"]

FOLD_EVERY = 128
"""Rows are added to the sums by the transaction that writes the row of a number divisible by this."""

QUARTERS, DAYS, USER_DAYS = 0, 1, 2
"""The levels of the table rollup."""

Place = tuple[int, int, int, str]
"""A series, a level, a bucket and a user ("" where the level has none) of the table rollup."""

# So many rows of the largest numbers that a store takes add up to less than 2^63.
_AT_ONCE = 4096
_MICRO = 1_000_000

_COUNTS = ("records", "requests", "input", "output", "cached", "unpriced")
# Whole division as Python does it, also before 1970.
_QUARTER = f"(ts - (ts % {QUARTER} + {QUARTER}) % {QUARTER}) / {QUARTER}"
_DAY = f"(bucket - (bucket % {QUARTERS_A_DAY} + {QUARTERS_A_DAY}) % {QUARTERS_A_DAY}) / {QUARTERS_A_DAY}"
_TOTALS = ", ".join(f"sum({name})" for name in (*_COUNTS, "micro", "rest"))
# What the rows between two numbers add.
_SUMS = f"""
    WITH found AS MATERIALIZED (
        SELECT series, {_QUARTER} AS bucket, ifnull(user, '') AS user, count(*) AS records,
            sum(requests) AS requests, sum(input) AS input, sum(output) AS output, sum(cached) AS cached,
            sum(iif(micro IS NULL, requests, 0)) AS unpriced, ifnull(sum(micro), 0) AS micro,
            ifnull(sum(rest), 0) AS rest
        FROM usage WHERE seq > ? AND seq <= ? GROUP BY series, bucket, ifnull(user, '')
    ), place (series, level, bucket, user, {", ".join(_COUNTS)}, micro, rest) AS (
        SELECT series, {QUARTERS}, bucket, '', {_TOTALS} FROM found GROUP BY series, bucket
        UNION ALL SELECT series, {DAYS}, {_DAY}, '', {_TOTALS} FROM found GROUP BY series, {_DAY}
        UNION ALL SELECT series, {USER_DAYS}, {_DAY}, user, {_TOTALS} FROM found GROUP BY series, {_DAY}, user
    )
    SELECT series, level, bucket, user, %s {", ".join(_COUNTS)}, micro + rest / {_MICRO}, rest % {_MICRO}
    FROM place WHERE true
"""
_ON_CONFLICT = f"""
    ON CONFLICT (series, level, bucket, user, part) DO UPDATE SET
    {", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTS)},
    micro = micro + excluded.micro + (rest + excluded.rest) / {_MICRO},
    rest = (rest + excluded.rest) % {_MICRO}
"""
_PART = "(SELECT part FROM folded)"
_FOLD = f"INSERT INTO rollup {_SUMS.replace('%s', f'{_PART},')} {_ON_CONFLICT}"
_ADD = f"INSERT INTO rollup VALUES (?, ?, ?, ?, {_PART}, {', '.join('?' * 8)}) {_ON_CONFLICT}"
_ADD_TAIL = f"INSERT INTO temp.tail {_SUMS.replace('%s', '')}"


def places(series: int, ts: int, user: str) -> tuple[Place, Place, Place]:
    """Where the sums hold a row with this time, in microseconds."""
    quarter = ts // QUARTER
    day = quarter // QUARTERS_A_DAY
    return (series, QUARTERS, quarter, ""), (series, DAYS, day, ""), (series, USER_DAYS, day, user)


def fold_if_due(cursor: sqlite3.Cursor, first: int, last: int) -> None:
    """Bring the sums up to date, if the transaction that wrote rows of these numbers is the one to do it.

    Where that was committed already, in a transaction of its own.
    """
    if (first - 1) // FOLD_EVERY == last // FOLD_EVERY:
        return
    if cursor.connection.in_transaction:
        fold(cursor)
    else:
        _fold_apart(cursor)


def _fold_apart(cursor: sqlite3.Cursor) -> None:
    try:
        cursor.execute("BEGIN IMMEDIATE")
        fold(cursor)
        cursor.execute("COMMIT")
    except sqlite3.Error:
        # The rows are committed, and whoever comes to it next folds them.
        if cursor.connection.in_transaction:
            cursor.execute("ROLLBACK")


def fold(cursor: sqlite3.Cursor) -> None:
    """Bring the sums up to date, in the transaction of the caller."""
    done, last = cursor.execute("SELECT seq, (SELECT max(seq) FROM usage) FROM folded").fetchone()
    while last is not None and done < last:
        upto = min(done + _AT_ONCE, last)
        _add(cursor, _FOLD, [(done, upto)])
        done = upto
    cursor.execute("UPDATE folded SET seq = ?", (done,))


def add(cursor: sqlite3.Cursor, sums: dict[Place, list[int]]) -> None:
    """Add amounts to the sums: records, requests, input, output, cached, unpriced, and the cost in 10^-12."""
    rows = [(*place, *amounts[:6], *divmod(amounts[6], _MICRO)) for place, amounts in sorted(sums.items())]
    _add(cursor, _ADD, rows)


def _add(cursor: sqlite3.Cursor, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add to the sums; where one would leave 64 bits, which STRICT refuses, all go into a new part."""
    cursor.execute("SAVEPOINT sums")
    try:
        cursor.executemany(statement, rows)
    except (sqlite3.IntegrityError, OverflowError):
        cursor.execute("ROLLBACK TO sums")
        cursor.execute("UPDATE folded SET part = part + 1")
        cursor.executemany(statement, rows)
    cursor.execute("RELEASE sums")


def lay_out_tail(connection: sqlite3.Connection) -> bool:
    """Put the sums of the rows that are not in the sums yet into temp.tail; whether there are any."""
    connection.execute("DELETE FROM temp.tail")
    [done] = connection.execute("SELECT seq FROM folded").fetchone()
    return connection.execute(_ADD_TAIL, (done, 2**63 - 1)).rowcount > 0
