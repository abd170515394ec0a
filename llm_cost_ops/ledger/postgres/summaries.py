"""Answers of sums: from rollup and delta, from kept sums of days, and from rows.

rollup holds what series hold. What a query needs beside it (users, tags, labels, meters) is in the kept sums
of days (day_sums.py) or has to be read from rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import psycopg

from llm_cost_ops.ledger import day_spans
from llm_cost_ops.ledger.day_spans import (
    DAY,
    MAX_PIECES,
    Fold,
    Keys,
    Reading,
    Run,
    SumsToKeep,
    TooManyGroupsError,
    Totals,
    days_to_fold,
    dimensions_of,
    long_to_fold,
    runs_of,
    settle,
    sums_to_answer,
)
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.pieces import Piece, pieces_of
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.day_sums import Kept, snapshot_to_keep, try_to_begin
from llm_cost_ops.ledger.postgres.interning import organization_ids
from llm_cost_ops.ledger.postgres.meter_sums import add_meter_rows
from llm_cost_ops.ledger.postgres.sums import (
    DAYS,
    QUARTERS,
    SERIES_COLUMNS,
    Rows,
    SumQuery,
    check_removed,
    removed,
    rows_of,
    rows_of_rests,
)
from llm_cost_ops.ledger.types import Amounts, Filter
from llm_cost_ops.rules.limits import check_amounts
from llm_cost_ops.rules.times import cover

__all__ = ["add_up", "count", "summarize"]

Buckets = Sequence[tuple[datetime, datetime]] | None

# After so many rows what was added up is kept: a query that ends at its deadline leaves something behind.
_FOLD_ROWS = 100_000
# Among the days that were kept: that sums are used.
_NOTED = (0, 0, 0)


def summarize(
    session: Session, where: Filter, group_by: Keys, buckets: Buckets
) -> list[tuple[Keys, int, Amounts]]:
    """The sums of each group, bucket and currency that has any, by bucket, keys and currency.

    Before that, sums of days are kept that the answer and later ones are read from. It is exact without them:
    what can't be written now is left to the next query.
    """
    if _needs_rows(where, group_by) and dimensions_of(where, group_by) is not None:
        done: set[tuple[int, int, int]] = set()
        try:
            while True:
                with session.keeping_snapshot():
                    query = _Query(session, where, group_by, buckets)
                    if not query.keep(done):
                        return _amounts(query.totals())
        except psycopg.Error:
            if not session.usable:
                raise
    with session.snapshot():
        return _amounts(_Query(session, where, group_by, buckets).totals())


def _amounts(totals: Totals) -> list[tuple[Keys, int, Amounts]]:
    found = []
    for bucket, keys, currency in sorted((bucket, keys, currency) for keys, bucket, currency in totals):
        records, requests, put_in, put_out, cached, unpriced, reported, units, reported_units = totals[
            keys, bucket, currency
        ]
        # Repricing leaves sums of nothing behind.
        if records:
            sums = Amounts(
                requests=requests,
                input_tokens=put_in,
                output_tokens=put_out,
                cached_tokens=cached,
                unpriced_requests=unpriced,
                units=units,
                reported_requests=reported,
                reported_units=reported_units,
                currency=currency,
            )
            check_amounts(sums)
            found.append((keys, bucket, sums))
    return found


def count(session: Session, where: Filter) -> int:
    """How many records the filter lets through, of those that were not removed."""
    start = None if where.start is None else to_micros(where.start)
    if any(start is None or start < moment for moment in removed(session, where).values()):
        # The sums hold more than is there.
        orgs = organization_ids(session, where.organization_ids)
        totals: Totals = {}
        if orgs:
            _add_rows(session, where, (), [rows_of(list(pieces_of(where, None)))], totals, orgs)
    else:
        totals = _Query(session, where, (), None).totals()
    return sum(amounts[0] for amounts in totals.values())


def _needs_rows(where: Filter, group_by: Keys) -> bool:
    """Whether series do not hold all that is asked for."""
    return bool(where.user_ids or where.tags or where.labels or set(group_by) - SERIES_COLUMNS.keys())


class _Query:
    """A query in one snapshot."""

    def __init__(self, session: Session, where: Filter, group_by: Keys, buckets: Buckets) -> None:
        self._session = session
        self._where = where
        self._group_by = group_by
        self._pieces = list(pieces_of(where, buckets))
        self._orgs = organization_ids(session, where.organization_ids)
        self._needs_rows = _needs_rows(where, group_by)
        check_removed(session, where, self._pieces, needs_rows=self._needs_rows)
        runs = runs_of(self._pieces)
        self._runs = [run for run in runs if run.first < run.last]
        self._dimensions = dimensions_of(where, group_by)
        self._kept: Kept | None = None
        few = len(self._pieces) * len(self._orgs) <= MAX_PIECES
        if self._needs_rows and self._dimensions is not None and self._orgs and self._runs and few:
            self._kept = Kept(session, where, self._dimensions, self._runs)

    def keep(self, done: set[tuple[int, int, int]]) -> bool:
        """Keep sums of some days, or of a span of days, that are not `done` yet; False where none were.

        Single days come first, since spans are added up from them.
        """
        kept, dimensions = self._kept, self._dimensions
        if kept is None or dimensions is None:
            return False
        if kept.unused and _NOTED not in done and snapshot_to_keep(self._session, dimensions) is not None:
            done.add(_NOTED)
            if kept.use():
                # In a transaction of its own: who notes the same at this moment fails, and answers without.
                return True
        folds = [fold for fold in self._to_fold(kept) if (fold.org, fold.first, fold.last) not in done]
        snapshot = snapshot_to_keep(self._session, dimensions) if folds else None
        if snapshot is None:
            return False
        rows = 0
        mine: dict[int, bool] = {}
        found: list[tuple[Fold, str, Totals | None]] = []
        for fold in folds:
            is_long = fold.last - fold.first > 1
            if found and (is_long or rows + fold.rows > _FOLD_ROWS):
                break
            done.add((fold.org, fold.first, fold.last))
            if fold.org not in mine:
                mine[fold.org] = try_to_begin(self._session, fold.org, dimensions)
            if mine[fold.org]:
                found.append((fold, snapshot, add_up(self._session, fold, dimensions, kept)))
                rows += fold.rows
        # All at the end: an erasure waits for them from the first one on.
        written = [kept.store(*each) for each in found]
        return any(written)

    def _to_fold(self, kept: Kept) -> list[Fold]:
        single: list[Fold] = []
        long: list[Fold] = []
        for days in kept.organizations.values():
            single += days_to_fold(days, self._runs)
            long += long_to_fold(days, self._runs)
        return single + long

    def totals(self) -> Totals:
        """The answer, with what is kept."""
        totals = sums_to_answer()
        if not self._orgs or not self._pieces:
            return totals
        if not self._needs_rows:
            self._add_rollups(totals)
            return totals
        rows = [rows_of(self._pieces)]
        kept, dimensions = self._kept, self._dimensions
        if kept is not None and dimensions is not None and kept.has_any:
            reading = Reading()
            runs = runs_of(self._pieces)
            for days in kept.organizations.values():
                for run in runs:
                    reading.plan(days, run)
            kept.add_spans(reading.spans, self._where, dimensions, self._group_by, totals)
            rows = rows_of_rests(reading.rows, kept.snapshots)
        _add_rows(self._session, self._where, self._group_by, rows, totals, self._orgs)
        settle(totals)
        return totals

    def _add_rollups(self, totals: Totals) -> None:
        rows: list[Piece] = []
        quarters: list[Piece] = []
        days: list[Piece] = []
        for bucket, low, high in self._pieces:
            parts = cover(low, high)
            rows += ((bucket, *part) for part in parts.rows)
            days += ((bucket, *part) for part in parts.days)
            quarters += ((bucket, *part) for part in parts.quarters)
        query = SumQuery(self._session, self._where, self._group_by, totals, self._orgs)
        # How many rows an interval has is not known when the query is planned: one by one in the order of
        # the index they take twice the time. Records are read in that order.
        self._session.run("SET LOCAL enable_indexscan = off")
        query.add_rollups(QUARTERS, quarters)
        query.add_rollups(DAYS, days)
        self._session.run("SET LOCAL enable_indexscan = on; SET LOCAL enable_seqscan = off")
        if rows:
            query.add_rows(rows_of(rows, few=True))


def _add_rows(
    session: Session,
    where: Filter,
    group_by: Keys,
    found: Sequence[Rows],
    totals: Totals,
    orgs: Sequence[int],
) -> None:
    if "meter" in group_by:
        for rows in found:
            add_meter_rows(session, where, group_by, rows, totals, orgs)
        return
    query = SumQuery(session, where, group_by, totals, orgs)
    for rows in found:
        query.add_rows(rows)


def add_up(session: Session, fold: Fold, dimensions: Keys, kept: Kept | None = None) -> Totals | None:
    """The sums of days from what is kept already and the rows, or from rows alone; None where these are too
    many to be kept.
    """
    totals = SumsToKeep(fold, day_spans.MIN_ROWS_A_GROUP)
    where = Filter(organization_ids=(fold.organization,))
    low, high = fold.first * DAY, fold.last * DAY
    try:
        if kept is None:
            rows = [rows_of([(0, low, high)])]
        else:
            reading = Reading()
            reading.plan(kept.organizations[fold.org], Run(0, low, high, fold.first, fold.last))
            kept.add_spans(reading.spans, where, dimensions, dimensions, totals)
            rows = rows_of_rests(reading.rows, kept.snapshots)
        _add_rows(session, where, dimensions, rows, totals, [fold.org])
        settle(totals)
    except TooManyGroupsError:
        return None
    return totals.found()
