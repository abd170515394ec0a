"""Keys that come twice in an object are found wherever they are, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops._gen import methods
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.wire.errors import DecodeError
from llm_cost_ops.wire.json_keys import repeated_keys
from tests.property.test_json_round_trip import PLAIN_JSON, codec_messages


class Pairs(tuple[tuple[str, Any], ...]):
    """A JSON object, in which a name may come twice."""

    __slots__ = ()


NAMES = st.sampled_from(["a", "b:c", 'd":', "\\e", "é", "f.g", ""])
VALUES = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", "x", "12:30", '"a": 1', "\\", "\u2028"]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=4).map(Pairs),
    max_leaves=8,
)
LAYOUTS = st.tuples(st.sampled_from([",", " , "]), st.sampled_from([":", " : ", ": "]), st.booleans())


def text_of(value: Any, layout: tuple[str, str, bool]) -> str:
    comma, colon, ascii_only = layout
    if isinstance(value, Pairs):
        return "{" + comma.join(text_of(n, layout) + colon + text_of(v, layout) for n, v in value) + "}"
    if isinstance(value, list):
        return "[" + comma.join(text_of(each, layout) for each in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def twice(value: Any, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    """What is there to be found, by brute force."""
    pairs = value if isinstance(value, Pairs) else enumerate(value) if isinstance(value, list) else ()
    found, seen = set(), set()
    for step, each in pairs:
        if step in seen:
            found.add((*path, step))
        seen.add(step)
        found |= twice(each, (*path, step))
    return found


@given(VALUES, LAYOUTS)
def test_all_repeated_keys_are_found(value: Any, layout: tuple[str, str, bool]) -> None:
    data = text_of(value, layout).encode()
    there = twice(value)
    decoded = msgspec.json.encode(msgspec.json.decode(data))
    for found in (repeated_keys(data), repeated_keys(data, decoded)):
        assert there.issuperset(found)
        # One for each element at the top.
        assert sorted(map(str, {path[:2] for path in there})) == sorted(str(path[:2]) for path in found)


def pairs_of(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((name, pairs_of(each)) for name, each in value.items())
    return [pairs_of(each) for each in value] if isinstance(value, list) else value


def objects_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [found for step, each in pairs for found in objects_in(each, (*path, step))]
    return [path, *inner] if isinstance(value, dict) and value else inner


def with_repeated(value: Any, path: tuple[Any, ...], name: str, other: Any) -> Any:
    if not path:
        return Pairs((*value, (name, other)))
    if isinstance(value, list):
        return [with_repeated(v, path[1:], name, other) if i == path[0] else v for i, v in enumerate(value)]
    return Pairs((n, with_repeated(v, path[1:], name, other) if n == path[0] else v) for n, v in value)


@given(
    codec_messages("ours", "UsageRecord", "CreatePriceRequest", "BatchSubmitUsageRequest"),
    st.dictionaries(st.from_regex("new_[a-z]", fullmatch=True), PLAIN_JSON, max_size=1),
    LAYOUTS,
    st.data(),
)
def test_messages_with_a_key_twice_are_refused_and_others_are_not(
    drawn: tuple[Any, Any], unknown: dict[str, Any], layout: tuple[str, str, bool], data: st.DataObject
) -> None:
    codec, message = drawn
    value = {**json.loads(codec.encode_json(message)), **unknown}
    good = text_of(pairs_of(value), layout).encode()
    assert codec.decode_json(good, unique=True) == codec.decode_json(good)
    places = objects_in(value)
    if not places:
        return
    path = data.draw(st.sampled_from(places))
    inner = value
    for step in path:
        inner = inner[step]
    name = data.draw(st.sampled_from(sorted(inner)))
    other = data.draw(st.sampled_from([pairs_of(inner[name]), None, ""]))
    bad = text_of(with_repeated(pairs_of(value), path, name, other), layout).encode()
    try:
        read = codec.decode_json(bad, unique=True)
    except DecodeError:
        return
    # Only records of a batch are refused one by one.
    assert path[:1] == ("records",)
    for index, (record, alone) in enumerate(zip(read.records, codec.decode_json(good).records, strict=True)):
        if index == path[1]:
            assert record.unknown_.error
        else:
            assert record == alone


@pytest.mark.parametrize("method", [m for m in vars(methods).values() if isinstance(m, MethodDescriptor)])
def test_what_requests_hold_omits_its_defaults(method: MethodDescriptor[Any, Any]) -> None:
    """What did not come must not be written, or the colons could not be compared."""

    def check(info: Any) -> None:
        if isinstance(info, msgspec.inspect.StructType):
            assert info.cls.__struct_config__.omit_defaults, info.cls
            for field in info.fields:
                check(field.type)
        inner = [getattr(info, part) for part in ("item_type", "value_type") if hasattr(info, part)]
        for each in (*inner, *getattr(info, "types", ())):
            check(each)

    check(msgspec.inspect.type_info(method.request.type))
