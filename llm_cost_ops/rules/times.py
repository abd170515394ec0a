"""Time in queries: moments, zones, buckets, and the whole quarter-hours and days in an interval.

Intervals are half-open, [start, end), and every datetime that comes out is in UTC. A date is a whole day
in the query's zone; a time without an offset is in UTC, whatever the zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from llm_cost_ops.rpc.status import RpcError, Violation, invalid_argument, invalid_arguments
from llm_cost_ops.wire.json import to_utc

__all__ = [
    "MAX_BUCKETS",
    "QUARTER",
    "QUARTERS_A_DAY",
    "Cover",
    "bucket_label",
    "bucket_start",
    "buckets_around",
    "buckets_between",
    "cover",
    "instant",
    "parse_end",
    "parse_interval",
    "parse_start",
    "zone_of",
]

MAX_BUCKETS = 10_000
"""The most buckets of one query; a year of hours is 8,760."""

QUARTER = 900_000_000
"""A quarter of an hour in microseconds. Every offset in use today is a multiple of it."""

QUARTERS_A_DAY = 96

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HOUR = timedelta(hours=1)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,18}))?)?"
    r"(?:[Zz]|([+-][0-9]{2}:[0-9]{2}))?",
    re.ASCII,
)


def instant(moment: datetime) -> datetime:
    """The moment in UTC, the nearest that there is at the ends of time: a naive one means UTC.

    Two times of one zone would be compared by its clock, which shows an hour twice in autumn.
    """
    try:
        return to_utc(moment)
    except OverflowError:
        return _LAST if moment.year > 1 else _FIRST


def zone_of(name: str) -> ZoneInfo:
    """The zone with an IANA name, UTC for "". INVALID_ARGUMENT, naming time_zone, for any other text."""
    try:
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, KeyError):
        # KeyError is ZoneInfoNotFoundError; paths, folders and control characters give the others.
        raise invalid_argument(
            "time_zone", f"must be the IANA name of a zone, such as Europe/Berlin, not {name[:64]!r}"
        ) from None


def parse_start(text: str, time_zone: str = "", *, field: str = "start_date") -> datetime:
    """The moment that an RFC 3339 time or a date gives; a date means its first moment in the zone.

    Raises INVALID_ARGUMENT naming `field`.
    """
    return _parse(text, zone_of(time_zone), field, days=0)


def parse_end(text: str, time_zone: str = "", *, field: str = "end_date") -> datetime:
    """As `parse_start`, but a date means the end of its day."""
    return _parse(text, zone_of(time_zone), field, days=1)


def parse_interval(
    start: str, end: str, time_zone: str = "", *, fields: tuple[str, str] = ("start_date", "end_date")
) -> tuple[datetime | None, datetime | None]:
    """Both ends of an interval, None where the text is empty.

    Raises INVALID_ARGUMENT that names all that is wrong: the texts, the zone, an end before its start.
    """
    violations: list[Violation] = []
    zone = zone_of("")
    moments: list[datetime | None] = []
    try:
        zone = zone_of(time_zone)
    except RpcError as error:
        violations += error.violations
    for text, field, days in ((start, fields[0], 0), (end, fields[1], 1)):
        try:
            moments.append(_parse(text, zone, field, days=days) if text else None)
        except RpcError as error:
            violations += error.violations
    if not violations and _is_backwards(start, end, moments):
        violations.append(Violation(fields[1], f"must not be before {fields[0]}"))
    if violations:
        raise invalid_arguments(violations)
    return moments[0], moments[1]


def _is_backwards(start: str, end: str, moments: list[datetime | None]) -> bool:
    first, until = moments
    if first is None or until is None:
        return False
    if not _DATE.fullmatch(end):
        return until < first
    # A date that ends before the start does leaves nothing, not even a moment. But Samoa had no 2011-12-30.
    return until < first or (until == first and start != end)


def bucket_start(moment: datetime, interval: str, zone: ZoneInfo) -> datetime:
    """The start of the hour, day, week or month that holds the moment, on the clocks of the zone."""
    if interval == "hour":
        # Clocks change by less than three hours, and a full hour is at most so far back.
        start = at = moment - 3 * _HOUR
        while at <= moment:
            start, at = at, _next_hour(at, zone)
        return start
    day = _first_day(moment.astimezone(zone).date(), interval)
    start = _midnight(day, zone)
    # Where clocks go back over midnight, a date comes twice: its second part belongs to the next bucket.
    following = _midnight(_next_day(day, interval), zone)
    return start if moment < following else following


def buckets_between(
    start: datetime, end: datetime, interval: str, time_zone: str = "", *, limit: int = MAX_BUCKETS
) -> list[tuple[datetime, datetime]]:
    """The buckets that hold the interval, whole and without gaps, the first and the last not cut off.

    `interval` is hour, day, week (from Monday) or month, on the clocks of the zone: a day has 23 to 25 hours
    where they change. Raises INVALID_ARGUMENT when there are more than `limit`.
    """
    zone = zone_of(time_zone)
    if end <= start:
        return []
    try:
        edges = _edges(start, interval, zone)
        buckets = []
        low = next(edges)
        while low < end:
            high = next(edges)
            # Samoa skipped a whole day: such a bucket is empty, and left out.
            if high > low:
                buckets.append((low, high))
            low = high
            if len(buckets) > limit:
                raise _too_many(interval, limit)
    except (OverflowError, ValueError):
        raise _no_room() from None
    return buckets


def buckets_around(
    numbers: Iterable[int], width: int, interval: str, time_zone: str = ""
) -> list[tuple[datetime, datetime]]:
    """The buckets that overlap stretches of time; between them there may be gaps.

    The stretches are `width` microseconds long, and their numbers since 1970 are in order. Raises as
    `buckets_between` does.
    """
    buckets: list[tuple[datetime, datetime]] = []
    for first, last in _runs(numbers):
        try:
            low, high = (_EPOCH + number * timedelta(microseconds=width) for number in (first, last + 1))
        except OverflowError:
            raise _no_room() from None
        if buckets:
            low = max(low, buckets[-1][1])
        buckets += buckets_between(low, high, interval, time_zone)
        if len(buckets) > MAX_BUCKETS:
            raise _too_many(interval, MAX_BUCKETS)
    return buckets


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each row of numbers without a gap."""
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = number
        elif number != last + 1:
            yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


def bucket_label(bucket: tuple[datetime, datetime], interval: str, time_zone: str = "") -> str:
    """The name of a bucket: "2026-01-05T14:00:00+01:00", "2026-01-05" (a week by its Monday) or "2026-01"."""
    local = bucket[0].astimezone(zone_of(time_zone))
    if interval == "hour":
        return local.isoformat()
    return local.strftime("%Y-%m") if interval == "month" else local.date().isoformat()


class Cover(NamedTuple):
    """An interval taken apart: what must be read row by row, and what whole quarters and days hold.

    `rows` are pairs of microseconds, `quarters` and `days` pairs of their numbers since 1970; all are
    half-open and not empty. None is an open end.
    """

    rows: list[tuple[int | None, int | None]]
    quarters: list[tuple[int | None, int | None]]
    days: list[tuple[int | None, int | None]]


def cover(start: int | None, end: int | None) -> Cover:
    """Take [start, end), in microseconds, apart; days are those of UTC, and as many as there are."""
    if start is not None and end is not None and start >= end:
        return Cover([], [], [])
    first = None if start is None else -(-start // QUARTER)
    last = None if end is None else end // QUARTER
    if first is not None and last is not None and first >= last:
        return Cover([(start, end)], [], [])
    rows: list[tuple[int | None, int | None]] = []
    if start is not None and first is not None and start < first * QUARTER:
        rows.append((start, first * QUARTER))
    if end is not None and last is not None and last * QUARTER < end:
        rows.append((last * QUARTER, end))
    dawn = None if first is None else -(-first // QUARTERS_A_DAY)
    dusk = None if last is None else last // QUARTERS_A_DAY
    if dawn is not None and dusk is not None and dawn >= dusk:
        return Cover(rows, [(first, last)], [])
    quarters: list[tuple[int | None, int | None]] = []
    if first is not None and dawn is not None and first < dawn * QUARTERS_A_DAY:
        quarters.append((first, dawn * QUARTERS_A_DAY))
    if last is not None and dusk is not None and dusk * QUARTERS_A_DAY < last:
        quarters.append((dusk * QUARTERS_A_DAY, last))
    return Cover(rows, quarters, [(dawn, dusk)])


def _too_many(interval: str, limit: int) -> RpcError:
    rule = f"is more than {limit:,} buckets of one {interval} from start_date: take a shorter period"
    return invalid_argument("end_date", rule if interval == "month" else f"{rule}, or longer buckets")


def _no_room() -> RpcError:
    return invalid_argument(
        "end_date", "with start_date must leave room for whole buckets in years 1 to 9999"
    )


def _parse(text: str, zone: ZoneInfo, field: str, *, days: int) -> datetime:
    try:
        if _DATE.fullmatch(text):
            return _midnight(date.fromisoformat(text) + timedelta(days=days), zone)
        found = _TIME.fullmatch(text)
        if found is not None:
            return _time(*found.groups(default=""))
    except (ValueError, OverflowError) as error:
        raise invalid_argument(
            field, f"must be a moment in the years 1 to 9999: {text[:64]!r}: {error}"
        ) from None
    raise invalid_argument(field, f"must be a date such as 2026-01-31 or an RFC 3339 time, not {text[:64]!r}")


def _time(day: str, minutes: str, seconds: str, fraction: str, offset: str) -> datetime:
    # A leap second is the first moment of the next minute, as on the clocks of computers.
    leap = seconds == "60"
    moment = datetime.fromisoformat(
        f"{day}T{minutes}:{'59' if leap else seconds or '00'}{offset or '+00:00'}"
    )
    # Half a microsecond is rounded up, as the codecs do.
    micros = (int(fraction.ljust(18, "0")) + 500_000_000_000) // 10**12 if fraction else 0
    return moment.astimezone(UTC) + timedelta(seconds=leap, microseconds=micros)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first moment of a day in a zone."""
    naive = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - its zone is set next
    start = naive.replace(tzinfo=zone).astimezone(UTC)
    if start.astimezone(zone).replace(tzinfo=None) == naive:
        return start
    # Midnight was skipped: the day begins when the clocks change, between the two readings of midnight.
    low = naive.replace(tzinfo=zone, fold=1).astimezone(UTC)
    while start - low > _MICROSECOND:
        middle = low + (start - low) // 2
        if middle.astimezone(zone).replace(tzinfo=None) >= naive:
            start = middle
        else:
            low = middle
    return start


def _next_hour(moment: datetime, zone: ZoneInfo) -> datetime:
    """The next moment, after this one, at which the clocks of the zone show a full hour."""
    offset = moment.astimezone(zone).utcoffset() or timedelta(0)
    following = moment + _HOUR - (moment - _EPOCH + offset) % _HOUR
    changed = following.astimezone(zone).utcoffset() or timedelta(0)
    if changed != offset:
        following = moment + _HOUR - (moment - _EPOCH + changed) % _HOUR
        while (following.astimezone(zone).utcoffset() or timedelta(0)) != changed:
            following += _HOUR
    return following


def _first_day(day: date, interval: str) -> date:
    if interval == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if interval == "month" else day


def _next_day(day: date, interval: str) -> date:
    """The first day of the next bucket."""
    if interval == "month":
        return date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return day + timedelta(days=7 if interval == "week" else 1)


def _edges(start: datetime, interval: str, zone: ZoneInfo) -> Iterator[datetime]:
    edge = bucket_start(start, interval, zone)
    if interval == "hour":
        while True:
            yield edge
            edge = _next_hour(edge, zone)
    day = _first_day(edge.astimezone(zone).date(), interval)
    while True:
        yield _midnight(day, zone)
        day = _next_day(day, interval)
