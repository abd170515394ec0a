"""Sums: the tables rollup and delta, and queries over them and over single rows.

A record counts with its cost in force: that of its newest revision, or its first where there is none. A query
reads in one snapshot, in which what was folded is in rollup and the rest in delta.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llm_cost_ops.ledger.day_spans import DAY, BoundedSums, Keys, Totals
from llm_cost_ops.ledger.pieces import Piece
from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.rows import text_array, units_sql
from llm_cost_ops.ledger.retention import check_known
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY

__all__ = [
    "DAYS",
    "MAX_JOINED",
    "QUARTERS",
    "SERIES_COLUMNS",
    "Newest",
    "Rows",
    "SumQuery",
    "add_amounts",
    "check_removed",
    "day_sql",
    "figures",
    "fold",
    "newest",
    "quarter_sql",
    "record_conditions",
    "removed",
    "rows_of",
    "rows_of_rests",
    "series_conditions",
]

QUARTERS, DAYS = 0, 1
"""The levels of the table rollup."""

_COUNTS = ("records", "requests", "input", "output", "cached", "unpriced")
_AMOUNTS = (*_COUNTS, "cost")
# Further than every time, and small enough to be multiplied.
_OPEN = 2**40
_MAX_TS = 2**62


class Newest(NamedTuple):
    """SQL for the cost in force of `usage u`: what to join, and the columns."""

    join: str
    series: str
    pricing: str
    cost: str
    number: str

    @property
    def join_series(self) -> str:
        """SQL that joins the series of the cost in force, as s."""
        return f"JOIN llm_cost_ops.series s ON s.org = u.org AND s.id = {self.series}"


_FIRST = Newest("", "u.series", "u.pricing", "u.cost", "1")
_REVISED = Newest(
    " LEFT JOIN LATERAL (SELECT w.* FROM llm_cost_ops.revision w WHERE w.org = u.org AND w.id = u.id "
    "ORDER BY w.number DESC LIMIT 1) v ON true",
    "coalesce(v.series, u.series)",
    "coalesce(v.pricing, u.pricing)",
    # Not coalesce: a revision may find that there is no price.
    "CASE WHEN v.id IS NULL THEN u.cost ELSE v.cost END",
    "coalesce(v.number, 1)",
)


def newest(session: Session, orgs: Sequence[int]) -> Newest:
    """The SQL to use. As long as nothing was repriced, queries pay nothing for revisions."""
    found = session.rows("SELECT 1 FROM llm_cost_ops.revision WHERE org = ANY(%s) LIMIT 1", list(orgs))
    return _REVISED if found else _FIRST


def quarter_sql(ts: str) -> str:
    """SQL for the number of the quarter of an hour, by whole division as Python does it, before 1970 too."""
    return f"(({ts} - mod(mod({ts}, {QUARTER}) + {QUARTER}, {QUARTER})) / {QUARTER})::int"


def day_sql(quarter: str) -> str:
    """SQL for the number of the day that holds a quarter of an hour, by whole division as Python does it."""
    number = QUARTERS_A_DAY
    return f"(({quarter} - mod(mod({quarter}, {number}) + {number}, {number})) / {number})"


_DAY = day_sql("bucket")
_FOLDED = (*_AMOUNTS, "revisions")
_TOTALS = ", ".join(f"sum({name}) AS {name}" for name in _FOLDED)
_MAX_FOLDED = 20_000
_FOLD = f"""
    WITH gone AS (
        DELETE FROM llm_cost_ops.delta WHERE org = %(org)s AND ctid = ANY(ARRAY(
            SELECT d.ctid FROM llm_cost_ops.delta d WHERE d.org = %(org)s LIMIT {_MAX_FOLDED}
        )) RETURNING *
    ), added (level, bucket, series, {", ".join(_FOLDED)}) AS (
        SELECT {QUARTERS}, bucket, series, {_TOTALS} FROM gone GROUP BY bucket, series
        UNION ALL SELECT {DAYS}, {_DAY}, series, {_TOTALS} FROM gone GROUP BY {_DAY}, series
    )
    INSERT INTO llm_cost_ops.rollup AS r (org, level, bucket, series, {", ".join(_FOLDED)})
    SELECT %(org)s, added.* FROM added ORDER BY level, bucket, series
    ON CONFLICT (org, level, bucket, series) DO UPDATE SET
    {", ".join(f"{name} = r.{name} + excluded.{name}" for name in _FOLDED)}
"""


def fold(session: Session, org: int, *, wait: bool = False) -> None:
    """Move what is in delta of an organization into rollup, unless somebody else is at it: then `wait`.

    Should a crash undo that, it is in delta again. So its commit does not wait for the disk, which writers
    wait for.
    """
    lock = "pg_advisory_xact_lock(%s, %s) IS NOT NULL" if wait else "pg_try_advisory_xact_lock(%s, %s)"
    with session.transaction(lasting=False):
        [(mine,)] = session.rows(f"SELECT {lock}", schema.LOCK_FOLD, org)
        if mine:
            session.run(_FOLD, org=org)


def figures(session: Session) -> tuple[int, int]:
    """How many rows of delta are not in rollup yet, and the bytes of the tables with their indexes."""
    [(unfolded,)] = session.rows("SELECT count(*) FROM llm_cost_ops.delta")
    [(size,)] = session.rows(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'llm_cost_ops' AND c.relkind = 'r'"
    )
    return unfolded, size


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


def check_removed(session: Session, where: Filter, pieces: Iterable[Piece], *, needs_rows: bool) -> None:
    """FAILED_PRECONDITION where the answer would lack removed records."""
    moments = removed(session, where)
    if moments:
        check_known(moments, pieces, needs_rows=needs_rows)


def removed(session: Session, where: Filter) -> dict[str, int]:
    """By organization of the filter, the moment before which records were removed."""
    found = session.rows("SELECT org, removed FROM llm_cost_ops.retention WHERE removed IS NOT NULL")
    wanted = where.organization_ids
    return {org: moment for org, moment in found if not wanted or org in wanted}


def series_conditions(where: Filter) -> tuple[list[str], dict[str, object]]:
    """SQL on `series s`, and its parameters; organizations are no part of it."""
    conditions: list[str] = []
    parameters: dict[str, object] = {}
    for column, values in (
        ("provider", where.providers),
        ("model", where.model_ids),
        ("project", where.project_ids),
        ("service_tier", where.service_tiers),
        ("processing", where.processings),
        ("region", where.regions),
        ("operation", where.operations),
        ("status", where.statuses),
    ):
        if values:
            conditions.append(f"s.{column} = ANY(%(s_{column})s)")
            parameters[f"s_{column}"] = list(values)
    if not where.statuses:
        conditions.append("s.status <> 'voided'")
    return conditions, parameters


def record_conditions(where: Filter) -> tuple[list[str], dict[str, object]]:
    """SQL on `usage u` for what series do not hold, and its parameters."""
    conditions: list[str] = []
    parameters: dict[str, object] = {}
    if where.user_ids:
        conditions.append("coalesce(u.usr, '') = ANY(%(users)s)")
        parameters["users"] = list(where.user_ids)
    if where.tags:
        conditions.append("u.tags ?| %(tags)s::text[]")
        parameters["tags"] = list(where.tags)
    for at, (key, value) in enumerate(where.labels.items()):
        conditions.append(f"u.labels ->> %(label{at})s::text = %(value{at})s")
        parameters |= {f"label{at}": key, f"value{at}": value}
    return conditions, parameters


_PIECES = "unnest(%(buckets)s::int[], %(lows)s::bigint[], %(highs)s::bigint[]) AS g (bucket, low, high)"

_RESTS = (
    "unnest(%(buckets)s::int[], %(lows)s::bigint[], %(highs)s::bigint[], %(owners)s::int[]{seen}) "
    "AS g (bucket, low, high, org{column})"
)
_OF_QUERY, _OF_PIECE = "u.org = ANY(%(orgs)s)", "u.org = ANY(%(owners)s::int[]) AND u.org = g.org"
# least and most are those of all pieces: of a piece the planner takes any for a ninth of the table.
_JOINED = (
    " JOIN llm_cost_ops.usage u ON {org} AND u.ts >= g.low AND u.ts < g.high "
    "AND u.ts >= %(least)s AND u.ts < %(most)s"
)
# For pieces that are many, since a join compares each row with each of them, or are far apart and hold few
# rows. OFFSET 0 has each looked for by itself.
_ONE_BY_ONE = (
    " CROSS JOIN LATERAL (SELECT u.* FROM llm_cost_ops.usage u WHERE {org} "
    "AND u.ts >= g.low AND u.ts < g.high OFFSET 0) AS u"
)
MAX_JOINED = 16
"""More pieces are looked for one by one."""

# Pieces are days. Where there are few rows, they are looked for by their transactions; by the beginning of
# its day each finds its pieces, and is not compared with all of them.
_RESTS_OF_NEW_ROWS = (
    _RESTS.format(seen=", %(seen)s::pg_snapshot[]", column=", seen")
    + _JOINED.format(org=_OF_PIECE)
    + f" AND g.low = u.ts - mod(mod(u.ts, {DAY}) + {DAY}, {DAY})"
    + " AND u.xid >= %(oldest)s::text::xid8 AND NOT pg_visible_in_snapshot(u.xid, g.seen)"
)


class Rows(NamedTuple):
    """SQL for rows of `usage u` in pieces `g` of buckets, and its parameters."""

    source: str
    parameters: dict[str, object]


def rows_of(pieces: Sequence[Piece], *, few: bool = False) -> Rows:
    """The rows of pieces in all organizations of a query; `few` says that each piece has few."""
    form = _ONE_BY_ONE if few or len(pieces) > MAX_JOINED else _JOINED
    return Rows(_PIECES + form.format(org=_OF_QUERY), _pieces_sql(pieces))


def rows_of_rests(rests: Sequence[tuple[int, int, int, int, int]], snapshots: Sequence[str]) -> list[Rows]:
    """The rows of what spans leave, as Rest.of_organizations has it, where spans are `after` a snapshot."""
    found = []
    for few in (False, True):
        some = [rest for rest in rests if bool(rest[4]) is few]
        if not some:
            continue
        if few:
            some = [
                (bucket, day, day + DAY, org, after)
                for bucket, low, high, org, after in some
                for day in range(low, high, DAY)
            ]
        parameters = _pieces_sql([rest[:3] for rest in some])
        parameters["owners"] = [rest[3] for rest in some]
        if few:
            seen = [snapshots[rest[4] - 1] for rest in some]
            parameters["seen"] = text_array(seen)
            parameters["oldest"] = str(min(int(snapshot.partition(":")[0]) for snapshot in seen))
            found.append(Rows(_RESTS_OF_NEW_ROWS, parameters))
        else:
            form = _ONE_BY_ONE if len(some) > MAX_JOINED else _JOINED
            found.append(Rows(_RESTS.format(seen="", column="") + form.format(org=_OF_PIECE), parameters))
    return found


def _pieces_sql(pieces: Sequence[Piece], edge: int = _MAX_TS) -> dict[str, object]:
    """The parameters of _PIECES; an open end lies at `edge`."""
    lows = [-edge if low is None else low for _, low, _ in pieces]
    highs = [edge if high is None else high for _, _, high in pieces]
    return {
        "buckets": [bucket for bucket, _, _ in pieces],
        "lows": lows,
        "highs": highs,
        "least": min(lows, default=0),
        "most": max(highs, default=0),
    }


class SumQuery:
    """A query while it is answered; what it finds is added to `totals`."""

    def __init__(
        self, session: Session, where: Filter, group_by: Keys, totals: Totals, orgs: Sequence[int]
    ) -> None:
        self._session = session
        self._where = where
        self._totals = totals
        self._orgs = list(orgs)
        self._joins = ""
        self._parameters: dict[str, object] = {}
        # Of rows, what series do not hold; and each key, of a series or of the rows.
        self._columns: list[str] = []
        self._keys = [self._key(name) for name in group_by]
        self._named = "organization" in group_by

    def _key(self, name: str) -> str:
        if name in SERIES_COLUMNS:
            return SERIES_COLUMNS[name]
        at = len(self._columns)
        self._columns.append(self._column(name, at))
        return f"f.k{at}"

    def _column(self, name: str, at: int) -> str:
        if name == "user":
            return "coalesce(u.usr, '')"
        if name == "tag":
            self._joins += f" LEFT JOIN LATERAL jsonb_array_elements_text(u.tags) AS j{at} (tag) ON true"
            return f"coalesce(j{at}.tag, '')"
        if name.startswith("label:"):
            self._parameters[f"key{at}"] = name.removeprefix("label:")
            return f"coalesce(u.labels ->> %(key{at})s::text, '')"
        raise invalid_argument("group_by", f"{name[:64]!r} is nothing that usage can be grouped by")

    def add_rollups(self, level: int, pieces: list[Piece]) -> None:
        """Add what rollup and delta hold of whole quarters of an hour or whole days."""
        if not pieces:
            return
        width = 1 if level == QUARTERS else QUARTERS_A_DAY
        amounts = ", ".join(_AMOUNTS)
        source = f"""
            {_PIECES} CROSS JOIN LATERAL (
                SELECT org, series, {amounts} FROM llm_cost_ops.rollup WHERE org = ANY(%(orgs)s)
                AND level = %(level)s AND bucket >= g.low AND bucket < g.high
                UNION ALL
                SELECT org, series, {amounts} FROM llm_cost_ops.delta WHERE org = ANY(%(orgs)s)
                AND bucket >= g.low * {width} AND bucket < g.high * {width}
            ) u
        """
        parameters = _pieces_sql(pieces, _OPEN) | {"level": level}
        self._sum(source, "u.series", [f"u.{name}" for name in _AMOUNTS], parameters)

    def add_rows(self, rows: Rows) -> None:
        """Add what rows hold, one by one."""
        cost = newest(self._session, self._orgs)
        conditions, parameters = record_conditions(self._where)
        source = f"{rows.source}{cost.join}{self._joins}"
        if conditions:
            source += f" WHERE {' AND '.join(conditions)}"
        unpriced = f"CASE WHEN {cost.cost} IS NULL THEN u.requests ELSE 0 END"
        amounts = ["1", "u.requests", "u.input", "u.output", "u.cached", unpriced, cost.cost]
        self._sum(source, cost.series, amounts, parameters | rows.parameters)

    def _sum(self, source: str, series: str, amounts: Sequence[str], parameters: dict[str, object]) -> None:
        """Add up by series first: joined before, a table without statistics was read once for each series."""
        of_series, named = series_conditions(self._where)
        columns = "".join(f", {column} AS k{at}" for at, column in enumerate(self._columns))
        inner = ", ".join(f"sum({amount}) AS {name}" for name, amount in zip(_AMOUNTS, amounts, strict=True))
        reported = " FILTER (WHERE s.status = 'reported')"
        outer = [
            *(f"sum(f.{name})" for name in _COUNTS),
            f"sum(f.requests){reported}",
            units_sql("sum(f.cost)"),
            units_sql(f"sum(f.cost){reported}"),
        ]
        bounded = self._totals if isinstance(self._totals, BoundedSums) else None
        limit = "" if bounded is None else f" LIMIT {bounded.most + 1}"
        names = "JOIN llm_cost_ops.organization o ON o.id = f.org " if self._named else ""
        rows = self._session.rows(
            f"WITH found AS MATERIALIZED (SELECT g.bucket, u.org, {series} AS series{columns}, {inner} "
            f"FROM {source} GROUP BY {_ordinals(3 + len(self._columns))}) "
            f"SELECT {', '.join(['f.bucket', 's.currency', *self._keys, *outer])} FROM found f "
            f"JOIN llm_cost_ops.series s ON s.org = f.org AND s.id = f.series {names}"
            f"WHERE {' AND '.join(['s.org = ANY(%(orgs)s)', *of_series])} "
            f"GROUP BY {_ordinals(2 + len(self._keys))}{limit}",
            orgs=self._orgs,
            **parameters,
            **named,
            **self._parameters,
        )
        if bounded is not None and len(rows) > bounded.most:
            raise bounded.too_many()
        for row in rows:
            add_amounts(self._totals, (row[2:-9], row[0], row[1]), row[-9:])


def add_amounts(totals: Totals, place: tuple[Keys, int, str], amounts: Sequence[int | None]) -> None:
    """Add amounts where they belong: records, requests, input, output and cached tokens, unpriced requests,
    reported ones, units, and those of reported requests.
    """
    sums = totals.get(place)
    if sums is None:
        totals[place] = [amount or 0 for amount in amounts]
        return
    for at, amount in enumerate(amounts):
        sums[at] += amount or 0


def _ordinals(count: int) -> str:
    return ", ".join(map(str, range(1, count + 1)))
