"""What is kept of days in the tables day_*, as a query finds it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from llm_cost_ops.ledger import day_spans
from llm_cost_ops.ledger.day_spans import DAY, Days, Keys, Run, Span
from llm_cost_ops.ledger.sqlite.sums import DAYS
from llm_cost_ops.ledger.types import Filter

__all__ = ["Kept", "records_of"]


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
        [revision] = connection.execute("SELECT ifnull(max(seq), 0) FROM revision").fetchone()
        revised = _revised(connection, min((span.revision for span in every), default=revision))
        for org, found in spans.items():
            self.organizations[org].sort_out([span.sorted_out(org, revision, revised) for span in found])
        first = min([first, *(span.first for span in every)])
        last = max([last, *(span.last for span in every)])
        records = records_of(connection, organizations, first, last)
        for org, days in self.organizations.items():
            days.count(records[org])


class _Stored(NamedTuple):
    """A span as the table has it: of the rows and revisions up to these."""

    id: int
    first: int
    last: int
    seq: int
    revision: int
    counts: dict[int, int]
    groups: int | None

    def sorted_out(self, org: int, revision: int, revised: dict[tuple[int, int], int]) -> Span:
        """The span; `revised` has by organization and day the last revision, and `revision` is of all."""
        outdated = any(revised.get((org, day), 0) > self.revision for day in self.counts)
        old = revision - self.revision >= day_spans.MIN_ROWS
        return Span(self.id, self.first, self.last, self.seq, self.counts, self.groups, outdated, old)


def _spans(connection: sqlite3.Connection, grouping: int, first: int, last: int) -> list[_Stored]:
    """What is kept of the days in [first, last), and of those that spans of several days have beside them."""
    query = "SELECT id, first, last, seq, revision, counts, groups FROM day_span WHERE grouping = ? AND "
    long = _found(connection, query + "last > first + 1 AND last > ? AND first < ?", grouping, first, last)
    first = min([first, *(span.first for span in long)])
    last = max([last, *(span.last for span in long)])
    query += "last = first + 1 AND first >= ? AND first < ?"
    return long + _found(connection, query, grouping, first, last)


def _found(connection: sqlite3.Connection, query: str, *parameters: int) -> list[_Stored]:
    return [
        _Stored(made, first, last, seq, revision, msgspec.json.decode(counts, type=dict[int, int]), groups)
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
