"""Reading records back: pages of them, and the stretches of time that hold any."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from msgspec import structs

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.sqlite.rows import RECORD_COLUMNS, decode_record
from llm_cost_ops.ledger.sqlite.sums import (
    NOT_VOIDED,
    Newest,
    newest,
    per_record_conditions,
    series_conditions,
)
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.times import QUARTER

__all__ = ["is_quick", "list_usage", "occupied"]

_SORTS = {"timestamp": "ts", "ingested_at": "seq"}
_POSITION = re.compile(r"(-?[0-9]{1,18})\.([0-9]{1,18})", re.ASCII)
_QUICK_LIMIT = 100
_OPEN = 2**62


def is_quick(where: Filter, sort: str, limit: int, offset: int | None) -> bool:
    """Whether a page is read straight from an index, whatever the number of records."""
    wide = Filter(organization_ids=where.organization_ids, start=where.start, end=where.end)
    return where == wide and sort == "timestamp" and not offset and limit <= _QUICK_LIMIT


def list_usage(
    connection: sqlite3.Connection,
    where: Filter,
    sort: str,
    descending: bool,
    limit: int,
    after: str | None,
    offset: int | None,
) -> tuple[list[UsageRecord], str | None]:
    """A page, and the position to go on after. The order is by moment, then by number, or by number alone."""
    if sort not in _SORTS:
        raise invalid_argument("sort", f"must be one of {', '.join(_SORTS)}, not {sort[:64]!r}")
    position = None if after is None else _parsed(connection, after)
    column = _SORTS[sort]
    cost = newest(connection)
    conditions, parameters = _conditions(where, cost)
    hint = " NOT INDEXED" if column == "seq" else ""
    direction = "DESC" if descending else "ASC"
    more = "".join(f" AND {condition}" for condition in conditions)
    first = offset or 0
    found: list[tuple[int, int]] = []
    lists = _lists(_organizations(connection, where.organization_ids), column, descending, position)
    skipped = 0
    if [len(ranges) for ranges in lists] == [1]:
        # SQLite passes over them where they stand; where there are several lists, one must see them.
        skipped, first = first, 0
    for ranges in lists:
        wanted = first + limit + 1
        for within, values in ranges:
            query = (
                f"SELECT u.{column}, u.seq FROM usage u{hint}{cost.join} WHERE {within}{more} "
                f"ORDER BY u.{column} {direction}, u.seq {direction} LIMIT ? OFFSET ?"
            )
            rows = connection.execute(query, (*values, *parameters, wanted, skipped)).fetchall()
            found += rows
            wanted -= len(rows)
            if not wanted:
                break
    if len(lists) > 1:
        found.sort(reverse=descending)
    page = [seq for _, seq in found[first : first + limit]]
    records = _records(connection, page, cost)
    more_follow = len(found) > first + limit and bool(page)
    return [record for _, record in records], f"{records[-1][0]}.{page[-1]}" if more_follow else None


_Range = tuple[str, tuple[int, ...]]


def _lists(
    orgs: Sequence[int], column: str, descending: bool, after: tuple[int, int] | None
) -> list[list[_Range]]:
    """What to read, each part of it in order: the table itself, or an index for each organization.

    What lies behind a position in an index are two ranges: the rest that equals it, and what does not. For
    one condition on both columns SQLite would read all that equals it.
    """
    sign = "<" if descending else ">"
    if column == "seq":
        within = f"u.org IN ({', '.join(map(str, orgs))})"
        return [[(within, ()) if after is None else (f"{within} AND u.seq {sign} ?", after[1:])]]
    if after is None:
        return [[("u.org = ?", (org,))] for org in orgs]
    equal, other = f"u.org = ? AND u.ts = ? AND u.seq {sign} ?", f"u.org = ? AND u.ts {sign} ?"
    return [[(equal, (org, *after)), (other, (org, after[0]))] for org in orgs]


def _organizations(connection: sqlite3.Connection, names: Sequence[str]) -> list[int]:
    query = "SELECT id FROM organization"
    if names:
        query += f" WHERE name IN ({', '.join('?' * len(names))})"
    return [org for (org,) in connection.execute(query, names)]


def _conditions(where: Filter, cost: Newest) -> tuple[list[str], list[object]]:
    conditions, parameters = per_record_conditions(where)
    wanted, values = series_conditions(structs.replace(where, organization_ids=()))
    if cost.join and not where.statuses:
        # As long as there is no revision, nothing was voided.
        wanted += f"{' AND' if wanted else ' WHERE'} {NOT_VOIDED}"
    if wanted:
        series = f"SELECT s.id FROM series s{wanted}"
        conditions.append(f"{cost.series} IN ({series})")
        parameters += values
    # What is left of removed records is before all times.
    conditions.append(f"u.ts >= {-_OPEN if where.start is None else to_micros(where.start)}")
    if where.end is not None:
        conditions.append("u.ts < ?")
        parameters.append(to_micros(where.end))
    return conditions, parameters


def _parsed(connection: sqlite3.Connection, position: str) -> tuple[int, int]:
    """The moment and number in a position, which are those of a record, or were before it was removed."""
    match = _POSITION.fullmatch(position)
    if match is not None:
        ts, seq = int(match[1]), int(match[2])
        there = (
            "SELECT 1 FROM usage WHERE seq = ? AND ts = ? UNION ALL SELECT 1 FROM retention WHERE removed > ?"
        )
        if connection.execute(there, (seq, ts, ts)).fetchone() is not None:
            return ts, seq
    raise invalid_argument("cursor", "is not one that this ledger gave")


def _records(
    connection: sqlite3.Connection, seqs: Sequence[int], cost: Newest
) -> list[tuple[int, UsageRecord]]:
    """The moments and records with these numbers, in this order."""
    query = (
        f"SELECT u.seq, {RECORD_COLUMNS}, {cost.micros}, {cost.picos}, s.currency, s.status FROM usage u"
        f"{cost.join} JOIN series s ON s.id = {cost.series} WHERE u.seq IN ({', '.join('?' * len(seqs))})"
    )
    rows = {row[0]: (row[4], decode_record(row[1:8], *row[8:])) for row in connection.execute(query, seqs)}
    return [rows[seq] for seq in seqs]


def occupied(connection: sqlite3.Connection, where: Filter, width: int) -> list[int]:
    """The numbers of the stretches in which the filter's organizations have records; see Sums.

    A stretch takes one look into the index, however many records it holds and however far the next one is.
    """
    conditions, parameters = series_conditions(Filter(organization_ids=where.organization_ids))
    low = -_OPEN if where.start is None else to_micros(where.start)
    high = _OPEN if where.end is None else to_micros(where.end)
    # Whole division as Python does it, also before 1970.
    number = f"(f.ts - (f.ts % {width} + {width}) % {width}) / {width}"
    first = f"SELECT ts FROM usage WHERE org = {{}} AND ts >= {{}} AND ts < {high} ORDER BY ts LIMIT 1"
    rows = connection.execute(
        f"WITH RECURSIVE found (org, ts) AS (SELECT o.id, ({first.format('o.id', low)}) "
        f"FROM organization o{conditions} UNION ALL "
        f"SELECT f.org, ({first.format('f.org', f'({number} + 1) * {width}')}) FROM found f "
        f"WHERE f.ts IS NOT NULL) SELECT DISTINCT {number} FROM found f WHERE f.ts IS NOT NULL ORDER BY 1",
        parameters,
    )
    found = {number for (number,) in rows}
    # Removed records are in the sums, and so they are there.
    quarters = connection.execute(
        "SELECT DISTINCT r.bucket FROM removed_sum r JOIN series s ON s.id = r.series "
        f"JOIN organization o ON o.id = s.org{conditions}{' AND' if conditions else ' WHERE'} r.records > 0 "
        "AND r.bucket >= ? AND r.bucket < ?",
        (*parameters, -(-low // QUARTER), high // QUARTER),
    )
    return sorted(found | {bucket * QUARTER // width for (bucket,) in quarters})
