"""Kept sums of whole days in the table day_span; what is kept, and when, is in ledger/day_spans.py.

A span has the snapshot whose rows it holds, and how many records and revisions each of its days had there.
It is written by the transaction of that snapshot, so that whoever sees the span sees all that it saw, on a
standby and after a failure too. What else is there is told by numbers: a day with as many records has the
same, and of others those are new that the snapshot did not see, in whatever order transactions ended. On a
day with more revisions records may have changed, and its spans count for nothing.

Erasing and retention delete spans, and change the row of the organization, which whoever writes a span has to
find as it was in its snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

import msgspec

from llm_cost_ops.ledger import day_spans
from llm_cost_ops.ledger.day_spans import (
    DAY,
    MAX_DIMENSIONS,
    MAX_GROUPS_OF_LONG,
    UNWANTED,
    Days,
    Fold,
    Keys,
    Run,
    Span,
    Totals,
    allowed_values,
    is_wanted,
)
from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.sums import DAYS, add_amounts, day_sql
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rules.times import QUARTERS_A_DAY

__all__ = [
    "Kept",
    "counted",
    "decode_counts",
    "decode_sums",
    "forget",
    "forget_before",
    "snapshot_to_keep",
    "try_to_begin",
]


class Group(msgspec.Struct, array_like=True, gc=False):
    """The sums of a group of a span, in the order of sums.add_amounts."""

    keys: Keys
    currency: str
    records: int
    requests: int
    input: int
    output: int
    cached: int
    unpriced: int
    reported: int
    units: int
    reported_units: int

    @property
    def amounts(self) -> list[int]:
        """The sums alone."""
        return [
            self.records,
            self.requests,
            self.input,
            self.output,
            self.cached,
            self.unpriced,
            self.reported,
            self.units,
            self.reported_units,
        ]


Counts = dict[int, tuple[int, int]]
"""By day, how many records and revisions it has."""

# What an int holds.
_MAX_DAY = 2**31 - 1
# What a row of an index holds beside the other columns: 2,704 bytes are all.
_MAX_DIMENSIONS_BYTES = 2000
_COLUMNS = "org, id, first, last, seen::text, counts, groups"
# What is kept of the days that are asked for, and of those that spans of several days have beside them.
_SPANS = f"""
    WITH long AS MATERIALIZED (
        SELECT {_COLUMNS} FROM llm_cost_ops.day_span d WHERE d.org = ANY(%(orgs)s)
        AND d.grouping = ANY(%(groupings)s) AND d.last > d.first + 1
        AND d.last > %(first)s AND d.first < %(last)s
    )
    SELECT * FROM long UNION ALL
    SELECT {_COLUMNS} FROM llm_cost_ops.day_span d WHERE d.org = ANY(%(orgs)s)
    AND d.grouping = ANY(%(groupings)s) AND d.last = d.first + 1
    AND d.first >= least(%(first)s, (SELECT min(first) FROM long))
    AND d.first < greatest(%(last)s, (SELECT max(last) FROM long))
"""
_DAY = day_sql("bucket")
_COUNTED = f"""
    SELECT org, day, sum(records), sum(revisions) FROM (
        SELECT org, bucket AS day, records, revisions FROM llm_cost_ops.rollup WHERE org = ANY(%(orgs)s)
        AND level = {DAYS} AND bucket >= %(first)s AND bucket < %(last)s
        UNION ALL
        SELECT org, {_DAY}, records, revisions FROM llm_cost_ops.delta WHERE org = ANY(%(orgs)s)
        AND bucket >= %(first)s::bigint * {QUARTERS_A_DAY} AND bucket < %(last)s::bigint * {QUARTERS_A_DAY}
    ) x GROUP BY 1, 2 HAVING sum(records) > 0
"""
_HOUR = "extract(epoch FROM now())::bigint / 3600"
_GROUPINGS = f"""
    SELECT o.id, o.name, g.id, coalesce(g.used > {UNWANTED} AND g.used < {_HOUR}, false)
    FROM llm_cost_ops.organization o LEFT JOIN llm_cost_ops.day_grouping g
    ON g.org = o.id AND g.dimensions = %(dimensions)s
"""
# These wait for nobody: somebody else notes the same, or deletes it.
_USE = (
    f"UPDATE llm_cost_ops.day_grouping g SET used = {_HOUR} WHERE g.org = %(org)s AND g.id IN (SELECT l.id "
    "FROM llm_cost_ops.day_grouping l WHERE l.org = %(org)s AND l.id = %(grouping)s "
    f"AND l.used < {_HOUR} FOR NO KEY UPDATE SKIP LOCKED)"
)
_GIVE_WAY = (
    "DELETE FROM llm_cost_ops.day_grouping g WHERE g.org = %(org)s AND g.id IN (SELECT l.id "
    "FROM llm_cost_ops.day_grouping l WHERE l.org = %(org)s AND l.id IN (SELECT k.id "
    "FROM llm_cost_ops.day_grouping k WHERE k.org = %(org)s ORDER BY k.used DESC, k.id OFFSET %(most)s) "
    "FOR UPDATE SKIP LOCKED)"
)
_ADD_GROUPING = (
    "INSERT INTO llm_cost_ops.day_grouping (org, dimensions, used) "
    f"VALUES (%(org)s, %(dimensions)s, CASE WHEN %(wanted)s THEN {_HOUR} ELSE {UNWANTED} END) RETURNING id"
)
# Not where another server writes, or the role may not.
_MAY_KEEP = (
    "SELECT pg_current_snapshot()::text, NOT pg_is_in_recovery() "
    "AND current_setting('transaction_read_only') = 'off' "
    "AND has_table_privilege('llm_cost_ops.day_span', 'INSERT') "
    "AND has_table_privilege('llm_cost_ops.day_span', 'DELETE') "
    "AND has_table_privilege('llm_cost_ops.day_grouping', 'INSERT') "
    "AND has_table_privilege('llm_cost_ops.day_grouping', 'UPDATE') "
    "AND has_table_privilege('llm_cost_ops.day_grouping', 'DELETE') "
    "AND has_table_privilege('llm_cost_ops.organization', 'UPDATE')"
)
# An erasure holds the row until it is committed, and when it was since the snapshot this fails.
_LOCK = "SELECT o.id FROM llm_cost_ops.organization o WHERE o.id = %s FOR SHARE SKIP LOCKED"
_DELETE = (
    "DELETE FROM llm_cost_ops.day_span d WHERE d.org = %(org)s AND (d.id = ANY(%(ids)s) "
    "OR d.grouping = %(grouping)s AND d.first = %(first)s AND d.last = %(last)s)"
)
_ADD = (
    "INSERT INTO llm_cost_ops.day_span (org, grouping, first, last, seen, counts, groups, sums) VALUES "
    "(%(org)s, %(grouping)s, %(first)s, %(last)s, %(seen)s, %(counts)s, %(groups)s, %(sums)s)"
)
_TOO_MANY = (
    "DELETE FROM llm_cost_ops.day_span d WHERE d.org = %(org)s AND d.id IN (SELECT l.id "
    "FROM llm_cost_ops.day_span l WHERE l.org = %(org)s AND l.grouping = %(grouping)s "
    "AND l.last > l.first + 1 ORDER BY l.id DESC OFFSET %(most)s)"
)


class _Stored(NamedTuple):
    org: int
    id: int
    first: int
    last: int
    seen: str
    counts: Counts
    groups: int | None

    def sorted_out(self, after: int, now: Counts) -> Span:
        """The span, where its snapshot has the number `after` and the days have `now`."""
        # On other days of the span are new records only.
        outdated = any(now.get(day, (0, -1))[1] != revisions for day, (_, revisions) in self.counts.items())
        counts = {day: records for day, (records, _) in self.counts.items()}
        return Span(self.id, self.first, self.last, after, counts, self.groups, outdated, is_old=False)


class Kept:
    """What is kept for some dimensions of the filter's organizations, in the snapshot of a transaction."""

    def __init__(self, session: Session, where: Filter, dimensions: Keys, runs: Sequence[Run]) -> None:
        self._session = session
        self._dimensions = dimensions
        self.snapshots: list[str] = []
        """Those of the spans: what is `after` the first has the number 1."""
        names = list(where.organization_ids)
        query = f"{_GROUPINGS} WHERE o.name = ANY(%(names)s)" if names else _GROUPINGS
        found = session.rows(query, names=names, dimensions=_text(dimensions))
        self.unused = [(org, grouping) for org, _, grouping, is_unused in found if is_unused]
        """Organizations and groupings of which it is to be noted that they are used."""
        first, last = min(run.first for run in runs), max(run.last for run in runs)
        first, last = max(first, -_MAX_DAY), min(last, _MAX_DAY)
        orgs = [org for org, *_ in found]
        groupings = {org: grouping for org, _, grouping, _ in found}
        spans = self._spans(groupings, first, last)
        first = min([first, *(span.first for span in spans)])
        last = max([last, *(span.last for span in spans)])
        self._counts = counted(session, orgs, first, last)
        self.organizations = {org: Days(org, name, grouping) for org, name, grouping, _ in found}
        numbers: dict[str, int] = {}
        for span in spans:
            after = numbers.setdefault(span.seen, len(numbers) + 1)
            self.organizations[span.org].sort_out([span.sorted_out(after, self._counts[span.org])])
        self.snapshots = list(numbers)
        for org, days in self.organizations.items():
            days.count({day: records for day, (records, _) in self._counts[org].items()})

    def _spans(self, kept: dict[int, int | None], first: int, last: int) -> list[_Stored]:
        groupings = [grouping for grouping in kept.values() if grouping is not None]
        if not groupings:
            return []
        orgs = [org for org, grouping in kept.items() if grouping is not None]
        rows = self._session.rows(_SPANS, orgs=orgs, groupings=groupings, first=first, last=last)
        return [_Stored._make((*row[:5], decode_counts(row[5]), row[6])) for row in rows]

    @property
    def has_any(self) -> bool:
        """Whether anything is kept that can be read."""
        return any(days.kept or days.long for days in self.organizations.values())

    def use(self) -> bool:
        """Note that what is kept is used; whether that was needed, and possible."""
        noted = 0
        for org, grouping in self.unused:
            noted += self._session.run(_USE, org=org, grouping=grouping).rowcount
        return noted > 0

    def add_spans(
        self,
        spans: Iterable[tuple[int, int]],
        where: Filter,
        dimensions: Keys,
        group_by: Keys,
        totals: Totals,
    ) -> None:
        """Add what spans hold, each in a bucket."""
        wanted = list(spans)
        if not wanted:
            return
        rows = self._session.rows(
            "SELECT d.id, d.org, d.sums FROM llm_cost_ops.day_span d "
            "WHERE d.org = ANY(%s) AND d.id = ANY(%s)",
            list(self.organizations),
            list({span for _, span in wanted}),
        )
        sums = {span: (org, decode_sums(text)) for span, org, text in rows}
        # Each key is one of those that are kept, or the organization behind them.
        places = [dimensions.index(name) if name != "organization" else len(dimensions) for name in group_by]
        same = places == [*range(len(dimensions))]
        allowed = [(at, frozenset(values)) for at, values in allowed_values(where, dimensions)]
        for bucket, span in wanted:
            org, found = sums[span]
            name = self.organizations[org].organization
            for group in found:
                keys = group.keys
                if allowed and not all(keys[at] in values for at, values in allowed):
                    continue
                if not same:
                    keys = (*keys, name)
                    keys = tuple([keys[at] for at in places])
                place = (keys, bucket, group.currency)
                if place in totals:
                    add_amounts(totals, place, group.amounts)
                else:
                    totals[place] = group.amounts

    def store(self, fold: Fold, seen: str, found: Totals | None) -> bool:
        """Keep the sums of days, or that they are not worth it; whether that was possible.

        In the transaction of the snapshot that they were added up in.
        """
        if found is not None and len(found) > MAX_GROUPS_OF_LONG:
            found = None
        session, org = self._session, fold.org
        if not session.rows(_LOCK, org):
            return False
        groups = None if found is None else [keys for keys, _, _ in found]
        grouping = self._grouping(org, is_wanted=is_wanted(self._dimensions, groups))
        place: dict[str, object] = {"org": org, "grouping": grouping}
        days: dict[str, object] = {"first": fold.first, "last": fold.last}
        session.run(_DELETE, **place, **days, ids=fold.instead_of)
        counts = {day: both for day, both in self._counts[org].items() if fold.first <= day < fold.last}
        sums = [Group(keys, currency, *amounts) for (keys, _, currency), amounts in (found or {}).items()]
        session.run(
            _ADD,
            **place,
            **days,
            seen=seen,
            counts=msgspec.json.encode(counts).decode(),
            groups=None if found is None else len(sums),
            sums=None if found is None else msgspec.json.encode(sums).decode(),
        )
        if fold.last - fold.first > 1:
            session.run(_TOO_MANY, **place, most=day_spans.MAX_LONG)
        return True

    def _grouping(self, org: int, *, is_wanted: bool) -> int:
        """The number of the grouping that is being used; where it is new, another one may give way."""
        session, grouping = self._session, self.organizations[org].grouping
        if grouping is None:
            session.run(_GIVE_WAY, org=org, most=MAX_DIMENSIONS - 1)
            text = _text(self._dimensions)
            [(grouping,)] = session.rows(_ADD_GROUPING, org=org, dimensions=text, wanted=is_wanted)
            self.organizations[org].grouping = grouping
        elif is_wanted:
            session.run(_USE, org=org, grouping=grouping)
        return grouping


def _text(names: Keys) -> str:
    return msgspec.json.encode(names).decode()


def counted(session: Session, orgs: Sequence[int], first: int, last: int) -> dict[int, Counts]:
    """By organization, what each of the days in [first, last) has, of those that have any records."""
    found: dict[int, Counts] = {org: {} for org in orgs}
    for org, day, records, revisions in session.rows(_COUNTED, orgs=list(orgs), first=first, last=last):
        found[org][day] = (records, revisions)
    return found


_COUNTS = msgspec.json.Decoder(Counts)
_SUMS = msgspec.json.Decoder(list[Group])


def decode_counts(text: str) -> Counts:
    """What the days of a span had."""
    return _COUNTS.decode(text)


def decode_sums(text: str) -> list[Group]:
    """The sums of a span."""
    return _SUMS.decode(text)


def snapshot_to_keep(session: Session, dimensions: Keys) -> str | None:
    """The snapshot of a transaction, whose rows are kept; None where nothing may be written."""
    if len(msgspec.json.encode(dimensions)) > _MAX_DIMENSIONS_BYTES:
        return None
    [(snapshot, may_keep)] = session.rows(_MAY_KEEP)
    return str(snapshot) if may_keep else None


def try_to_begin(session: Session, org: int, dimensions: Keys) -> bool:
    """Whether nobody else adds up days of an organization by the same dimensions, until this has ended."""
    number = crc32(msgspec.json.encode([org, *dimensions])) - 2**31
    [(mine,)] = session.rows("SELECT pg_try_advisory_xact_lock(%s, %s)", schema.LOCK_SPANS, number)
    return bool(mine)


def forget(session: Session, orgs: Iterable[int]) -> None:
    """Delete all that is kept of organizations' days, at the end of a transaction that changes records, and
    by what: a label may be named as somebody is.
    """
    ordered = sorted(orgs)
    _note(session, ordered)
    # With their spans.
    session.run("DELETE FROM llm_cost_ops.day_grouping g WHERE g.org = ANY(%s)", ordered)


def forget_before(session: Session, org: int, moment: int) -> None:
    """Delete what is kept of days that begin before a moment, likewise. The moment is in microseconds."""
    _note(session, [org])
    session.run(
        f"DELETE FROM llm_cost_ops.day_span d WHERE d.org = %s AND d.first::bigint * {DAY} < %s", org, moment
    )


def _note(session: Session, orgs: list[int]) -> None:
    # In one order, so that two of these wait for each other in one direction only.
    for org in orgs:
        session.run("UPDATE llm_cost_ops.organization SET forgotten = forgotten + 1 WHERE id = %s", org)
