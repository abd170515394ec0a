"""Kept sums of whole days, by what grows with events: users, tags, labels, meters, and what goes with them.

They are calculated when they are first asked for, and kept in the tables day_*. Recording writes nothing for
them, and they may be deleted at any time. A span (some days of UTC, one after the other, of one organization)
holds its rows up to a number, with the revisions up to a number: later rows are added when it is read, and a
span of whose rows one has a later revision counts for nothing until it is calculated anew. So every answer is
exact, whether or not a span is kept.

Each day is a span. Where days have nearly as many groups as rows, or many days many groups, the days that a
query asks for are a span too; the sums of other days are then those of a span and of the days that differ.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.ledger.pieces import Piece
from llm_cost_ops.ledger.sqlite.day_spans import DAY, OPEN, Days, Kept, Run, Span, records_of, runs_of
from llm_cost_ops.ledger.sqlite.sums import PICOS, TOTALS, Keys, Totals, add_amounts
from llm_cost_ops.ledger.types import Filter

__all__ = [
    "MIN_ROWS",
    "Fold",
    "Folded",
    "Rest",
    "SumsToKeep",
    "TooManyGroupsError",
    "add_kept",
    "dimensions_of",
    "forget",
    "forget_before",
    "settle",
    "state_now",
    "store",
    "times_forgotten",
    "to_fold",
]

MIN_ROWS = 1000
"""So many rows that no kept sums hold are worth keeping the sums of."""

MIN_ROWS_OF_LONG = 20_000
"""So many rows and kept sums of days are worth keeping the sums of as a span of several days."""

MAX_LONG = 4
"""So many spans of several days are kept for some dimensions of an organization: the last that were made."""

MAX_DIMENSIONS = 32
"""For so many combinations of dimensions an organization's days are kept; others are read from rows."""

MIN_ROWS_A_GROUP = 4
"""Days with fewer rows a group are read from rows: sums of groups that do not come again save nothing."""

MIN_TRIED = 3
"""After so many days that were not worth keeping, and more than those that were, no others are tried."""

MIN_ROWS_A_GROUP_OF_LONG = 8
"""Spans of several days with fewer rows, or sums of days, a group are not kept: they would fill the file."""

MAX_GROUPS_OF_LONG = 250_000
"""Nor those with more groups."""

_MAX_PIECES = 100_000
_FILTERED = {
    "provider": "providers",
    "model": "model_ids",
    "project": "project_ids",
    "user": "user_ids",
    "service_tier": "service_tiers",
    "processing": "processings",
    "region": "regions",
    "operation": "operations",
    "status": "statuses",
}


class Fold(NamedTuple):
    """Days [first, last) of an organization that are to be kept; with them, `rows` need not be read.

    `instead_of` are spans that nothing can be read from any more.
    """

    org: int
    organization: str
    first: int
    last: int
    rows: int
    instead_of: list[int]


class Folded(NamedTuple):
    """The sums of days, None where they are not worth keeping, and of which rows and revisions they are.

    `forgotten` is how often kept sums had been forgotten by then.
    """

    fold: Fold
    seq: int
    revision: int
    counts: dict[int, int]
    sums: Totals | None
    forgotten: int


class Rest(NamedTuple):
    """What must be read from rows: pieces of all organizations, or of one each, behind a row.

    What is to be taken away has the bucket ~bucket.
    """

    anywhere: list[Piece]
    of_organizations: list[tuple[int, int, int, int, int]]


def dimensions_of(where: Filter, group_by: Keys) -> Keys | None:
    """By what sums must be kept to answer a query, in order; None where kept sums can't."""
    names = {name for name in group_by if name != "organization"}
    names |= {name for name, field in _FILTERED.items() if getattr(where, field)}
    if CostStatus.VOIDED in where.statuses:
        # What is kept is in force.
        return None
    if where.tags:
        # A record counts once, however many of the tags it has; and it stands in the groups of all its tags.
        if len(where.tags) > 1 or "tag" in group_by:
            return None
        names.add("tag")
    for key, value in where.labels.items():
        # "" is the group of records without the label too, which a filter does not let through.
        if not value or not key:
            return None
        names.add(f"label:{key}")
    return tuple(sorted(names))


def _allowed(where: Filter, dimensions: Keys) -> list[tuple[int, Sequence[str]]]:
    """By the place of a dimension that the filter is about, the values that it lets through."""
    allowed: dict[str, Sequence[str]] = {name: getattr(where, field) for name, field in _FILTERED.items()}
    allowed["tag"] = where.tags
    allowed |= {f"label:{key}": (value,) for key, value in where.labels.items()}
    return [(at, allowed[name]) for at, name in enumerate(dimensions) if allowed.get(name)]


def add_kept(
    connection: sqlite3.Connection, where: Filter, group_by: Keys, pieces: list[Piece], totals: Totals
) -> Rest:
    """Add what is kept of the pieces to the totals; the answer says what is left to be read from rows.

    What is to be taken away again is in the totals of ~bucket, for `settle`.
    """
    dimensions = dimensions_of(where, group_by)
    runs = runs_of(pieces)
    if dimensions is None or not any(run.first < run.last for run in runs):
        return Rest(pieces, [])
    kept = Kept(connection, where, dimensions, [run for run in runs if run.first < run.last])
    organizations = kept.organizations
    if len(pieces) * len(organizations) > _MAX_PIECES:
        return Rest(pieces, [])
    if not any(days.kept or days.long for days in organizations.values()):
        return Rest(pieces, [])
    reading = _Reading()
    for days in organizations.values():
        for run in runs:
            reading.plan(days, run)
    _add_spans(connection, organizations.values(), where, dimensions, group_by, reading.spans, totals)
    return Rest([], reading.rows)


class _Reading:
    """What a query reads: spans in a bucket each, and pieces of rows as in Rest."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self.rows: list[tuple[int, int, int, int, int]] = []

    def plan(self, days: Days, run: Run) -> None:
        """Read an organization's part of a piece of time."""
        bucket, low, high, first, last = run
        if first == last:
            self._add_rows(bucket, -OPEN if low is None else low, OPEN if high is None else high, days.org)
            return
        # Where an end is open, there are no records but those of whole days.
        if low is not None and low < first * DAY:
            self._add_rows(bucket, low, first * DAY, days.org)
        added = days.within(first, last)
        long, _ = days.best(added)
        if long is not None:
            held = days.within(long.first, long.last)
            self._add_span(bucket, long, held, days)
            self._add_days(~bucket, sorted({*held}.difference(added)), days)
            added = sorted({*added}.difference(held))
        self._add_days(bucket, added, days)
        if high is not None and high > last * DAY:
            self._add_rows(bucket, last * DAY, high, days.org)

    def _add_days(self, bucket: int, wanted: list[int], days: Days) -> None:
        for day in wanted:
            span = days.kept.get(day)
            if span is None:
                self._add_rows(bucket, day * DAY, (day + 1) * DAY, days.org)
            else:
                self._add_span(bucket, span, [day], days)

    def _add_span(self, bucket: int, span: Span, held: list[int], days: Days) -> None:
        self.spans.append((bucket, span.id))
        for day in held:
            if days.records[day] != span.counts.get(day, 0):
                self._add_rows(bucket, day * DAY, (day + 1) * DAY, days.org, span.seq)

    def _add_rows(self, bucket: int, low: int, high: int, org: int, after: int = 0) -> None:
        if self.rows:
            start = self.rows[-1][1]
            if self.rows[-1] == (bucket, start, low, org, after):
                self.rows[-1] = (bucket, start, high, org, after)
                return
        self.rows.append((bucket, low, high, org, after))


def settle(totals: Totals) -> None:
    """Take away what is in the totals of ~bucket."""
    for keys, bucket, currency in [place for place in totals if place[1] < 0]:
        amounts = totals.pop((keys, bucket, currency))
        add_amounts(totals, (keys, ~bucket, currency), [-amount for amount in amounts])


def to_fold(
    connection: sqlite3.Connection, where: Filter, group_by: Keys, pieces: Iterable[Piece]
) -> tuple[list[Fold], list[Fold]]:
    """What should be kept, or brought up to date, before a query over the pieces is answered.

    That is single days, and spans of several, as long as these days are not kept. Rows of users are found by
    an index.
    """
    single: list[Fold] = []
    long: list[Fold] = []
    dimensions = dimensions_of(where, group_by)
    runs = [run for run in runs_of(pieces) if run.first < run.last]
    if dimensions is None or not runs:
        return single, long
    kept = Kept(connection, where, dimensions, runs)
    rows = connection.execute(
        "SELECT org FROM day_grouping GROUP BY org HAVING count(*) >= ?", (MAX_DIMENSIONS,)
    )
    full = {org for (org,) in rows}
    for days in kept.organizations.values():
        if days.grouping is not None or days.org not in full:
            single += _days_to_fold(days, runs, kept.revision)
            if not where.user_ids and len(runs) <= MAX_LONG:
                long += _long_to_fold(days, runs, kept.revision)
    return single, long


def _days_to_fold(days: Days, runs: list[Run], revision: int) -> Iterator[Fold]:
    wanted: set[int] = set()
    for run in runs:
        within = days.within(run.first, run.last)
        span, _ = days.best(within)
        wanted |= {*within}.symmetric_difference(() if span is None else days.within(span.first, span.last))
    tried_days = sum(last - first == 1 for first, last in days.tried)
    in_vain = tried_days >= max(MIN_TRIED, len(days.kept))
    for day in sorted(wanted | days.kept.keys()):
        records, span, tried = days.records.get(day, 0), days.kept.get(day), days.tried.get((day, day + 1))
        if span is not None:
            due = day in wanted and days.behind(span) >= max(MIN_ROWS, span.cost // 4)
            due = due or revision - span.revision >= MIN_ROWS
        else:
            due = not in_vain if tried is None else records >= MIN_ROWS_A_GROUP * sum(tried.counts.values())
        if due and records >= MIN_ROWS:
            yield Fold(days.org, days.organization, day, day + 1, records, [])


def _long_to_fold(days: Days, runs: list[Run], revision: int) -> Iterator[Fold]:
    for run in runs:
        within = days.within(run.first, run.last)
        span, beside = days.best(within)
        due = beside >= MIN_ROWS_OF_LONG
        if span is not None:
            # All of its sums are written again.
            due = beside >= max(MIN_ROWS_OF_LONG, span.cost // 4) or revision - span.revision >= MIN_ROWS
        if len(within) < 2 or not due:
            continue
        first, last = within[0], within[-1] + 1
        rows = days.cost(within)
        # Other days have as many groups, unless they are many more.
        tried = [sum(span.counts.values()) for span in days.tried.values() if span.last - span.first > 1]
        if rows >= MIN_ROWS_A_GROUP * max(tried, default=0):
            yield Fold(days.org, days.organization, first, last, rows, days.outdated)


def state_now(connection: sqlite3.Connection, fold: Fold) -> tuple[int, int, dict[int, int]]:
    """The last row and revision that the connection sees, and how many records the days have."""
    [seq, revision] = connection.execute(
        "SELECT (SELECT max(seq) FROM usage), (SELECT ifnull(max(seq), 0) FROM revision)"
    ).fetchone()
    return seq, revision, records_of(connection, [fold.org], fold.first, fold.last)[fold.org]


class TooManyGroupsError(Exception):
    """More groups than are worth keeping."""


class SumsToKeep(Totals):
    """Sums while they are added up for a fold; TooManyGroupsError as soon as they are not worth keeping.

    Where nearly each record has a group of its own, all of them would need much memory.
    """

    def __init__(self, fold: Fold) -> None:
        super().__init__()
        self._rows = fold.rows
        self._groups = 0
        is_long = fold.last - fold.first > 1
        self._rows_a_group = MIN_ROWS_A_GROUP_OF_LONG if is_long else MIN_ROWS_A_GROUP
        self._max_groups = MAX_GROUPS_OF_LONG if is_long else 2**62

    def __setitem__(self, place: tuple[Keys, int, str], amounts: list[int]) -> None:
        # What is to be taken away has groups that are there beside it.
        if place[1] >= 0 and place not in self:
            self._groups += 1
            if self._groups * self._rows_a_group > self._rows or self._groups > self._max_groups:
                raise TooManyGroupsError
        super().__setitem__(place, amounts)

    def found(self) -> Totals:
        """The sums of records. Those of none are left where something was taken away."""
        sums = {place: amounts for place, amounts in self.items() if amounts[0]}
        if any(max(amounts) > _MAX_AMOUNT for amounts in sums.values()):
            raise TooManyGroupsError
        return sums


_MAX_AMOUNT = 2**62


def store(cursor: sqlite3.Cursor, dimensions: Keys, folded: Iterable[Folded]) -> None:
    """Keep what was calculated, unless kept sums were forgotten since."""
    text = msgspec.json.encode(dimensions).decode()
    now = times_forgotten(cursor)
    for each in folded:
        if each.forgotten != now:
            continue
        org, _, first, last, _, instead_of = each.fold
        place = (org, text)
        cursor.execute("INSERT OR IGNORE INTO day_grouping (org, dimensions) VALUES (?, ?)", place)
        [grouping] = cursor.execute(_GROUPING, place).fetchone()
        rows = cursor.execute(
            "SELECT id FROM day_span WHERE grouping = ? AND first = ? AND last = ?", (grouping, first, last)
        )
        _delete(cursor, [*instead_of, *(span for (span,) in rows)])
        counts = msgspec.json.encode(each.counts).decode()
        groups = None if each.sums is None else len(each.sums)
        cursor.execute(_ADD_SPAN, (grouping, first, last, each.seq, each.revision, counts, groups))
        span = cursor.lastrowid or 0
        if each.sums is not None:
            _add(cursor, grouping, span, each.sums)
        if last - first > 1:
            rows = cursor.execute(_TOO_MANY, (grouping, MAX_LONG))
            _delete(cursor, [made for (made,) in rows])


_GROUPING = "SELECT id FROM day_grouping WHERE org = ? AND dimensions = ?"
_ADD_SPAN = (
    "INSERT INTO day_span (grouping, first, last, seq, revision, counts, groups) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_TOO_MANY = (
    "SELECT id FROM day_span WHERE grouping = ? AND last > first + 1 ORDER BY id DESC LIMIT -1 OFFSET ?"
)


def _delete(cursor: sqlite3.Cursor, spans: Iterable[int]) -> None:
    for span in spans:
        cursor.execute("DELETE FROM day_sum WHERE span = ?", (span,))
        cursor.execute("DELETE FROM day_span WHERE id = ?", (span,))


def _add(cursor: sqlite3.Cursor, grouping: int, span: int, sums: Totals) -> None:
    groups = {(keys, currency): group for group, keys, currency in cursor.execute(_GROUPS, (grouping,))}
    rows: list[tuple[int, ...]] = []
    for (keys, _, currency), amounts in sums.items():
        text = msgspec.json.encode(keys).decode()
        group = groups.get((text, currency))
        if group is None:
            cursor.execute(_ADD_GROUP, (grouping, text, currency))
            group = cursor.lastrowid or 0
        *counts, micros, picos, reported, of_micros, of_picos = amounts
        cost = (micros + picos // PICOS, picos % PICOS)
        of_cost = (of_micros + of_picos // PICOS, of_picos % PICOS)
        rows.append((span, group, *counts, *cost, reported, *of_cost))
    cursor.executemany(_ADD, sorted(rows))


_ADD_GROUP = "INSERT INTO day_group (grouping, keys, currency) VALUES (?, ?, ?)"
_GROUPS = "SELECT id, keys, currency FROM day_group WHERE grouping = ?"
_ADD = f"INSERT INTO day_sum VALUES ({', '.join('?' * (2 + len(TOTALS)))})"


def _add_spans(
    connection: sqlite3.Connection,
    organizations: Iterable[Days],
    where: Filter,
    dimensions: Keys,
    group_by: Keys,
    spans: list[tuple[int, int]],
    totals: Totals,
) -> None:
    """Add what spans hold, each in a bucket."""
    connection.execute("DELETE FROM temp.kept")
    connection.executemany("INSERT INTO temp.kept VALUES (?, ?)", spans)
    # Each key is one of those that are kept, or the organization behind them.
    places = [dimensions.index(name) if name != "organization" else len(dimensions) for name in group_by]
    same = places == [*range(len(dimensions))]
    groups: dict[int, tuple[Keys, str]] = {}
    allowed = _allowed(where, dimensions)
    for days in organizations:
        for group, text, currency in connection.execute(_GROUPS, (days.grouping,)):
            keys = _KEYS.decode(text)
            if allowed and not all(keys[at] in values for at, values in allowed):
                continue
            if not same:
                keys = (*keys, days.organization)
                keys = tuple([keys[at] for at in places])
            groups[group] = (keys, currency)
    source = "temp.kept k CROSS JOIN day_sum d ON d.span = k.span"
    if allowed:
        connection.execute("DELETE FROM temp.wanted")
        connection.executemany("INSERT INTO temp.wanted VALUES (?)", [(group,) for group in groups])
        source = f"temp.kept k CROSS JOIN temp.wanted w CROSS JOIN day_sum d {_OF_WANTED}"
    # Groups of one span come once: they need not be sorted.
    once = len(spans) == len({bucket for bucket, _ in spans})
    columns = ", ".join(f"d.{name}" if once else f"sum(d.{name})" for name in TOTALS)
    grouped = "" if once else " GROUP BY k.bucket, d.grp"
    rows = connection.execute(f"SELECT k.bucket, d.grp, {columns} FROM {source}{grouped}")
    for bucket, group, *amounts in rows:
        keys, currency = groups[group]
        place = (keys, bucket, currency)
        if place in totals:
            add_amounts(totals, place, amounts)
        else:
            totals[place] = amounts


_KEYS = msgspec.json.Decoder(Keys)
_OF_WANTED = "ON d.span = k.span AND d.grp = w.grp"


def forget_before(cursor: sqlite3.Cursor, organization: str, moment: int) -> None:
    """Delete what is kept of an organization's days that begin before a moment, and the names of who is in
    none of the others. The moment is in microseconds.
    """
    cursor.execute("UPDATE day_forgotten SET times = times + 1")
    older = f"SELECT id FROM day_span WHERE grouping IN {_ITS} AND first * {DAY} < ?"
    spans = cursor.execute(older, (organization, moment))
    _delete(cursor, [span for (span,) in spans.fetchall()])
    cursor.execute(
        f"DELETE FROM day_group WHERE grouping IN {_ITS} AND id NOT IN "
        f"(SELECT grp FROM day_sum WHERE span IN (SELECT id FROM day_span WHERE grouping IN {_ITS}))",
        (organization, organization),
    )


_ITS = "(SELECT g.id FROM day_grouping g JOIN organization o ON o.id = g.org WHERE o.name = ?)"


def times_forgotten(connection: sqlite3.Connection | sqlite3.Cursor) -> int:
    """How often kept sums were forgotten."""
    [times] = connection.execute("SELECT times FROM day_forgotten").fetchone()
    return int(times)


def forget(cursor: sqlite3.Cursor, organization: str) -> None:
    """Delete all that is kept of an organization's days; it is calculated again when it is asked for."""
    cursor.execute("UPDATE day_forgotten SET times = times + 1")
    spans = f"(SELECT id FROM day_span WHERE grouping IN {_ITS})"
    cursor.execute(f"DELETE FROM day_sum WHERE span IN {spans}", (organization,))
    for table in ("day_span", "day_group"):
        cursor.execute(f"DELETE FROM {table} WHERE grouping IN {_ITS}", (organization,))
