"""google.protobuf's wrappers: messages around one value, which is then there or not: in Python, T or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_cost_ops.wire.fields import walk
from llm_cost_ops.wire.varint import (
    DOUBLE,
    FLOAT,
    int32,
    int64,
    read_varint,
    to_int32,
    uint32,
    uint64,
    varint,
)

__all__ = ["read_wrapper", "write_wrapper"]


def _number(settle: Callable[[int], Any]) -> Callable[[bytes, int, int], Any]:
    return lambda data, start, _: settle(read_varint(data, start)[0])


# By type: the tag of the value, what writes it, what reads it, and what it is when it is left out.
_WRAPPED: dict[str, tuple[int, Callable[[Any], bytes], Callable[[bytes, int, int], Any], Any]] = {
    "double": (9, DOUBLE.pack, lambda data, start, _: DOUBLE.unpack_from(data, start)[0], 0.0),
    "float": (13, FLOAT.pack, lambda data, start, _: FLOAT.unpack_from(data, start)[0], 0.0),
    "int64": (8, int64, _number(lambda n: n - 2**64 if n >= 2**63 else n), 0),
    "uint64": (8, uint64, _number(int), 0),
    "int32": (8, int32, _number(to_int32), 0),
    "uint32": (8, uint32, _number(lambda n: n & 0xFFFFFFFF), 0),
    "bool": (8, lambda value: b"\x01" if value else b"\x00", _number(bool), False),
    "string": (10, str.encode, lambda data, start, stop: data[start:stop].decode(), ""),
    "bytes": (10, lambda value: value + b"", lambda data, start, stop: data[start:stop], b""),
}


def write_wrapper(kind: str, value: object) -> bytes:
    """The payload of the wrapper of a type such as "int64". Raises EncodeError for what does not fit it."""
    tag, write, _, default = _WRAPPED[kind]
    data = write(value)
    if data == write(default):
        return b""
    return bytes([tag]) + (varint(len(data)) if tag == 10 else b"") + data


def read_wrapper(kind: str, data: bytes, pos: int, end: int, earlier: object) -> object:
    """The value that a wrapper's payload holds; without one, that of an earlier part of the same message."""
    tag, _, read, value = _WRAPPED[kind]
    if earlier is not None:
        value = earlier
    for found, start, stop in walk(data, pos, end):
        if found == tag:
            value = read(data, start, stop)
    return value
