from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops._gen.messages import (
    CreatePriceRequest,
    PriceMultiplier,
    RateCard,
    TierBasis,
    TierMode,
    TimeWindow,
)
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.rules.cards import card_error, check_card
from llm_cost_ops.rules.currencies import CURRENCIES
from tests.unit.pricing.cards import NOON, make_card, make_rate

RATE = {"rates": [make_rate("INPUT", "3")]}


def _broken(card: RateCard | CreatePriceRequest, path: str = "") -> list[Violation]:
    violations: list[Violation] = []
    check_card(card, path, violations)
    return violations


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"currency": ""},
        {"currency": "JPY"},
        {"model_id": "gpt-*", "aliases": ["other*", "gpt"]},
        {"effective_from": NOON, "effective_until": NOON + timedelta(microseconds=1)},
        {"windows": [TimeWindow(start="22:00", end="06:00:30", time_zone="Asia/Kathmandu", weekdays=[7, 1])]},
        {"windows": [TimeWindow(start="00:00", end="24:00")]},
        {"multipliers": [PriceMultiplier(kind="x", value=Decimal("0.001"))]},
        {"rates": [make_rate("INPUT", "0." + "1" * 18, 0)]},
        {
            "rates": [
                make_rate(
                    "INPUT",
                    "1",
                    tiers=[{"above": 1, "inclusive": True, "price": "1"}, {"above": 1, "price": "2"}],
                )
            ]
        },
    ],
)
def test_valid(fields: dict[str, Any]) -> None:
    assert _broken(make_card(fields.pop("rates", RATE["rates"]), **fields)) == []


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"currency": "usd"}, "currency", "ISO 4217"),
        ({"currency": "ABC"}, "currency", "ISO 4217"),
        ({"model_id": "gpt-*-mini"}, "model_id", "only at its end"),
        ({"aliases": ["a", "*b"]}, "aliases[1]", "only at its end"),
        (
            {"effective_from": NOON, "effective_until": NOON},
            "effective_until",
            "must be after effective_from",
        ),
        ({"rates": []}, "rates", "at least one"),
        ({"tier_mode": TierMode("99")}, "tier_mode", "must be one of whole_request, graduated"),
        ({"tier_basis": TierBasis("newest")}, "tier_basis", "must be one of input_tokens, total_tokens"),
        ({"rates": [make_rate("INPUT", "1"), make_rate("input", "1")]}, "rates[1].meter", "must not repeat"),
        ({"rates": [make_rate("IN PUT", "1")]}, "rates[0].meter", "must be a letter"),
        ({"rates": [make_rate("INPUT", "0." + "1" * 19)]}, "rates[0].price", "at most 18 digits"),
        ({"rates": [make_rate("INPUT", "1" * 19)]}, "rates[0].price", "at most 18 digits"),
        ({"rates": [make_rate("INPUT", "1" * 30)]}, "rates[0].price", "at most 18 digits"),
        ({"rates": [make_rate("INPUT", "NaN")]}, "rates[0].price", "finite"),
        ({"rates": [make_rate("INPUT", "-1")]}, "rates[0].price", "0 or more"),
        ({"rates": [make_rate("PAGES", "1", 0)]}, "rates[0].per", "how many units"),
        (
            {
                "rates": [
                    make_rate("INPUT", "1", tiers=[{"above": 2, "price": "1"}, {"above": 1, "price": "1"}])
                ]
            },
            "rates[0].tiers[1].above",
            "greater than the bound",
        ),
        (
            {
                "rates": [
                    make_rate("INPUT", "1", tiers=[{"above": 2, "price": "1"}, {"above": 2, "price": "1"}])
                ]
            },
            "rates[0].tiers[1].above",
            "greater than the bound",
        ),
        (
            {"rates": [make_rate("INPUT", "1", tiers=[{"above": 2, "price": "Infinity"}])]},
            "rates[0].tiers[0].price",
            "finite",
        ),
        ({"windows": [TimeWindow(start="24:00", end="01:00")]}, "windows[0].start", "a time of day"),
        ({"windows": [TimeWindow(start="9:00", end="10:00")]}, "windows[0].start", "a time of day"),
        ({"windows": [TimeWindow(start="09:00", end="24:01")]}, "windows[0].end", "a time of day"),
        (
            {"windows": [TimeWindow(start="09:00", end="10:00", time_zone="Mars/Base")]},
            "windows[0].time_zone",
            "IANA database",
        ),
        (
            {"windows": [TimeWindow(start="09:00", end="10:00", time_zone="../etc/passwd")]},
            "windows[0].time_zone",
            "IANA database",
        ),
        (
            {"windows": [TimeWindow(start="09:00", end="10:00", weekdays=[0])]},
            "windows[0].weekdays",
            "1 (Monday)",
        ),
        (
            {"windows": [TimeWindow(start="09:00", end="10:00", weekdays=[1, 1])]},
            "windows[0].weekdays",
            "repeat",
        ),
        ({"multipliers": [PriceMultiplier(kind="x", value=Decimal(0))]}, "multipliers[0].value", "above 0"),
        (
            {"multipliers": [PriceMultiplier(kind="x", value=Decimal(-1))]},
            "multipliers[0].value",
            "0 or more",
        ),
    ],
)
def test_broken(fields: dict[str, Any], field: str, rule: str) -> None:
    [violation] = _broken(make_card(fields.pop("rates", RATE["rates"]), **fields))
    assert violation.field == field
    assert rule in violation.description


def test_requests_to_create_a_price() -> None:
    def request(**fields: Any) -> list[Violation]:
        return _broken(CreatePriceRequest(provider="openai", model_id="gpt-x", **fields))

    price = {"input_price_per_1k": Decimal("0.01")}
    assert request(**price) == []
    assert request(**price, effective_date="2026-01-01", end_date="2026-01-01") == []
    assert [v.field for v in request(**price, effective_date="2026-01-02", end_date="2026-01-01")] == [
        "end_date"
    ]
    assert [v.field for v in request(**price, effective_date="never", end_date="2026-01-01")] == []
    assert [v.field for v in request(**price, **RATE)] == ["input_price_per_1k"]
    assert [v.field for v in request(output_price_per_1k=Decimal("1e-19"))] == ["output_price_per_1k"]
    assert request(input_price_per_million=Decimal(10**17), output_price_per_1k=Decimal(1)) == []
    assert [v.field for v in request(**price, input_price_per_million=Decimal(10))] == [
        "input_price_per_1k",
        "input_price_per_million",
    ], "one meter has one price"
    assert [v.field for v in request(input_price_per_million=Decimal(10), **RATE)] == [
        "input_price_per_million"
    ]
    assert [v.field for v in request(output_price_per_million=Decimal(10**18))] == [
        "output_price_per_million"
    ]
    assert [v.field for v in request()] == []


def test_all_broken_rules_are_named_at_once_under_their_path() -> None:
    card = make_card({"INPUT": "-1"}, currency="?", model_id="*x")
    assert [v.field for v in _broken(card, "cards[2]")] == [
        "cards[2].currency",
        "cards[2].model_id",
        "cards[2].rates[0].price",
    ]
    assert len(card_error(card).violations) == 3


def test_currencies() -> None:
    assert {"USD", "EUR", "JPY", "CNY", "BHD"} <= CURRENCIES
    assert not {"XXX", "XTS", "DEM", "usd", ""} & CURRENCIES
    assert {code for code in CURRENCIES if not re.fullmatch("[A-Z]{3}", code)} == set()


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("", True),
        ("https://openai.com/api/pricing", True),
        ("HTTP://prices.example:8080?of=may#chat", True),
        ("https://b\u00fccher.example/preise", True),
        ("their mail of May", False),
        ("openai.com/pricing", False),
        ("javascript:alert(1)", False),
        ("https://", False),
        ("https:///prices", False),
        ("https://a.example/two words", False),
        ("https://a.example/x\nnext", False),
    ],
)
def test_where_a_price_was_published_is_a_url(url: str, right: bool) -> None:
    request = CreatePriceRequest(provider="openai", model_id="gpt-x", source_url=url, **RATE)
    expected = [] if right else [("source_url", "must be a URL that begins with http:// or https://")]
    assert [(found.field, found.description) for found in _broken(request)] == expected
    # A card that is there is priced by, whatever stands in it.
    assert _broken(make_card(RATE["rates"], source_url=url)) == []
