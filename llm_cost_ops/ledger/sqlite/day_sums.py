"""Kept sums of whole days, by what grows with events: users, tags, labels, meters, and what goes with them.

They are calculated from rows when they are first asked for, and kept in the tables day_*. Recording writes
nothing for them, and they may be deleted at any time. A day (of UTC, of one organization) holds its rows up
to a number, with the revisions up to a number: later rows are added when it is read, and a day whose rows
have a later revision counts for nothing until it is calculated anew. So every answer is exact, whether or
not a day is kept.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.ledger.pieces import Piece
from llm_cost_ops.ledger.sqlite.sums import (
    DAYS,
    PICOS,
    TOTALS,
    Keys,
    Totals,
    add_amounts,
    load_rests,
    saturated,
)
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY, cover

__all__ = [
    "DAY",
    "MIN_ROWS",
    "Fold",
    "Folded",
    "Rest",
    "State",
    "add_kept",
    "dimensions_of",
    "forget",
    "forget_before",
    "state_now",
    "store",
    "times_forgotten",
    "to_fold",
]

MIN_ROWS = 1000
"""So many rows that no kept sums hold are worth keeping the sums of."""

MAX_DIMENSIONS = 32
"""For so many combinations of dimensions an organization's days are kept; others are read from rows."""

DAY = QUARTER * QUARTERS_A_DAY

MIN_ROWS_A_GROUP = 2
"""Days with fewer rows a group are read from rows: sums of groups that do not come again save nothing."""

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


class State(NamedTuple):
    """Of a kept day: the rows and revisions up to which it holds, and how many records these are.

    `seq` is None where its groups are too many to be kept.
    """

    seq: int | None
    revision: int
    records: int


class Fold(NamedTuple):
    """A day that is to be kept, or brought up to date.

    `after` is the row that it holds already, 0 where it is to be calculated anew; `before` is its state.
    """

    org: int
    organization: str
    day: int
    after: int
    before: State | None
    records: int


class Folded(NamedTuple):
    """What the rows of a day add to what is kept of it, and the state that it then has.

    `forgotten` is how often kept days had been forgotten when the rows were read.
    """

    fold: Fold
    state: State
    sums: Totals
    forgotten: int


class Rest(NamedTuple):
    """What must be read from rows: pieces of all organizations, or of one each, behind a row."""

    anywhere: list[Piece]
    of_organizations: list[tuple[int, int, int, int, int]]

    def load(self, connection: sqlite3.Connection) -> None:
        """Put the pieces of organizations into temp.piece."""
        load_rests(connection, self.of_organizations)


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


def _passes(where: Filter, dimensions: Keys, keys: Keys) -> bool:
    for name, value in zip(dimensions, keys, strict=True):
        if name in _FILTERED:
            allowed = getattr(where, _FILTERED[name])
            if allowed and value not in allowed:
                return False
        elif name == "tag":
            if where.tags and value not in where.tags:
                return False
        elif name.startswith("label:") and where.labels.get(name.removeprefix("label:"), value) != value:
            return False
    return True


class _Kept:
    """What is kept for some dimensions of the filter's organizations, in one state of the data."""

    def __init__(self, connection: sqlite3.Connection, where: Filter, dimensions: Keys) -> None:
        self._connection = connection
        condition, parameters = "", list(where.organization_ids)
        if parameters:
            condition = f" WHERE o.name IN ({', '.join('?' * len(parameters))})"
        self.organizations: dict[int, str] = dict(
            connection.execute(f"SELECT o.id, o.name FROM organization o{condition}", parameters)
        )
        self.dimensions = dimensions
        text = msgspec.json.encode(dimensions).decode()
        rows = connection.execute("SELECT org, id FROM day_grouping WHERE dimensions = ?", (text,))
        self.groupings: dict[int, int] = {org: made for org, made in rows if org in self.organizations}
        rows = connection.execute(
            "SELECT org FROM day_grouping GROUP BY org HAVING count(*) >= ?", (MAX_DIMENSIONS,)
        )
        self.full = {org for (org,) in rows} - self.groupings.keys()
        [self.revision] = connection.execute("SELECT ifnull(max(seq), 0) FROM revision").fetchone()

    def states(self, org: int, first: int, last: int) -> dict[int, State]:
        """The states of an organization's days in [first, last)."""
        grouping = self.groupings.get(org)
        if grouping is None:
            return {}
        rows = self._connection.execute(
            "SELECT day, seq, revision, records FROM day_state WHERE grouping = ? AND day >= ? AND day < ?",
            (grouping, first, last),
        )
        return {day: State(*state) for day, *state in rows}

    def revised(self, states: Iterable[State]) -> dict[tuple[int, int], int]:
        """By organization and day, the last of the revisions that some of the states do not hold."""
        since = min((state.revision for state in states), default=self.revision)
        if since >= self.revision:
            return {}
        rows = self._connection.execute(
            "SELECT u.org, u.ts, v.seq FROM revision v CROSS JOIN usage u ON u.seq = v.usage "
            "WHERE v.seq > ? ORDER BY v.seq",
            (since,),
        )
        return {(org, ts // DAY): seq for org, ts, seq in rows}

    def records(self, first: int, last: int) -> dict[tuple[int, int], int]:
        """How many records the organizations have on each of the days in [first, last)."""
        return _records(self._connection, self.organizations, first, last)


def _records(
    connection: sqlite3.Connection, organizations: Iterable[int], first: int, last: int
) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    wanted = set(organizations)
    for org in wanted:
        rows = connection.execute(
            "SELECT r.bucket, sum(r.records) FROM series s CROSS JOIN rollup r ON r.series = s.id "
            "AND r.level = ? AND r.bucket >= ? AND r.bucket < ? WHERE s.org = ? GROUP BY r.bucket",
            (DAYS, first, last, org),
        )
        found.update({(org, day): records for day, records in rows})
    tail = connection.execute("SELECT org, ts FROM usage WHERE seq > (SELECT seq FROM rollup_watermark)")
    for org, ts in tail:
        place = (org, ts // DAY)
        if org in wanted and first <= place[1] < last:
            found[place] = found.get(place, 0) + 1
    return found


_OPEN = 2**62


def _days(pieces: Iterable[Piece]) -> list[tuple[int, int, int]]:
    """Which whole days are in the pieces, as buckets and numbers."""
    found = []
    for bucket, low, high in pieces:
        for first, last in cover(low, high).days:
            found.append((bucket, -_OPEN if first is None else first, _OPEN if last is None else last))
    return found


def add_kept(
    connection: sqlite3.Connection, where: Filter, group_by: Keys, pieces: list[Piece], totals: Totals
) -> Rest:
    """Add what is kept of the pieces to the totals; the answer says what is left to be read from rows."""
    dimensions = dimensions_of(where, group_by)
    days = _days(pieces)
    if dimensions is None or not days:
        return Rest(pieces, [])
    kept = _Kept(connection, where, dimensions)
    first, last = min(day[1] for day in days), max(day[2] for day in days)
    states = {org: kept.states(org, first, last) for org in kept.groupings}
    revised = kept.revised(state for of_org in states.values() for state in of_org.values())
    valid = {
        org: {
            day: state.seq
            for day, state in sorted(of_org.items())
            if state.seq is not None and revised.get((org, day), 0) <= state.revision
        }
        for org, of_org in states.items()
    }
    if not any(valid.values()) or len(pieces) * len(kept.organizations) > _MAX_PIECES:
        return Rest(pieces, [])
    records = kept.records(first, last)
    rest: list[tuple[int, int, int, int, int]] = []
    used: list[tuple[int, int, int]] = []
    for org in kept.organizations:
        of_org = valid.get(org, {})
        kept_days = list(of_org)
        for bucket, low, high in pieces:
            at, last_moment = -_OPEN if low is None else low, _OPEN if high is None else high
            within = bisect_left(kept_days, -(-at // DAY)), bisect_left(kept_days, last_moment // DAY)
            for day in kept_days[slice(*within)]:
                seq = of_org[day]
                start, end = day * DAY, (day + 1) * DAY
                used.append((kept.groupings[org], day, bucket))
                if at < start:
                    rest.append((bucket, at, start, org, 0))
                if records.get((org, day)) != states[org][day].records:
                    rest.append((bucket, start, end, org, seq))
                at = end
            if at < last_moment:
                rest.append((bucket, at, last_moment, org, 0))
    _add_days(connection, kept, where, group_by, used, totals)
    return Rest([], rest)


def to_fold(
    connection: sqlite3.Connection, where: Filter, group_by: Keys, pieces: Iterable[Piece]
) -> list[Fold]:
    """Which days should be kept, or brought up to date, before a query over the pieces is answered."""
    dimensions = dimensions_of(where, group_by)
    days = _days(pieces)
    if dimensions is None or not days:
        return []
    kept = _Kept(connection, where, dimensions)
    first, last = min(day[1] for day in days), max(day[2] for day in days)
    states = {(org, day): s for org in kept.groupings for day, s in kept.states(org, first, last).items()}
    revised = kept.revised(states.values())
    found = []
    for (org, day), records in kept.records(first, last).items():
        if records < MIN_ROWS or not any(low <= day < high for _, low, high in days) or org in kept.full:
            continue
        state = states.get((org, day))
        after = _fold_after(state, records, revised.get((org, day), 0), kept.revision)
        if after is not None:
            found.append(Fold(org, kept.organizations[org], day, after, state, records))
    return found


def _fold_after(state: State | None, records: int, revised: int, revision: int) -> int | None:
    """The row behind which the rows of a day are to be added to what is kept of it; None for none."""
    if state is None or revised > state.revision:
        return 0
    if state.seq is None:
        return 0 if records >= MIN_ROWS_A_GROUP * state.records else None
    is_behind = records - state.records >= MIN_ROWS or revision - state.revision >= MIN_ROWS
    return state.seq if is_behind else None


def state_now(connection: sqlite3.Connection, fold: Fold) -> State:
    """The state of a day that holds all that the connection sees."""
    [seq, revision] = connection.execute(
        "SELECT (SELECT max(seq) FROM usage), (SELECT ifnull(max(seq), 0) FROM revision)"
    ).fetchone()
    records = _records(connection, [fold.org], fold.day, fold.day + 1)
    return State(seq, revision, records.get((fold.org, fold.day), 0))


def store(cursor: sqlite3.Cursor, dimensions: Keys, folded: Iterable[Folded]) -> None:
    """Keep what was calculated of days, unless somebody else kept something since."""
    text = msgspec.json.encode(dimensions).decode()
    now = times_forgotten(cursor)
    for (org, _, day, after, before, _), state, sums, forgotten in folded:
        if forgotten != now:
            continue
        found = cursor.execute(
            "SELECT id FROM day_grouping WHERE org = ? AND dimensions = ?", (org, text)
        ).fetchone()
        if found is None:
            cursor.execute("INSERT INTO day_grouping (org, dimensions) VALUES (?, ?)", (org, text))
        grouping = cursor.lastrowid or 0 if found is None else found[0]
        place = (grouping, day)
        row = cursor.execute(
            "SELECT seq, revision, records FROM day_state WHERE grouping = ? AND day = ?", place
        ).fetchone()
        if (None if row is None else State(*row)) != before:
            continue
        if not after or state.seq is None:
            cursor.execute("DELETE FROM day_sum WHERE grouping = ? AND day = ?", place)
        if state.seq is not None:
            state = _add(cursor, grouping, day, state, sums)
        cursor.execute("INSERT OR REPLACE INTO day_state VALUES (?, ?, ?, ?, ?)", (*place, *state))


def _add(cursor: sqlite3.Cursor, grouping: int, day: int, state: State, sums: Totals) -> State:
    """Add sums to what is kept of a day, and return its state: another one where its groups are too many."""
    place = (grouping, day)
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
        rows.append((*place, group, *counts, *cost, reported, *of_cost))
    cursor.executemany(_ADD, rows)
    [number] = cursor.execute(_COUNT, place).fetchone()
    if number * MIN_ROWS_A_GROUP <= state.records:
        return state
    cursor.execute("DELETE FROM day_sum WHERE grouping = ? AND day = ?", place)
    return state._replace(seq=None)


_ADD_GROUP = "INSERT INTO day_group (grouping, keys, currency) VALUES (?, ?, ?)"
_COUNT = "SELECT count(*) FROM day_sum WHERE grouping = ? AND day = ?"
_GROUPS = "SELECT id, keys, currency FROM day_group WHERE grouping = ?"
_ADD = (
    f"INSERT INTO day_sum VALUES ({', '.join('?' * (3 + len(TOTALS)))}) "
    "ON CONFLICT (grouping, day, grp) DO UPDATE SET "
    + ", ".join(saturated(name, f"excluded.{name}") for name in TOTALS)
)


def _add_days(
    connection: sqlite3.Connection,
    kept: _Kept,
    where: Filter,
    group_by: Keys,
    used: list[tuple[int, int, int]],
    totals: Totals,
) -> None:
    """Add the kept days that are used in a bucket each, as groupings, days and buckets."""
    connection.execute("DELETE FROM temp.kept")
    connection.executemany("INSERT INTO temp.kept VALUES (?, ?, ?)", used)
    groups: dict[int, tuple[Keys, str]] = {}
    everything = True
    for org, grouping in kept.groupings.items():
        for group, text, currency in connection.execute(_GROUPS, (grouping,)):
            keys = msgspec.json.decode(text, type=Keys)
            if _passes(where, kept.dimensions, keys):
                values = dict(zip(kept.dimensions, keys, strict=True), organization=kept.organizations[org])
                groups[group] = (tuple([values[name] for name in group_by]), currency)
            else:
                everything = False
    source = "temp.kept k CROSS JOIN day_sum d ON d.grouping = k.grouping AND d.day = k.day"
    if not everything:
        connection.execute("DELETE FROM temp.wanted")
        connection.executemany("INSERT INTO temp.wanted VALUES (?)", [(group,) for group in groups])
        source = f"temp.kept k CROSS JOIN temp.wanted w CROSS JOIN day_sum d {_OF_WANTED}"
    sums = ", ".join(f"sum(d.{name})" for name in TOTALS)
    rows = connection.execute(f"SELECT k.bucket, d.grp, {sums} FROM {source} GROUP BY k.bucket, d.grp")
    for bucket, group, *amounts in rows:
        keys, currency = groups[group]
        add_amounts(totals, (keys, bucket, currency), amounts)


_OF_WANTED = "ON d.grouping = k.grouping AND d.day = k.day AND d.grp = w.grp"


def forget_before(cursor: sqlite3.Cursor, organization: str, day: int) -> None:
    """Delete what is kept of an organization's days before a day, and the names of who is in none of the
    others.
    """
    cursor.execute("UPDATE day_forgotten SET times = times + 1")
    condition = "(SELECT g.id FROM day_grouping g JOIN organization o ON o.id = g.org WHERE o.name = ?)"
    for table in ("day_sum", "day_state"):
        cursor.execute(f"DELETE FROM {table} WHERE grouping IN {condition} AND day < ?", (organization, day))
    cursor.execute(
        f"DELETE FROM day_group WHERE grouping IN {condition} "
        f"AND id NOT IN (SELECT grp FROM day_sum WHERE grouping IN {condition})",
        (organization, organization),
    )


def times_forgotten(connection: sqlite3.Connection | sqlite3.Cursor) -> int:
    """How often kept days were forgotten."""
    [times] = connection.execute("SELECT times FROM day_forgotten").fetchone()
    return int(times)


def forget(cursor: sqlite3.Cursor, organization: str) -> None:
    """Delete all that is kept of an organization's days; it is calculated again when it is asked for."""
    condition = "(SELECT g.id FROM day_grouping g JOIN organization o ON o.id = g.org WHERE o.name = ?)"
    cursor.execute("UPDATE day_forgotten SET times = times + 1")
    for table in ("day_sum", "day_state", "day_group"):
        cursor.execute(f"DELETE FROM {table} WHERE grouping IN {condition}", (organization,))
