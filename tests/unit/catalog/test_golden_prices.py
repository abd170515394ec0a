"""The bundled catalog gives the published price of every golden case, at its moment and in its dimensions."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops._gen.messages import PriceOrigin, RateCard, UsageRecord
from llm_cost_ops.catalog import load_catalog
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.pricing.selection import PriceQuery, select_card

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "catalog_prices.json").read_text(encoding="utf-8")
)["cases"]
DIMENSIONS = ("service_tier", "processing", "speed", "region")


def _record(case: dict[str, Any]) -> UsageRecord:
    return UsageRecord(
        organization_id="org",
        provider=case["provider"],
        model_id=case["model_id"],
        timestamp=datetime.fromisoformat(case["timestamp"]),
        **{name: case.get(name, "") for name in DIMENSIONS},
    )


def _rates(card: RateCard) -> dict[str, tuple[object, ...]]:
    return {
        rate.meter: (
            rate.price,
            rate.per,
            [(tier.above, tier.inclusive, tier.price) for tier in rate.tiers],
            rate.minimum,
        )
        for rate in card.rates
    }


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_the_catalog_gives_the_published_price(case: dict[str, Any]) -> None:
    chosen = PriceBook([load_catalog()]).choose(_record(case))
    assert chosen is not None
    card, fallbacks = chosen[0].card, chosen[1]
    found = _rates(card)
    for rate in case["rates"]:
        tiers = [
            (tier["above"], tier.get("inclusive", False), Decimal(tier["price"]))
            for tier in rate.get("tiers", [])
        ]
        expected = (Decimal(rate["price"]), rate["per"], tiers, rate.get("minimum", 0))
        assert found[rate["meter"]] == expected, rate["meter"]
    multipliers = [(each.kind, each.value) for each in card.multipliers]
    assert multipliers == [(each["kind"], Decimal(each["value"])) for each in case.get("multipliers", [])]
    # Azure lists no price of its own for what it resells; every other case is priced as asked for.
    assert fallbacks == (("provider",) if case["provider"] == "azure" else ())


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["name"]) for case in CASES if case["provider"] != "azure"]
)
def test_the_cards_of_a_model_select_without_a_price_book(case: dict[str, Any]) -> None:
    cards = load_catalog().cards(case["provider"], case["model_id"])
    selection = select_card(cards, PriceQuery.of(_record(case)))
    chosen = PriceBook([load_catalog()]).choose(_record(case))
    assert selection is not None
    assert chosen is not None
    assert selection == (chosen[0].card, chosen[1])
    assert selection.card.origin is PriceOrigin.CATALOG
    second = case["source"] == "litellm 1.110.2"
    assert selection.card.origin_version == (case["source"] if second else load_catalog().version)
    assert selection.card.source_url.startswith("https://")
