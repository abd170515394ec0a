"""Reading records back: pages of them, what was committed in its order, and the stretches that hold any."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.interning import organization_ids
from llm_cost_ops.ledger.postgres.rows import RECORD_COLUMNS, decode_record, units_sql
from llm_cost_ops.ledger.postgres.sums import Newest, newest, record_conditions, series_conditions
from llm_cost_ops.ledger.types import Committed, Filter
from llm_cost_ops.rpc.status import RpcError, invalid_argument
from llm_cost_ops.rules.times import QUARTER

__all__ = [
    "committed",
    "consumer_position",
    "list_usage",
    "move_consumer",
    "occupied",
    "picked_series",
    "time_conditions",
    "two_numbers",
]

_SORTS = {"timestamp": "ts", "ingested_at": "xid"}
_POSITION = re.compile(r"(-?[0-9]{1,18})\.([0-9]{1,18})", re.ASCII)
_OPEN = 2**62


def list_usage(
    session: Session,
    where: Filter,
    sort: str,
    descending: bool,
    limit: int,
    after: str | None,
    offset: int | None,
) -> tuple[list[UsageRecord], str | None]:
    """A page, and the position to go on after. The order is by moment or commit, then by number."""
    if sort not in _SORTS:
        raise invalid_argument("sort", f"must be one of {', '.join(_SORTS)}, not {sort[:64]!r}")
    column = _SORTS[sort]
    orgs = organization_ids(session, where.organization_ids)
    cost = newest(session, orgs)
    conditions, parameters = record_conditions(where)
    in_time, times = time_conditions(where)
    in_series, picked = picked_series(session, where, orgs, cost)
    conditions += in_time + in_series
    if after is not None:
        times |= _after(session, orgs, column, after)
        conditions.append(f"(u.{column}, u.seq) {'<' if descending else '>'} ({_edge(column)}, %(edge_seq)s)")
    direction = "DESC" if descending else "ASC"
    more = "".join(f" AND {condition}" for condition in conditions)
    rows_of = (
        f"SELECT u.org, {RECORD_COLUMNS}, {cost.series} AS series, {cost.cost} AS cost, "
        f"u.{column} AS moment, u.seq FROM llm_cost_ops.usage u{cost.join} WHERE u.org = {{}}{more} "
        f"ORDER BY u.{column} {direction}, u.seq {direction} LIMIT %(all)s"
    )
    found = rows_of.format("ANY(%(orgs)s)")
    if column == "ts":
        # Each organization's rows are in order in an index, and those of several are merged.
        each = rows_of.format("n.org")
        found = f"SELECT f.* FROM unnest(%(orgs)s::int[]) AS n (org) CROSS JOIN LATERAL ({each}) f"
    # Series are joined to what the page has, since a table without statistics might else be read for each.
    query = (
        f"WITH page AS MATERIALIZED ({found}) SELECT p.id, p.key, p.ingested, p.ts, p.record, "
        f"{units_sql('p.cost')}, s.currency, s.status, p.moment, p.seq FROM page p "
        "JOIN llm_cost_ops.series s ON s.org = p.org AND s.id = p.series "
        f"ORDER BY p.moment {direction}, p.seq {direction} LIMIT %(limit)s OFFSET %(offset)s"
    )
    first = offset or 0
    pages = {"limit": limit + 1, "all": first + limit + 1, "offset": first}
    rows = session.rows(query, orgs=orgs, **pages, **times, **parameters, **picked)
    position = f"{rows[limit - 1][8]}.{rows[limit - 1][9]}" if len(rows) > limit > 0 else None
    return [decode_record(row[:5], *row[5:8]) for row in rows[:limit]], position


def picked_series(
    session: Session, where: Filter, orgs: Sequence[int], cost: Newest
) -> tuple[list[str], dict[str, object]]:
    """SQL on `usage u` for what the filter says of series, and its parameters: their ids."""
    conditions, named = series_conditions(where)
    if not named and not cost.join:
        # As long as there is no revision, nothing was voided.
        return [], {}
    if not named:
        conditions = ["s.status = 'voided'"]
    more = " AND ".join(conditions)
    rows = session.rows(
        f"SELECT s.id FROM llm_cost_ops.series s WHERE s.org = ANY(%(orgs)s) AND {more}",
        orgs=list(orgs),
        **named,
    )
    comparison = "= ANY" if named else "<> ALL"
    return [f"{cost.series} {comparison}(%(series)s::bigint[])"], {"series": [row[0] for row in rows]}


def _edge(column: str) -> str:
    return "%(edge)s::text::xid8" if column == "xid" else "%(edge)s::bigint"


def time_conditions(where: Filter) -> tuple[list[str], dict[str, object]]:
    """SQL on `usage u` for the filter's interval, and its parameters."""
    # What is left of removed records is before all times.
    conditions = [f"u.ts >= {-_OPEN}"]
    parameters: dict[str, object] = {}
    for name, moment, comparison in (("start", where.start, ">="), ("end", where.end, "<")):
        if moment is not None:
            conditions.append(f"u.ts {comparison} %({name})s")
            parameters[name] = to_micros(moment)
    return conditions, parameters


def _after(session: Session, orgs: Sequence[int], column: str, position: str) -> dict[str, object]:
    """The moment and number in a position, which are those of a record, or were before it was removed."""
    edge, seq = two_numbers(position, "cursor")
    # The one of a commit stays with what is left of a record.
    removed = " UNION ALL SELECT 1 FROM llm_cost_ops.retention WHERE removed > %(edge)s"
    there = (
        f"SELECT 1 FROM llm_cost_ops.usage u WHERE u.org = ANY(%(orgs)s) AND u.{column} = {_edge(column)} "
        f"AND u.seq = %(seq)s{removed if column == 'ts' else ''} LIMIT 1"
    )
    if not session.rows(there, orgs=list(orgs), edge=edge, seq=seq):
        # Of the list by another filter, it is a record of another organization.
        others = organization_ids(session, ())
        if not session.rows(there, orgs=others, edge=edge, seq=seq):
            raise _never_given("cursor")
    return {"edge": edge, "edge_seq": seq}


def two_numbers(position: str, field: str) -> tuple[int, int]:
    """What a position is made of; INVALID_ARGUMENT for one that no ledger gave."""
    match = _POSITION.fullmatch(position)
    if match is None:
        raise _never_given(field)
    return int(match[1]), int(match[2])


def _never_given(field: str) -> RpcError:
    return invalid_argument(field, "is not one that this ledger gave")


# What is visible of transactions before the oldest that is under way: later nothing is put in before it.
_STABLE = "xid < pg_snapshot_xmin(pg_current_snapshot()) AND {0}.org = ANY(%(orgs)s)"
_COST = f"{units_sql('{0}.cost')}, s.currency, s.status"
_BEHIND = "({0}.xid, {0}.seq) > (%(xid)s::text::xid8, %(seq)s)"
# The record as it was in a revision: that of the last one up to it which changed it, or the first.
_CONTENT = (
    "coalesce((SELECT w.record FROM llm_cost_ops.revision w WHERE w.org = v.org AND w.id = v.id "
    "AND w.number <= v.number AND w.record IS NOT NULL ORDER BY w.number DESC LIMIT 1), "
    "(SELECT f.record FROM llm_cost_ops.first_record f WHERE f.org = v.org AND f.id = v.id))"
)
_CREATED = (
    "WITH page AS MATERIALIZED (SELECT u.* FROM llm_cost_ops.usage u "
    f"WHERE {_BEHIND.format('u')} AND u.{_STABLE.format('u')} AND u.series > 0 "
    "ORDER BY u.xid, u.seq LIMIT %(limit)s) "
    f"SELECT u.xid, u.seq, 1, f.record, {RECORD_COLUMNS}, {_COST.format('u')} FROM page u "
    "JOIN llm_cost_ops.series s ON s.org = u.org AND s.id = u.series "
    "LEFT JOIN llm_cost_ops.first_record f ON f.org = u.org AND f.id = u.id"
)
_REVISED = (
    f"SELECT v.xid, v.seq, v.number, {_CONTENT}, {RECORD_COLUMNS}, {_COST.format('v')} "
    "FROM llm_cost_ops.revision v "
    "JOIN llm_cost_ops.usage u ON u.org = v.org AND u.id = v.id "
    "JOIN llm_cost_ops.series s ON s.org = v.org AND s.id = v.series "
    f"WHERE {_BEHIND.format('v')} AND v.{_STABLE.format('v')} ORDER BY v.xid, v.seq LIMIT %(limit)s"
)


def committed(session: Session, after: str | None, limit: int) -> tuple[list[Committed], str | None]:
    """At most `limit` records and revisions behind a position, and the position of the last.

    Records of a transaction that is committed while an older one is under way come once that has ended.
    """
    xid, seq = (0, 0) if after is None else two_numbers(after, "position")
    orgs = organization_ids(session, ())
    rows: list[Any] = []
    for query in (_CREATED, _REVISED):
        rows += session.rows(query, orgs=orgs, xid=xid, seq=seq, limit=limit)
    rows.sort(key=lambda row: (int(row[0]), row[1]))
    page = rows[:limit]
    found = [Committed(decode_record((*row[4:8], row[3] or row[8]), *row[9:]), row[2]) for row in page]
    return found, f"{page[-1][0]}.{page[-1][1]}" if page else after


def consumer_position(session: Session, name: str) -> str | None:
    """Where a consumer goes on; None for one that never moved."""
    rows = session.rows("SELECT xid, seq FROM llm_cost_ops.consumer WHERE name = %s", name)
    return f"{rows[0][0]}.{rows[0][1]}" if rows else None


def move_consumer(session: Session, name: str, position: str) -> None:
    """Keep where a consumer goes on, unless it is further already."""
    xid, seq = two_numbers(position, "position")
    with session.transaction():
        session.run(
            "INSERT INTO llm_cost_ops.consumer AS c VALUES (%s, %s::text::xid8, %s) "
            "ON CONFLICT (name) DO UPDATE SET xid = excluded.xid, seq = excluded.seq "
            "WHERE (excluded.xid, excluded.seq) > (c.xid, c.seq)",
            name,
            xid,
            seq,
        )


def occupied(session: Session, where: Filter, width: int) -> list[int]:
    """The numbers of the stretches in which the filter's organizations have records; see Sums.

    A stretch takes one look into the index, however many records it holds and however far the next one is.
    """
    orgs = organization_ids(session, where.organization_ids)
    low = -_OPEN if where.start is None else to_micros(where.start)
    high = _OPEN if where.end is None else to_micros(where.end)
    # Whole division as Python does it, also before 1970.
    number = f"((f.ts - mod(mod(f.ts, {width}) + {width}, {width})) / {width})"
    first = (
        "SELECT u.ts FROM llm_cost_ops.usage u WHERE u.org = {0} AND u.ts >= {1} AND u.ts < %(high)s "
        "ORDER BY u.ts LIMIT 1"
    )
    rows = session.rows(
        f"WITH RECURSIVE found (org, ts) AS (SELECT n.org, ({first.format('n.org', '%(low)s')}) "
        "FROM unnest(%(orgs)s::int[]) AS n (org) UNION ALL "
        f"SELECT f.org, ({first.format('f.org', f'({number} + 1) * {width}')}) FROM found f "
        f"WHERE f.ts IS NOT NULL) SELECT DISTINCT {number} FROM found f WHERE f.ts IS NOT NULL ORDER BY 1",
        orgs=orgs,
        low=low,
        high=high,
    )
    found = {stretch for (stretch,) in rows}
    # Removed records are in the sums, and so they are there.
    quarters = session.rows(
        "SELECT DISTINCT bucket FROM llm_cost_ops.removed_sum WHERE org = ANY(%(orgs)s) AND records > 0 "
        "AND bucket >= %(low)s AND bucket < %(high)s",
        orgs=orgs,
        low=-(-low // QUARTER),
        high=high // QUARTER,
    )
    return sorted(found | {bucket * QUARTER // width for (bucket,) in quarters})
