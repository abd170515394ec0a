"""Lists of prices: quick however many cards there are, and each card once whatever is added meanwhile."""

from __future__ import annotations

import time

from llm_cost_ops import CostOpsClient
from llm_cost_ops.catalog import load_catalog


def test_an_unfiltered_listing_gives_every_card_once_within_a_second() -> None:
    wanted = [card.id for card in load_catalog()]
    with CostOpsClient(base_url="sqlite://") as client:
        start = time.process_time()
        found = [card.id for card in client.pricing.list()]
        taken = time.process_time() - start
    assert found == wanted
    assert taken < 1.0


def test_listed_cards_are_the_catalogs_own() -> None:
    catalog = load_catalog()
    with CostOpsClient(base_url="sqlite://") as client:
        assert list(client.pricing.list(page_size=1000)) == list(catalog)
        assert [card.id for card in client.pricing.list(provider="deepseek")] == [
            card.id for card in catalog if card.provider == "deepseek"
        ]


def test_a_provider_is_found_by_any_of_its_names() -> None:
    with CostOpsClient(base_url="sqlite://") as client:
        for name in ("Together_AI", "bedrock"):
            owner = load_catalog().provider_of(name)
            found = list(client.pricing.list(provider=name, page_size=1000))
            assert found == list(client.pricing.list(provider=owner, page_size=1000)) != []


def test_a_card_that_is_added_between_two_pages_moves_nothing() -> None:
    with CostOpsClient(base_url="sqlite://") as client:
        for model in ("b", "d", "f"):
            client.pricing.create(provider="p", model_id=model, input_price_per_1k="1")
        first = client.pricing.list(provider="p", page_size=2)
        client.pricing.create(provider="p", model_id="a", input_price_per_1k="1")
        client.pricing.create(provider="p", model_id="e", input_price_per_1k="1")
        following = client.pricing.list(provider="p", page_size=9, cursor=first.pagination.next_cursor)
    assert [card.model_id for card in first.data] == ["b", "d"]
    assert [card.model_id for card in following.data] == ["e", "f"]


def test_who_changes_a_card_that_was_given_changes_no_price() -> None:
    call = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000, "output_tokens": 0}
    with CostOpsClient(base_url="sqlite://") as client:
        client.pricing.create(provider="p", model_id="m", input_price_per_1k="1")
        before = client.costs.estimate(**call).total_cost
        given = [
            *client.pricing.list(provider="p"),
            *client.pricing.list(provider="openai", page_size=1000),
            *client.pricing.list(provider="openai", model_id="gpt-4o"),
            client.pricing.get("openai/gpt-4o"),
        ]
        for card in given:
            for rate in card.rates:
                rate.price *= 7
        assert client.costs.estimate(**call).total_cost == before
        assert client.pricing.get("openai/gpt-4o") != given[-1]
        assert next(iter(client.pricing.list(provider="p"))).rates[0].price == 1000
