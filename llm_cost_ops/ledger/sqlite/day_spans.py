"""What is kept of an organization's days, and with what of it the least must be read for a query."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from llm_cost_ops.ledger.pieces import Piece
from llm_cost_ops.ledger.sqlite.sums import DAYS, Keys
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY, cover

__all__ = ["DAY", "OPEN", "Days", "Kept", "Run", "Span", "records_of", "runs_of"]

DAY = QUARTER * QUARTERS_A_DAY

OPEN = 2**62


class Run(NamedTuple):
    """A piece of time, in microseconds (None is open), and the whole days [first, last) that are in it."""

    bucket: int
    low: int | None
    high: int | None
    first: int
    last: int


def runs_of(pieces: Iterable[Piece]) -> list[Run]:
    runs = []
    for bucket, low, high in pieces:
        [(first, last)] = cover(low, high).days or [(0, 0)]
        runs.append(Run(bucket, low, high, -OPEN if first is None else first, OPEN if last is None else last))
    return runs


class Span(NamedTuple):
    """Kept days [first, last): the rows and revisions up to which they hold, and the records of each day.

    `groups` is how many groups they have, None where these are too many to be kept.
    """

    id: int
    first: int
    last: int
    seq: int
    revision: int
    counts: dict[int, int]
    groups: int | None

    @property
    def cost(self) -> int:
        """How many sums it has."""
        return self.groups or 0


class Days:
    """An organization's days in one state of the data: their records, and what is kept of them."""

    def __init__(self, org: int, organization: str, grouping: int | None) -> None:
        self.org = org
        self.organization = organization
        self.grouping = grouping
        self.records: dict[int, int] = {}
        self._order: list[int] = []
        self.kept: dict[int, Span] = {}
        self.long: list[Span] = []
        # What is not worth keeping, and what is kept and can't be read any more.
        self.tried: dict[tuple[int, int], Span] = {}
        self.outdated: list[int] = []

    def sort_out(self, spans: Iterable[Span], revised: dict[tuple[int, int], int]) -> None:
        """Take the spans that can be read; `revised` has by day the last revision that some do not hold."""
        for span in spans:
            if span.groups is None:
                self.tried[span.first, span.last] = span
            elif any(revised.get((self.org, day), 0) > span.revision for day in span.counts):
                self.outdated.append(span.id)
            elif span.last - span.first > 1:
                self.long.append(span)
            else:
                self.kept[span.first] = span

    def count(self, records: dict[int, int]) -> None:
        """Take how many records there are on each day that has any."""
        self.records = records
        self._order = sorted(records)

    def within(self, first: int, last: int) -> list[int]:
        """The days of [first, last) that have records."""
        return self._order[bisect_left(self._order, first) : bisect_left(self._order, last)]

    def behind(self, span: Span) -> int:
        """How many rows of its days a span does not hold."""
        days = self.within(span.first, span.last)
        return sum([self.records[day] for day in days]) - sum(span.counts.values())

    def cost(self, days: Iterable[int]) -> int:
        """How many rows and kept sums must be read for days, one by one."""
        cost = 0
        for day in days:
            span = self.kept.get(day)
            cost += self.records[day] if span is None else span.cost + self.behind(span)
        return cost

    def best(self, days: list[int]) -> tuple[Span | None, int]:
        """The span of several days with which the least must be read for days, if any, and what beside it."""
        best, beside = None, self.cost(days)
        least = beside
        for span in self.long if len(days) > 1 else ():
            held = self.within(span.first, span.last)
            other = self.behind(span) + self.cost({*days}.symmetric_difference(held))
            if other + span.cost < least:
                best, beside, least = span, other, other + span.cost
        return best, beside


class Kept:
    """What is kept for some dimensions of the filter's organizations, in one state of the data."""

    def __init__(
        self, connection: sqlite3.Connection, where: Filter, dimensions: Keys, runs: list[Run]
    ) -> None:
        condition, parameters = "", list(where.organization_ids)
        if parameters:
            condition = f" WHERE o.name IN ({', '.join('?' * len(parameters))})"
        organizations: dict[int, str] = dict(
            connection.execute(f"SELECT o.id, o.name FROM organization o{condition}", parameters)
        )
        text = msgspec.json.encode(dimensions).decode()
        groupings = dict(connection.execute("SELECT org, id FROM day_grouping WHERE dimensions = ?", (text,)))
        self.organizations = {org: Days(org, name, groupings.get(org)) for org, name in organizations.items()}
        first, last = min(run.first for run in runs), max(run.last for run in runs)
        spans = {
            org: _spans(connection, days.grouping, first, last)
            for org, days in self.organizations.items()
            if days.grouping is not None
        }
        every = [span for found in spans.values() for span in found]
        [self.revision] = connection.execute("SELECT ifnull(max(seq), 0) FROM revision").fetchone()
        revised = _revised(connection, min((span.revision for span in every), default=self.revision))
        for org, found in spans.items():
            self.organizations[org].sort_out(found, revised)
        first = min([first, *(span.first for span in every)])
        last = max([last, *(span.last for span in every)])
        records = records_of(connection, organizations, first, last)
        for org, days in self.organizations.items():
            days.count(records[org])


def _spans(connection: sqlite3.Connection, grouping: int, first: int, last: int) -> list[Span]:
    """What is kept of the days in [first, last), and of those that spans of several days have beside them."""
    query = "SELECT id, first, last, seq, revision, counts, groups FROM day_span WHERE grouping = ? AND "
    long = _found(connection, query + "last > first + 1 AND last > ? AND first < ?", grouping, first, last)
    first = min([first, *(span.first for span in long)])
    last = max([last, *(span.last for span in long)])
    query += "last = first + 1 AND first >= ? AND first < ?"
    return long + _found(connection, query, grouping, first, last)


def _found(connection: sqlite3.Connection, query: str, *parameters: int) -> list[Span]:
    return [
        Span(made, first, last, seq, revision, msgspec.json.decode(counts, type=dict[int, int]), groups)
        for made, first, last, seq, revision, counts, groups in connection.execute(query, parameters)
    ]


def _revised(connection: sqlite3.Connection, since: int) -> dict[tuple[int, int], int]:
    """By organization and day, the last of the revisions behind a number."""
    rows = connection.execute(
        "SELECT u.org, u.ts, v.seq FROM revision v CROSS JOIN usage u ON u.seq = v.usage "
        "WHERE v.seq > ? ORDER BY v.seq",
        (since,),
    )
    return {(org, ts // DAY): seq for org, ts, seq in rows}


def records_of(
    connection: sqlite3.Connection, organizations: Iterable[int], first: int, last: int
) -> dict[int, dict[int, int]]:
    """By organization, how many records there are on each of the days in [first, last) that has any."""
    found: dict[int, dict[int, int]] = {}
    for org in organizations:
        found[org] = dict(
            connection.execute(
                "SELECT r.bucket, sum(r.records) FROM series s CROSS JOIN rollup r ON r.series = s.id "
                "AND r.level = ? AND r.bucket >= ? AND r.bucket < ? WHERE s.org = ? "
                "GROUP BY r.bucket HAVING sum(r.records) > 0",
                (DAYS, first, last, org),
            )
        )
    tail = connection.execute("SELECT org, ts FROM usage WHERE seq > (SELECT seq FROM rollup_watermark)")
    for org, ts in tail:
        day = ts // DAY
        if org in found and first <= day < last:
            found[org][day] = found[org].get(day, 0) + 1
    return found
