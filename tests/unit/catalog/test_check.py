"""What a refresh must pass, row by row; and that what ships passes it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_cost_ops._gen.messages import RateCard
from llm_cost_ops.catalog import CatalogError, load_catalog
from llm_cost_ops.catalog import bundle as bundle_module
from llm_cost_ops.catalog.bundle import (
    CardRow,
    Match,
    MultiplierRow,
    RateRow,
    WindowRow,
    read_bundle,
)
from llm_cost_ops.catalog.check import check_payload
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.rules.cards import check_card, overlap_of

Bundle = Callable[..., bytes]
RATES = [RateRow("INPUT", "1")]


def _check(data: bytes) -> int:
    return check_payload(read_bundle(data)[1])


def test_what_ships_passes() -> None:
    data = Path(bundle_module.__file__).with_name("prices.bin").read_bytes()
    assert _check(data) == sum(1 for _ in load_catalog())


def test_every_shipped_card_keeps_the_rules_of_cards() -> None:
    violations: list[Violation] = []
    for card in load_catalog():
        check_card(card, f"{card.id} ", violations)
    assert violations == []


def _kind(card: RateCard) -> tuple[object, ...]:
    """What two cards must not both be, from the same moment on."""
    windows = tuple((w.start, w.end, w.time_zone, tuple(w.weekdays)) for w in card.windows)
    return (card.region, card.service_tier, card.processing, card.speed, card.currency, windows, _start(card))


def _start(card: RateCard) -> datetime:
    return card.effective_from or datetime.min.replace(tzinfo=UTC)


def test_no_two_shipped_cards_of_one_kind_overlap() -> None:
    catalog = load_catalog()
    violations: list[Violation] = []
    for model in catalog.models():
        before: list[RateCard] = []
        cards = catalog.cards(model.provider, model.id)
        assert len({_kind(card) for card in cards}) == len(cards), model.id
        for card in sorted(cards, key=_start):
            if (broken := overlap_of(card, before)) is not None:
                violations.append(Violation(f"{card.id} {broken[0]}", broken[1]))
            before.append(card)
    assert violations == []


def test_a_good_catalog_passes(bundle: Bundle) -> None:
    windows = [WindowRow("22:00", "06:00", [1, 7], "Asia/Shanghai"), WindowRow("00:00:00", "00:00:00")]
    card = CardRow(
        rates=[RateRow("INPUT", "0.041666666666666664", 1, [(0, False, "0"), (5, True, "2")], 3, 2)],
        since="2026-01-01",
        until="2026-01-02",
        windows=windows,
        multipliers=[MultiplierRow("region", "0.5", True)],
        currency="EUR",
    )
    assert _check(bundle(cards=[card], patterns=[(0, Match("regex", r"^a\d+$"))])) == 1


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"rates": []}, "no rates"),
        ({"rates": [*RATES, *RATES]}, "two rates"),
        ({"rates": [RateRow("input", "1")]}, "not a meter"),
        ({"rates": [RateRow("INPUT", "1", 0)]}, "per 0"),
        ({"rates": [RateRow("INPUT", "1", minimum=-1)]}, "below 0"),
        ({"rates": [RateRow("INPUT", "1", tiers=[(5, False, "1"), (5, False, "2")])]}, "rising"),
        ({"rates": [RateRow("INPUT", "1", tiers=[(-5, False, "1")])]}, "rising"),
        ({"currency": "usd"}, "ISO 4217"),
        ({"since": "2026-02-30"}, "not a date"),
        ({"since": "20260203"}, "not a date"),
        ({"since": "2026-01-02", "until": "2026-01-02"}, "ends before"),
        ({"windows": [WindowRow("24:00", "01:00")]}, "time of day"),
        ({"windows": [WindowRow("1:00", "01:00")]}, "time of day"),
        ({"windows": [WindowRow("01:00", "02:00", [0])]}, "weekday"),
        ({"windows": [WindowRow("01:00", "02:00", [], "Mars/Base")]}, "time zone"),
        ({"windows": [WindowRow("01:00", "02:00", [], "../etc/passwd")]}, "time zone"),
        ({"multipliers": [MultiplierRow("region", "0.00")]}, "is 0"),
        ({"multipliers": [MultiplierRow("region", "-1")]}, "not a price"),
        ({"multipliers": [MultiplierRow("", "1")]}, "no kind"),
        ({"url": 4}, "no source"),
        ({"url": -1}, "no source"),
    ],
)
def test_a_card_that_breaks_a_rule_is_refused(bundle: Bundle, card: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError, match=f"maker/model: .*{message}"):
        _check(bundle(cards=[CardRow(**{"rates": RATES, **card})]))


@pytest.mark.parametrize(
    "price",
    ["", "-1", "1e3", "NaN", "Infinity", "1_000", ".5", "01", "1.", "٣", "0.0000000000000000001", "9" * 30],
)
def test_a_price_outside_the_grammar_is_refused(bundle: Bundle, price: str) -> None:
    with pytest.raises(CatalogError, match="not a price"):
        _check(bundle(price))
    with pytest.raises(CatalogError, match="not a price"):
        _check(bundle(cards=[CardRow(rates=[RateRow("INPUT", "1", tiers=[(1, False, price)])])]))


def test_a_name_or_pattern_that_leads_nowhere_is_refused(bundle: Bundle) -> None:
    with pytest.raises(CatalogError, match="leads to no model"):
        _check(bundle(names={"model": 1}))
    with pytest.raises(CatalogError, match="leads to no model"):
        _check(bundle(patterns=[(-1, Match("equals", "a"))]))
    with pytest.raises(CatalogError, match="take long"):
        _check(bundle(patterns=[(0, Match("regex", "(a+)+"))]))


def test_two_cards_of_one_id_are_refused(bundle: Bundle) -> None:
    with pytest.raises(CatalogError, match="one id"):
        _check(bundle(cards=[CardRow(rates=RATES), CardRow(rates=RATES)]))


def test_an_empty_catalog_is_refused(bundle: Bundle) -> None:
    payload = read_bundle(bundle())[1]
    with pytest.raises(CatalogError, match="empty"):
        check_payload(msgspec.structs.replace(payload, providers={}))
    with pytest.raises(CatalogError, match="empty"):
        check_payload(msgspec.structs.replace(payload, providers={"maker": msgspec.Raw(b"{}")}))
    with pytest.raises(CatalogError, match="no version"):
        check_payload(msgspec.structs.replace(payload, version=""))
