"""Statuses, tiers, quantities and factors of a cost."""

from __future__ import annotations

import decimal
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops._gen.messages import (
    CostRecord,
    ModalityTokens,
    PriceMultiplier,
    TierBasis,
    TierMode,
    UsageQuality,
)
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.pricing.calculator import CALCULATOR_VERSION, calculate_cost
from llm_cost_ops.pricing.money import to_units
from llm_cost_ops.pricing.pricebook import CompiledCard
from tests.unit.pricing.cards import make_card, make_rate, make_usage

CHAT = make_card({"INPUT": "3", "CACHE_READ": "0.3", "OUTPUT": "15"})


def _line(cost: CostRecord, meter: str) -> tuple[Decimal, Decimal | None, Decimal, str]:
    [line] = [line for line in cost.lines if line.meter == meter]
    return line.quantity, line.unit_price, line.cost, line.rate_meter


def _check(cost: CostRecord, card: Any, record: Any) -> None:
    units, status = CompiledCard(card).total(record)
    assert (None if cost.total_cost is None else to_units(cost.total_cost)) == units
    assert status == cost.status or cost.fallback_dimensions


def test_the_record_says_how_it_was_found() -> None:
    card = make_card({"INPUT": "3"}, id="c-1", version=7, currency="EUR", origin_version="list 3")
    cost = calculate_cost(make_usage(id="u-1", input_tokens=10), card)
    assert (cost.usage_id, cost.rate_card_id, cost.rate_card_version) == ("u-1", "c-1", 7)
    assert (cost.currency, cost.origin_version, cost.calculator_version) == (
        "EUR",
        "list 3",
        CALCULATOR_VERSION,
    )
    assert cost.calculated_at is None


def test_without_a_card_nothing_is_priced() -> None:
    cost = calculate_cost(make_usage(input_tokens=10), None)
    assert (cost.status, cost.total_cost, cost.lines) == ("unpriced", None, [])


def test_unknown_counts_are_unpriced_and_not_zero() -> None:
    record = make_usage(quality=UsageQuality.UNKNOWN)
    cost = calculate_cost(record, CHAT)
    assert (cost.status, cost.total_cost, cost.lines) == ("unpriced", None, [])
    assert CompiledCard(CHAT).total(record) == (None, "unpriced")


@pytest.mark.parametrize(
    ("fields", "fallbacks", "status"),
    [
        ({}, (), "priced"),
        ({"quality": UsageQuality.PROVIDER}, (), "priced"),
        ({"quality": UsageQuality.ESTIMATED}, (), "estimated"),
        ({}, ("service_tier",), "estimated"),
        ({"meters": {"unheard_of": 1}}, (), "partial"),
        ({"meters": {"unheard_of": 1}, "quality": UsageQuality.ESTIMATED}, ("speed",), "partial"),
        ({"meters": {"unheard_of": 0}}, (), "priced"),
    ],
)
def test_status(fields: dict[str, Any], fallbacks: tuple[str, ...], status: str) -> None:
    record = make_usage(input_tokens=10, **fields)
    cost = calculate_cost(record, CHAT, fallbacks=fallbacks)
    assert (cost.status, tuple(cost.fallback_dimensions)) == (status, fallbacks)
    assert cost.total_cost == Decimal("0.00003")
    _check(cost, CHAT, record)


def test_a_reported_cost_counts_only_where_the_policy_says_so() -> None:
    record = make_usage(provider="openrouter", input_tokens=10, reported_cost=Decimal("0.0000000000015"))
    assert calculate_cost(record, CHAT).status == "priced"
    cost = calculate_cost(record, CHAT, reported_providers={"openrouter"})
    assert (cost.status, cost.total_cost, cost.currency) == ("reported", Decimal("0.000000000002"), "USD")
    record.reported_cost = None
    assert calculate_cost(record, CHAT, reported_providers={"openrouter"}).status == "priced"


def test_a_rate_of_zero_is_a_price() -> None:
    card = make_card({"INPUT": "0"})
    cost = calculate_cost(make_usage(input_tokens=10), card)
    assert (cost.status, cost.total_cost) == ("priced", 0)
    assert _line(cost, "INPUT") == (Decimal(10), Decimal(0), Decimal(0), "INPUT")


@pytest.mark.parametrize(
    ("rates", "used", "by"),
    [
        ("INPUT", "CACHE_READ", "INPUT"),
        ("INPUT CACHE_READ", "CACHE_READ_AUDIO", "CACHE_READ"),
        ("INPUT INPUT_AUDIO", "CACHE_READ_AUDIO", "INPUT_AUDIO"),
        ("INPUT", "CACHE_READ_AUDIO", "INPUT"),
        ("INPUT", "INPUT_AUDIO", "INPUT"),
        ("INPUT", "CACHE_WRITE", "INPUT"),
        ("INPUT CACHE_WRITE", "CACHE_WRITE_EXTENDED", "CACHE_WRITE"),
        ("INPUT", "CACHE_WRITE_EXTENDED", "INPUT"),
        ("OUTPUT", "REASONING", "OUTPUT"),
        ("OUTPUT", "OUTPUT_VIDEO", "OUTPUT"),
        ("PAGES", "ANNOTATED_PAGES", "PAGES"),
    ],
)
def test_rates_fall_back(rates: str, used: str, by: str) -> None:
    records = {
        "CACHE_READ": make_usage(input_tokens=5, cached_tokens=5),
        "CACHE_READ_AUDIO": make_usage(
            input_tokens=5,
            cached_tokens=5,
            modality=ModalityTokens(input_audio_tokens=5, cached_audio_tokens=5),
        ),
        "INPUT_AUDIO": make_usage(input_tokens=5, modality=ModalityTokens(input_audio_tokens=5)),
        "CACHE_WRITE": make_usage(input_tokens=5, cache_write_tokens=5),
        "CACHE_WRITE_EXTENDED": make_usage(
            input_tokens=5, cache_write_tokens=5, cache_write_extended_tokens=5
        ),
        "REASONING": make_usage(output_tokens=5, reasoning_tokens=5),
        "OUTPUT_VIDEO": make_usage(output_tokens=5, modality=ModalityTokens(output_video_tokens=5)),
        "ANNOTATED_PAGES": make_usage(meters={"annotated_pages": 5}),
    }
    card = make_card([make_rate(meter, str(price), 1) for price, meter in enumerate(rates.split(), 1)])
    cost = calculate_cost(records[used], card)
    price = rates.split().index(by) + 1
    assert [(line.meter, line.rate_meter, line.cost) for line in cost.lines] == [(used, by, 5 * price)]
    _check(cost, card, records[used])


@pytest.mark.parametrize(
    ("tokens", "price"), [(99, "1"), (100, "2"), (101, "2"), (200, "2"), (201, "3"), (10_000, "3")]
)
def test_a_bound_is_exceeded_or_reached(tokens: int, price: str) -> None:
    tiers = [{"above": 100, "inclusive": True, "price": "2"}, {"above": 200, "price": "3"}]
    card = make_card([make_rate("INPUT", "1", 1, tiers=tiers), make_rate("OUTPUT", "1", 1)])
    record = make_usage(input_tokens=tokens, output_tokens=1000)
    cost = calculate_cost(record, card)
    assert _line(cost, "INPUT") == (tokens, Decimal(price), tokens * Decimal(price), "INPUT")
    assert _line(cost, "OUTPUT")[1] == 1
    _check(cost, card, record)


def test_one_bound_may_have_a_price_at_it_and_another_above_it() -> None:
    tiers = [{"above": 100, "inclusive": True, "price": "2"}, {"above": 100, "price": "3"}]
    card = make_card([make_rate("INPUT", "1", 1, tiers=tiers)])
    totals = [calculate_cost(make_usage(input_tokens=count), card).total_cost for count in (99, 100, 101)]
    assert totals == [99, 200, 303]


def test_tiers_by_total_tokens() -> None:
    rate = make_rate("INPUT", "1", 1, tiers=[{"above": 100, "price": "2"}])
    card = make_card([rate, make_rate("OUTPUT", "0", 1)], tier_basis=TierBasis.TOTAL_TOKENS)
    for written, total in ((40, 60), (41, 120)):
        record = make_usage(input_tokens=60, output_tokens=written)
        cost = calculate_cost(record, card)
        assert cost.total_cost == total
        _check(cost, card, record)


def test_graduated_bands_are_summed_before_they_are_rounded() -> None:
    tiers = [{"above": 1, "price": "0.000004"}, {"above": 2, "price": "0.000005"}]
    card = make_card([make_rate("INPUT", "0.0000004", tiers=tiers)], tier_mode=TierMode.GRADUATED)
    # 0.4 + 4 + 5 = 9.4 units; each band rounded by itself would give 0 + 4 + 5.
    card.rates[0].price = Decimal("0.0000006")
    cost = calculate_cost(make_usage(input_tokens=3), card)
    assert cost.total_cost == Decimal("0.000000000010")
    assert cost.lines[0].unit_price is None
    first = calculate_cost(make_usage(input_tokens=1), card)
    assert first.lines[0].unit_price == Decimal("0.0000006")


def test_minimum_and_included_quantities() -> None:
    card = make_card([make_rate("PAGES", "1", 1, minimum=5, included=3)])
    found = [calculate_cost(make_usage(meters={"pages": pages}), card) for pages in (0, 1, 5, 9)]
    assert [cost.total_cost for cost in found] == [0, 2, 2, 6]
    free = make_card([make_rate("PAGES", "1", 1, included=3)])
    cost = calculate_cost(make_usage(meters={"pages": 3}), free)
    assert (cost.status, cost.total_cost, cost.lines) == ("priced", 0, [])


def test_multipliers_reach_token_meters_unless_told_otherwise() -> None:
    card = make_card(
        [make_rate("INPUT", "1", 1), make_rate("PAGES", "1", 1)],
        multipliers=[
            PriceMultiplier(kind="region", value=Decimal("1.1")),
            PriceMultiplier(kind="margin", value=Decimal(2), all_meters=True),
        ],
    )
    record = make_usage(input_tokens=10, meters={"pages": 10})
    cost = calculate_cost(record, card)
    assert [(line.meter, line.multiplier, line.cost) for line in cost.lines] == [
        ("INPUT", Decimal("2.2"), 22),
        ("PAGES", 2, 20),
    ]
    _check(cost, card, record)


def test_the_units_of_a_price_are_a_million_when_not_given() -> None:
    cost = calculate_cost(make_usage(input_tokens=10), make_card([make_rate("INPUT", "3", 0)]))
    assert (cost.lines[0].per, cost.total_cost) == (1_000_000, Decimal("0.00003"))


@pytest.mark.parametrize(
    ("fields", "paid"),
    [({}, 1), ({"request_count": 3}, 3), ({"meters": {"requests": 2}}, 2), ({"meters": {"requests": 0}}, 0)],
)
def test_a_fee_by_request_counts_the_calls(fields: dict[str, Any], paid: int) -> None:
    card = make_card([make_rate("INPUT", "0", 1), make_rate("REQUESTS", "1", 1)])
    record = make_usage(input_tokens=10, **fields)
    cost = calculate_cost(record, card)
    assert (cost.status, cost.other_cost) == ("priced", paid)
    _check(cost, card, record)


def test_requests_that_are_free_are_not_missing_but_stated_ones_without_a_rate_are() -> None:
    assert calculate_cost(make_usage(input_tokens=1, request_count=4), CHAT).status == "priced"
    assert calculate_cost(make_usage(input_tokens=1, meters={"requests": 4}), CHAT).status == "partial"


@pytest.mark.parametrize(
    ("tokens", "calls", "total", "status"),
    [
        (100, 2, 100, "priced"),
        (101, 2, 101, "estimated"),
        (101, 1, 202, "priced"),
        (101, None, 202, "priced"),
    ],
)
def test_sums_of_calls_are_priced_at_the_base(
    tokens: int, calls: int | None, total: int, status: str
) -> None:
    card = make_card([make_rate("INPUT", "1", 1, tiers=[{"above": 100, "price": "2"}])])
    record = make_usage(input_tokens=tokens, request_count=calls)
    cost = calculate_cost(record, card)
    assert (cost.total_cost, cost.status) == (total, status)
    _check(cost, card, record)


@pytest.mark.parametrize("rule", ["minimum", "included"])
@pytest.mark.parametrize(("calls", "status"), [(None, "priced"), (1, "priced"), (2, "estimated")])
def test_what_holds_for_each_call_is_not_known_of_a_sum(rule: str, calls: int | None, status: str) -> None:
    # Two calls of six seconds are billed as twenty, if each is billed as ten at least.
    card = make_card([make_rate("AUDIO_SECONDS", "1", 1, **{rule: 10})])
    record = make_usage(meters={"audio_ms": 12_000}, request_count=calls)
    cost = calculate_cost(record, card)
    assert cost.status == status
    _check(cost, card, record)


def test_cache_savings() -> None:
    record = make_usage(input_tokens=1000, cached_tokens=400)
    assert calculate_cost(record, CHAT).cache_savings == Decimal("0.00108")
    assert calculate_cost(make_usage(input_tokens=1000), CHAT).cache_savings == 0
    assert calculate_cost(record, make_card({"INPUT": "3"})).cache_savings == 0
    assert calculate_cost(record, make_card({"CACHE_READ": "3"})).cache_savings is None


def test_milliseconds_are_seconds() -> None:
    card = make_card([make_rate("AUDIO_SECONDS", "0.36", 3600)])
    for meters in ({"audio_ms": 1500}, {"audio_seconds": 1}):
        record = make_usage(meters=meters)
        cost = calculate_cost(record, card)
        seconds = Decimal("1.5") if "audio_ms" in meters else Decimal(1)
        assert (cost.lines[0].quantity, cost.total_cost) == (seconds, seconds * Decimal("0.0001"))
        _check(cost, card, record)


def test_a_changed_card_is_noticed() -> None:
    card = make_card({"INPUT": "3"})
    record = make_usage(input_tokens=1_000_000)
    assert calculate_cost(record, card).total_cost == 3
    card.rates[0].price = Decimal(4)
    assert calculate_cost(record, card).total_cost == 4
    card.multipliers = [PriceMultiplier(kind="x", value=Decimal("0.5"))]
    assert calculate_cost(record, card).total_cost == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"input_tokens": -1},
        {"input_tokens": 1.5},
        {"input_tokens": Decimal("1.5")},
        {"input_tokens": "12"},
        {"input_tokens": 10, "cached_tokens": 11},
        {"input_tokens": 10, "total_tokens": 11},
        {"output_tokens": 10, "reasoning_tokens": 11},
        {"meters": {"pages": -1}},
        {"meters": {"pages": 0.5}},
        {"meters": {"output": 5}},
        {"input_tokens": 100, "modality": ModalityTokens(input_audio_tokens=150)},
        {"input_tokens": 9, "cached_tokens": 9, "modality": ModalityTokens(cached_image_tokens=5)},
        {"output_tokens": 9, "reasoning_tokens": 5, "modality": ModalityTokens(output_audio_tokens=5)},
    ],
)
def test_counts_that_are_none_are_refused(fields: dict[str, Any]) -> None:
    card = make_card([make_rate("INPUT", "3"), make_rate("OUTPUT", "3"), make_rate("PAGES", "1", 1000)])
    record = make_usage(**fields)
    with pytest.raises(ValidationError) as caught:
        calculate_cost(record, card)
    assert caught.value.violations
    if "total_tokens" not in fields:
        with pytest.raises(ValidationError):
            CompiledCard(card).total(record)


@pytest.mark.parametrize(
    "card",
    [
        make_card({"INPUT": "-1"}),
        make_card({"INPUT": "NaN"}),
        make_card({"INPUT": "Infinity"}),
        make_card([make_rate("INPUT", "1", -5)]),
        make_card({"INPUT": "1"}, multipliers=[PriceMultiplier(kind="x", value=Decimal(0))]),
    ],
)
def test_a_card_that_is_none_is_refused(card: Any) -> None:
    with pytest.raises(ValidationError):
        calculate_cost(make_usage(input_tokens=1), card)


def test_the_callers_decimal_context_does_not_matter() -> None:
    record = make_usage(input_tokens=123_456_789, cached_tokens=23_456_789, output_tokens=987_654_321)
    card = make_card({"INPUT": "0.041666666666666664", "CACHE_READ": "0.0011", "OUTPUT": "22.5"})
    expected = calculate_cost(record, card)
    with decimal.localcontext(decimal.Context(prec=2, rounding=decimal.ROUND_UP, Emax=3, Emin=-3)) as context:
        context.traps[decimal.Inexact] = True
        fresh = make_card({"INPUT": "0.041666666666666664", "CACHE_READ": "0.0011", "OUTPUT": "22.5"})
        assert calculate_cost(record, fresh) == expected
        assert not any(context.flags.values())


def test_many_threads_get_one_answer() -> None:
    cards = [make_card({"INPUT": f"0.{price}", "OUTPUT": "7"}) for price in range(1, 300)]
    record = make_usage(input_tokens=777, output_tokens=3)
    expected = [calculate_cost(record, card).total_cost for card in cards]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(
            lambda _: [calculate_cost(record, card).total_cost for card in cards], range(8)
        ):
            assert found == expected
