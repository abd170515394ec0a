"""The quick looks of the generated validators pass nothing that a look at each value would name."""

from __future__ import annotations

import enum
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops._gen.validators import validate_usage_record
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.wire.validation import check_text, entry


class Word(enum.StrEnum):
    TEAM = "team"


TEXTS = (
    st.text(st.sampled_from("aé日 \n\x7f\x85\u200b\ud800"), max_size=5)
    | st.integers(250, 258).map(lambda length: "x" * length)
    | st.sampled_from([None, 5, b"x", True, Word.TEAM])
)


def found(**fields: Any) -> list[Violation]:
    violations: list[Violation] = []
    record = UsageRecord(organization_id="acme", provider="openai", model_id="gpt-4o", **fields)
    validate_usage_record(record, "", violations)
    return violations


@given(st.dictionaries(TEXTS, TEXTS, max_size=70))
def test_a_map_that_is_looked_at_as_a_whole_has_the_faults_of_its_texts(labels: Any) -> None:
    expected: list[Violation] = []
    if len(labels) > 64:
        expected.append(Violation("labels", f"must have at most 64 items, not {len(labels)}"))
    else:
        for key, value in labels.items():
            check_text(key, entry("labels", key), expected, 255)
            check_text(value, entry("labels", key), expected, 255)
    assert found(labels=labels) == expected


@given(st.lists(TEXTS, max_size=70))
def test_a_list_that_is_looked_at_as_a_whole_has_the_faults_of_its_texts(tags: Any) -> None:
    expected: list[Violation] = []
    if len(tags) > 64:
        expected.append(Violation("tags", f"must have at most 64 items, not {len(tags)}"))
    else:
        for at, tag in enumerate(tags):
            check_text(tag, f"tags[{at}]", expected, 255)
    assert found(tags=tags) == expected


def test_many_short_texts_are_no_fault_though_together_they_are_longer_than_one_may_be() -> None:
    assert found(labels={f"key-{n:02}": "v" * 200 for n in range(64)}) == []
    assert found(tags=["v" * 200] * 64) == []


def test_texts_in_another_container_are_a_fault() -> None:
    assert [field for field, _ in found(tags={"a": "b"})] == ["tags"]
    assert [field for field, _ in found(tags=("a",))] == ["tags"]
    assert [field for field, _ in found(labels=["a", "b"])] == ["labels"]


def test_an_unset_enum_is_none_but_the_member_itself() -> None:
    assert found() == found(operation=Operation.UNSPECIFIED) == found(operation=Operation("99")) == []
    for wrong in ("", "chat", None, 0, Operation("no-such-operation")):
        assert [field for field, _ in found(operation=wrong)] == ["operation"], wrong


def test_a_record_of_a_class_of_the_callers_own_is_checked_by_the_fields_that_are_known() -> None:
    class Tagged(UsageRecord, kw_only=True):
        cost_center: int = 0

    violations: list[Violation] = []
    record = Tagged(organization_id="acme", provider="openai", model_id="", input_tokens=-1, cost_center=-5)
    validate_usage_record(record, "records[3]", violations)
    assert violations == [
        Violation("records[3].model_id", "is required"),
        Violation("records[3].input_tokens", "must be 0 or more, not -1"),
    ]
