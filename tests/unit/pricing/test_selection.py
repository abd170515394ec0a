"""The order of preference, one step a time, and what opens a daily window."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from llm_cost_ops._gen.messages import PriceOrigin, RateCard, TimeWindow
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.pricing.selection import PriceQuery, select_card
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.rules.cards import check_card
from llm_cost_ops.rules.providers import canonical_provider
from tests.unit.pricing.cards import NOON, make_card, make_usage, moment


def _card(id: str, **fields: Any) -> RateCard:
    return make_card({"INPUT": "1"}, id=id, **fields)


def _query(**fields: Any) -> PriceQuery:
    return PriceQuery(**{"provider": "openai", "model_id": "gpt-x", "at": NOON, **fields})


def _chosen(cards: list[RateCard], **fields: Any) -> tuple[str | None, tuple[str, ...]]:
    found = select_card(cards, _query(**fields))
    again = select_card(cards[::-1], _query(**fields))
    assert found == again
    return (found.card.id, found.fallbacks) if found else (None, ())


MANUAL = {"origin": PriceOrigin.MANUAL}
YEAR = {"effective_from": moment("2026-01-01T00:00:00Z")}


@pytest.mark.parametrize(
    ("better", "worse", "query"),
    [
        (
            {"service_tier": "flex"},
            {"organization_id": "o"},
            {"service_tier": "flex", "organization_id": "o"},
        ),
        ({"organization_id": "o"}, MANUAL, {"organization_id": "o"}),
        ({**MANUAL, "model_id": "gpt*"}, {}, {}),
        ({}, {"model_id": "other", "aliases": ["gpt-x"]}, {}),
        (
            {"model_id": "other", "aliases": ["gpt-x"]},
            {"model_id": "gpt-*", "region": "eu"},
            {"region": "eu"},
        ),
        ({"model_id": "gpt-*"}, {"model_id": "gpt*"}, {}),
        ({"region": "eu"}, {**YEAR}, {"region": "eu"}),
        ({"windows": [TimeWindow(start="00:00", end="24:00")]}, {**YEAR}, {}),
        ({**YEAR}, {"version": 9}, {}),
        ({"version": 2}, {"version": 1}, {}),
    ],
)
def test_preference(better: dict[str, Any], worse: dict[str, Any], query: dict[str, Any]) -> None:
    assert _chosen([_card("better", **better), _card("worse", **worse)], **query)[0] == "better"


@pytest.mark.parametrize(
    ("query", "fallbacks"),
    [
        ({"service_tier": "priority"}, ("service_tier",)),
        ({"processing": "batch", "speed": "fast"}, ("processing", "speed")),
        ({"service_tier": "default", "processing": "realtime", "speed": "standard"}, ()),
        ({"region": "eu"}, ()),
    ],
)
def test_fallbacks_are_named(query: dict[str, Any], fallbacks: tuple[str, ...]) -> None:
    assert _chosen([_card("std")], **query) == ("std", fallbacks)


@pytest.mark.parametrize(
    ("card", "query"),
    [
        ({"provider": "azure"}, {}),
        ({"model_id": "gpt-y"}, {}),
        ({"region": "eu"}, {}),
        ({"region": "eu"}, {"region": "us"}),
        ({"processing": "batch"}, {}),
        ({"organization_id": "o"}, {}),
        ({"currency": "EUR"}, {"currency": "USD"}),
        ({"effective_from": NOON + timedelta(microseconds=1)}, {}),
        ({"effective_until": NOON}, {}),
    ],
)
def test_what_does_not_fit(card: dict[str, Any], query: dict[str, Any]) -> None:
    assert _chosen([_card("c", **card)], **query) == (None, ())


def test_the_interval_is_half_open_and_naive_times_are_utc() -> None:
    card = _card("c", effective_from=NOON, effective_until=NOON + timedelta(hours=1))
    assert _chosen([card], at=datetime(2026, 5, 1, 12))[0] == "c"
    assert _chosen([card], at=NOON + timedelta(hours=1))[0] is None


def test_the_hour_that_a_zone_shows_twice_is_two_hours() -> None:
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    second = first.replace(fold=1)
    until = _card("c", effective_until=second)
    assert [_chosen([until], at=at)[0] for at in (first.replace(minute=45), second)] == ["c", None]
    since = _card("c", effective_from=second, effective_until=second.replace(minute=40))
    assert [_chosen([since], at=at)[0] for at in (first.replace(minute=35), second)] == [None, "c"]
    # From 02:50 to 02:10 of the hour after it: a card's own rules see that it ends after it begins.
    turned = _card("c", effective_from=first.replace(minute=50), effective_until=second.replace(minute=10))
    violations: list[Violation] = []
    check_card(turned, "", violations)
    assert violations == []
    found = [_chosen([turned], at=second.replace(minute=minute))[0] for minute in (0, 9, 10)]
    assert found == ["c", "c", None]


def test_bounds_at_the_ends_of_time() -> None:
    west, east = timezone(timedelta(hours=-5)), timezone(timedelta(hours=5))
    first, last = datetime.min.replace(tzinfo=east), datetime.max.replace(tzinfo=west)
    assert _chosen([_card("c", effective_from=first, effective_until=last)])[0] == "c"


def test_providers_go_by_many_names() -> None:
    assert _chosen([_card("c", provider="google")], provider="Vertex_AI")[0] == "c"
    names = ["GCP.Gemini", " bedrock", "mistral_ai", "xAI", "cohere_chat", "azure.ai.openai", "SomeOne"]
    found = [canonical_provider(name) for name in names]
    assert found == ["google", "aws", "mistral", "x-ai", "cohere", "azure", "someone"]


BERLIN = {"start": "22:00", "end": "06:00", "time_zone": "Europe/Berlin", "weekdays": [5]}


@pytest.mark.parametrize(
    ("window", "at", "opened"),
    [
        ({"start": "09:00", "end": "17:00"}, "2026-05-01T09:00:00Z", True),
        ({"start": "09:00", "end": "17:00"}, "2026-05-01T17:00:00Z", False),
        ({"start": "09:00:30", "end": "17:00"}, "2026-05-01T09:00:29Z", False),
        ({"start": "09:00", "end": "24:00"}, "2026-05-01T23:59:59.999999Z", True),
        ({"start": "09:00", "end": "00:00"}, "2026-05-01T08:59:59Z", False),
        # Friday night in Berlin is two hours ahead in summer, and runs into Saturday.
        (BERLIN, "2026-05-01T19:59:59Z", False),
        (BERLIN, "2026-05-01T20:00:00Z", True),
        (BERLIN, "2026-05-02T03:59:59Z", True),
        (BERLIN, "2026-05-02T04:00:00Z", False),
        (BERLIN, "2026-05-02T20:00:00Z", False),
        # Equal ends are a whole day, which belongs to the day on which it starts.
        ({"start": "12:00", "end": "12:00", "weekdays": [5]}, "2026-05-01T12:00:00Z", True),
        ({"start": "12:00", "end": "12:00", "weekdays": [5]}, "2026-05-02T11:59:59Z", True),
        ({"start": "12:00", "end": "12:00", "weekdays": [5]}, "2026-05-02T12:00:00Z", False),
        # Monday after Sunday.
        ({"start": "23:00", "end": "01:00", "weekdays": [7]}, "2026-05-04T00:30:00Z", True),
        # The hour that comes twice is inside both times.
        ({"start": "02:00", "end": "03:00", "time_zone": "Europe/Berlin"}, "2026-10-25T00:30:00Z", True),
        ({"start": "02:00", "end": "03:00", "time_zone": "Europe/Berlin"}, "2026-10-25T01:30:00Z", True),
        # The hour that does not exist opens nothing.
        ({"start": "02:00", "end": "03:00", "time_zone": "Europe/Berlin"}, "2026-03-29T01:00:00Z", False),
    ],
)
def test_windows(window: dict[str, Any], at: str, opened: bool) -> None:
    cards = [_card("std"), _card("window", windows=[TimeWindow(**window)])]
    assert _chosen(cards, at=moment(at))[0] == ("window" if opened else "std")


def test_a_window_that_is_none_is_an_error() -> None:
    for window in (
        TimeWindow(start="25:00", end="01:00"),
        TimeWindow(start="01:00", end="02:00", time_zone="X/Y"),
    ):
        with pytest.raises(ValidationError):
            select_card([_card("c", windows=[window])], _query())


def test_a_query_of_a_record() -> None:
    record = make_usage(service_tier="flex", region="eu")
    query = PriceQuery.of(record)
    assert (query.at, query.service_tier, query.region, query.organization_id) == (
        NOON,
        "flex",
        "eu",
        "org-1",
    )
    record.timestamp = None
    with pytest.raises(ValueError, match="timestamp"):
        PriceQuery.of(record)
