"""The limits of counts are numbers in the protocol, where every client can read them."""

from __future__ import annotations

from llm_cost_ops.service.pages import MAX_LABELS
from tests.generated import descriptors
from tools.codegen.model import read_package

MAX_COUNT = 10**12
# They are no counts of what is billed.
_DURATIONS = {"latency_ms", "time_to_first_token_ms"}


def test_every_count_of_a_record_has_its_limit() -> None:
    files = descriptors("llm_cost_ops/v1/usage.proto").file
    package = read_package(files, ["llm_cost_ops.v1"])
    found = {
        field.name: field.options.rules.maximum
        for message in package.messages
        if message.name in ("UsageRecord", "ModalityTokens")
        for field in message.fields
        if field.type.kind == "int64" and field.name not in _DURATIONS
    }
    assert len(found) == 17
    assert found.pop("total_tokens") == 2 * MAX_COUNT, "the sum of two counts"
    assert set(found.values()) == {MAX_COUNT}


def test_a_filter_may_have_as_many_labels_as_a_record() -> None:
    files = descriptors("llm_cost_ops/v1/usage.proto").file
    package = read_package(files, ["llm_cost_ops.v1"])
    [record] = [message for message in package.messages if message.name == "UsageRecord"]
    [labels] = [field for field in record.fields if field.name == "labels"]
    assert labels.options.rules.max_items == MAX_LABELS
