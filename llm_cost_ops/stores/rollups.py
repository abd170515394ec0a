"""The sums that queries read: of rows by series and quarter of an hour, and by series and day.

They are behind the rows by a tail of fewer than FOLD_EVERY records, which queries add up themselves:
`folded` says up to which row the sums go, and moves with them in one transaction. So a write costs a row,
and sums and rows never disagree.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from llm_cost_ops.engine.windows import QUARTER, QUARTERS_A_DAY

__all__ = ["add", "fold", "fold_if_due", "lay_out_tail"]

FOLD_EVERY = 128
"""Rows are added to the sums by the transaction that writes the row of a number divisible by this."""

Place = tuple[int, int, int]
"""A series, a level and a bucket of the table rollup."""

# So many rows of the largest numbers that a store takes add up to less than 2^63.
_AT_ONCE = 4096
_MICRO = 1_000_000
_ADD = (
    f"INSERT INTO rollup VALUES ({', '.join('?' * 12)}) "
    "ON CONFLICT (series, level, bucket, part) DO UPDATE SET "
    "records = records + excluded.records, requests = requests + excluded.requests, "
    "input = input + excluded.input, output = output + excluded.output, cached = cached + excluded.cached, "
    "unpriced = unpriced + excluded.unpriced, "
    "micro = micro + excluded.micro + (rest + excluded.rest) / 1000000, "
    "rest = (rest + excluded.rest) % 1000000"
)
_ROWS = (
    "SELECT series, ts, requests, input, output, cached, micro, rest FROM usage WHERE seq > ? AND seq <= ?"
)
_ADD_TAIL = f"INSERT INTO temp.tail VALUES ({', '.join('?' * 11)})"


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
        add(cursor, _sums(cursor.execute(_ROWS, (done, upto))))
        done = upto
    cursor.execute("UPDATE folded SET seq = ?", (done,))


def add(cursor: sqlite3.Cursor, sums: dict[Place, list[int]]) -> None:
    """Add amounts to the sums: records, requests, input, output, cached, unpriced, and the cost in 10^-12.

    Where one would leave 64 bits, which STRICT refuses, all of them go into a part of their own.
    """
    [part] = cursor.execute("SELECT part FROM folded").fetchone()
    rows = [(*place[:3], part, *_columns(amounts)) for place, amounts in sorted(sums.items())]
    cursor.execute("SAVEPOINT sums")
    try:
        cursor.executemany(_ADD, rows)
    except (sqlite3.IntegrityError, OverflowError):
        cursor.execute("ROLLBACK TO sums")
        cursor.execute("UPDATE folded SET part = part + 1")
        cursor.executemany(_ADD, [(*row[:3], part + 1, *row[4:]) for row in rows])
    cursor.execute("RELEASE sums")


def lay_out_tail(connection: sqlite3.Connection) -> bool:
    """Put the sums of the rows that are not in the sums yet into temp.tail; whether there are any."""
    connection.execute("DELETE FROM temp.tail")
    [done] = connection.execute("SELECT seq FROM folded").fetchone()
    sums = _sums(connection.execute(_ROWS, (done, 2**63 - 1)))
    connection.executemany(_ADD_TAIL, [(*place, *_columns(amounts)) for place, amounts in sums.items()])
    return bool(sums)


def _columns(amounts: list[int]) -> tuple[int, ...]:
    return (*amounts[:6], *divmod(amounts[6], _MICRO))


def _sums(rows: Iterable[tuple[Any, ...]]) -> dict[Place, list[int]]:
    """What rows add to the quarters and the days."""
    sums: dict[Place, list[int]] = {}
    for series, ts, requests, put_in, put_out, cached, micro, rest in rows:
        place = (series, 0, ts // QUARTER)
        found = sums.get(place)
        if found is None:
            found = sums[place] = [0, 0, 0, 0, 0, 0, 0]
        found[0] += 1
        found[1] += requests
        found[2] += put_in
        found[3] += put_out
        found[4] += cached
        if micro is None:
            found[5] += requests
        else:
            found[6] += micro * _MICRO + rest
    for (series, _, quarter), found in list(sums.items()):
        day = sums.setdefault((series, 1, quarter // QUARTERS_A_DAY), [0, 0, 0, 0, 0, 0, 0])
        for at, value in enumerate(found):
            day[at] += value
    return sums
