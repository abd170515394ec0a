"""The quick look at a database when it is opened; integrity.py finds what this does not."""

from __future__ import annotations

import sqlite3

from llm_cost_ops.ledger.sqlite.sums import QUARTERS
from llm_cost_ops.rules.times import QUARTER

__all__ = ["find_obvious_fault"]

_LAST = 64
_MAX_COUNTED = 10_000


def find_obvious_fault(connection: sqlite3.Connection) -> str:
    """What is wrong with the last rows, in about a millisecond however large the file is; "" if nothing is.

    Whether the sums know of rows that are not there, the indexes of the rows that were written last, and the
    sums of the quarter of an hour of the last row that is in the sums.
    """
    connection.execute("BEGIN")
    try:
        [folded] = connection.execute("SELECT seq FROM rollup_watermark").fetchone()
        [last] = connection.execute("SELECT ifnull(max(seq), 0) FROM usage").fetchone()
        if folded > last:
            return "its sums hold rows that are not there"
        if connection.execute(_NOT_INDEXED, (last - _LAST,)).fetchone() is not None:
            return "its last rows are not in its indexes"
        found = connection.execute(
            "SELECT org, ts FROM usage WHERE seq = ? AND series > 0", (folded,)
        ).fetchone()
        return "" if found is None else _compare_quarter(connection, folded, *found)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


_NOT_INDEXED = """
    SELECT 1 FROM usage u WHERE u.seq > ? AND (
        NOT EXISTS (SELECT 1 FROM usage i INDEXED BY usage_id WHERE i.org = u.org AND i.id = u.id
            AND i.seq = u.seq)
        OR NOT EXISTS (
            SELECT 1 FROM usage i INDEXED BY usage_time WHERE i.org = u.org AND i.ts = u.ts AND i.seq = u.seq
        )
    ) LIMIT 1
"""
_ROWS_OF_QUARTER = """
    SELECT count(*) FROM (
        SELECT 1 FROM usage INDEXED BY usage_time WHERE org = ? AND ts >= ? AND ts < ? AND seq <= ? LIMIT ?
    )
"""
_SUM_OF_QUARTER = """
    SELECT ifnull(sum(r.records), 0) FROM series s JOIN rollup r ON r.series = s.id
    WHERE s.org = ? AND r.level = ? AND r.bucket = ?
"""
_REMOVED_OF_QUARTER = """
    SELECT ifnull(sum(r.records), 0) FROM series s JOIN removed_sum r ON r.series = s.id
    WHERE s.org = ? AND r.bucket = ?
"""


def _compare_quarter(connection: sqlite3.Connection, folded: int, org: int, ts: int) -> str:
    quarter = ts // QUARTER
    bounds = (quarter * QUARTER, (quarter + 1) * QUARTER)
    asked = (org, *bounds, folded, _MAX_COUNTED + 1)
    [rows] = connection.execute(_ROWS_OF_QUARTER, asked).fetchone()
    if rows > _MAX_COUNTED:
        return ""
    [summed] = connection.execute(_SUM_OF_QUARTER, (org, QUARTERS, quarter)).fetchone()
    [removed] = connection.execute(_REMOVED_OF_QUARTER, (org, quarter)).fetchone()
    summed -= removed
    return "" if rows == summed else f"its sums hold {summed} of the {rows} records of a quarter of an hour"
