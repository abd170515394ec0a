"""Every golden choice of a card, whatever the order of the cards."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.pricing.selection import PriceQuery, select_card
from tests.unit.pricing.cards import card_of, make_usage, moment

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "selections.json").read_text(encoding="utf-8")
)["cases"]


def test_all_cases_are_here() -> None:
    assert len(CASES) == 18


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_the_right_card_is_chosen(case: dict[str, Any]) -> None:
    query = PriceQuery(**{**case["query"], "at": moment(case["query"]["at"])})
    for facts in itertools.permutations(case["cards"]):
        found = select_card([card_of(each) for each in facts], query)
        assert (found.card.id if found else None) == case["card"]
        assert list(found.fallbacks if found else ()) == case["fallbacks"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_a_price_book_chooses_the_same(case: dict[str, Any]) -> None:
    query = dict(case["query"])
    at = moment(query.pop("at"))
    record = make_usage(**{"organization_id": "", **query}, timestamp=at)
    book = PriceBook(cards=[card_of(each) for each in case["cards"]])
    for _ in range(2):
        found = book.choose(record)
        assert (found[0].card.id if found else None) == case["card"]
        assert list(found[1] if found else ()) == case["fallbacks"]
