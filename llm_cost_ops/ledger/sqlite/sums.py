"""Sums: the table rollup and how it is kept up to date, and queries over it and over single rows.

A record counts with its cost in force: that of its newest revision, or its first where there is none.
"""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from llm_cost_ops.ledger.pieces import Piece
from llm_cost_ops.ledger.sqlite.tail import Added, Tail
from llm_cost_ops.ledger.types import Amounts, Filter
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.rules.limits import check_amounts, check_sum
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY

__all__ = [
    "ANY_ORG",
    "DAYS",
    "HOURS",
    "ITS_ORG",
    "KEPT",
    "NOT_VOIDED",
    "PICOS",
    "QUARTERS",
    "SERIES_COLUMNS",
    "TEMPORARY",
    "TOTALS",
    "Keys",
    "Newest",
    "Place",
    "SeriesGroup",
    "SumQuery",
    "Totals",
    "add",
    "add_amounts",
    "add_removed",
    "figures",
    "fold",
    "fold_added",
    "fold_if_due",
    "load_intervals",
    "load_rests",
    "load_tail",
    "newest",
    "per_record_conditions",
    "pick_series",
    "places",
    "recalculated",
    "saturated",
    "series_conditions",
    "to_amounts",
]


TEMPORARY = (
    """CREATE TEMP TABLE IF NOT EXISTS picked (
        grp INTEGER NOT NULL, id INTEGER NOT NULL UNIQUE, org INTEGER NOT NULL, PRIMARY KEY (grp, id)
    ) WITHOUT ROWID""",
    """CREATE TEMP TABLE IF NOT EXISTS piece (
        n INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL,
        org INTEGER, after INTEGER
    )""",
    """CREATE TEMP TABLE IF NOT EXISTS kept (
        bucket INTEGER NOT NULL, span INTEGER NOT NULL, PRIMARY KEY (bucket, span)
    ) WITHOUT ROWID""",
    "CREATE TEMP TABLE IF NOT EXISTS wanted (grp INTEGER PRIMARY KEY)",
    """CREATE TEMP TABLE IF NOT EXISTS tail (
        series INTEGER NOT NULL, level INTEGER NOT NULL, bucket INTEGER NOT NULL,
        records INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER NOT NULL,
        output INTEGER NOT NULL, cached INTEGER NOT NULL, unpriced INTEGER NOT NULL,
        cost_micros INTEGER NOT NULL, cost_picos INTEGER NOT NULL, PRIMARY KEY (series, level, bucket)
    ) WITHOUT ROWID""",
)
"""The tables that queries need on their connection.

The series that a filter lets through, and the group of each; the pieces of time that are summed, of one
organization or of all; the spans of days that are kept of these, and their groups that the filter lets
through; and the sums of the rows that are not in rollup yet.
"""


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


FOLD_EVERY = 512
"""Rows are added to the sums by the transaction that writes the row of a number divisible by this.

A query adds what came since. With 128 small batches and single records spend a sixth and more of their time
here, and queries save a fraction of a millisecond.
"""

QUARTERS, DAYS, HOURS = 0, 1, 2
"""The levels of the table rollup."""

Place = tuple[int, int, int]
"""A series, a level and a bucket of the table rollup."""

# So many rows of the largest numbers that a store takes add up to less than 2^63.
_AT_ONCE = 4096
_QUARTERS_AN_HOUR = 4
PICOS = 1_000_000
"""How many 10^-12 of a currency make one millionth of it."""
_MAX_SUM = 2**63 - 1

_COUNTS = ("records", "requests", "input", "output", "cached", "unpriced")


def _floor(number: str, width: int) -> str:
    """SQL for a whole division as Python does it, also before 1970."""
    return f"({number} - ({number} % {width} + {width}) % {width}) / {width}"


_QUARTER = _floor("ts", QUARTER)
_HOUR, _DAY = _floor("bucket", _QUARTERS_AN_HOUR), _floor("bucket", QUARTERS_A_DAY)
_TOTALS = ", ".join(f"sum({name})" for name in (*_COUNTS, "micros", "picos"))
# What the rows between two numbers add.
_SUMS = f"""
    WITH found AS MATERIALIZED (
        SELECT series, {_QUARTER} AS bucket, count(*) AS records,
            sum(requests) AS requests, sum(input) AS input, sum(output) AS output, sum(cached) AS cached,
            sum(iif(cost_micros IS NULL, requests, 0)) AS unpriced, ifnull(sum(cost_micros), 0) AS micros,
            ifnull(sum(cost_picos), 0) AS picos
        FROM usage WHERE seq > ? AND seq <= ? GROUP BY series, bucket
    ), place (series, level, bucket, {", ".join(_COUNTS)}, micros, picos) AS (
        SELECT series, {QUARTERS}, bucket, {", ".join(_COUNTS)}, micros, picos FROM found
        UNION ALL SELECT series, {DAYS}, {_DAY}, {_TOTALS} FROM found GROUP BY series, {_DAY}
        UNION ALL SELECT series, {HOURS}, {_HOUR}, {_TOTALS} FROM found GROUP BY series, {_HOUR}
    )
    SELECT series, level, bucket, {", ".join(_COUNTS)}, micros + picos / {PICOS} AS cost_micros,
        picos % {PICOS} AS cost_picos
    FROM place WHERE true
"""


def saturated(name: str, added: str) -> str:
    """SQL for a sum that stays at the largest integer once it got there: a write never fails for it.

    Queries refuse it, as they do every sum above MAX_SUM. (SQLite goes on in floating point where an addition
    leaves 64 bits, and compares that with an integer exactly.)
    """
    return f"{name} = iif({name} = {_MAX_SUM}, {_MAX_SUM}, min({name} + {added}, {_MAX_SUM}))"


_ADDED = f"""
    {", ".join(saturated(name, f"excluded.{name}") for name in _COUNTS)},
    {saturated("cost_micros", f"excluded.cost_micros + (cost_picos + excluded.cost_picos) / {PICOS}")},
    cost_picos = (cost_picos + excluded.cost_picos) % {PICOS}
"""
_ON_CONFLICT = f"ON CONFLICT (series, level, bucket) DO UPDATE SET {_ADDED}"
_FOLD = f"INSERT INTO rollup {_SUMS} {_ON_CONFLICT}"
_ADD = f"INSERT INTO rollup VALUES ({', '.join('?' * 11)}) {_ON_CONFLICT}"
_ADD_TAIL = f"INSERT INTO temp.tail {_SUMS}"


def _added_up(sums: str) -> str:
    """SQL for sums by series, level and bucket, without those of nothing."""
    return f"""
        SELECT series, level, bucket, {", ".join(f"sum({name})" for name in _COUNTS)},
            sum(cost_micros) + sum(cost_picos) / {PICOS}, sum(cost_picos) % {PICOS}
        FROM (SELECT series, level, bucket, {", ".join(_COUNTS)}, cost_micros, cost_picos FROM ({sums}))
        GROUP BY series, level, bucket HAVING sum(records) <> 0
    """


KEPT = _added_up("SELECT * FROM rollup UNION ALL SELECT * FROM temp.tail")
"""The sums that are kept, and those of the rows behind them that `load_tail` loaded, as `recalculated` gives
them. (Revisions are in what is kept also where their rows are not.)"""


def recalculated(connection: sqlite3.Connection) -> str:
    """SQL for the sums of all rows, from the costs that are in force, and of those that were removed."""
    cost = newest(connection)
    rows = (
        f"SELECT u.seq, {cost.series} AS series, u.ts, u.requests, u.input, u.output, u.cached, "
        f"{cost.micros} AS cost_micros, {cost.picos} AS cost_picos FROM usage u{cost.join}"
    )
    found = _SUMS.replace("FROM usage WHERE seq > ? AND seq <= ?", f"FROM ({rows} WHERE u.series > 0)")
    return _added_up(f"SELECT * FROM ({found}) UNION ALL {_REMOVED}")


_REMOVED_COLUMNS = ", ".join((*_COUNTS, "cost_micros", "cost_picos"))
_REMOVED_SUMS = ", ".join(f"sum({name})" for name in (*_COUNTS, "cost_micros", "cost_picos"))
_REMOVED = f"""
    SELECT series, {QUARTERS} AS level, bucket, {_REMOVED_COLUMNS} FROM removed_sum
    UNION ALL SELECT series, {DAYS}, {_DAY}, {_REMOVED_SUMS} FROM removed_sum GROUP BY series, {_DAY}
    UNION ALL SELECT series, {HOURS}, {_HOUR}, {_REMOVED_SUMS} FROM removed_sum GROUP BY series, {_HOUR}
"""


def add_removed(cursor: sqlite3.Cursor, seqs: Sequence[int]) -> None:
    """Add rows to the sums of those that are removed, with the costs that are in force."""
    cost = newest(cursor.connection)
    cursor.execute(
        f"INSERT INTO removed_sum SELECT series, bucket, {', '.join(_COUNTS)}, micros + picos / {PICOS}, "
        f"picos % {PICOS} FROM (SELECT {cost.series} AS series, {_QUARTER} AS bucket, count(*) AS records, "
        "sum(requests) AS requests, sum(input) AS input, sum(output) AS output, sum(cached) AS cached, "
        f"sum(iif({cost.micros} IS NULL, requests, 0)) AS unpriced, ifnull(sum({cost.micros}), 0) AS micros, "
        f"ifnull(sum({cost.picos}), 0) AS picos FROM usage u{cost.join} "
        f"WHERE u.seq IN ({_marks(seqs)}) GROUP BY 1, 2) WHERE true "
        f"ON CONFLICT (series, bucket) DO UPDATE SET {_ADDED}",
        seqs,
    )


def places(series: int, ts: int) -> tuple[Place, Place, Place]:
    """Where the sums hold a row with this time, in microseconds."""
    return _places(series, ts // QUARTER)


def _places(series: int, quarter: int) -> tuple[Place, Place, Place]:
    return (
        (series, QUARTERS, quarter),
        (series, DAYS, quarter // QUARTERS_A_DAY),
        (series, HOURS, quarter // _QUARTERS_AN_HOUR),
    )


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
    [last] = cursor.execute("SELECT ifnull(max(seq), 0) FROM usage").fetchone()
    _fold_rows(cursor, last)
    cursor.execute("UPDATE rollup_watermark SET seq = max(seq, ?)", (last,))


def _fold_rows(cursor: sqlite3.Cursor, last: int) -> None:
    """Add the rows up to a number to the sums, those that are not in them yet; the watermark stays."""
    [done] = cursor.execute("SELECT seq FROM rollup_watermark").fetchone()
    while done < last:
        upto = min(done + _AT_ONCE, last)
        cursor.execute(_FOLD, (done, upto))
        done = upto


def fold_added(cursor: sqlite3.Cursor, first: int, last: int, added: Iterable[Added], tail: Tail) -> None:
    """As `fold_if_due`, where it is known what the rows of these numbers add; so is it of those in `tail`,
    which takes them. In the caller's transaction.
    """
    tail.add(first, last, added)
    if (first - 1) // FOLD_EVERY == last // FOLD_EVERY:
        return
    [done] = cursor.execute("SELECT seq FROM rollup_watermark").fetchone()
    if done >= tail.first:
        # Somebody who revised rows had to fold them.
        _fold_rows(cursor, last)
    else:
        _fold_rows(cursor, tail.first - 1)
        sums: dict[Place, list[int]] = {}
        for series, quarter, amounts in tail.added():
            for place in _places(series, quarter):
                totals = sums.get(place)
                sums[place] = list(amounts) if totals is None else [*map(operator.add, totals, amounts)]
        add(cursor, sums)
    cursor.execute("UPDATE rollup_watermark SET seq = max(seq, ?)", (last,))
    tail.clear()


def add(cursor: sqlite3.Cursor, sums: dict[Place, list[int]]) -> None:
    """Add amounts to the sums: records, requests, input, output, cached, unpriced, and the cost in 10^-12."""
    rows = [(*place, *amounts[:6], *divmod(amounts[6], PICOS)) for place, amounts in sorted(sums.items())]
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
"""By keys, bucket and currency: what TOTALS names."""

"""A bucket, and the first moment and the one after the last in microseconds; None is open."""

SERIES_COLUMNS = {
    "organization": "o.name",
    "provider": "s.provider",
    "model": "s.model",
    "project": "s.project",
    "operation": "s.operation",
    "service_tier": "s.service_tier",
    "processing": "s.processing",
    "region": "s.region",
    "status": "s.status",
}
NOT_VOIDED = "s.status <> 'voided'"
"""SQL on `series s` for a filter without statuses."""

_AMOUNTS = ("records", "requests", "input", "output", "cached", "unpriced", "cost_micros", "cost_picos")
TOTALS = (*_AMOUNTS, "reported_requests", "reported_micros", "reported_picos")
"""What is added up; of records whose costs providers reported, some of it again."""

_OPEN = 2**62


def to_amounts(amounts: Sequence[int], currency: str) -> Amounts:
    """The sums of a group; OUT_OF_RANGE when one is too large."""
    _, requests, put_in, put_out, cached, unpriced, micros, picos, *reported = amounts
    sums = Amounts(
        requests=requests,
        input_tokens=put_in,
        output_tokens=put_out,
        cached_tokens=cached,
        unpriced_requests=unpriced,
        units=micros * PICOS + picos,
        reported_requests=reported[0],
        reported_units=reported[1] * PICOS + reported[2],
        currency=currency,
    )
    check_amounts(sums)
    return sums


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


class SeriesGroup(NamedTuple):
    """What some series have in common: values of dimensions, the currency, and whether costs are reported."""

    values: Keys
    currency: str
    reported: bool


def pick_series(
    connection: sqlite3.Connection, where: Filter, names: Sequence[str] = ()
) -> list[SeriesGroup]:
    """The series that the filter lets through, grouped by dimensions of series; those in force without one.

    A group's number is its place in the answer. temp.picked has the ids of the series, and of their
    organizations and groups, afterwards.
    """
    conditions, parameters = series_conditions(where)
    if not where.statuses:
        conditions += f"{' AND' if conditions else ' WHERE'} {NOT_VOIDED}"
    columns = "".join(f"{SERIES_COLUMNS[name]}, " for name in names)
    rows = connection.execute(
        f"SELECT s.id, s.org, {columns}s.status = 'reported', s.currency FROM series s "
        f"JOIN organization o ON o.id = s.org{conditions}",
        parameters,
    ).fetchall()
    groups: dict[SeriesGroup, int] = {}
    picked = []
    for series, org, *values, reported, currency in rows:
        group = SeriesGroup(tuple(values), currency, bool(reported))
        picked.append((groups.setdefault(group, len(groups)), series, org))
    connection.execute("DELETE FROM temp.picked")
    connection.executemany("INSERT INTO temp.picked VALUES (?, ?, ?)", picked)
    return list(groups)


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


def load_rests(connection: sqlite3.Connection, rests: Iterable[tuple[int, int, int, int, int]]) -> None:
    """Put pieces of an organization each into temp.piece: bucket, low, high, the organization, and the number
    of the row that the rows to be read are behind.
    """
    connection.execute("DELETE FROM temp.piece")
    connection.executemany("INSERT INTO temp.piece VALUES (NULL, ?, ?, ?, ?, ?)", rests)


def _row_amounts(cost: Newest) -> tuple[str, ...]:
    unpriced = f"CASE WHEN {cost.micros} IS NULL THEN u.requests ELSE 0 END"
    return ("1", "u.requests", "u.input", "u.output", "u.cached", unpriced, cost.micros, cost.picos)


ANY_ORG = "u.org IN (SELECT org FROM temp.picked) AND u.ts >= g.low AND u.ts < g.high"
ITS_ORG = "u.org = g.org AND u.ts >= g.low AND u.ts < g.high AND u.seq > g.after"
"""Which rows of `usage u` belong to a piece `g`, loaded by `load_intervals` and by `load_rests`."""


class SumQuery:
    """A query while it is answered; what it finds is added to `totals`."""

    def __init__(
        self, connection: sqlite3.Connection, where: Filter, group_by: tuple[str, ...], totals: Totals
    ) -> None:
        self._connection = connection
        self._where = where
        self._totals = totals
        self._columns: list[str] = []
        self._joins: list[str] = []
        self._parameters: list[str] = []
        of_series = [name for name in group_by if name in SERIES_COLUMNS]
        # Where each key comes from: a place in the values of the group of series, or behind them in the row.
        self._places: list[int] = []
        for name in group_by:
            if name in SERIES_COLUMNS:
                self._places.append(of_series.index(name))
            else:
                self._places.append(len(of_series) + len(self._columns))
                self._columns.append(self._column(name))
        self.groups = pick_series(connection, where, of_series)

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
        """Add what a table holds of whole buckets of a level; the pieces count in these."""
        if not pieces:
            return
        load_intervals(self._connection, pieces)
        # CROSS JOIN fixes the order of the loops, in which the groups come out sorted.
        source = (
            f"FROM temp.piece g CROSS JOIN temp.picked p CROSS JOIN {table} r "
            "WHERE r.series = p.id AND r.level = ? AND r.bucket >= g.low AND r.bucket < g.high "
            "GROUP BY g.n, p.grp"
        )
        self._sum("p.grp, g.bucket", [f"r.{name}" for name in _AMOUNTS], source, [level])

    def add_rows(self, pieces: list[Piece]) -> None:
        """Add what rows hold, one by one."""
        if pieces:
            load_intervals(self._connection, pieces)
            self.add_rows_of_pieces(ANY_ORG)

    def add_rows_of_pieces(self, belongs: str) -> None:
        """Add what the rows hold that belong to the pieces in temp.piece."""
        cost = newest(self._connection)
        conditions, parameters = per_record_conditions(self._where)
        more = "".join(f" AND {condition}" for condition in conditions)
        aliases = [f"k{at}" for at in range(len(self._columns))]
        named = "".join(f", {column} AS {name}" for column, name in zip(self._columns, aliases, strict=True))
        source = (
            f"FROM temp.piece g CROSS JOIN usage u{cost.join} CROSS JOIN temp.picked p"
            f"{''.join(self._joins)} WHERE {belongs} AND p.id = {cost.series}{more} "
            f"GROUP BY {', '.join(('p.grp', 'g.bucket', *aliases))}"
        )
        keys = f"p.grp, g.bucket{named}"
        self._sum(keys, _row_amounts(cost), source, [*self._parameters, *parameters])

    def _sum(self, keys: str, amounts: Sequence[str], source: str, parameters: Sequence[object]) -> None:
        sums = ", ".join(f"sum({amount})" for amount in amounts)
        try:
            for row in self._connection.execute(f"SELECT {keys}, {sums} {source}", parameters):
                group = self.groups[row[0]]
                values = (*group.values, *row[2:-8])
                place = (tuple([values[at] for at in self._places]), row[1], group.currency)
                add_amounts(self._totals, place, row[-8:], reported=group.reported)
        except sqlite3.OperationalError as error:
            if "overflow" in str(error):
                check_sum("a group", 2**63)
            raise


def add_amounts(
    totals: Totals, place: tuple[Keys, int, str], amounts: Sequence[int | None], *, reported: bool = False
) -> None:
    """Add amounts, in the order of TOTALS, where they belong; those of reported costs twice."""
    sums = totals.get(place)
    if sums is None:
        sums = totals[place] = [0] * len(TOTALS)
    for at, amount in enumerate(amounts):
        if amount:
            sums[at] += amount
    if reported:
        sums[8] += amounts[1] or 0
        sums[9] += amounts[6] or 0
        sums[10] += amounts[7] or 0
