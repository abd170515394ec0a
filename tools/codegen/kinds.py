"""What the emitters know of each kind of value: a table.

Its expressions write a value `$v`, and read one from the varint `n` or what lies in `$data` from `$start`
to `$stop`, which is `$at`. `$earlier` is what came of an earlier part of the same message.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KINDS", "LONG_VARINTS", "MESSAGES", "RANGES", "SIZES", "Kind"]


class Kind(NamedTuple):
    """What a value is in Python; its wire type, and the expressions that write and read it."""

    annotation: str
    default: str
    wire_type: int
    write: str
    read: str


def _rows(wire_type: int, table: str) -> dict[str, Kind]:
    rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().split("\n")]
    return {name: Kind(type_, default, wire_type, *texts) for name, type_, default, *texts in rows}


_VARINTS = """
int32  | Int32  | 0     | SHORT[$v] if 0 <= $v < 16384 else int32($v)  | n
int64  | Int64  | 0     | SHORT[$v] if 0 <= $v < 16384 else int64($v)  | n
uint32 | UInt32 | 0     | SHORT[$v] if 0 <= $v < 16384 else uint32($v) | n
uint64 | UInt64 | 0     | SHORT[$v] if 0 <= $v < 16384 else uint64($v) | n
sint32 | Int32  | 0     | sint32($v)                                   | (n & 0xFFFFFFFF) >> 1 ^ -(n & 1)
sint64 | Int64  | 0     | sint64($v)                                   | n >> 1 ^ -(n & 1)
bool   | bool   | False | b"\\x01" if $v else b"\\x00"                 | n != 0
"""
_EIGHT_BYTES = """
fixed64  | UInt64 | 0   | FIXED64.pack($v)  | FIXED64.unpack_from($data, $end - 8)[0]
sfixed64 | Int64  | 0   | SFIXED64.pack($v) | SFIXED64.unpack_from($data, $end - 8)[0]
double   | float  | 0.0 | DOUBLE.pack($v)   | DOUBLE.unpack_from($data, $end - 8)[0]
"""
_FOUR_BYTES = """
fixed32  | UInt32 | 0   | FIXED32.pack($v)  | FIXED32.unpack_from($data, $end - 4)[0]
sfixed32 | Int32  | 0   | SFIXED32.pack($v) | SFIXED32.unpack_from($data, $end - 4)[0]
float    | float  | 0.0 | FLOAT.pack($v)    | FLOAT.unpack_from($data, $end - 4)[0]
"""
_TEXTS = """
string   | str            | ""         | $v.encode()        | $data[$start:$stop].decode()
bytes    | bytes          | b""        | $v + b""           | $data[$start:$stop]
decimal  | WireDecimal    | Decimal(0) | plain($v).encode() | from_text($data[$start:$stop].decode() or "0")
raw_json | dict[str, Any] | None       | write_raw_json($v) | read_raw_json($data[$start:$stop])
"""
_MESSAGES = """
message    | $cls           | $cls()       | encode_$snake($v)    | decode_$snake($at, depth + 1, $earlier)
timestamp  | datetime       | ZERO_MOMENT  | write_timestamp($v)  | read_timestamp($at, $earlier)
duration   | timedelta      | timedelta(0) | write_duration($v)   | read_duration($at, $earlier)
struct     | dict[str, Any] | {}           | write_struct($v)     | read_struct($at, depth + 1, $earlier)
value      | Any            | None         | write_value($v)      | read_value($at, depth + 1, $earlier)
list_value | list[Any]      | []           | write_list_value($v) | read_list_value($at, depth + 1, $earlier)
wrapper    | | | write_wrapper("$wrapped", $v) | read_wrapper("$wrapped", $at, $earlier)
"""
MESSAGES = _rows(2, _MESSAGES)
KINDS = MESSAGES | _rows(0, _VARINTS) | _rows(1, _EIGHT_BYTES) | _rows(5, _FOUR_BYTES) | _rows(2, _TEXTS)
KINDS["enum"] = Kind(
    "$cls",
    "_${upper}_0",
    0,
    "_${upper}_VARINTS.get($v) or enum_varint($cls, $v)",
    "_${upper}_MEMBERS.get(n) or read_enum($cls, _${upper}_MEMBERS, n)",
)
# What a varint of more than two bytes becomes, where it is taken as it is.
LONG_VARINTS = {
    "int32": "if n > 0x7FFFFFFF: n = to_int32(n)",
    "int64": "if n > 0x7FFFFFFFFFFFFFFF: n -= 0x10000000000000000",
    "uint32": "n &= 0xFFFFFFFF",
}
# How many bytes a wire type has, where they are always the same.
SIZES = {1: 8, 5: 4}
# What the annotations of integers allow.
RANGES = {
    "Int32": (-(2**31), 2**31 - 1),
    "Int64": (-(2**63), 2**63 - 1),
    "UInt32": (0, 2**32 - 1),
    "UInt64": (0, 2**64 - 1),
}
