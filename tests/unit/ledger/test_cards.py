from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from llm_cost_ops._gen.messages import PriceTier, Rate, RateCard, SubmitStatus
from llm_cost_ops.rpc.context import uuid7
from tests.unit.ledger.making import Sync

CREATED, DUPLICATE, CONFLICT = SubmitStatus.CREATED, SubmitStatus.DUPLICATE, SubmitStatus.CONFLICT


def card(price: str = "2.5", **fields: object) -> RateCard:
    fields = {"id": uuid7(), "provider": "openai", "model_id": "gpt-4o", "currency": "USD"} | fields
    rates = [Rate(meter="INPUT", price=Decimal(price), tiers=[PriceTier(above=5, price=Decimal("1E-11"))])]
    return RateCard(rates=rates, effective_from=datetime(2026, 1, 1, tzinfo=UTC), **fields)


@pytest.fixture(params=["memory", "file", "group"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sync]:
    path = None if request.param == "memory" else tmp_path / "costs.db"
    with Sync(path, group_commit=request.param == "group") as made:
        yield made


def test_a_card_comes_back_as_it_went_in(store: Sync) -> None:
    first = card()
    kept, status = store.add_card(first, "k", b"1" * 16)
    assert (kept.version, status) == (1, CREATED)
    first.version = 1
    assert kept == first
    assert store.get_card(first.id) == first
    assert store.get_card("none") is None
    assert store.all_cards() == [first]


def test_a_key_counts_once(store: Sync) -> None:
    first, _ = store.add_card(card(), "k", b"1" * 16)
    assert store.add_card(card(), "k", b"1" * 16) == (first, DUPLICATE)
    assert store.add_card(card("3"), "k", b"2" * 16) == (first, CONFLICT)
    assert store.add_card(card("3", organization_id="acme"), "k", b"2" * 16)[1] == CREATED
    assert len(store.all_cards()) == 2


def test_the_same_content_is_no_new_version(store: Sync) -> None:
    first, _ = store.add_card(card(), "k1", b"1" * 16)
    assert store.add_card(card(), "k2", b"1" * 16) == (first, DUPLICATE)
    # The second key stands for that content from now on.
    assert store.add_card(card("3"), "k2", b"2" * 16) == (first, CONFLICT)
    second, status = store.add_card(card("3"), "", b"2" * 16)
    assert (second.version, status) == (2, CREATED)
    back, status = store.add_card(card(), "", b"1" * 16)
    assert (back.version, status) == (3, CREATED)
    other, status = store.add_card(card(region="eu"), "", b"1" * 16)
    assert (other.version, status) == (1, CREATED)
    assert [c.version for c in store.all_cards()] == [1, 1, 2, 3]


def test_the_revision_tells_of_cards_from_elsewhere(store: Sync, tmp_path: Path) -> None:
    assert store.cards_revision() == store.cards_revision()
    before = store.cards_revision()
    store.add_card(card(), "", b"1" * 16)
    after = store.cards_revision()
    assert after > before
    if store.store._database.path is not None:
        with Sync(tmp_path / "costs.db") as other:
            other.add_card(card("3"), "", b"2" * 16)
        assert store.cards_revision() > after


def test_threads_get_versions_of_their_own(store: Sync) -> None:
    def add(n: int) -> int:
        return int(store.add_card(card(str(n)), "", n.to_bytes(16, "big"))[0].version)

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(24))) == list(range(1, 25))
