"""Kept sums of whole days in the tables day_* of a file; what is kept, and when, is in ledger/day_spans.py.

A span holds its rows up to a number, with the revisions up to a number: a span of whose rows one has a later
revision counts for nothing until it is calculated anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from llm_cost_ops.ledger import day_spans
from llm_cost_ops.ledger.day_spans import (
    DAY,
    MAX_DIMENSIONS,
    MAX_PIECES,
    UNWANTED,
    Days,
    Fold,
    Keys,
    Reading,
    Rest,
    TooManyGroupsError,
    Totals,
    allowed_values,
    days_to_fold,
    dimensions_of,
    is_wanted,
    long_to_fold,
    runs_of,
)
from llm_cost_ops.ledger.pieces import Piece
from llm_cost_ops.ledger.sqlite.day_spans import Kept, records_of
from llm_cost_ops.ledger.sqlite.sums import PICOS, TOTALS, add_amounts
from llm_cost_ops.ledger.types import Filter

__all__ = [
    "MIN_ROWS_A_GROUP_OF_LONG",
    "Folded",
    "ToKeep",
    "add_kept",
    "check_storable",
    "delete_some",
    "forget",
    "forget_before",
    "state_now",
    "store",
    "times_forgotten",
    "to_keep",
    "use",
]

MIN_ROWS_A_GROUP_OF_LONG = 8
"""Spans of several days with fewer rows, or sums of days, a group are not kept: they would fill the file."""

_MAX_AMOUNT = 2**62

_HOUR = "CAST(strftime('%s', 'now') AS INTEGER) / 3600"


class ToKeep(NamedTuple):
    """What should be done before a query is answered: single days to be kept, or brought up to date, then
    spans of several; and the groupings of which it is to be noted that they are used.
    """

    single: list[Fold]
    long: list[Fold]
    used: list[int]


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
    if len(pieces) * len(organizations) > MAX_PIECES:
        return Rest(pieces, [])
    if not any(days.kept or days.long for days in organizations.values()):
        return Rest(pieces, [])
    reading = Reading()
    for days in organizations.values():
        for run in runs:
            reading.plan(days, run)
    _add_spans(connection, organizations.values(), where, dimensions, group_by, reading.spans, totals)
    return Rest([], reading.rows)


def to_keep(connection: sqlite3.Connection, where: Filter, group_by: Keys, pieces: Iterable[Piece]) -> ToKeep:
    """What should be kept, or brought up to date, before a query over the pieces is answered.

    Spans of several days are, as long as these days are not kept, those of now. Rows of users are found by
    an index.
    """
    found = ToKeep([], [], [])
    dimensions = dimensions_of(where, group_by)
    runs = [run for run in runs_of(pieces) if run.first < run.last]
    if dimensions is None or not runs:
        return found
    kept = Kept(connection, where, dimensions, runs)
    unused = {grouping for (grouping,) in connection.execute(_UNUSED, (_text(dimensions),))}
    for days in kept.organizations.values():
        if days.grouping is not None and days.grouping in unused:
            found.used.append(days.grouping)
        found.single.extend(days_to_fold(days, runs))
        if not where.user_ids:
            found.long.extend(long_to_fold(days, runs))
    return found


def _text(names: Keys) -> str:
    return msgspec.json.encode(names).decode()


_UNUSED = f"SELECT id FROM day_grouping WHERE dimensions = ? AND used > {UNWANTED} AND used < {_HOUR}"


def use(cursor: sqlite3.Cursor, groupings: Iterable[int]) -> bool:
    """Note that groupings are used; whether `delete_some` has to be called, as in `store`."""
    cursor.executemany(
        f"UPDATE day_grouping SET used = {_HOUR} WHERE id = ? AND used > {UNWANTED}",
        [(grouping,) for grouping in groupings],
    )
    return cursor.execute(_GIVEN_WAY).fetchone() is not None


def state_now(connection: sqlite3.Connection, fold: Fold) -> tuple[int, int, dict[int, int]]:
    """The last row and revision that the connection sees, and how many records the days have."""
    [seq, revision] = connection.execute(
        "SELECT (SELECT max(seq) FROM usage), (SELECT ifnull(max(seq), 0) FROM revision)"
    ).fetchone()
    return seq, revision, records_of(connection, [fold.org], fold.first, fold.last)[fold.org]


def check_storable(sums: Totals) -> Totals:
    """The sums; TooManyGroupsError where a column can't hold one of them."""
    if any(max(amounts) > _MAX_AMOUNT for amounts in sums.values()):
        raise TooManyGroupsError
    return sums


def store(cursor: sqlite3.Cursor, dimensions: Keys, folded: Iterable[Folded]) -> bool:
    """Keep what was calculated, unless kept sums were forgotten since; whether `delete_some` has to be called
    for what gave way.
    """
    now = times_forgotten(cursor)
    for each in folded:
        if each.forgotten != now:
            continue
        org, _, first, last, _, instead_of = each.fold
        groups = None if each.sums is None else [keys for keys, _, _ in each.sums]
        grouping = _grouping(cursor, org, _text(dimensions), is_wanted=is_wanted(dimensions, groups))
        rows = cursor.execute(
            "SELECT id FROM day_span WHERE grouping = ? AND first = ? AND last = ?", (grouping, first, last)
        )
        _delete(cursor, [*instead_of, *(span for (span,) in rows)])
        counts = msgspec.json.encode(each.counts).decode()
        span_of = (grouping, first, last, each.seq, each.revision, counts)
        cursor.execute(_ADD_SPAN, (*span_of, None if groups is None else len(groups)))
        span = cursor.lastrowid or 0
        if each.sums is not None:
            _add(cursor, grouping, span, each.sums)
        if last - first > 1:
            rows = cursor.execute(_TOO_MANY, (grouping, day_spans.MAX_LONG))
            _delete(cursor, [made for (made,) in rows])
    return cursor.execute(_GIVEN_WAY).fetchone() is not None


def _grouping(cursor: sqlite3.Cursor, org: int, text: str, *, is_wanted: bool) -> int:
    """The number of a grouping that is being used; where it is new, another one may give way."""
    found = cursor.execute(_GROUPING, (org, text)).fetchone()
    if found is None:
        for (other,) in cursor.execute(_TOO_MANY_GROUPINGS, (org, MAX_DIMENSIONS - 1)).fetchall():
            cursor.execute("UPDATE day_grouping SET dimensions = NULL WHERE id = ?", (other,))
        cursor.execute(_ADD_GROUPING, (org, text, UNWANTED))
        found = [cursor.lastrowid]
    if is_wanted:
        cursor.execute(f"UPDATE day_grouping SET used = {_HOUR} WHERE id = ?", found)
    [grouping] = found
    return int(grouping or 0)


_GROUPING = "SELECT id FROM day_grouping WHERE org = ? AND dimensions = ?"
_ADD_GROUPING = "INSERT INTO day_grouping (org, dimensions, used) VALUES (?, ?, ?)"
_TOO_MANY_GROUPINGS = (
    "SELECT id FROM day_grouping WHERE org = ? AND dimensions NOTNULL "
    "ORDER BY used DESC, id LIMIT -1 OFFSET ?"
)
_GIVEN_WAY = "SELECT id FROM day_grouping WHERE dimensions IS NULL LIMIT 1"
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


def delete_some(cursor: sqlite3.Cursor, most: int) -> bool:
    """Delete so many sums of groupings that gave way; whether any are left."""
    while most > 0:
        found = cursor.execute(_GIVEN_WAY).fetchone()
        if found is None:
            return False
        [grouping] = found
        span = cursor.execute("SELECT id FROM day_span WHERE grouping = ? LIMIT 1", found).fetchone()
        if span is None:
            cursor.execute(
                "DELETE FROM day_group WHERE id IN (SELECT id FROM day_group WHERE grouping = ? LIMIT ?)",
                (grouping, most),
            )
            done, owner = cursor.rowcount, ("day_grouping", grouping)
        else:
            cursor.execute(
                "DELETE FROM day_sum WHERE span = ? AND grp IN "
                "(SELECT grp FROM day_sum WHERE span = ? LIMIT ?)",
                (*span, *span, most),
            )
            done, owner = cursor.rowcount, ("day_span", *span)
        if done < most:
            # Last: the number of a span or grouping is given again once it is gone.
            table, number = owner
            cursor.execute(f"DELETE FROM {table} WHERE id = ?", (number,))
        most -= done + 1
    return True


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
    allowed = allowed_values(where, dimensions)
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
    """Delete all that is kept of an organization's days, and by what: a label may be named as somebody is.

    It is calculated again when it is asked for.
    """
    cursor.execute("UPDATE day_forgotten SET times = times + 1")
    spans = f"(SELECT id FROM day_span WHERE grouping IN {_ITS})"
    cursor.execute(f"DELETE FROM day_sum WHERE span IN {spans}", (organization,))
    for table, of_grouping in (("day_span", "grouping"), ("day_group", "grouping"), ("day_grouping", "id")):
        cursor.execute(f"DELETE FROM {table} WHERE {of_grouping} IN {_ITS}", (organization,))
