from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial

import pytest

from llm_cost_ops._gen.messages import PriceOrigin, RateCard, UsageQuality
from llm_cost_ops.pricing import pricebook
from llm_cost_ops.pricing.calculator import calculate_cost, cost_by
from llm_cost_ops.pricing.money import from_units
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.pricing.selection import PriceQuery, select_card
from tests.unit.pricing.cards import NOON, make_card, make_rate, make_usage
from tests.waiting import in_threads


class _Source:
    def __init__(self, *cards: RateCard) -> None:
        self.list = list(cards)
        self.asked: list[tuple[str, str]] = []

    def cards(self, provider: str, model_id: str) -> Sequence[RateCard]:
        self.asked.append((provider, model_id))
        return [card for card in self.list if card.provider == provider]


def test_a_price_is_that_of_the_full_calculation() -> None:
    card = make_card({"INPUT": "3", "OUTPUT": "15"}, id="c", version=2, currency="EUR", origin_version="v")
    book = PriceBook([_Source(card)])
    record = make_usage(input_tokens=7, output_tokens=3)
    priced = book.price(record)
    assert (priced.by.status, priced.by.currency, priced.units) == ("priced", "EUR", 66_000_000)
    assert (priced.by.card_id, priced.by.card_version, priced.by.origin_version) == ("c", 2, "v")
    assert cost_by(book, record) == calculate_cost(record, card)
    chosen = book.choose(record)
    assert chosen is not None
    assert chosen[0].card is card


def test_what_is_not_known_is_unpriced_and_asked_for_once() -> None:
    source = _Source()
    book = PriceBook([source])
    for _ in range(3):
        priced = book.price(make_usage(input_tokens=7))
        assert (priced.by.status, priced.units, priced.by.currency, priced.by.card_id) == (
            "unpriced",
            None,
            "USD",
            "",
        )
    assert source.asked == [("openai", "gpt-x")]
    assert cost_by(book, make_usage()).status == "unpriced"
    assert book.choose(make_usage()) is None


def test_unknown_counts_are_unpriced() -> None:
    book = PriceBook(cards=[make_card({"INPUT": "3"})])
    assert book.price(make_usage(quality=UsageQuality.UNKNOWN)).units is None


def test_the_time_of_each_record_counts_although_choices_are_remembered() -> None:
    old = make_card({"INPUT": "1"}, id="old", effective_until=NOON)
    new = make_card({"INPUT": "2"}, id="new", effective_from=NOON)
    book = PriceBook([_Source(old, new)])
    before, after = make_usage(timestamp=NOON - timedelta(microseconds=1)), make_usage()
    assert [book.price(record).by.card_id for record in (before, after, before)] == ["old", "new", "old"]
    assert book.price(after, at=NOON - timedelta(days=1)).by.card_id == "old"
    after.timestamp = None
    with pytest.raises(ValueError, match="timestamp"):
        book.price(after)


def test_cards_are_found_by_each_of_their_names() -> None:
    cards = [
        make_card({"INPUT": "1"}, id="exact", model_id="gpt-x"),
        make_card({"INPUT": "1"}, id="alias", model_id="other", aliases=["gpt-x", "gpt-*", "gpt-x-*"]),
        make_card({"INPUT": "1"}, id="all", model_id="*"),
        make_card({"INPUT": "1"}, id="star", model_id="odd*"),
        make_card({"INPUT": "1"}, id="elsewhere", model_id="gpt-x", provider="groq"),
        make_card({"INPUT": "1"}, id="theirs", model_id="gpt-x-2", organization_id="org-2"),
    ]
    book = PriceBook(cards=cards)
    for provider in ("openai", "OpenAI", "groq", "cohere"):
        for model in ("gpt-x", "gpt-x-2", "gpt-y", "other", "odd", "odd*", "*", "GPT-X"):
            record = make_usage(provider=provider, model_id=model)
            # What looks at every card.
            selected = select_card(cards, PriceQuery.of(record))
            chosen = book.choose(record)
            assert (chosen and chosen[0].card.id) == (selected and selected.card.id), model


def test_manual_cards_come_before_a_source() -> None:
    source = _Source(make_card({"INPUT": "1"}, id="list"))
    own = make_card({"INPUT": "2"}, id="own", origin=PriceOrigin.MANUAL, organization_id="org-1")
    book = PriceBook([source], cards=[own])
    assert book.price(make_usage()).by.card_id == "own"
    assert book.price(make_usage(organization_id="org-2")).by.card_id == "list"


def test_a_source_may_know_a_model_by_names_of_its_own() -> None:
    source = _Source(make_card({"INPUT": "1"}, id="family", model_id="gpt-4o"))
    assert PriceBook([source]).price(make_usage(model_id="openai/gpt-4o:latest")).by.card_id == "family"


def test_a_reseller_without_a_card_takes_the_makers_and_says_so() -> None:
    source = _Source(make_card({"INPUT": "1"}, id="openai"))
    book = PriceBook([source])
    record = make_usage(provider="azure_openai", input_tokens=1)
    priced = book.price(record)
    assert (priced.by.status, priced.by.card_id, priced.by.fallbacks) == (
        "estimated",
        "openai",
        ("provider",),
    )
    assert cost_by(book, record).fallback_dimensions == ["provider"]
    source.list.append(make_card({"INPUT": "1"}, id="azure", provider="azure"))
    book = PriceBook([source])
    assert (book.price(record).by.status, book.price(record).by.card_id) == ("priced", "azure")


def test_fallbacks_make_an_estimate() -> None:
    book = PriceBook(cards=[make_card({"INPUT": "1"})])
    priced = book.price(make_usage(input_tokens=1, service_tier="priority"))
    assert (priced.by.status, priced.by.fallbacks) == ("estimated", ("service_tier",))


def test_reported_costs() -> None:
    book = PriceBook(cards=[make_card({"INPUT": "1"}, provider="x-ai")], reported_providers=["xai"])
    record = make_usage(provider="xai", reported_cost=Decimal("0.5"), reported_currency="EUR")
    priced = book.price(record)
    assert (priced.by.status, priced.units, priced.by.currency) == ("reported", 5 * 10**11, "EUR")
    assert cost_by(book, record).total_cost == Decimal("0.5")
    record.reported_cost = None
    assert book.price(record).by.status == "priced"


def test_a_stated_cost_is_the_answer_where_cards_give_none_or_a_part() -> None:
    book = PriceBook(cards=[make_card({"INPUT": "1"})], reported_providers=())
    stated = {"reported_cost": Decimal("0.5"), "input_tokens": 1}
    for record in (
        make_usage(model_id="unheard-of", **stated),
        make_usage(meters={"web_searches": 1}, **stated),
        make_usage(reported_cost=Decimal("0.5"), input_tokens=None, output_tokens=None),
    ):
        assert (book.price(record).by.status, book.price(record).units) == ("reported", 5 * 10**11)
        assert cost_by(book, record).status == "reported"
        assert cost_by(book, record).total_cost == Decimal("0.5")
    whole = make_usage(**stated)
    assert (book.price(whole).by.status, cost_by(book, whole).status) == ("priced", "priced")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricebook, "_CAPACITY", 10)
    book = PriceBook([_Source(make_card({"INPUT": "1"}))])
    for number in range(100):
        book.price(make_usage(model_id=f"m-{number}"))
    assert len(book._snapshot.plans) == 10


def test_threads_price_right_while_choices_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricebook, "_CAPACITY", 4)
    prices = range(1, 10)
    book = PriceBook(
        cards=[
            make_card(
                [make_rate("INPUT", str(price), 1), make_rate("OUTPUT", str(price), 1)],
                id=str(price),
                model_id=f"gpt-{price}",
            )
            for price in prices
        ],
    )
    wrong: list[object] = []

    def read(start: int) -> None:
        for number in range(start, start + 500):
            price = prices[number % 9]
            priced = book.price(make_usage(model_id=f"gpt-{price}", input_tokens=1, output_tokens=1))
            if priced.units is None or from_units(priced.units) != 2 * price:
                wrong.append(priced)

    in_threads([partial(read, start) for start in range(4)])
    assert wrong == []


def test_a_rate_that_stands_in_for_another_makes_an_estimate_and_is_named() -> None:
    book = PriceBook(cards=[make_card({"INPUT": "1", "OUTPUT": "2"})])
    for counts, name in (
        ({"cached_tokens": 2}, "rate:CACHE_READ->INPUT"),
        ({"cache_write_tokens": 2}, "rate:CACHE_WRITE->INPUT"),
    ):
        record = make_usage(input_tokens=5, output_tokens=3, **counts)
        priced, cost = book.price(record), cost_by(book, record)
        assert (priced.by.status, priced.by.fallbacks) == ("estimated", (name,))
        assert (cost.status, cost.fallback_dimensions) == ("estimated", [name])
    # Reasoning is output, at its price.
    record = make_usage(input_tokens=5, output_tokens=3, reasoning_tokens=2)
    assert (book.price(record).by.status, book.price(record).by.fallbacks) == ("priced", ())
