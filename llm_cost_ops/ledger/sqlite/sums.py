"""Sums: the table rollup and how it is kept up to date, and queries over it and over single rows.

A record counts with its cost in force: that of its newest revision, or its first where there is none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from llm_cost_ops.ledger.types import Amounts, Filter
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.rules.limits import check_amounts, check_sum
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY, cover, to_micros

__all__ = [
    "DAYS",
    "KEPT",
    "NOT_VOIDED",
    "QUARTERS",
    "SERIES_PLACES",
    "USER_DAYS",
    "Keys",
    "Newest",
    "Piece",
    "Place",
    "add",
    "count",
    "figures",
    "fold",
    "fold_if_due",
    "load_intervals",
    "load_tail",
    "newest",
    "per_record_conditions",
    "pick_series",
    "pieces_of",
    "places",
    "recalculated",
    "series_conditions",
    "summarize",
]


class Newest(NamedTuple):
    """SQL for the cost in force of `usage u`: what to join, and the columns."""

    join: str
    series: str
    pricing: str
    micros: str
    picos: str
    number: str


_FIRST = Newest("", "u.series", "u.pricing", "u.cost_micros", "u.cost_picos", "1")
_REVISED = Newest(
    " LEFT JOIN revision v ON v.usage = u.seq"
    " AND v.number = (SELECT max(w.number) FROM revision w WHERE w.usage = u.seq)",
    "ifnull(v.series, u.series)",
    "ifnull(v.pricing, u.pricing)",
    # Not ifnull: a revision may find that there is no price.
    "iif(v.usage IS NULL, u.cost_micros, v.cost_micros)",
    "iif(v.usage IS NULL, u.cost_picos, v.cost_picos)",
    "ifnull(v.number, 1)",
)


def newest(connection: sqlite3.Connection) -> Newest:
    """The SQL to use. As long as nothing was repriced, queries pay nothing for revisions."""
    [revised] = connection.execute("SELECT EXISTS (SELECT 1 FROM revision)").fetchone()
    return _REVISED if revised else _FIRST


FOLD_EVERY = 128
"""Rows are added to the sums by the transaction that writes the row of a number divisible by this."""

QUARTERS, DAYS, USER_DAYS = 0, 1, 2
"""The levels of the table rollup."""

Place = tuple[int, int, int, str]
"""A series, a level, a bucket and a user ("" where the level has none) of the table rollup."""

# So many rows of the largest numbers that a store takes add up to less than 2^63.
_AT_ONCE = 4096
_PICOS = 1_000_000
_MAX_SUM = 2**63 - 1

_COUNTS = ("records", "requests", "input", "output", "cached", "unpriced")
# Whole division as Python does it, also before 1970.
_QUARTER = f"(ts - (ts % {QUARTER} + {QUARTER}) % {QUARTER}) / {QUARTER}"
_DAY = f"(bucket - (bucket % {QUARTERS_A_DAY} + {QUARTERS_A_DAY}) % {QUARTERS_A_DAY}) / {QUARTERS_A_DAY}"
_TOTALS = ", ".join(f"sum({name})" for name in (*_COUNTS, "micros", "picos"))
# What the rows between two numbers add.
_SUMS = f"""
    WITH found AS MATERIALIZED (
        SELECT series, {_QUARTER} AS bucket, ifnull(user, '') AS user, count(*) AS records,
            sum(requests) AS requests, sum(input) AS input, sum(output) AS output, sum(cached) AS cached,
            sum(iif(cost_micros IS NULL, requests, 0)) AS unpriced, ifnull(sum(cost_micros), 0) AS micros,
            ifnull(sum(cost_picos), 0) AS picos
        FROM usage WHERE seq > ? AND seq <= ? GROUP BY series, bucket, ifnull(user, '')
    ), place (series, level, bucket, user, {", ".join(_COUNTS)}, micros, picos) AS (
        SELECT series, {QUARTERS}, bucket, '', {_TOTALS} FROM found GROUP BY series, bucket
        UNION ALL SELECT series, {DAYS}, {_DAY}, '', {_TOTALS} FROM found GROUP BY series, {_DAY}
        UNION ALL SELECT series, {USER_DAYS}, {_DAY}, user, {_TOTALS} FROM found GROUP BY series, {_DAY}, user
    )
    SELECT series, level, bucket, user, {", ".join(_COUNTS)}, micros + picos / {_PICOS}, picos % {_PICOS}
    FROM place WHERE true
"""


def _saturated(name: str, added: str) -> str:
    """SQL for a sum that stays at the largest integer once it got there: a write never fails for it.

    Queries refuse it, as they do every sum above MAX_SUM. (SQLite goes on in floating point where an addition
    leaves 64 bits, and compares that with an integer exactly.)
    """
    return f"{name} = iif({name} = {_MAX_SUM}, {_MAX_SUM}, min({name} + {added}, {_MAX_SUM}))"


_ON_CONFLICT = f"""
    ON CONFLICT (series, level, bucket, user) DO UPDATE SET
    {", ".join(_saturated(name, f"excluded.{name}") for name in _COUNTS)},
    {_saturated("cost_micros", f"excluded.cost_micros + (cost_picos + excluded.cost_picos) / {_PICOS}")},
    cost_picos = (cost_picos + excluded.cost_picos) % {_PICOS}
"""
_FOLD = f"INSERT INTO rollup {_SUMS} {_ON_CONFLICT}"
_ADD = f"INSERT INTO rollup VALUES ({', '.join('?' * 12)}) {_ON_CONFLICT}"
_ADD_TAIL = f"INSERT INTO temp.tail {_SUMS}"


KEPT = f"""
    SELECT series, level, bucket, user, {", ".join(f"sum({name})" for name in _COUNTS)},
        sum(cost_micros) + sum(cost_picos) / {_PICOS}, sum(cost_picos) % {_PICOS}
    FROM rollup GROUP BY series, level, bucket, user HAVING sum(records) <> 0
"""
"""The sums that are kept, as `recalculated` gives them."""


def recalculated(connection: sqlite3.Connection) -> str:
    """SQL for the sums of the rows up to a number (its one parameter), from the costs that are in force."""
    cost = newest(connection)
    rows = (
        f"SELECT u.seq, {cost.series} AS series, u.ts, u.user, u.requests, u.input, u.output, u.cached, "
        f"{cost.micros} AS cost_micros, {cost.picos} AS cost_picos FROM usage u{cost.join}"
    )
    found = _SUMS.replace("FROM usage WHERE seq > ? AND seq <= ?", f"FROM ({rows}) WHERE seq <= ?")
    return f"SELECT * FROM ({found})"


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
    done, last = cursor.execute("SELECT seq, (SELECT max(seq) FROM usage) FROM rollup_watermark").fetchone()
    while last is not None and done < last:
        upto = min(done + _AT_ONCE, last)
        cursor.execute(_FOLD, (done, upto))
        done = upto
    cursor.execute("UPDATE rollup_watermark SET seq = ?", (done,))


def add(cursor: sqlite3.Cursor, sums: dict[Place, list[int]]) -> None:
    """Add amounts to the sums: records, requests, input, output, cached, unpriced, and the cost in 10^-12."""
    rows = [(*place, *amounts[:6], *divmod(amounts[6], _PICOS)) for place, amounts in sorted(sums.items())]
    cursor.executemany(_ADD, rows)


def load_tail(connection: sqlite3.Connection) -> bool:
    """Put the sums of the rows that are not in the sums yet into temp.tail; whether there are any."""
    connection.execute("DELETE FROM temp.tail")
    [done] = connection.execute("SELECT seq FROM rollup_watermark").fetchone()
    return connection.execute(_ADD_TAIL, (done, 2**63 - 1)).rowcount > 0


def figures(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many rows are not in the sums yet, and the size of the database in bytes."""
    [unfolded] = connection.execute(
        "SELECT ifnull((SELECT max(seq) FROM usage), 0) - seq FROM rollup_watermark"
    ).fetchone()
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    [size] = connection.execute("PRAGMA page_size").fetchone()
    return max(0, unfolded), pages * size


Keys = tuple[str, ...]
Totals = dict[tuple[Keys, int, str], list[int]]
Piece = tuple[int, int | None, int | None]

SERIES_PLACES = {
    "organization": 0,
    "provider": 1,
    "model": 2,
    "project": 3,
    "operation": 4,
    "service_tier": 5,
    "processing": 6,
    "region": 7,
    "status": 8,
}
_PICK = (
    "SELECT s.id, s.org, o.name, s.provider, s.model, s.project, s.operation, s.service_tier, s.processing, "
    "s.region, s.status, s.currency FROM series s JOIN organization o ON o.id = s.org"
)
NOT_VOIDED = "s.status <> 'voided'"
"""SQL on `series s` for a filter without statuses."""

_AMOUNTS = ("records", "requests", "input", "output", "cached", "unpriced", "cost_micros", "cost_picos")
# Places in _AMOUNTS of what is also added up apart, for records whose costs providers reported.
_REPORTED = (1, 6, 7)
_OPEN = 2**62


def summarize(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: tuple[str, ...],
    buckets: Sequence[tuple[datetime, datetime]] | None,
) -> list[tuple[Keys, int, Amounts]]:
    """The sums of each group, bucket and currency that has any, by bucket and keys."""
    totals = _totals(connection, where, group_by, buckets)
    found = []
    for (keys, bucket, currency), amounts in sorted(totals.items(), key=_by_bucket):
        records, requests, put_in, put_out, cached, unpriced, micros, picos, *of_reported = amounts
        # Repricing leaves sums of nothing behind.
        if records:
            sums = Amounts(
                requests=requests,
                input_tokens=put_in,
                output_tokens=put_out,
                cached_tokens=cached,
                unpriced_requests=unpriced,
                units=micros * _PICOS + picos,
                reported_requests=of_reported[0],
                reported_units=of_reported[1] * _PICOS + of_reported[2],
                currency=currency,
            )
            check_amounts(sums)
            found.append((keys, bucket, sums))
    return found


def _by_bucket(item: tuple[tuple[Keys, int, str], list[int]]) -> tuple[int, Keys, str]:
    (keys, bucket, currency), _ = item
    return bucket, keys, currency


def count(connection: sqlite3.Connection, where: Filter) -> int:
    """How many records the filter lets through."""
    return sum(amounts[0] for amounts in _totals(connection, where, (), None).values())


def series_conditions(where: Filter) -> tuple[str, list[str]]:
    """SQL on `series s JOIN organization o`, starting with WHERE, and its parameters."""
    conditions: list[str] = []
    parameters: list[str] = []
    for column, values in (
        ("o.name", where.organization_ids),
        ("s.provider", where.providers),
        ("s.model", where.model_ids),
        ("s.project", where.project_ids),
        ("s.service_tier", where.service_tiers),
        ("s.processing", where.processings),
        ("s.region", where.regions),
        ("s.operation", where.operations),
        ("s.status", where.statuses),
    ):
        if values:
            conditions.append(f"{column} IN ({_marks(values)})")
            parameters += values
    return (f" WHERE {' AND '.join(conditions)}" if conditions else ""), parameters


def per_record_conditions(where: Filter) -> tuple[list[str], list[object]]:
    """SQL on `usage u` for what series do not hold, and its parameters."""
    conditions: list[str] = []
    parameters: list[Any] = []
    if where.user_ids:
        conditions.append(f"ifnull(u.user, '') IN ({_marks(where.user_ids)})")
        if "" not in where.user_ids:
            conditions[-1] = f"u.user IN ({_marks(where.user_ids)})"
        parameters += where.user_ids
    if where.tags:
        conditions.append(f"EXISTS (SELECT 1 FROM json_each(u.tags) WHERE value IN ({_marks(where.tags)}))")
        parameters += where.tags
    for key, value in where.labels.items():
        conditions.append("(SELECT value FROM json_each(u.labels) WHERE key = ?) = ?")
        parameters += (key, value)
    return conditions, parameters


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _totals(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: tuple[str, ...],
    buckets: Sequence[tuple[datetime, datetime]] | None,
) -> Totals:
    series = pick_series(connection, where)
    pieces = list(pieces_of(where, buckets))
    totals: Totals = {}
    if not series or not pieces:
        return totals
    query = SumQuery(connection, where, group_by, series, totals)
    if query.needs_rows:
        query.add_rows(pieces)
        return totals
    rows: list[Piece] = []
    levels: dict[int, list[Piece]] = {QUARTERS: [], DAYS: [], USER_DAYS: []}
    for bucket, low, high in pieces:
        parts = cover(low, high)
        rows += ((bucket, *part) for part in parts.rows)
        levels[USER_DAYS if query.by_user else DAYS].extend((bucket, *part) for part in parts.days)
        if query.by_user:
            rows += ((bucket, *_micros(part)) for part in parts.quarters)
        else:
            levels[QUARTERS].extend((bucket, *part) for part in parts.quarters)
    if any(levels.values()):
        tables = ("rollup", "temp.tail") if load_tail(connection) else ("rollup",)
        for table in tables:
            for level, found in levels.items():
                query.add_rollups(table, level, found)
    query.add_rows(rows)
    return totals


def _micros(quarters: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    low, high = (None if edge is None else edge * QUARTER for edge in quarters)
    return low, high


def pick_series(connection: sqlite3.Connection, where: Filter) -> dict[int, tuple[str, ...]]:
    """The dimensions and the currency of the series that the filter lets through, by id.

    Their ids, and those of their organizations, are in temp.picked afterwards.
    """
    conditions, parameters = series_conditions(where)
    if not where.statuses:
        conditions += f"{' AND' if conditions else ' WHERE'} {NOT_VOIDED}"
    rows = connection.execute(_PICK + conditions, parameters).fetchall()
    connection.execute("DELETE FROM temp.picked")
    connection.executemany("INSERT INTO temp.picked VALUES (?, ?)", (row[:2] for row in rows))
    return {row[0]: row[2:] for row in rows}


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


def load_intervals(connection: sqlite3.Connection, pieces: Iterable[Piece]) -> None:
    """Put pieces of time into temp.piece, in place of what was there."""
    connection.execute("DELETE FROM temp.piece")
    connection.executemany(
        "INSERT INTO temp.piece (bucket, low, high) VALUES (?, ?, ?)",
        (
            (bucket, -_OPEN if low is None else low, _OPEN if high is None else high)
            for bucket, low, high in pieces
        ),
    )


def _row_amounts(cost: Newest) -> tuple[str, ...]:
    unpriced = f"CASE WHEN {cost.micros} IS NULL THEN u.requests ELSE 0 END"
    return ("1", "u.requests", "u.input", "u.output", "u.cached", unpriced, cost.micros, cost.picos)


class SumQuery:
    """A query while it is answered; what it finds is added to `totals`."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        where: Filter,
        group_by: tuple[str, ...],
        series: dict[int, tuple[str, ...]],
        totals: Totals,
    ) -> None:
        self._connection = connection
        self._where = where
        self._series = series
        self._totals = totals
        self._columns: list[str] = []
        self._joins: list[str] = []
        self._parameters: list[str] = []
        # Where each key comes from: a place in the dimensions of the series, or behind them in the row.
        self._places: list[int] = []
        for name in group_by:
            if name in SERIES_PLACES:
                self._places.append(SERIES_PLACES[name])
            else:
                self._places.append(len(SERIES_PLACES) + 1 + len(self._columns))
                self._columns.append(self._column(name))
        self.by_user = bool("user" in group_by or where.user_ids)
        self.needs_rows = bool(set(group_by) - {*SERIES_PLACES, "user"} or where.tags or where.labels)

    def _column(self, name: str) -> str:
        if name == "user":
            return "ifnull(u.user, '')"
        at = len(self._columns)
        if name == "tag":
            self._joins.append(f" LEFT JOIN json_each(u.tags) AS j{at}")
            return f"ifnull(j{at}.value, '')"
        if name.startswith("label:"):
            self._parameters.append(name.removeprefix("label:"))
            return "ifnull((SELECT value FROM json_each(u.labels) WHERE key = ?), '')"
        rule = f"{name[:64]!r} is nothing that usage can be grouped by"
        raise RpcError(StatusCode.INVALID_ARGUMENT, rule, violations=[Violation("group_by", rule)])

    def add_rollups(self, table: str, level: int, pieces: list[Piece]) -> None:
        """Add what a table holds of whole quarters of an hour or whole days."""
        if not pieces:
            return
        load_intervals(self._connection, pieces)
        user = ", r.user" * len(self._columns)
        users = self._where.user_ids
        # CROSS JOIN fixes the order of the loops, in which the groups come out sorted.
        source = (
            f"FROM temp.picked p CROSS JOIN temp.piece g CROSS JOIN {table} r "
            "WHERE r.series = p.id AND r.level = ? AND r.bucket >= g.low AND r.bucket < g.high "
            f"{f'AND r.user IN ({_marks(users)}) ' if users else ''}GROUP BY p.id, g.n{user}"
        )
        amounts = [f"r.{name}" for name in _AMOUNTS]
        self._sum(f"p.id, g.bucket{user}", amounts, source, [level, *users])

    def add_rows(self, pieces: list[Piece]) -> None:
        """Add what rows hold, one by one."""
        if not pieces:
            return
        load_intervals(self._connection, pieces)
        cost = newest(self._connection)
        conditions, parameters = per_record_conditions(self._where)
        more = "".join(f" AND {condition}" for condition in conditions)
        aliases = [f"k{at}" for at in range(len(self._columns))]
        named = "".join(f", {column} AS {name}" for column, name in zip(self._columns, aliases, strict=True))
        source = (
            f"FROM temp.piece g CROSS JOIN usage u{cost.join}{''.join(self._joins)} "
            "WHERE u.org IN (SELECT org FROM temp.picked) AND u.ts >= g.low AND u.ts < g.high "
            f"AND {cost.series} IN (SELECT id FROM temp.picked){more} "
            f"GROUP BY {', '.join((cost.series, 'g.bucket', *aliases))}"
        )
        keys = f"{cost.series}, g.bucket{named}"
        self._sum(keys, _row_amounts(cost), source, [*self._parameters, *parameters])

    def _sum(self, keys: str, amounts: Sequence[str], source: str, parameters: list[object]) -> None:
        sums = ", ".join(f"sum({amount})" for amount in amounts)
        try:
            rows = self._connection.execute(f"SELECT {keys}, {sums} {source}", parameters).fetchall()
        except sqlite3.OperationalError as error:
            if "overflow" in str(error):
                check_sum("a group", 2**63)
            raise
        for row in rows:
            self._add(row[:-8], row[-8:])

    def _add(self, found: tuple[Any, ...], amounts: Sequence[int | None]) -> None:
        dimensions = self._series[found[0]]
        values = (*dimensions, *found[2:])
        place = (tuple([values[at] for at in self._places]), found[1], dimensions[-1])
        sums = self._totals.get(place)
        if sums is None:
            sums = self._totals[place] = [0] * (len(_AMOUNTS) + len(_REPORTED))
        for at, amount in enumerate(amounts):
            if amount:
                sums[at] += amount
        if dimensions[SERIES_PLACES["status"]] == "reported":
            for at, of in enumerate(_REPORTED, len(_AMOUNTS)):
                sums[at] += amounts[of] or 0
