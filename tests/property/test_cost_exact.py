"""The integer path, the full calculation, and the same in Fraction and in Decimal: one cost."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest import mock

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    ModalityTokens,
    PriceMultiplier,
    PriceTier,
    Rate,
    RateCard,
    TierBasis,
    TierMode,
    UsageRecord,
)
from llm_cost_ops.pricing.calculator import calculate_cost
from llm_cost_ops.pricing.meters import RATE_FALLBACKS
from llm_cost_ops.pricing.money import to_units
from llm_cost_ops.pricing.pricebook import CompiledCard
from llm_cost_ops.rules.meters import INPUT_METERS, OUTPUT_METERS, PLAIN_METERS, TOKEN_METERS
from llm_cost_ops.rules.requests import check_usage
from tests.metered import split_meters

UNIT_METERS = ("REQUESTS", "WEB_SEARCHES", "PAGES", "ANNOTATED_PAGES", "AUDIO_SECONDS", "SEARCH_UNITS")
COUNTS = st.one_of(st.integers(0, 20), st.integers(0, 400_000), st.integers(0, 2**62))
PRICES = st.one_of(
    st.decimals(0, 600, places=6, allow_nan=False, allow_infinity=False),
    st.decimals(0, 1, places=18, allow_nan=False, allow_infinity=False),
    st.just(Decimal(0)),
)


@st.composite
def records(draw: st.DrawFn) -> UsageRecord:
    def part(whole: int) -> int:
        return draw(st.one_of(st.just(0), st.just(whole), st.integers(0, whole)))

    read, written = draw(COUNTS), draw(COUNTS)
    cached = part(read)
    stored = part(read - cached)
    reasoning = part(written)
    modality = None
    if draw(st.booleans()):
        inputs, rest = {}, read
        for form in ("audio", "image", "video"):
            inputs[form] = part(rest)
            rest -= inputs[form]
        hits, rest = {}, cached
        for form in ("audio", "image", "video"):
            hits[form] = part(min(rest, inputs[form])) if rest + stored <= read else 0
            rest -= hits[form]
        outputs, rest = {}, written - reasoning
        for form in ("audio", "image", "video"):
            outputs[form] = part(rest)
            rest -= outputs[form]
        modality = ModalityTokens(
            **{f"input_{form}_tokens": count for form, count in inputs.items()},
            **{f"cached_{form}_tokens": count for form, count in hits.items()},
            **{f"output_{form}_tokens": count for form, count in outputs.items()},
        )
    keys = st.sampled_from(["requests", "web_searches", "pages", "annotated_pages", "audio_ms", "unheard_of"])
    return UsageRecord(
        organization_id="org",
        provider="openai",
        model_id="gpt-x",
        input_tokens=read,
        output_tokens=written,
        cached_tokens=cached,
        cache_write_tokens=stored,
        cache_write_extended_tokens=part(stored),
        reasoning_tokens=reasoning,
        modality=modality,
        meters=draw(st.dictionaries(keys, COUNTS, max_size=3)),
        request_count=draw(st.sampled_from([None, None, 1, 2, 7])),
    )


@st.composite
def rates(draw: st.DrawFn, meter: str, *, tiered: bool) -> Rate:
    bounds = draw(st.lists(st.integers(0, 300_000), max_size=3, unique=True)) if tiered else []
    return Rate(
        meter=meter,
        price=draw(PRICES),
        per=draw(st.sampled_from([0, 1, 1000, 3600, 1_000_000, 7])),
        tiers=[
            PriceTier(above=above, inclusive=draw(st.booleans()), price=draw(PRICES))
            for above in sorted(bounds)
        ],
        minimum=draw(st.sampled_from([0, 0, 0, 10])),
        included=draw(st.sampled_from([0, 0, 0, 5, 2000])),
    )


@st.composite
def cards(draw: st.DrawFn, *, tiered: bool = True) -> RateCard:
    names = draw(
        st.lists(
            st.sampled_from([*INPUT_METERS, *OUTPUT_METERS, "TOTAL_TOKENS", *UNIT_METERS]),
            unique=True,
            max_size=8,
        )
    )
    if draw(st.integers(0, 3)):
        names = list(dict.fromkeys(["INPUT", "OUTPUT", *names]))
    factors = st.decimals("0.01", 3, places=3, allow_nan=False, allow_infinity=False)
    return RateCard(
        id="card",
        provider="openai",
        model_id="gpt-x",
        currency="USD",
        rates=[draw(rates(name, tiered=tiered)) for name in names],
        tier_mode=draw(st.sampled_from(list(TierMode))) if tiered else TierMode.UNSPECIFIED,
        tier_basis=draw(st.sampled_from(list(TierBasis))),
        multipliers=[
            PriceMultiplier(kind="x", value=draw(factors), all_meters=draw(st.booleans()))
            for _ in range(draw(st.integers(0, 2)))
        ],
    )


def _charges(card: RateCard, record: UsageRecord) -> list[tuple[str, Fraction, Rate | None]]:
    by_meter = {rate.meter: rate for rate in card.rates}
    used = {meter: Fraction(quantity) for meter, quantity in split_meters(record).items()}
    if "REQUESTS" in by_meter and "requests" not in record.meters:
        used["REQUESTS"] = Fraction(record.request_count or 1)
    found = []
    for meter, quantity in used.items():
        names = (meter, *RATE_FALLBACKS.get(meter, ()))
        rate = next((by_meter[name] for name in names if name in by_meter), None)
        if rate is None and "TOTAL_TOKENS" in by_meter and meter in TOKEN_METERS:
            continue
        found.append((meter, quantity, rate))
    tokens = (record.input_tokens or 0) + (record.output_tokens or 0)
    if "TOTAL_TOKENS" in by_meter and tokens:
        found.append(("TOTAL_TOKENS", Fraction(tokens), by_meter["TOTAL_TOKENS"]))
    return found


def _oracle(card: RateCard, record: UsageRecord, number: Any, round12: Any) -> tuple[Any, bool]:
    """The cost by the rules, in any exact type; and whether a meter has no rate."""
    basis = record.input_tokens
    if card.tier_basis == TierBasis.TOTAL_TOKENS:
        basis += record.output_tokens
    several = (record.request_count or 1) > 1
    total, partial = number(0), False
    for meter, quantity, rate in _charges(card, record):
        if rate is None:
            partial = True
            continue
        billed = max(Fraction(0), max(quantity, Fraction(rate.minimum)) - rate.included)
        prices = [(Fraction(0), billed, rate.price)]
        if rate.tiers and not several and card.tier_mode == TierMode.GRADUATED:
            bounds = [0, *(tier.above for tier in rate.tiers)]
            highs = [*map(Fraction, bounds[1:]), billed]
            prices = [
                (Fraction(low), min(high, billed), price)
                for low, high, price in zip(
                    bounds, highs, [rate.price, *(t.price for t in rate.tiers)], strict=True
                )
                if low < billed
            ]
        elif rate.tiers and not several:
            for tier in rate.tiers:
                if basis > tier.above or (tier.inclusive and basis == tier.above):
                    prices = [(Fraction(0), billed, tier.price)]
        line = sum((number(high - low) * number(price) for low, high, price in prices), number(0))
        for multiplier in card.multipliers:
            if multiplier.all_meters or meter in TOKEN_METERS:
                line *= number(multiplier.value)
        total += round12(line, rate.per or 1_000_000)
    return total, partial


def _round_fraction(line: Fraction, per: int) -> Fraction:
    # Fraction's own rounding goes to the even neighbour.
    return Fraction(round(line / per * 10**12), 10**12)


WIDE = decimal.Context(
    prec=400, rounding=decimal.ROUND_HALF_EVEN, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN
)


def _to_decimal(value: Any) -> Decimal:
    if isinstance(value, Fraction):
        return WIDE.divide(Decimal(value.numerator), Decimal(value.denominator))
    return Decimal(value)


@given(cards(), records())
@example(RateCard(rates=[Rate(meter="INPUT", price=Decimal("0.0000005"))]), UsageRecord(input_tokens=1))
@example(RateCard(rates=[Rate(meter="INPUT", price=Decimal("0.0000005"))]), UsageRecord(input_tokens=3))
def test_integers_fractions_and_decimals_agree(card: RateCard, record: UsageRecord) -> None:
    violations: list[Any] = []
    check_usage(record, "", violations)
    assert violations == []
    expected, partial = _oracle(card, record, Fraction, _round_fraction)

    units, status = CompiledCard(card).total(record)
    assert units is not None
    assert Fraction(units, 10**12) == expected
    assert (status == "partial") == partial

    cost = calculate_cost(record, card)
    assert cost.total_cost is not None
    assert cost.input_cost is not None
    assert cost.output_cost is not None
    assert cost.other_cost is not None
    assert Fraction(cost.total_cost) == expected
    assert cost.status == status
    assert sum(Fraction(line.cost) for line in cost.lines) == expected
    assert Fraction(cost.input_cost) + Fraction(cost.output_cost) + Fraction(cost.other_cost) == expected

    with decimal.localcontext(WIDE):
        in_decimals, _ = _oracle(
            card,
            record,
            _to_decimal,
            lambda line, per: (line / per).quantize(Decimal("1E-12"), rounding=decimal.ROUND_HALF_EVEN),
        )
    assert Fraction(in_decimals) == expected


WHOLE = st.decimals(0, 600, places=6, allow_nan=False, allow_infinity=False)


@st.composite
def usual_cards(draw: st.DrawFn) -> RateCard:
    """Of every kind of token, each a whole number of 10^-12."""
    bounds = sorted(draw(st.lists(st.integers(0, 300_000), max_size=2, unique=True)))
    return RateCard(
        rates=[
            Rate(
                meter=meter,
                price=draw(WHOLE),
                tiers=[PriceTier(above=above, price=draw(WHOLE)) for above in bounds],
            )
            for meter in PLAIN_METERS
        ],
        tier_basis=draw(st.sampled_from(list(TierBasis))),
    )


@given(usual_cards(), records())
def test_the_integer_path_has_the_same_costs(card: RateCard, record: UsageRecord) -> None:
    record = replace(record, modality=None, meters={}, request_count=None)
    expected, _ = _oracle(card, record, Fraction, _round_fraction)
    with mock.patch.object(CompiledCard, "_exact_total", side_effect=AssertionError("not whole numbers")):
        units, status = CompiledCard(card).total(record)
    assert units is not None
    assert (Fraction(units, 10**12), status) == (expected, "priced")


@given(records())
def test_meters_are_disjoint_and_sum_to_the_totals(record: UsageRecord) -> None:
    meters = split_meters(record)
    assert all(quantity > 0 for quantity in meters.values())
    assert sum(meters.get(meter, 0) for meter in INPUT_METERS) == record.input_tokens
    assert sum(meters.get(meter, 0) for meter in OUTPUT_METERS) == record.output_tokens
    cached = sum(meters.get(meter, 0) for meter in INPUT_METERS if meter.startswith("CACHE_READ"))
    assert cached == record.cached_tokens
    written = meters.get("CACHE_WRITE", 0) + meters.get("CACHE_WRITE_EXTENDED", 0)
    assert written == record.cache_write_tokens
    if record.modality is not None:
        for form in ("audio", "image", "video"):
            hits = meters.get(f"CACHE_READ_{form.upper()}", 0)
            fresh = meters.get(f"INPUT_{form.upper()}", 0)
            assert hits >= getattr(record.modality, f"cached_{form}_tokens")
            assert hits + fresh <= getattr(record.modality, f"input_{form}_tokens")


@given(cards(tiered=False), COUNTS, COUNTS, st.integers(0, 10**6))
def test_more_never_costs_less(card: RateCard, read: int, written: int, more: int) -> None:
    compiled = CompiledCard(card)
    before = compiled.total(UsageRecord(input_tokens=read, output_tokens=written))[0]
    after = compiled.total(UsageRecord(input_tokens=read + more, output_tokens=written))[0]
    assert before is not None
    assert after is not None
    assert after >= before


@given(
    st.decimals(0, 600, places=6, allow_nan=False, allow_infinity=False),
    st.decimals(0, 600, places=6, allow_nan=False, allow_infinity=False),
    st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=5),
)
def test_costs_add_up(price_in: Decimal, price_out: Decimal, calls: list[tuple[int, int]]) -> None:
    card = RateCard(rates=[Rate(meter="INPUT", price=price_in), Rate(meter="OUTPUT", price=price_out)])
    compiled = CompiledCard(card)
    apart = [compiled.total(UsageRecord(input_tokens=read, output_tokens=out))[0] or 0 for read, out in calls]
    together = UsageRecord(input_tokens=sum(c[0] for c in calls), output_tokens=sum(c[1] for c in calls))
    assert compiled.total(together)[0] == sum(apart)


@given(cards(), records(), st.integers(1, 6))
def test_the_callers_context_changes_nothing(card: RateCard, record: UsageRecord, precision: int) -> None:
    expected = calculate_cost(record, card)
    units = CompiledCard(card).total(record)
    hostile = decimal.Context(prec=precision, rounding=decimal.ROUND_CEILING, Emax=2, Emin=-2)
    with decimal.localcontext(hostile) as context:
        found, again = CompiledCard(card).total(record), calculate_cost(record, card)
        assert not any(context.flags.values())
    assert (found, again) == (units, expected)


@given(cards(), records())
def test_money_survives_its_own_units(card: RateCard, record: UsageRecord) -> None:
    cost = calculate_cost(record, card)
    assert cost.total_cost is not None
    units = CompiledCard(card).total(record)[0]
    assert to_units(cost.total_cost) == units
    assert all(line.cost.as_tuple().exponent in range(-12, 1) for line in cost.lines)
