"""From version 3 to version 4 of the schema: ids that do not follow from keys, and no sums of users."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from llm_cost_ops.ledger.ids import as_text, usage_id
from llm_cost_ops.ledger.sqlite.rows import decode_usage, encode_struct
from llm_cost_ops.ledger.sqlite.sums import newest
from llm_cost_ops.rules.times import to_micros

__all__ = ["move_usage", "sum_users"]

_OLD = (
    "SELECT u.seq, u.org, u.series, u.pricing, u.id, u.key, u.ts, u.requests, u.input, u.output, u.cached, "
    "u.micro, u.rest, u.user, u.tags, u.labels, u.record, o.name "
    "FROM usage u JOIN organization o ON o.id = u.org ORDER BY u.seq"
)


def move_usage(connection: sqlite3.Connection) -> None:
    """Copy usage to usage_4, and what its keys stand for to `earlier`."""
    insert = f"INSERT INTO usage_4 VALUES ({', '.join('?' * 18)})"
    connection.executemany(insert, (_moved(row) for row in connection.execute(_OLD)))
    connection.executemany("INSERT OR IGNORE INTO earlier VALUES (?, ?)", _keys(connection))


def sum_users(connection: sqlite3.Connection) -> None:
    """Add the sums of each day and user to rollup_4."""
    cost = newest(connection)
    day = "(u.ts - (u.ts % 86400000000 + 86400000000) % 86400000000) / 86400000000"
    connection.execute(
        f"INSERT INTO rollup_4 SELECT {cost.series}, 2, {day}, ifnull(u.user, ''), 0, count(*), "
        "sum(u.requests), sum(u.input), sum(u.output), sum(u.cached), "
        f"sum(CASE WHEN {cost.micro} IS NULL THEN u.requests ELSE 0 END), "
        f"ifnull(sum({cost.micro}), 0) + ifnull(sum({cost.rest}), 0) / 1000000, "
        f"ifnull(sum({cost.rest}), 0) % 1000000 FROM usage u{cost.join} GROUP BY 1, 3, 4"
    )


def _moved(row: tuple[Any, ...]) -> tuple[Any, ...]:
    *ids, usage_id, key, ts = row[:7]
    record = decode_usage(row[16])
    ingested = ts if record.ingested_at is None else to_micros(record.ingested_at)
    # The time of a record that was sent without one.
    if ts == ingested:
        record.timestamp = None
    record.id = record.idempotency_key = ""
    record.ingested_at = None
    return (*ids, usage_id, key, ingested, ts, *row[7:16], encode_struct(record))


def _keys(connection: sqlite3.Connection) -> Iterator[tuple[bytes, int]]:
    rows = connection.execute("SELECT u.seq, o.name, u.key FROM usage u JOIN organization o ON o.id = u.org")
    for seq, organization, key in rows:
        if key is not None:
            yield usage_id(organization, as_text(key))[1], seq
