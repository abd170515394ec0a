"""Values of no fixed shape: google.protobuf.Struct, Value and ListValue, and strings that hold a JSON object.

Struct is a dict, ListValue a list; Value is None, bool, float, str, dict or list. Unknown fields in them are
dropped: there is no place to keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from llm_cost_ops.wire.errors import DecodeError, EncodeError
from llm_cost_ops.wire.fields import MAX_NESTED, walk
from llm_cost_ops.wire.varint import DOUBLE, read_varint, varint

__all__ = [
    "read_list_value",
    "read_raw_json",
    "read_struct",
    "read_value",
    "write_list_value",
    "write_raw_json",
    "write_struct",
    "write_value",
]

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def write_raw_json(value: Mapping[str, object]) -> bytes:
    """The JSON text of an object. Raises EncodeError for what JSON cannot say."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"cannot be JSON: {error}") from None


def read_raw_json(data: bytes) -> dict[str, object] | None:
    """The object that a JSON text holds, None for an empty text. Raises DecodeError for any other text."""
    if not data:
        return None
    try:
        return _decode_object(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"is not a JSON object: {error}") from None


def write_struct(value: Mapping[str, object]) -> bytes:
    """The payload of a Struct. Raises EncodeError for a value that has no place in it."""
    out = []
    for name, item in value.items():
        key = name.encode()
        inner = write_value(item)
        entry = b"\x0a%b%b\x12%b%b" % (varint(len(key)), key, varint(len(inner)), inner)
        out.append(b"\x0a" + varint(len(entry)) + entry)
    return b"".join(out)


def write_list_value(value: Sequence[object]) -> bytes:
    """The payload of a ListValue. Raises EncodeError for a value that has no place in it."""
    return b"".join([b"\x0a" + varint(len(inner)) + inner for inner in map(write_value, value)])


def write_value(value: object) -> bytes:
    """The payload of a Value. Raises EncodeError for what it has no kind for, or cannot hold exactly."""
    if value is None:
        return b"\x08\x00"
    if isinstance(value, bool):
        return b"\x20\x01" if value else b"\x20\x00"
    if isinstance(value, (int, float)):
        number = float(value)
        if isinstance(value, int) and number != value:
            raise EncodeError(f"has an integer that a double cannot hold: {value}")
        return b"\x11" + DOUBLE.pack(number)
    if isinstance(value, str):
        tag, data = b"\x1a", value.encode()
    elif isinstance(value, Mapping):
        tag, data = b"\x2a", write_struct(value)
    elif isinstance(value, (list, tuple)):
        tag, data = b"\x32", write_list_value(value)
    else:
        raise EncodeError(f"has a {type(value).__name__}, which has no place in a Struct")
    return tag + varint(len(data)) + data


def read_struct(
    data: bytes, pos: int, end: int, depth: int, earlier: dict[str, object] | None
) -> dict[str, object]:
    """The dict that a Struct's payload holds, added to an earlier part of the same message."""
    out = {} if earlier is None else earlier
    for tag, start, stop in _fields(data, pos, end, depth):
        if tag == 10:
            name, value = "", None
            for part, at, after in _fields(data, start, stop, depth):
                if part == 10:
                    name = data[at:after].decode()
                elif part == 18:
                    value = read_value(data, at, after, depth + 1, value)
            out[name] = value
    return out


def read_list_value(
    data: bytes, pos: int, end: int, depth: int, earlier: list[object] | None
) -> list[object]:
    """The list that a ListValue's payload holds, added to an earlier part of the same message."""
    out = [] if earlier is None else earlier
    for tag, start, stop in _fields(data, pos, end, depth):
        if tag == 10:
            out.append(read_value(data, start, stop, depth + 1, None))
    return out


def read_value(data: bytes, pos: int, end: int, depth: int, earlier: object) -> object:
    """What a Value's payload holds, None for no kind at all; it replaces or adds to an earlier part."""
    value = earlier
    for tag, start, stop in _fields(data, pos, end, depth):
        if tag == 8:
            value = None
        elif tag == 17:
            value = DOUBLE.unpack_from(data, start)[0]
        elif tag == 26:
            value = data[start:stop].decode()
        elif tag == 32:
            value = read_varint(data, start)[0] != 0
        elif tag == 42:
            value = read_struct(data, start, stop, depth + 1, value if isinstance(value, dict) else None)
        elif tag == 50:
            value = read_list_value(data, start, stop, depth + 1, value if isinstance(value, list) else None)
    return value


def _fields(data: bytes, pos: int, end: int, depth: int) -> Iterator[tuple[int, int, int]]:
    if depth > MAX_NESTED:
        raise DecodeError(f"messages lie more than {MAX_NESTED} deep")
    return walk(data, pos, end)
