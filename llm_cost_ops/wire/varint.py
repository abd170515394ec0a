"""Protobuf's numbers: the parts that generated code does not write out in line.

Encoders take a Python value and give its bytes; what does not fit the type is an EncodeError. Readers give
the value and the position after it; generated code has read the first two bytes by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

from llm_cost_ops.wire.errors import DecodeError, EncodeError

__all__ = [
    "CONTINUED",
    "DOUBLE",
    "FIXED32",
    "FIXED64",
    "FLOAT",
    "SFIXED32",
    "SFIXED64",
    "SHORT",
    "int32",
    "int64",
    "prefixes",
    "read_more",
    "read_sized",
    "read_varint",
    "read_varints",
    "sint32",
    "sint64",
    "to_int32",
    "uint32",
    "uint64",
    "varint",
    "write_sized",
]

DOUBLE = Struct("<d")
FLOAT = Struct("<f")
FIXED32 = Struct("<I")
FIXED64 = Struct("<Q")
SFIXED32 = Struct("<i")
SFIXED64 = Struct("<q")


def _pairs(high: range) -> list[bytes]:
    """Every low byte with its continuation bit, before each high byte in turn."""
    low = bytes(range(128, 256))
    out: list[bytes] = []
    for byte in high:
        pairs = bytearray(256)
        pairs[0::2] = low
        pairs[1::2] = bytes([byte]) * 128
        row = bytes(pairs)
        out += [row[at : at + 2] for at in range(0, 256, 2)]
    return out


# Looking a small varint up costs a fifth of computing it. 2 x 16,384 entries are made in 3 ms.
SHORT: list[bytes] = [bytes([n]) for n in range(128)] + _pairs(range(1, 128))
"""The varints below 16384."""
CONTINUED: list[bytes] = _pairs(range(128, 256))
"""Of a longer varint the first two bytes, by the lowest 14 bits."""


def varint(value: int) -> bytes:
    """A varint of an int that is not negative."""
    if value < 16384:
        return SHORT[value]
    if value < 268435456:
        return CONTINUED[value & 16383] + SHORT[value >> 14]
    if value < 4398046511104:
        return CONTINUED[value & 16383] + CONTINUED[value >> 14 & 16383] + SHORT[value >> 28]
    out = b""
    while value >= 16384:
        out += CONTINUED[value & 16383]
        value >>= 14
    return out + SHORT[value]


def prefixes(tag: bytes) -> list[bytes]:
    """The tag followed by each length below 128."""
    return [tag + length for length in SHORT[:128]]


def int64(value: int) -> bytes:
    """The varint of an int64."""
    if 0 <= value < 2**63:
        return varint(value)
    if -(2**63) <= value < 0:
        return varint(value + 2**64)
    raise EncodeError("must fit in 64 bits")


def int32(value: int) -> bytes:
    """The varint of an int32, or of an enum's number."""
    if 0 <= value < 2**31:
        return varint(value)
    if -(2**31) <= value < 0:
        return varint(value + 2**64)
    raise EncodeError("must fit in 32 bits")


def uint64(value: int) -> bytes:
    """The varint of a uint64."""
    if 0 <= value < 2**64:
        return varint(value)
    raise EncodeError("must fit in 64 bits, without sign")


def uint32(value: int) -> bytes:
    """The varint of a uint32."""
    if 0 <= value < 2**32:
        return varint(value)
    raise EncodeError("must fit in 32 bits, without sign")


def sint64(value: int) -> bytes:
    """The zigzag varint of a sint64."""
    if -(2**63) <= value < 2**63:
        return varint(value << 1 ^ value >> 63)
    raise EncodeError("must fit in 64 bits")


def sint32(value: int) -> bytes:
    """The zigzag varint of a sint32."""
    if -(2**31) <= value < 2**31:
        return varint(value << 1 ^ value >> 31)
    raise EncodeError("must fit in 32 bits")


def read_varint(data: bytes, pos: int) -> tuple[int, int]:
    """The unsigned varint at `pos`. Raises IndexError past the data, DecodeError for over ten bytes."""
    n = data[pos]
    if n < 128:
        return n, pos + 1
    c = data[pos + 1]
    n += (c << 7) - 128
    if c < 128:
        return n, pos + 2
    return read_more(data, pos + 2, n)


def read_sized(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Where a value starts and stops whose length is at `pos`. Raises IndexError if that is past `end`."""
    n, start = read_varint(data, pos)
    if start + n > end:
        raise IndexError
    return start, start + n


def write_sized(write: Callable[[bytes], object], tag: bytes, value: bytes) -> None:
    """Write a tag, the length of a value, and the value."""
    write(tag + varint(len(value)))
    write(value)


def read_varints(data: bytes, pos: int, end: int) -> Iterator[int]:
    """The unsigned varints from `pos` to `end`: a packed list. Raises as read_varint."""
    while pos < end:
        n, pos = read_varint(data, pos)
        yield n
    if pos != end:
        raise IndexError


def read_more(data: bytes, pos: int, n: int) -> tuple[int, int]:
    """The rest of a varint of more than two bytes, of which `n` holds the first two; `pos` is the third.

    `n` has lost the first continuation bit, but not yet the second. Bits above the 64th are dropped.
    """
    c = data[pos]
    n += (c << 14) - 16384
    if c < 128:
        return n, pos + 1
    c = data[pos + 1]
    n += (c << 21) - 2097152
    if c < 128:
        return n, pos + 2
    c = data[pos + 2]
    n += (c << 28) - 268435456
    pos += 3
    shift = 28
    while c > 127:
        if shift == 63:
            raise DecodeError("a varint has more than ten bytes")
        n -= 128 << shift
        shift += 7
        c = data[pos]
        n += c << shift
        pos += 1
    return n & 0xFFFFFFFFFFFFFFFF, pos


def to_int32(n: int) -> int:
    """The lowest 32 bits of a varint, as a signed number: what protobuf makes of too large a number."""
    return ((n & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
