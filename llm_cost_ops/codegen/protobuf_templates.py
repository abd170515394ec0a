"""What protobuf.py is put together from: expressions by type, and pieces of functions.

`$name` and `${name}` are filled in; a line that is a name alone is replaced by any number of lines.
"""

from __future__ import annotations

__all__ = [
    "DEFAULTS",
    "ENTRY",
    "FROM_BYTES",
    "FROM_VARINT",
    "IMPORTS",
    "LONG_VARINT",
    "MESSAGE",
    "PACKED",
    "PARTS",
    "PLAIN",
    "REPEATED",
    "SIZES",
    "TOO_DEEP",
    "TO_BYTES",
    "VARINT",
    "WIRE_TYPES",
]

# By type on the wire: the value of a varint `n`; below, what a long one becomes where it is taken as it is.
FROM_VARINT = {
    **dict.fromkeys(("int32", "int64", "uint32", "uint64"), "n"),
    "sint32": "(n & 0xFFFFFFFF) >> 1 ^ -(n & 1)",
    "sint64": "n >> 1 ^ -(n & 1)",
    "bool": "n != 0",
    "enum": "$members.get(n) or read_enum($enum, $members, n)",
}
LONG_VARINT = {
    "int32": "if n > 0x7FFFFFFF: n = to_int32(n)",
    "int64": "if n > 0x7FFFFFFFFFFFFFFF: n -= 0x10000000000000000",
    "uint32": "n &= 0xFFFFFFFF",
}
SIZES = {1: 8, 5: 4}
WIRE_TYPES = dict.fromkeys(FROM_VARINT, 0) | dict.fromkeys(("string", "bytes", "message"), 2)
WIRE_TYPES |= {"fixed64": 1, "sfixed64": 1, "double": 1, "fixed32": 5, "sfixed32": 5, "float": 5}
# By kind in Python, for what has a length: the default, the payload of $v, and the value of the payload from
# $start to $stop in $data, where $earlier is what came of an earlier part of the same field.
_DELIMITED = """
string     | ""           | $v.encode()          | $data[$start:$stop].decode()
bytes      | b""          | $v + b""             | $data[$start:$stop]
decimal    | Decimal(0)   | plain($v).encode()   | from_text($data[$start:$stop].decode() or "0")
raw_json   | None         | write_raw_json($v)   | read_raw_json($data[$start:$stop])
timestamp  | ZERO_MOMENT  | write_timestamp($v)  | read_timestamp($data, $start, $stop, $earlier)
duration   | timedelta(0) | write_duration($v)   | read_duration($data, $start, $stop, $earlier)
struct     | {}           | write_struct($v)     | read_struct($data, $start, $stop, depth + 1, $earlier)
value      | None         | write_value($v)      | read_value($data, $start, $stop, depth + 1, $earlier)
list_value | []           | write_list_value($v) | read_list_value($data, $start, $stop, depth + 1, $earlier)
message    | $cls()       | encode_$snake($v)    | _read_$snake($data, $start, $stop, depth + 1, $earlier)
wrapper    |              |                      | _read_${wrapped}_value($data, $start, $stop, $earlier)
"""
_ROWS = [[cell.strip() for cell in line.split("|")] for line in _DELIMITED.strip().split("\n")]
TO_BYTES = {kind: value for kind, _, value, _ in _ROWS}
FROM_BYTES = {kind: value for kind, _, _, value in _ROWS}
DEFAULTS = {kind: value for kind, value, _, _ in _ROWS}
DEFAULTS |= {"bool": "False", "double": "0.0", "float": "0.0", "enum": "${enum_0}"}
PLAIN = {"bool": "bool", "double": "float", "float": "float", "string": "str", "bytes": "bytes"}
# What generated code may use, by module.
IMPORTS = """
datetime datetime timedelta
decimal Decimal
typing Any
llm_cost_ops.wire.decimals from_text plain
llm_cost_ops.wire.errors DecodeError EncodeError
llm_cost_ops.wire.fields DECODE_FAULTS ENCODE_FAULTS MOST_NESTED enum_members enum_varint enum_varints \
 keep_unknown read_enum respell skip_field unreadable unwritable
llm_cost_ops.wire.structs read_list_value read_raw_json read_struct read_value write_list_value \
 write_raw_json write_struct write_value
llm_cost_ops.wire.timestamps ZERO_MOMENT read_duration read_timestamp write_duration write_timestamp
llm_cost_ops.wire.varint DOUBLE FIXED32 FIXED64 FLOAT SFIXED32 SFIXED64 SHORT int32 int64 prefixes read_more \
 sint32 sint64 to_int32 uint32 uint64 varint
"""
MESSAGE = '''

_${upper}_NAMES: dict[int, tuple[str, str]] = {$names}
_${upper}_TAGS: frozenset[int] = frozenset($tags)


def encode_$snake(m: $cls) -> bytes:
    """The protobuf bytes of a $cls. Raises EncodeError."""
    out: list[bytes] = []
    w = out.append
    at = ""
    i = -1
    try:
        $encoding
        if m.unknown_: w(m.unknown_.binary)
    except ENCODE_FAULTS as error:
        raise unwritable(error, at, i) from None
    return b"".join(out)


def decode_$snake(data: bytes) -> $cls:
    """The $cls that protobuf bytes hold. Raises DecodeError."""
    return _read_$snake(data, 0, len(data), 0, None)


def _read_$snake(data: bytes, pos: int, end: int, depth: int, m: $cls | None) -> $cls:
    $depth
    if m is None: m = $cls()
    kept: list[bytes] = []
    t = 0
    try:
        while pos < end:
            t = data[pos]
            $decoding
            if t in _${upper}_NAMES: continue
            s = skip_field(data, pos, end, _${upper}_TAGS)
            if s < 0:
                data = respell(data, pos, end, _${upper}_TAGS)
                s, end = 0, len(data)
            else:
                kept.append(data[pos:s])
            pos = s
        if pos != end: raise IndexError
    except DECODE_FAULTS as error:
        raise unreadable(error, m, _${upper}_NAMES.get(t, ("", "")), pos > end) from None
    if kept: m.unknown_ = keep_unknown(m.unknown_, kept)
    return m
'''
VARINT = """
n = $data[$pos$first]
if n < 128: $to = $pos + $one
else:
    c = $data[$pos + $one]; n += (c << 7) - 128; $to = $pos + $two
    if c > 127:
        n, $to = read_more($data, $to, n)
        $long
"""
REPEATED = """
if t == $raw:
    x$number = m.$attribute
    while t == $raw:
        $one
        $next
    if pos >= end: break
"""
PACKED = """
if t == $raw:
    $length
    pos = s + n
    if pos > end: raise IndexError
    $all
    $next
"""
ENTRY = """
$length
pos = s + n
d, r = data, pos
if pos > end: raise IndexError
$key = $key_default
$item = $item_default
$parts
x$number[$key] = $value
"""
# Reads the fields of a small message from `s` to `r` in `d` into local names.
PARTS = """
while s < r:
    u = d[s]
    $members
    if u not in $known:
        q = skip_field(d, s, r, $known)
        if q < 0:
            d = respell(d, s, r, $known)
            q, r = 0, len(d)
        s = q
if s != r: raise IndexError
"""
TOO_DEEP = """
if depth > MOST_NESTED:
    raise DecodeError(f"messages lie more than {MOST_NESTED} deep")
"""
