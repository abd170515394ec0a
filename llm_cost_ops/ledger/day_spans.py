"""Which sums of whole days are kept, and with what of them the least must be read: the same on every ledger.

They are by what grows with events: users, tags, labels, meters, and what goes with them. A span is some days
of UTC, one after the other, of one organization, summed by the dimensions that were asked for. It is
calculated when it is first asked for, and holds the rows that were there then: later ones are added when it
is read, and a span of whose rows one was changed since counts for nothing until it is calculated anew. So
every answer is exact, whether or not a span is kept. Recording writes nothing for them, and they may be
deleted at any time.

Who asks decides what is kept, and may ask for anything: an organization's days are kept by so many groupings,
and another one takes the place of the one that was used longest ago. When it was used is written once an
hour; among those of one hour the newest gives way, so that many new ones at once push out each other. What is
by a label that no record has gives way first.

Each day is a span. Where days have nearly as many groups as rows, or many days many groups, the days that a
query asks for are a span too; the sums of other days are then those of a span and of the days that differ.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.ledger.pieces import Piece
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.status import RpcError, invalid_argument
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY, cover

__all__ = [
    "DAY",
    "MAX_DIMENSIONS",
    "MAX_GROUPS",
    "MAX_GROUPS_OF_LONG",
    "MAX_LONG",
    "MAX_PIECES",
    "MIN_ROWS",
    "OPEN",
    "UNWANTED",
    "BoundedSums",
    "Days",
    "Fold",
    "Keys",
    "Reading",
    "Rest",
    "Run",
    "Span",
    "SumsToKeep",
    "TooManyGroupsError",
    "Totals",
    "allowed_values",
    "days_to_fold",
    "dimensions_of",
    "is_wanted",
    "long_to_fold",
    "runs_of",
    "settle",
    "sums_to_answer",
]

Keys = tuple[str, ...]

Totals = dict[tuple[Keys, int, str], list[int]]
"""By keys, bucket and currency: amounts, how many records there are first."""

MIN_ROWS = 1000
"""So many rows that no kept sums hold are worth keeping the sums of."""

MIN_ROWS_OF_LONG = 20_000
"""So many rows and kept sums of days are worth keeping the sums of as a span of several days."""

MAX_LONG = 4
"""So many spans of several days are kept for some dimensions of an organization: the last that were made."""

MAX_GROUPS = 250_000
"""An answer has so many groups at most: its JSON has about 64 MiB then, which is what a client takes."""

MAX_DIMENSIONS = 32
"""For so many combinations of dimensions an organization's days are kept."""

UNWANTED = 0
"""Instead of the hour in which sums were used: they are the first to give way."""

MIN_ROWS_A_GROUP = 4
"""Days with fewer rows a group are read from rows: sums of groups that do not come again save nothing."""

MIN_TRIED = 3
"""After so many days that were not worth keeping, and more than those that were, no others are tried."""

MAX_GROUPS_OF_LONG = 250_000
"""Spans of several days with more groups are not kept."""

MAX_PIECES = 100_000
"""With more pieces of time and organizations, a query reads rows: planning would take longer."""

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


def is_wanted(dimensions: Keys, groups: Iterable[Keys] | None) -> bool:
    """Whether each label of some sums is one that a record has; None where there are too many groups."""
    missing = {at for at, name in enumerate(dimensions) if name.startswith("label:")}
    for keys in groups or ():
        missing -= {at for at in missing if keys[at]}
        if not missing:
            break
    return groups is None or not missing


def allowed_values(where: Filter, dimensions: Keys) -> list[tuple[int, Sequence[str]]]:
    """By the place of a dimension that the filter is about, the values that it lets through."""
    allowed: dict[str, Sequence[str]] = {name: getattr(where, field) for name, field in _FILTERED.items()}
    allowed["tag"] = where.tags
    allowed |= {f"label:{key}": (value,) for key, value in where.labels.items()}
    return [(at, allowed[name]) for at, name in enumerate(dimensions) if allowed.get(name)]


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


class Rest(NamedTuple):
    """What must be read from rows: pieces of all organizations, or of one each, behind a row.

    What is to be taken away has the bucket ~bucket.
    """

    anywhere: list[Piece]
    of_organizations: list[tuple[int, int, int, int, int]]


class Span(NamedTuple):
    """Kept days [first, last), and how many records of each day they hold: those up to `after`.

    Rows that are not among them are behind `after`, as the ledger numbers it. `groups` is how many groups
    they have, None where these are too many to be kept. One that is outdated can't be read any more, and one
    that is old should be brought up to date for what it costs to see that it is not outdated.
    """

    id: int
    first: int
    last: int
    after: int
    counts: dict[int, int]
    groups: int | None
    is_outdated: bool
    is_old: bool

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

    def sort_out(self, spans: Iterable[Span]) -> None:
        """Take the spans that can be read."""
        for span in spans:
            if span.groups is None:
                self.tried[span.first, span.last] = span
            elif span.is_outdated:
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


class Reading:
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
                self._add_rows(bucket, day * DAY, (day + 1) * DAY, days.org, span.after)

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
        place = (keys, ~bucket, currency)
        sums = totals.get(place) or [0] * len(amounts)
        totals[place] = [*map(operator.sub, sums, amounts)]


def days_to_fold(days: Days, runs: list[Run]) -> Iterator[Fold]:
    """The single days that should be kept, or brought up to date, for a query over runs."""
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
            due = due or span.is_old
        else:
            due = not in_vain if tried is None else records >= MIN_ROWS_A_GROUP * sum(tried.counts.values())
        if due and records >= MIN_ROWS:
            yield Fold(days.org, days.organization, day, day + 1, records, [])


def long_to_fold(days: Days, runs: list[Run]) -> Iterator[Fold]:
    """The spans of several days that should be kept, once single days are; none for many runs."""
    if len(runs) > MAX_LONG:
        return
    for run in runs:
        within = days.within(run.first, run.last)
        span, beside = days.best(within)
        due = beside >= MIN_ROWS_OF_LONG
        if span is not None:
            # All of its sums are written again.
            due = beside >= max(MIN_ROWS_OF_LONG, span.cost // 4) or span.is_old
        if len(within) < 2 or not due:
            continue
        first, last = within[0], within[-1] + 1
        rows = days.cost(within)
        # Other days have as many groups, unless they are many more.
        tried = [sum(span.counts.values()) for span in days.tried.values() if span.last - span.first > 1]
        if rows >= MIN_ROWS_A_GROUP * max(tried, default=0):
            yield Fold(days.org, days.organization, first, last, rows, days.outdated)


class TooManyGroupsError(Exception):
    """More groups than are worth keeping."""


class BoundedSums(Totals):
    """Sums while they are added up, that raise `too_many()` as soon as they have more than `most` groups.

    Where nearly each record has a group of its own, all of them would need much memory.
    """

    def __init__(self, most: int, too_many: Callable[[], Exception]) -> None:
        super().__init__()
        self.most = most
        self.too_many = too_many
        self._groups = 0

    def __setitem__(self, place: tuple[Keys, int, str], amounts: list[int]) -> None:
        # What is to be taken away has groups that are there beside it.
        if place[1] >= 0 and place not in self:
            self._groups += 1
            if self._groups > self.most:
                raise self.too_many()
        super().__setitem__(place, amounts)


def sums_to_answer() -> BoundedSums:
    """Sums for an answer; INVALID_ARGUMENT where they have more than MAX_GROUPS groups."""
    return BoundedSums(MAX_GROUPS, _too_many_to_answer)


def _too_many_to_answer() -> RpcError:
    rule = f"gives more than {MAX_GROUPS:,} groups: ask for a shorter time, some of them, or fewer dimensions"
    return invalid_argument("group_by", rule)


class SumsToKeep(BoundedSums):
    """Sums for a fold; TooManyGroupsError as soon as they are not worth keeping."""

    def __init__(self, fold: Fold, rows_a_group_of_long: int) -> None:
        is_long = fold.last - fold.first > 1
        rows_a_group = rows_a_group_of_long if is_long else MIN_ROWS_A_GROUP
        most = fold.rows // rows_a_group if rows_a_group else 2**62
        super().__init__(min(most, MAX_GROUPS_OF_LONG) if is_long else most, TooManyGroupsError)

    def found(self) -> Totals:
        """The sums of records. Those of none are left where something was taken away."""
        return {place: amounts for place, amounts in self.items() if amounts[0]}
