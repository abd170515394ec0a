"""Random messages for the codec tests, made as google's objects."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from tests.property.wire_oracles import google_class

__all__ = ["messages"]

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_EDGES = [
    0,
    1,
    -1,
    127,
    128,
    16383,
    16384,
    2**21,
    2**28 - 1,
    2**28,
    2**31 - 1,
    -(2**31),
    2**42,
    2**63 - 1,
    -(2**63),
]
_TEXT = st.text(max_size=12) | st.text("aé\U0001f600", min_size=120, max_size=140)
_DECIMAL, _RAW_JSON, _FLATTEN = 50001, 50003, 50009
_DECIMALS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.integers(0, 10**18 - 1),
    st.just("") | st.text("0123456789", min_size=1, max_size=18).map(".{}".format),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def messages(draw: st.DrawFn, full_name: str, depth: int = 0) -> Any:
    """A message of a type, with any of its fields; times and durations are ones that Python can hold."""
    message = google_class(full_name)()
    fields = list(message.DESCRIPTOR.fields)
    chosen = (
        draw(st.lists(st.sampled_from(fields), max_size=6, unique_by=lambda f: f.number)) if fields else []
    )
    for field in chosen:
        if depth < 3 or field.message_type is None:
            _set(draw, message, field, depth)
    for field, value in message.ListFields():
        # An empty one is not written: in a class that inherits it, it can't differ from none.
        one = field.message_type is not None and not field.is_repeated
        if one and not value.ByteSize() and _FLATTEN in _options(field):
            message.ClearField(field.name)
    return message


def _set(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        target, value = getattr(message, field.name), inner.fields_by_name["value"]
        for key in draw(st.lists(_scalar(inner.fields_by_name["key"], field), max_size=3)):
            if value.message_type is None:
                target[key] = draw(_scalar(value, field))
            else:
                target[key].CopyFrom(draw(_message(value.message_type.full_name, depth)))
    elif field.is_repeated:
        each = _scalar(field, field) if inner is None else _message(inner.full_name, depth)
        getattr(message, field.name).extend(draw(st.lists(each, max_size=3)))
    elif inner is not None:
        getattr(message, field.name).CopyFrom(draw(_message(inner.full_name, depth)))
    else:
        setattr(message, field.name, draw(_scalar(field, field)))


def _scalar(field: FieldDescriptor, outer: FieldDescriptor) -> st.SearchStrategy[Any]:
    options = _options(outer)
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        numbers = st.sampled_from([edge for edge in _EDGES if low <= edge <= high]) | st.integers(low, high)
        if field.enum_type is not None:
            return st.sampled_from([value.number for value in field.enum_type.values]) | numbers
        return numbers
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        return st.floats(width=32)
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return st.floats()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=200)
    if _RAW_JSON in options:
        return st.dictionaries(_TEXT, _JSON, max_size=3).map(
            lambda value: msgspec.json.encode(value).decode()
        )
    if _DECIMAL in options and field is outer and not field.has_presence and not field.is_repeated:
        # Zero is the default, however it is written.
        return _DECIMALS.filter(lambda text: text.strip("-0.") != "")
    if _DECIMAL in options and field.name != "key":
        return _DECIMALS
    return _TEXT


@cache
def _options(field: FieldDescriptor) -> set[int]:
    """The numbers of a field's options; only the private pool knows our own."""
    given = google_class("google.protobuf.FieldOptions").FromString(field.GetOptions().SerializeToString())
    return {option.number for option, _ in given.ListFields()}


def _message(full_name: str, depth: int) -> st.SearchStrategy[Any]:
    cls = google_class(full_name)
    if full_name == "google.protobuf.Timestamp":
        seconds = st.sampled_from([-62135596800, -1, 0, 1, 253402300799]) | st.integers(
            -62135596800, 253402300799
        )
        return st.builds(
            lambda s, micros: cls(seconds=s, nanos=micros * 1000), seconds, st.integers(0, 999_999)
        )
    if full_name == "google.protobuf.Duration":
        return st.builds(
            _duration, st.just(cls), st.integers(-(10**17), 10**17) | st.integers(-(10**7), 10**7)
        )
    if full_name == "google.protobuf.Struct":
        return st.dictionaries(_TEXT, _JSON, max_size=3).map(lambda value: _updated(cls(), value))
    if full_name == "google.protobuf.ListValue":
        return st.lists(_JSON, max_size=3).map(lambda value: _extended(cls(), value))
    if full_name == "google.protobuf.Value":
        # In Python an absent Value and a null are both None.
        return _JSON.filter(lambda value: value is not None).map(lambda value: _value(cls(), value))
    return messages(full_name, depth + 1)


def _duration(cls: Any, micros: int) -> Any:
    seconds, rest = divmod(abs(micros), 1_000_000)
    sign = -1 if micros < 0 else 1
    return cls(seconds=sign * seconds, nanos=sign * rest * 1000)


def _updated(struct: Any, value: dict[str, Any]) -> Any:
    for name, item in value.items():
        _value(struct.fields[name], item)
    return struct


def _extended(listed: Any, value: list[Any]) -> Any:
    for item in value:
        _value(listed.values.add(), item)
    return listed


def _value(message: Any, value: Any) -> Any:
    if value is None:
        message.null_value = 0
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        message.number_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        _updated(message.struct_value, value)
    else:
        message.list_value.SetInParent()
        _extended(message.list_value, value)
    return message
