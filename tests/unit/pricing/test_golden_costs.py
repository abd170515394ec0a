"""Every golden cost comes out to the last digit, by the full calculation and by the integer path."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops._gen.messages import CostRecord
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.pricing.calculator import calculate_cost
from llm_cost_ops.pricing.money import to_units
from llm_cost_ops.pricing.pricebook import CompiledCard, PriceBook
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.rules.requests import check_usage
from tests.unit.pricing.cards import card_of, record_of

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "costs.json").read_text(encoding="utf-8")
)["cases"]
PRICED = [pytest.param(case, id=case["name"]) for case in CASES if "cost" in case]
REFUSED = [pytest.param(case, id=case["name"]) for case in CASES if "violations" in case]


def _lines(cost: CostRecord) -> list[dict[str, Any]]:
    return [
        {
            "meter": line.meter,
            "quantity": f"{line.quantity:f}",
            "rate_meter": line.rate_meter,
            "unit_price": None if line.unit_price is None else f"{line.unit_price:f}",
            "per": line.per,
            "multiplier": f"{line.multiplier:f}",
            "cost": f"{line.cost:f}",
        }
        for line in cost.lines
        if line.priced
    ]


def test_all_cases_are_here() -> None:
    assert len(CASES) == 62
    assert len(PRICED) + len(REFUSED) == 62


@pytest.mark.parametrize("case", PRICED)
def test_the_cost_is_exact(case: dict[str, Any]) -> None:
    record, expected = record_of(case["record"]), case["cost"]
    violations: list[Violation] = []
    check_usage(record, "", violations)
    assert violations == []

    cost = calculate_cost(record, card_of(case["card"]))
    assert cost.status == expected["status"]
    parts = (cost.total_cost, cost.input_cost, cost.output_cost, cost.other_cost)
    shown = [None if part is None else f"{part:f}" for part in parts]
    assert shown == [expected[name] for name in ("total", "input", "output", "other")]
    assert [line.meter for line in cost.lines if not line.priced] == expected.get("unpriced", [])
    if "lines" in expected:
        assert _lines(cost) == expected["lines"]


@pytest.mark.parametrize("case", PRICED)
def test_every_way_to_price_agrees(case: dict[str, Any]) -> None:
    record, card = record_of(case["record"]), card_of(case["card"])
    card.provider, card.model_id = record.provider, record.model_id
    expected = to_units(Decimal(case["cost"]["total"]))
    assert CompiledCard(card).total(record) == (expected, case["cost"]["status"])
    priced = PriceBook(cards=[card]).price(record)
    # The cards of these cases set no dimensions: what a record was served with falls back to them.
    estimated = bool(priced.by.fallbacks) and case["cost"]["status"] == "priced"
    assert priced.units == expected
    assert priced.by.status == ("estimated" if estimated else case["cost"]["status"])


@pytest.mark.parametrize("case", REFUSED)
def test_a_contradiction_is_refused(case: dict[str, Any]) -> None:
    record, card = record_of(case["record"]), card_of(case["card"])
    violations: list[Violation] = []
    check_usage(record, "", violations)
    assert [violation.field for violation in violations] == case["violations"]
    with pytest.raises(ValidationError) as caught:
        calculate_cost(record, card)
    assert list(caught.value.violations) == violations
    with pytest.raises(ValidationError):
        CompiledCard(card).total(record)
