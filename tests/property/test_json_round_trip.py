"""JSON keeps what it was given: every type, unknown fields and enum values, and exact decimals."""

from __future__ import annotations

import decimal
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm_cost_ops._gen.codecs
import llm_cost_ops._gen.validators
import llm_cost_ops.wire.json
from llm_cost_ops._gen.messages import BatchReceipt, BatchSubmitUsageResponse, SubmitResult, UsageReceipt
from llm_cost_ops.wire.decimals import from_json_number, from_text, plain
from llm_cost_ops.wire.errors import DecodeError
from llm_cost_ops.wire.json import encode_exactly
from tests.generated import descriptors, generated
from tools.codegen.kinds import KINDS, RANGES
from tools.codegen.model import read_package
from tools.codegen.nodes import Field, Message, Package, Type

OURS = [f"llm_cost_ops/v1/{name}.proto" for name in ("usage", "pricing", "analytics", "health")]
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
DECIMALS = st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places),
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.integers(0, 18),
)
TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))
PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e6, 1e6) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "float": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "bool": st.booleans(),
    "string": TEXT,
    "bytes": st.binary(max_size=8),
    "decimal": DECIMALS,
    "raw_json": st.dictionaries(TEXT, PLAIN_JSON, max_size=3),
    "timestamp": TIMES,
    "duration": st.timedeltas(timedelta(0), timedelta(days=1000)),
    "struct": st.dictionaries(TEXT, PLAIN_JSON, max_size=3),
    "value": PLAIN_JSON,
    "list_value": st.lists(PLAIN_JSON, max_size=3),
    **{
        name: st.integers(*RANGES[kind.annotation])
        for name, kind in KINDS.items()
        if kind.annotation in RANGES
    },
}


def values(type_: Type, module: ModuleType, depth: int) -> st.SearchStrategy[Any]:
    if type_.message is not None:
        return messages(type_.message, module, depth + 1)
    if type_.enum is not None:
        enum = getattr(module, type_.enum.name)
        unknown = st.from_regex("[a-z]{3}_[0-9]", fullmatch=True) | st.integers(50, 99).map(str)
        return st.sampled_from(list(enum)) | unknown.map(enum)
    return SCALARS[type_.wrapped or type_.kind]


def field_values(field: Field, module: ModuleType, depth: int) -> st.SearchStrategy[Any]:
    one = values(field.type, module, depth)
    if field.cardinality == "repeated":
        return st.lists(one, max_size=2)
    if field.cardinality == "map":
        assert field.key is not None
        return st.dictionaries(SCALARS[field.key.kind], one, max_size=2)
    return one


def messages(message: Message, module: ModuleType, depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages with some of their fields set; of a oneof the first that was drawn."""

    def build(drawn: dict[str, Any]) -> Any:
        for group in message.oneofs.values():
            for extra in [f.attribute for f in group if f.attribute in drawn][1:]:
                del drawn[extra]
        return getattr(module, message.name)(**drawn)

    deep = [f for f in message.flat if depth < 3 or f.type.message is None]
    return st.fixed_dictionaries(
        {}, optional={f.attribute: field_values(f, module, depth) for f in deep}
    ).map(build)


@cache
def package(which: str) -> tuple[Package, Any]:
    if which == "ours":
        return read_package(descriptors(*OURS).file, ["llm_cost_ops.v1"]), llm_cost_ops._gen
    proto = f"{which}.proto"
    return read_package(descriptors(proto).file, [f"{which}.v1"]), generated(proto, f"{which}.v1")


def codec_messages(which: str, *names: str) -> st.SearchStrategy[tuple[Any, Any]]:
    model, module = package(which)
    by_name = {m.name: m for m in model.messages if not names or m.name in names}
    return st.sampled_from(sorted(by_name)).flatmap(
        lambda name: st.tuples(
            st.just(getattr(module.codecs, by_name[name].constant)), messages(by_name[name], module.messages)
        )
    )


def rules_of(which: str, codec: Any) -> Any:
    """The generated function that validates the messages of a codec."""
    model, module = package(which)
    [message] = [each for each in model.messages if each.name == codec.type.__name__]
    return getattr(module.validators, f"validate_{message.snake}")


@pytest.mark.parametrize("which", ["ours", "everything", "oddities"])
def test_what_is_written_is_read(which: str) -> None:
    @given(codec_messages(which))
    def check(drawn: tuple[Any, Any]) -> None:
        codec, message = drawn
        data = codec.encode_json(message)
        again = codec.decode_json(data)
        assert again == message
        assert codec.encode_json(again) == data

    check()


@given(
    codec_messages("ours", "UsageRecord", "BatchSubmitUsageRequest", "ListUsageResponse"),
    st.dictionaries(st.from_regex("new_[a-z]{1,5}", fullmatch=True), PLAIN_JSON, min_size=1, max_size=3),
)
def test_unknown_fields_come_back(drawn: tuple[Any, Any], extra: dict[str, Any]) -> None:
    codec, message = drawn

    def widen(value: Any) -> Any:
        if isinstance(value, list):
            return [widen(each) for each in value]
        if isinstance(value, dict):
            return {
                k: v if k in {"metadata", "labels", "meters"} else widen(v) for k, v in value.items()
            } | extra
        return value

    sent = widen(json.loads(codec.encode_json(message)))
    for free in ("metadata", "labels", "meters"):
        if isinstance(sent.get(free), dict):
            sent[free] = json.loads(codec.encode_json(message)).get(free)
    again = json.loads(codec.encode_json(codec.decode_json(json.dumps(sent).encode())))
    assert again == sent


@given(DECIMALS, st.sampled_from(["reported_cost", "estimated_cost"]))
def test_decimals_are_plain_and_exact(value: Decimal, field: str) -> None:
    codecs = llm_cost_ops._gen.codecs
    data = codecs.USAGE_RECORD.encode_json(codecs.USAGE_RECORD.type(**{field: value}))
    text = json.loads(data)[field]
    assert "e" not in text.lower()
    assert Decimal(text) == value
    number = data.replace(b'"' + text.encode() + b'"', text.encode())
    for sent in (data, number):
        assert getattr(codecs.USAGE_RECORD.decode_json(sent), field) == value


@given(
    st.decimals(allow_nan=True, allow_infinity=True)
    | st.builds(Decimal, st.from_regex("[0-9]{1,3}E[+-]?[0-9]{1,9}", fullmatch=True))
)
def test_what_has_a_plain_form_is_read_from_it(value: Decimal) -> None:
    try:
        text = plain(value)
    except ValueError:
        return
    assert from_text(text) == value == from_json_number(text)


FALSE_COSTS = [
    "1E-9",
    '"estimated_cost":"1E-9"',
    '","estimated_cost":"1E-9',
    "estimated_cost",
    "\\",
    ":",
    "é",
]
RECEIPTS = st.builds(
    UsageReceipt,
    usage_id=st.sampled_from(FALSE_COSTS),
    organization_id=st.lists(st.sampled_from(FALSE_COSTS), max_size=3).map("".join),
    estimated_cost=st.none() | st.decimals("-0.001", "0.001", places=12),
    currency=st.sampled_from(["", "USD"]),
)


@given(st.lists(RECEIPTS, max_size=5))
def test_tiny_costs_of_a_batch_are_plain_as_each_would_be_by_itself(receipts: list[UsageReceipt]) -> None:
    answer = BatchSubmitUsageResponse(
        data=BatchReceipt(results=[SubmitResult(usage=each) for each in receipts])
    )
    expected = encode_exactly(answer)
    with mock.patch.object(llm_cost_ops.wire.json, "encode_exactly", side_effect=AssertionError):
        assert llm_cost_ops._gen.codecs.BATCH_SUBMIT_USAGE_RESPONSE.encode_json(answer) == expected


@given(st.decimals(allow_nan=True, allow_infinity=True, places=None) | st.decimals("-1", "1", places=9))
def test_the_plain_form_is_in_no_context_with_an_exponent(value: Decimal) -> None:
    with decimal.localcontext(decimal.Context(capitals=0, prec=2)):
        try:
            text = plain(value)
        except ValueError:
            return
    zeros = value.as_tuple().exponent
    assert isinstance(zeros, int)
    shown = format(value, "f") if value or zeros <= 0 else "0"
    assert text == shown or (zeros < -18 and text == shown.rstrip("0").rstrip("."))


@given(st.binary(max_size=60) | TEXT.map(str.encode))
def test_garbage_is_a_decode_error_or_a_message(data: bytes) -> None:
    codecs = llm_cost_ops._gen.codecs
    for codec in (codecs.USAGE_RECORD, codecs.BATCH_SUBMIT_USAGE_REQUEST):
        try:
            assert isinstance(codec.decode_json(data), codec.type)
        except DecodeError:
            pass


@given(codec_messages("ours", "BatchSubmitUsageRequest"), st.data())
def test_damaged_json_is_a_decode_error_or_a_message(drawn: tuple[Any, Any], data: st.DataObject) -> None:
    codec, message = drawn
    text = bytearray(codec.encode_json(message))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.integers(0, 255))
    try:
        rules_of("ours", codec)(codec.decode_json(bytes(text)), "", [])
    except DecodeError:
        pass


@given(st.sampled_from(["everything", "oddities"]), st.data())
def test_what_has_the_right_types_is_valid_but_for_rules(which: str, data: st.DataObject) -> None:
    codec, message = data.draw(codec_messages(which, *(m.name for m in package(which)[0].checked)))
    found: list[Any] = []
    rules_of(which, codec)(message, "at", found)
    # Of words that an enum does not have "must be one of" is said.
    rules = (
        "is required",
        "must not have control",
        "must have at most",
        "or more",
        "or less",
        "must be one of",
    )
    assert [v for v in found if not any(words in v.description for words in rules)] == []
    assert all(v.field.startswith("at.") for v in found)
