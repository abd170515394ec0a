"""What generated codecs do outside their straight line: unknown fields, odd tags, and errors with a path."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET

from llm_cost_ops.wire.errors import DecodeError, EncodeError
from llm_cost_ops.wire.unknown import Unknown
from llm_cost_ops.wire.varint import int32, read_varint, to_int32, varint

if TYPE_CHECKING:
    from msgspec import UnsetType

    from llm_cost_ops.wire.open_enum import OpenEnum

__all__ = [
    "DECODE_FAULTS",
    "ENCODE_FAULTS",
    "MAX_NESTED",
    "canonicalize_tags",
    "decode_error",
    "encode_error",
    "enum_members",
    "enum_varint",
    "enum_varints",
    "keep_unknown",
    "one_of",
    "read_entry",
    "read_enum",
    "read_flattened",
    "read_text_entry",
    "skip_field",
    "skip_unknown",
    "walk",
]

E = TypeVar("E", bound="OpenEnum")

MAX_NESTED = 100
"""How deep messages and groups may lie in each other: what all protobuf libraries take."""

# What a straight line of indexing, slicing and unpacking raises on bytes, or values, of another kind.
DECODE_FAULTS = (IndexError, ValueError, struct.error)
ENCODE_FAULTS = (AttributeError, TypeError, ValueError, ArithmeticError, RecursionError, struct.error)


def skip_unknown(
    data: bytes, pos: int, end: int, known: Collection[int], kept: list[bytes]
) -> tuple[bytes, int, int]:
    """Keep the field that starts at `pos`, of which generated code made nothing.

    Gives the data, the position and the end to go on with: others where a field is one of the `known` tags
    after all, in a longer spelling than it needs.
    """
    stop = skip_field(data, pos, end, known)
    if stop < 0:
        data = canonicalize_tags(data, pos, end, known)
        return data, 0, len(data)
    kept.append(data[pos:stop])
    return data, stop, end


def skip_field(data: bytes, pos: int, end: int, known: Collection[int]) -> int:
    """The position after the field that starts at `pos`, of which generated code made nothing.

    -1 where it is one of the `known` tags after all, but in a longer spelling than it needs.
    """
    tag, at = _read_tag(data, pos)
    if tag in known:
        return -1
    at = _skip_value(data, at, end, tag)
    if at > end:
        raise DecodeError("the data ends within a field")
    return at


def canonicalize_tags(data: bytes, pos: int, end: int, known: Collection[int]) -> bytes:
    """The data from `pos` to `end`, with the tags among `known` in their shortest form."""
    pieces: list[bytes] = []
    for tag, start, stop in walk(data, pos, end):
        if tag in known:
            pieces += varint(tag), varint(stop - start) if tag & 7 == 2 else b"", data[start:stop]
        else:
            pieces.append(data[pos:stop])
        pos = stop
    return b"".join(pieces)


def walk(data: bytes, pos: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each field from `pos` to `end`: its tag, and where its value (without a length) starts and stops.

    Raises DecodeError, or IndexError past the data, when it comes to what is no field.
    """
    while pos < end:
        tag, start = _read_tag(data, pos)
        pos = _skip_value(data, start, end, tag)
        if pos > end:
            raise DecodeError("the data ends within a field")
        if tag & 7 == 2:
            start = read_varint(data, start)[1]
        yield tag, start, pos


def _read_tag(data: bytes, pos: int) -> tuple[int, int]:
    tag, at = read_varint(data, pos)
    if tag > 0xFFFFFFFF or at - pos > 5:
        raise DecodeError("a tag has more than 32 bits")
    if tag < 8:
        raise DecodeError("a field has the number 0")
    return tag, at


def _skip_value(data: bytes, pos: int, end: int, tag: int) -> int:
    """The position after a value; a group ends with the tag that closes it."""
    wire_type = tag & 7
    if wire_type == 0:
        return read_varint(data, pos)[1]
    if wire_type == 1:
        return pos + 8
    if wire_type == 2:
        length, pos = read_varint(data, pos)
        return pos + length
    if wire_type == 5:
        return pos + 4
    if wire_type == 3:
        return _skip_group(data, pos, end, tag)
    raise DecodeError("a group ends that did not begin" if wire_type == 4 else f"wire type {wire_type}")


def _skip_group(data: bytes, pos: int, end: int, tag: int) -> int:
    opened = [tag]
    while opened:
        if pos >= end:
            raise DecodeError("the data ends within a group")
        tag, pos = _read_tag(data, pos)
        if tag & 7 == 3:
            opened.append(tag)
            if len(opened) > MAX_NESTED:
                raise DecodeError(f"groups lie more than {MAX_NESTED} deep")
        elif tag & 7 == 4:
            if opened.pop() != tag - 1:
                raise DecodeError("a group ends with the number of another")
        else:
            pos = _skip_value(data, pos, end, tag)
    return pos


def read_entry(data: bytes, pos: int, end: int, key: int, item: int, merged: bool) -> tuple[bytes, bytes]:
    """What a map's entry has as `key` and as `item`, by their tags: the bytes of both, empty without one.

    Where one comes twice the last counts; the parts of a message are `merged`, in their order.
    """
    if key == 10 and end - pos > 3 and data[pos] == 10:
        # A short text, and another or a number: nearly every entry.
        size = data[pos + 1]
        at = pos + 2 + size
        if size < 128 and at + 1 < end and data[at] == item:
            if item == 18 and data[at + 1] == end - at - 2 < 128:
                return data[pos + 2 : at], data[at + 2 : end]
            if item == 16 and read_varint(data, at + 1)[1] == end:
                return data[pos + 2 : at], data[at + 1 : end]
    found, items = b"", [b""]
    for tag, start, stop in walk(data, pos, end):
        if tag == key:
            found = data[start:stop]
        elif tag == item:
            items.append(data[start:stop])
    return found, b"".join(items) if merged else items[-1]


# The labels of one record are mostly those of another.
_MAX_TEXT_ENTRIES = 1024
_MAX_TEXT_ENTRY = 256
_text_entries: dict[bytes, tuple[str, str]] = {}


def read_text_entry(data: bytes) -> tuple[str, str]:
    """The key and the value of a map's entry, both of them strings."""
    entry = _text_entries.get(data)
    if entry is None:
        key, value = read_entry(data, 0, len(data), 10, 18, False)
        entry = key.decode(), value.decode()
        if len(data) <= _MAX_TEXT_ENTRY:
            if len(_text_entries) >= _MAX_TEXT_ENTRIES:
                _text_entries.clear()
            _text_entries[data] = entry
    return entry


def keep_unknown(unknown: Unknown | UnsetType, fields: list[bytes]) -> Unknown:
    """The `unknown_` slot with some more unknown fields."""
    if not isinstance(unknown, Unknown):
        return Unknown(b"".join(fields))
    # A message may come in any number of parts, each of which adds to what the ones before left. Only a
    # bytearray grows without being copied each time; it equals the same bytes.
    grown: Any = unknown.binary
    if not isinstance(grown, bytearray):
        grown = bytearray(grown)
        unknown.binary = grown
    grown += b"".join(fields)
    return unknown


def one_of(*members: object) -> None:
    """Raise EncodeError where more than one member of a oneof is set."""
    if len(members) - members.count(None) > 1:
        raise EncodeError("only one of its members may be set")


def enum_varints(enum: type[OpenEnum]) -> dict[str, bytes]:
    """The varint of each value of an enum."""
    return {member: int32(member.number) for member in enum if member.number is not None}


def enum_members(enum: type[E]) -> dict[int, E]:
    """The member for each number of an enum."""
    return {member.number: member for member in enum if member.number is not None}


def enum_varint(enum: type[OpenEnum], value: str) -> bytes:
    """The varint of a value that the enum's table lacks: of an unknown number such as "99"."""
    number = enum(value).number
    if number is None:
        raise EncodeError(f"{str(value)!r} has no number in this version, without which gRPC can't carry it")
    return int32(number)


def read_enum(enum: type[E], members: dict[int, E], n: int) -> E:
    """The member for a varint that the enum's table lacks: negative, too large, or unknown."""
    number = to_int32(n)
    return members.get(number) or enum(str(number))


def read_flattened(
    read: Callable[[bytes, int, int, int, Any], object],
    tag: bytes,
    data: bytes,
    start: int,
    stop: int,
    depth: int,
    message: Any,
) -> None:
    """Read a flattened message from `start` to `stop` into the one whose class inherits it.

    Its unknown fields are kept after their `tag`, as a further part of it: numbers mean other fields here.
    """
    before, message.unknown_ = message.unknown_, UNSET
    read(data, start, stop, depth, message)
    inner, message.unknown_ = message.unknown_, before
    if inner:
        part = inner.binary
        message.unknown_ = keep_unknown(before, [tag, varint(len(part)), part])


def decode_error(error: Exception, message: object, name: tuple[str, str], truncated: bool) -> DecodeError:
    """The DecodeError to raise when a field could not be read.

    `name` is the field's path and, if it is a list, the attribute that holds what was read before. A field
    that was not known is ("", "").
    """
    path, items = name
    if items:
        path = f"{path}[{len(getattr(message, items))}]"
    if isinstance(error, DecodeError):
        if path:
            error.within(path)
        return error
    if isinstance(error, UnicodeDecodeError) and not truncated:
        return DecodeError("is not UTF-8", path)
    if isinstance(error, (IndexError, struct.error)) or truncated:
        return DecodeError("the data ends within the field" if path else "the data ends within a field", path)
    return DecodeError(str(error), path)


def encode_error(error: Exception, path: str, index: int) -> EncodeError:
    """The EncodeError to raise when a field could not be written; an index of -1 means no list's."""
    if index >= 0:
        path = f"{path}[{index}]"
    if isinstance(error, EncodeError):
        if path:
            error.within(path)
        return error
    if isinstance(error, RecursionError):
        return EncodeError("messages lie in each other without end", path)
    if isinstance(error, UnicodeEncodeError):
        return EncodeError("has half of a surrogate pair, which UTF-8 lacks", path)
    if isinstance(error, ValueError):
        return EncodeError(str(error), path)
    return EncodeError(f"has a value of the wrong type or range ({error})", path)
