"""A bad field is named once, whatever it holds, and whatever is wrong beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from llm_cost_ops._gen.messages import (
    CreatePriceRequest,
    ModalityTokens,
    Operation,
    PriceMultiplier,
    Rate,
    TimeWindow,
    UsageRecord,
)
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.rules.requests import CHECKS, check_record
from tests.calls import new_context

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CONTEXT = new_context(SyncRuntime())
RECORD = UsageRecord(
    organization_id="a",
    provider="openai",
    model_id="gpt-4o",
    input_tokens=100,
    output_tokens=100,
    total_tokens=200,
    cached_tokens=10,
    cache_write_tokens=10,
    cache_write_extended_tokens=5,
    reasoning_tokens=10,
    timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    operation=Operation.CHAT,
    modality=ModalityTokens(input_audio_tokens=10),
    meters={"pages": 1},
    labels={"team": "search"},
    tags=["a"],
    metadata={"a": [1, {"b": None}]},
    trace_id="0" * 32,
    reported_cost=Decimal("0.1"),
    reported_currency="USD",
    request_count=1,
)
CARD = CreatePriceRequest(
    provider="p",
    model_id="m",
    effective_date="2026-01-01",
    currency="USD",
    rates=[Rate(meter="INPUT", price=Decimal(1))],
    windows=[TimeWindow(start="01:00", end="02:00", time_zone="UTC")],
    multipliers=[PriceMultiplier(kind="region", value=Decimal("1.1"))],
)
# Of every type, and of none that a message has; the lists and maps of the wrong things.
WRONG = st.sampled_from(
    [object(), b"x", {1, 2}, 1 + 2j, ["x", object()], {"a": object()}, [None], {"a b": "x\n"}]
)
RANGED = st.sampled_from(
    [-1, 2**63, 2**200, True, -1.5, float("nan"), Decimal("NaN"), "x\x00", "\ud800", "y" * 300]
)


def fields_of(message: Any) -> list[str]:
    return [name for name in message.__struct_fields__ if name != "unknown_"]


def spoiled(message: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(fields_of(message)), WRONG, min_size=1, max_size=3)


def broken(message: Any, path: str = "", **changes: Any) -> list[Violation]:
    changed = msgspec.structs.replace(message, **changes)
    violations: list[Violation] = []
    if isinstance(message, UsageRecord):
        check_record(changed, path, NOW, violations)
    else:
        CHECKS[CreatePriceRequest](changed, CONTEXT, violations, False)
    return violations


def root(violation: Violation) -> str:
    return violation.field.partition("[")[0].partition(".")[0]


def test_the_examples_are_good() -> None:
    assert broken(RECORD) == broken(CARD) == []


def check_each_once(message: Any, bad: dict[str, Any]) -> None:
    violations = broken(message, **bad)
    # Some are good in some field: any text is, in metadata.
    alone = {name for name, value in bad.items() if broken(message, **{name: value})}
    assert {*map(root, violations)} == alone
    assert len({field for field, _ in violations}) == len(violations)


@given(spoiled(RECORD))
@example({"metadata": {"a": object()}})
@example({"input_tokens": "x", "trace_id": "y", "reported_currency": "z", "metadata": {1: 1}})
@example({"modality": object(), "span_id": "y"})
def test_a_wrong_field_of_a_record_is_named_once(bad: dict[str, Any]) -> None:
    check_each_once(RECORD, bad)
    moved = [Violation(f"records[3].{field}", rule) for field, rule in broken(RECORD, **bad)]
    assert broken(RECORD, "records[3]", **bad) == moved


@given(spoiled(CARD))
@example({"windows": object(), "currency": "X", "aliases": ["a*b"], "multipliers": [PriceMultiplier()]})
@example({"rates": [Rate(price=Decimal(1))], "effective_date": object()})
def test_a_wrong_field_of_a_card_is_named_once(bad: dict[str, Any]) -> None:
    check_each_once(CARD, bad)


@given(st.sampled_from(fields_of(RECORD)), WRONG | RANGED)
@example("trace_id", "x\x00")
@example("cached_tokens", 2**63)
def test_one_bad_value_of_a_record_has_one_cause(name: str, value: Any) -> None:
    violations = broken(RECORD, **{name: value})
    assert len({field for field, _ in violations}) == len(violations), violations


@given(st.sampled_from(fields_of(CARD)), WRONG | RANGED)
def test_one_bad_value_of_a_card_has_one_cause(name: str, value: Any) -> None:
    violations = broken(CARD, **{name: value})
    assert len({field for field, _ in violations}) == len(violations), violations
