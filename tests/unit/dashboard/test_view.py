"""The address of a page says all that it shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.dashboard.view import DIMENSIONS, FILTERS, INTERVALS, PERIODS, View
from llm_cost_ops.rpc.status import RpcError

NOW = datetime(2026, 11, 27, 13, 5, 9, 500, tzinfo=UTC)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
views = st.builds(
    View,
    period=st.sampled_from(sorted(PERIODS)),
    interval=st.sampled_from(["", *INTERVALS]),
    by=st.sampled_from(sorted(DIMENSIONS)),
    currency=st.sampled_from(["", "EUR"]),
    time_zone=st.sampled_from(["", "Asia/Kolkata", "America/New_York"]),
    filters=st.lists(st.tuples(st.sampled_from(sorted(FILTERS)), texts), unique=True).map(tuple),
)


def parsed(address: str) -> View:
    return View.of(parse_qsl(urlsplit(address).query, keep_blank_values=True))


@given(views)
def test_a_view_survives_its_address(view: View) -> None:
    assert parsed(view.url("/dashboard/tokens")) == view


@given(views, st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)))
def test_a_period_ends_by_now_and_its_buckets_are_few(view: View, now: datetime) -> None:
    span = view.span(now)
    assert span.start <= span.end <= now + timedelta(seconds=1)
    assert span.before().end == span.start
    assert span.end - span.start == span.before().end - span.before().start
    widths = {"hour": 1, "day": 24, "week": 168, "month": 720}
    assert (span.end - span.start) / timedelta(hours=widths[view.interval_of(span)]) <= 400


@pytest.mark.parametrize(
    ("view", "start", "end"),
    [
        (View(period="7d"), "2026-11-21T00:00", "2026-11-27T13:05"),
        (View(period="7d", time_zone="Asia/Kolkata"), "2026-11-20T18:30", "2026-11-27T13:05"),
        (View(period="24h"), "2026-11-26T14:00", "2026-11-27T13:05"),
        (View(period="month"), "2026-11-01T00:00", "2026-11-27T13:05"),
        (View(period="last-month"), "2026-10-01T00:00", "2026-11-01T00:00"),
        (View(start="2026-03-01", end="2026-03-02"), "2026-03-01T00:00", "2026-03-03T00:00"),
        (
            View(start="2026-03-01", end="2026-03-01", time_zone="Europe/Berlin"),
            "2026-02-28T23:00",
            "2026-03-01T23:00",
        ),
    ],
)
def test_periods(view: View, start: str, end: str) -> None:
    span = view.span(NOW)
    assert (f"{span.start:%Y-%m-%dT%H:%M}", f"{span.end:%Y-%m-%dT%H:%M}") == (start, end)


def test_dates_take_the_place_of_a_period() -> None:
    assert View(period="7d", start="2026-01-01").url("/") == "/?start=2026-01-01"


@pytest.mark.parametrize(
    "query",
    ["period=1y", "by=colour", "interval=minute", "start=yesterday", "start=2026-02-02&end=2026-01-01"],
)
def test_what_an_address_cannot_ask_for(query: str) -> None:
    with pytest.raises(RpcError) as caught:
        parsed(f"/?{query}")
    assert caught.value.violations[0].field in query


def test_a_zone_that_is_not_known_is_utc() -> None:
    assert parsed("/?tz=Mars/Olympus").time_zone == ""
