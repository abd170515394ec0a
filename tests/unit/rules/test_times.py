from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.ledger.encoding import from_micros, to_micros
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rules.times import (
    QUARTER,
    QUARTERS_A_DAY,
    bucket_label,
    bucket_start,
    buckets_around,
    buckets_between,
    cover,
    parse_end,
    parse_interval,
    parse_start,
)

ZONES = [
    "",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "America/Havana",
    "Pacific/Apia",
    "Africa/Monrovia",
]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-01-31", "", "2026-01-31T00:00:00"),
        ("2026-01-31", "Europe/Berlin", "2026-01-30T23:00:00"),
        ("2026-07-31", "Europe/Berlin", "2026-07-30T22:00:00"),
        ("2026-01-31", "Asia/Kathmandu", "2026-01-30T18:15:00"),
        ("2026-01-31T12:00:00Z", "Europe/Berlin", "2026-01-31T12:00:00"),
        ("2026-01-31T12:00:00", "Europe/Berlin", "2026-01-31T12:00:00"),  # naive is UTC
        ("2026-01-31t12:00:00z", "", "2026-01-31T12:00:00"),
        ("2026-01-31 12:00", "", "2026-01-31T12:00:00"),
        ("2026-01-31T12:00:00+05:45", "", "2026-01-31T06:15:00"),
        ("2026-01-31T12:00:00.1234564Z", "", "2026-01-31T12:00:00.123456"),
        ("2026-01-31T12:00:00.1234565Z", "", "2026-01-31T12:00:00.123457"),
        ("2026-12-31T23:59:60Z", "", "2027-01-01T00:00:00"),
        ("2018-11-04", "America/Sao_Paulo", "2018-11-04T03:00:00"),  # midnight was skipped
        ("0001-01-01", "", "0001-01-01T00:00:00"),
        ("9999-12-31T23:59:59.999999Z", "", "9999-12-31T23:59:59.999999"),
    ],
)
def test_a_start(text: str, zone: str, expected: str) -> None:
    assert parse_start(text, zone) == utc(expected)
    assert parse_start(text, zone).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-01-31", "", "2026-02-01T00:00:00"),
        ("2026-03-29", "Europe/Berlin", "2026-03-29T22:00:00"),
        ("2026-01-31T12:00:00Z", "", "2026-01-31T12:00:00"),
    ],
)
def test_an_end_that_is_a_date_means_through_that_day(text: str, zone: str, expected: str) -> None:
    assert parse_end(text, zone) == utc(expected)


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "2026-13-01",
        "2026-02-30",
        "2026-01-31T25:00:00Z",
        "2026-01-31T12:00:61Z",
        "2026-01-31T12:00:00+25:00",
        "20260131",
        "2026-01-31T12:00:00Z ",
        "٢٠٢٦-01-31",
        "2026-01-31T12:00:00." + "1" * 30 + "Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59.9999999Z",
        "x" * 10_000,
    ],
)
def test_what_is_no_moment_is_refused_by_name(text: str) -> None:
    with pytest.raises(RpcError) as caught:
        parse_start(text, field="active_at")
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == ["active_at"]
    assert len(caught.value.message) < 300


def test_all_that_is_wrong_with_an_interval_is_told_at_once() -> None:
    with pytest.raises(RpcError) as caught:
        parse_interval("soon", "later", "Mars/Olympus")
    assert [violation.field for violation in caught.value.violations] == [
        "time_zone",
        "start_date",
        "end_date",
    ]
    with pytest.raises(RpcError) as caught:
        parse_interval("2026-02-01", "2026-01-01")
    assert [violation.field for violation in caught.value.violations] == ["end_date"]
    assert parse_interval("", "") == (None, None)
    assert parse_interval("2026-01-01", "2026-01-01") == (utc("2026-01-01"), utc("2026-01-02"))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/localtime", "Europe", "UTC\0", "utc" * 100, "Ünknown"]
)
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(RpcError) as caught:
        parse_interval("2026-01-01", "", name)
    assert [violation.field for violation in caught.value.violations] == ["time_zone"]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-06-01", 24),
        ("America/Havana", "2025-11-02", 25),  # clocks go back to midnight, which comes twice
        ("America/Sao_Paulo", "2018-11-04", 23),  # midnight is skipped
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Pacific/Apia", "2011-12-29", 24),
    ],
)
def test_days_are_as_long_as_the_clocks_say(zone: str, day: str, hours: float) -> None:
    [bucket] = buckets_between(parse_start(day, zone), parse_end(day, zone), "day", zone)
    assert (bucket[1] - bucket[0]) == timedelta(hours=hours)
    assert bucket_label(bucket, "day", zone) == day


def test_a_day_that_was_skipped_has_no_bucket() -> None:
    days = buckets_between(
        parse_start("2011-12-29", "Pacific/Apia"),
        parse_end("2011-12-31", "Pacific/Apia"),
        "day",
        "Pacific/Apia",
    )
    assert [bucket_label(day, "day", "Pacific/Apia") for day in days] == ["2011-12-29", "2011-12-31"]


@pytest.mark.parametrize(
    ("start", "end", "zone", "backwards"),
    [
        ("2026-11-02", "2026-11-01", "", True),
        ("2026-11-02", "2026-11-01", "Europe/Berlin", True),
        ("2026-11-02", "2026-11-01T23:59:59Z", "", True),
        ("2026-11-02T00:00:00Z", "2026-11-01", "", True),
        ("2026-11-02", "2026-11-02", "", False),
        ("2026-11-02T00:00:00Z", "2026-11-02T00:00:00Z", "", False),
        ("2026-11-02", "2026-11-02T00:00:00Z", "", False),
        ("2011-12-30", "2011-12-30", "Pacific/Apia", False),  # a day that was skipped
        ("2011-12-31", "2011-12-30", "Pacific/Apia", True),
        ("2011-12-30", "2011-12-29", "Pacific/Apia", True),
    ],
)
def test_an_end_before_the_start_is_refused(start: str, end: str, zone: str, backwards: bool) -> None:
    if not backwards:
        parse_interval(start, end, zone)
        return
    with pytest.raises(RpcError, match="end_date must not be before start_date"):
        parse_interval(start, end, zone)


def test_labels() -> None:
    start, end = utc("2026-01-01"), utc("2026-01-02")
    [week] = buckets_between(start, end, "week")
    assert week == (utc("2025-12-29"), utc("2026-01-05"))
    assert bucket_label(week, "week") == "2025-12-29"
    [month] = buckets_between(start, end, "month", "Asia/Kolkata")
    assert bucket_label(month, "month", "Asia/Kolkata") == "2026-01"
    hours = buckets_between(start, end, "hour", "Asia/Kolkata")
    assert len(hours) == 25  # the first and the last are half inside
    assert bucket_label(hours[0], "hour", "Asia/Kolkata") == "2026-01-01T05:00:00+05:30"


def test_the_number_of_buckets_is_bounded() -> None:
    with pytest.raises(RpcError, match="more than 10,000 buckets of one hour"):
        buckets_between(utc("2016-01-01"), utc("2026-01-01"), "hour")
    assert len(buckets_between(utc("2016-01-01"), utc("2026-01-01"), "day")) == 3653
    with pytest.raises(RpcError, match="years 1 to 9999"):
        buckets_between(utc("9999-12-01"), utc("9999-12-31T23:00:00"), "month")


moments = st.datetimes(datetime(1971, 1, 1), datetime(2037, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))


@given(
    moments,
    st.integers(0, 40 * 24 * 60),
    st.sampled_from(["hour", "day", "week", "month"]),
    st.sampled_from(ZONES),
)
def test_buckets_tile_what_they_hold(start: datetime, minutes: int, interval: str, zone: str) -> None:
    end = start + timedelta(minutes=minutes)
    buckets = buckets_between(start, end, interval, zone)
    if minutes == 0:
        assert buckets == []
        return
    assert buckets[0][0] <= start < buckets[0][1]
    assert buckets[-1][0] < end <= buckets[-1][1]
    assert all(low < high for low, high in buckets)
    assert all(a[1] == b[0] for a, b in pairwise(buckets))
    assert bucket_start(start, interval, ZoneInfo(zone or "UTC")) == buckets[0][0]
    for low, _ in buckets:
        local = low.astimezone(ZoneInfo(zone or "UTC"))
        before = (low - timedelta(microseconds=1)).astimezone(local.tzinfo)
        if interval == "hour":
            assert (local.minute, local.second, local.microsecond) == (0, 0, 0)
        else:
            assert before.date() < local.date() or before.utcoffset() != local.utcoffset()
        if interval == "week" and zone != "Pacific/Apia":
            assert local.date().weekday() == 0
        if interval == "month":
            assert local.date().day == 1


@given(
    st.lists(moments, max_size=8),
    st.sampled_from([QUARTER, QUARTER * QUARTERS_A_DAY]),
    st.sampled_from(["hour", "day", "week", "month"]),
    st.sampled_from(ZONES),
)
def test_buckets_around_stretches_are_those_of_a_tiling(
    found: list[datetime], width: int, interval: str, zone: str
) -> None:
    numbers = sorted({to_micros(moment) // width for moment in found})
    buckets = buckets_around(numbers, width, interval, zone)
    assert all(a[1] <= b[0] for a, b in pairwise(buckets))
    assert buckets == sorted(
        {
            bucket
            for number in numbers
            for bucket in buckets_between(
                from_micros(number * width), from_micros((number + 1) * width), interval, zone
            )
        }
    )


def test_only_the_buckets_around_stretches_count() -> None:
    day = QUARTER * QUARTERS_A_DAY
    years_apart = [to_micros(utc(f"{year}-06-01")) // day for year in (1971, 2026, 2100)]
    assert len(buckets_around(years_apart, day, "hour")) == 72
    with pytest.raises(RpcError, match="more than 10,000 buckets of one hour"):
        buckets_around(range(0, 2000, 2), day, "hour")
    with pytest.raises(RpcError, match="years 1 to 9999"):
        buckets_around([to_micros(utc("9999-12-31")) // day], day, "hour")


far = 3 * 366 * QUARTERS_A_DAY * QUARTER


@given(
    st.one_of(st.none(), st.integers(-far, far), st.integers(-300, 300).map(lambda n: n * QUARTER)),
    st.one_of(st.none(), st.integers(-far, far), st.integers(-300, 300).map(lambda n: n * QUARTER)),
)
def test_a_cover_holds_each_moment_once(start: int | None, end: int | None) -> None:
    parts = cover(start, end)
    spans = list(parts.rows)
    for scale, found in ((QUARTER, parts.quarters), (QUARTER * QUARTERS_A_DAY, parts.days)):
        spans += [
            (None if low is None else low * scale, None if high is None else high * scale)
            for low, high in found
        ]
    if start is not None and end is not None and start >= end:
        assert spans == []
        return
    spans.sort(key=lambda span: -far * 2 if span[0] is None else span[0])
    assert spans[0][0] == start
    assert spans[-1][1] == end
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert max(len(parts.rows), len(parts.quarters), len(parts.days) + 1) <= 2


@given(st.datetimes(timezones=st.just(UTC)))
def test_micros_and_back(moment: datetime) -> None:
    assert from_micros(to_micros(moment)) == moment
    assert to_micros(moment.replace(tzinfo=None)) == to_micros(moment)


def test_dates_of_a_year() -> None:
    days = buckets_between(
        parse_start("2026-01-01", "Europe/Berlin"),
        parse_end("2026-12-31", "Europe/Berlin"),
        "day",
        "Europe/Berlin",
    )
    labels = [bucket_label(day, "day", "Europe/Berlin") for day in days]
    assert labels == [(date(2026, 1, 1) + timedelta(days=n)).isoformat() for n in range(365)]
