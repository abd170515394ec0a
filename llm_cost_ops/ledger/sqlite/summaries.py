"""Answers of sums: from the table rollup, from kept sums of days, and from rows.

rollup holds what series hold. What a query needs beside it (users, tags, labels, meters) is in the kept sums
of days (day_sums.py) or has to be read from rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from llm_cost_ops.ledger.day_spans import (
    DAY,
    Fold,
    Rest,
    SumsToKeep,
    TooManyGroupsError,
    settle,
    sums_to_answer,
)
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.pieces import Piece, pieces_of
from llm_cost_ops.ledger.retention import check_known
from llm_cost_ops.ledger.sqlite import day_sums
from llm_cost_ops.ledger.sqlite.meter_sums import add_meter_rows
from llm_cost_ops.ledger.sqlite.sums import (
    ANY_ORG,
    DAYS,
    HOURS,
    ITS_ORG,
    QUARTERS,
    SERIES_COLUMNS,
    Keys,
    SumQuery,
    Totals,
    load_intervals,
    load_rests,
    load_tail,
    to_amounts,
)
from llm_cost_ops.ledger.types import Amounts, Filter
from llm_cost_ops.rules.times import cover

__all__ = ["count", "fold", "needs_rows", "summarize", "to_keep"]

Buckets = Sequence[tuple[datetime, datetime]] | None

_QUARTERS_AN_HOUR = 4


def summarize(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: Keys,
    buckets: Buckets,
) -> list[tuple[Keys, int, Amounts]]:
    """The sums of each group, bucket and currency that has any, by bucket, keys and currency."""
    totals = _totals(connection, where, group_by, buckets)
    found = []
    for bucket, keys, currency in sorted((bucket, keys, currency) for keys, bucket, currency in totals):
        amounts = totals[keys, bucket, currency]
        # Repricing leaves sums of nothing behind.
        if amounts[0]:
            found.append((keys, bucket, to_amounts(amounts, currency)))
    return found


def count(connection: sqlite3.Connection, where: Filter, max_rows: int | None = None) -> int | None:
    """How many records the filter lets through; None where more than `max_rows` rows must be read for it."""
    if max_rows is not None and needs_rows(where, ()):
        wide = Filter(organization_ids=where.organization_ids, start=where.start, end=where.end)
        if _count(connection, wide) > max_rows:
            return None
    return _count(connection, where)


def _count(connection: sqlite3.Connection, where: Filter) -> int:
    start = None if where.start is None else to_micros(where.start)
    if any(start is None or start < moment for moment in _removed(connection, where).values()):
        # The sums hold more than is there.
        totals: Totals = {}
        query = SumQuery(connection, where, (), totals)
        query.add_rows(list(pieces_of(where, None)))
        return sum(amounts[0] for amounts in totals.values())
    return sum(amounts[0] for amounts in _totals(connection, where, (), None).values())


def needs_rows(where: Filter, group_by: Keys) -> bool:
    """Whether series do not hold all that is asked for."""
    return bool(where.user_ids or where.tags or where.labels or set(group_by) - SERIES_COLUMNS.keys())


def to_keep(
    connection: sqlite3.Connection, where: Filter, group_by: Keys, buckets: Buckets
) -> day_sums.ToKeep:
    """What is to be kept of days before a query is answered: see day_sums."""
    _check_known(connection, where, group_by, buckets)
    return day_sums.to_keep(connection, where, group_by, list(pieces_of(where, buckets)))


def fold(
    connection: sqlite3.Connection, folds: Sequence[Fold], dimensions: Keys, *, kept: bool = True
) -> list[day_sums.Folded]:
    """What is to be kept of days, from what is kept already and the rows; or from rows alone."""
    found = []
    for each in folds:
        days: list[Piece] = [(0, each.first * DAY, each.last * DAY)]
        where = Filter(organization_ids=(each.organization,))
        totals = SumsToKeep(each, day_sums.MIN_ROWS_A_GROUP_OF_LONG)
        sums: Totals | None = None
        with suppress(TooManyGroupsError):
            _add_totals(connection, where, dimensions, days, totals, kept=kept)
            sums = day_sums.check_storable(totals.found())
        state = day_sums.state_now(connection, each)
        found.append(day_sums.Folded(each, *state, sums, day_sums.times_forgotten(connection)))
    return found


def _check_known(connection: sqlite3.Connection, where: Filter, group_by: Keys, buckets: Buckets) -> None:
    """FAILED_PRECONDITION where the answer would lack removed records."""
    removed = _removed(connection, where)
    if removed:
        check_known(removed, pieces_of(where, buckets), needs_rows=needs_rows(where, group_by))


def _removed(connection: sqlite3.Connection, where: Filter) -> dict[str, int]:
    """By organization of the filter, the moment before which records were removed."""
    found = connection.execute("SELECT org, removed FROM retention WHERE removed NOTNULL")
    wanted = where.organization_ids
    return {org: removed for org, removed in found if not wanted or org in wanted}


def _totals(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: Keys,
    buckets: Buckets,
) -> Totals:
    _check_known(connection, where, group_by, buckets)
    totals = sums_to_answer()
    _add_totals(connection, where, group_by, list(pieces_of(where, buckets)), totals)
    return totals


def _add_totals(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: Keys,
    pieces: list[Piece],
    totals: Totals,
    *,
    kept: bool = True,
) -> None:
    if "meter" in group_by:
        query = None
    else:
        query = SumQuery(connection, where, group_by, totals)
        if not query.groups:
            return
    if not pieces:
        return
    if query is not None and not needs_rows(where, group_by):
        _add_rollups(connection, query, pieces)
        return

    def add_rows(belongs: str) -> None:
        if query is None:
            add_meter_rows(connection, where, group_by, belongs, totals)
        else:
            query.add_rows_of_pieces(belongs)

    rest = Rest(pieces, [])
    if kept:
        rest = day_sums.add_kept(connection, where, group_by, pieces, totals)
    if rest.anywhere:
        load_intervals(connection, rest.anywhere)
        add_rows(ANY_ORG)
    if rest.of_organizations:
        load_rests(connection, rest.of_organizations)
        add_rows(ITS_ORG)
    settle(totals)


def _add_rollups(connection: sqlite3.Connection, query: SumQuery, pieces: list[Piece]) -> None:
    rows: list[Piece] = []
    levels: dict[int, list[Piece]] = {QUARTERS: [], DAYS: [], HOURS: []}
    for bucket, low, high in pieces:
        parts = cover(low, high)
        rows += ((bucket, *part) for part in parts.rows)
        levels[DAYS].extend((bucket, *part) for part in parts.days)
        for quarters in parts.quarters:
            _split_quarters(bucket, quarters, levels)
    if any(levels.values()):
        tables = ("rollup", "temp.tail") if load_tail(connection) else ("rollup",)
        for table in tables:
            for level, found in levels.items():
                query.add_rollups(table, level, found)
    query.add_rows(rows)


def _split_quarters(
    bucket: int, quarters: tuple[int | None, int | None], levels: dict[int, list[Piece]]
) -> None:
    """Take the whole hours out of quarters of an hour."""
    first, last = quarters
    low = None if first is None else -(-first // _QUARTERS_AN_HOUR)
    high = None if last is None else last // _QUARTERS_AN_HOUR
    if low is not None and high is not None and low >= high:
        levels[QUARTERS].append((bucket, first, last))
        return
    levels[HOURS].append((bucket, low, high))
    if low is not None and first != low * _QUARTERS_AN_HOUR:
        levels[QUARTERS].append((bucket, first, low * _QUARTERS_AN_HOUR))
    if high is not None and last != high * _QUARTERS_AN_HOUR:
        levels[QUARTERS].append((bucket, high * _QUARTERS_AN_HOUR, last))
