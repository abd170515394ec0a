"""Emits protobuf.py: an encoder and a decoder per message, each a straight line through its fields.

What the shape rests on, measured on a 15-field record:
- A decoder holds the tag against each field in the order of the protocol, and goes on downward after a match,
  so that fields in order are read in one pass. All else falls through to the slow end of the loop.
- Varints of one and two bytes are read in line, and looked up when written.
- Slices forgive a length that runs past the end; one comparison at the end of the message does not.
- Every failure ends in one handler, which names the field by the tag at hand.

In decoders `t` is the tag at `pos` as it lies in the data: the sum of its bytes, each shifted by seven bits
more, with the continuation bits left in.
"""

from __future__ import annotations

import re

from betterproto import encode_varint

from tools.codegen.kinds import LONG_VARINTS, SIZES
from tools.codegen.nodes import Field, Message, Package, Type
from tools.codegen.text import fill, indented, module

__all__ = ["emit_protobuf"]

_IMPORTS = """\
datetime datetime timedelta
decimal Decimal
typing Any
$package.messages *
llm_cost_ops.wire.decimals from_text plain
llm_cost_ops.wire.errors DecodeError EncodeError
llm_cost_ops.wire.fields DECODE_FAULTS ENCODE_FAULTS MAX_NESTED enum_members enum_varint enum_varints \
 keep_unknown one_of read_entry read_enum canonicalize_tags skip_field decode_error encode_error \
 read_flattened
llm_cost_ops.wire.structs read_list_value read_raw_json read_struct read_value write_list_value \
 write_raw_json write_struct write_value
llm_cost_ops.wire.timestamps ZERO_MOMENT read_duration read_timestamp write_duration write_timestamp
llm_cost_ops.wire.wrappers read_wrapper write_wrapper
llm_cost_ops.wire.varint DOUBLE FIXED32 FIXED64 FLOAT SFIXED32 SFIXED64 SHORT int32 int64 prefixes read_more \
 read_varint read_varints sint32 sint64 to_int32 uint32 uint64 varint
"""
_ENUM = """\
_${enum.constant}_VARINTS = enum_varints(${enum.name})
_${enum.constant}_MEMBERS = enum_members(${enum.name})
_${enum.constant}_0 = _${enum.constant}_MEMBERS[0]
"""
_MESSAGE = '''
_${type.constant}_NAMES: dict[int, tuple[str, str]] = {$names}
_${type.constant}_TAGS: frozenset[int] = frozenset($tags)


def encode_${type.snake}(m: ${type.name}) -> bytes:
    """The protobuf bytes of a ${type.name}. Raises EncodeError."""
    out: list[bytes] = []
    w = out.append
    at = ""
    i = -1
    try:
        $encoding
        if ${own}m.unknown_: w(m.unknown_.binary)
    except ENCODE_FAULTS as error:
        raise encode_error(error, at, i) from None
    return b"".join(out)


def decode_${type.snake}(data: bytes) -> ${type.name}:
    """The ${type.name} that protobuf bytes hold. Raises DecodeError."""
    return _read_${type.snake}(data, 0, len(data), 0, None)


def _read_${type.snake}(data: bytes, pos: int, end: int, depth: int, m: ${type.name} | None) -> ${type.name}:
    $depth
    if m is None: m = ${type.name}()
    kept: list[bytes] = []
    t = 0
    try:
        while pos < end:
            t = data[pos]
            $decoding
            if t in _${type.constant}_NAMES: continue
            s = skip_field(data, pos, end, _${type.constant}_TAGS)
            if s < 0:
                data = canonicalize_tags(data, pos, end, _${type.constant}_TAGS)
                s, end = 0, len(data)
            else:
                kept.append(data[pos:s])
            pos = s
        if pos != end: raise IndexError
    except DECODE_FAULTS as error:
        raise decode_error(error, m, _${type.constant}_NAMES.get(t, ("", "")), pos > end) from None
    if kept: m.unknown_ = keep_unknown(m.unknown_, kept)
    return m
'''
_TOO_DEEP = 'if depth > MAX_NESTED: raise DecodeError(f"messages lie more than {MAX_NESTED} deep")\n'
_WRITE_ENTRIES = """\
for k$number, x$number in v$number.items():
    $key
    $item
    n = len(e) + len(b)
    w($size)
    w(e)
    w(b)
"""
_VARINT = """\
n = data[pos + $width]
if n < 128: $to = pos + $one
else:
    c = data[pos + $one]; n += (c << 7) - 128; $to = pos + $two
    if c > 127:
        n, $to = read_more(data, $to, n)
        $long
"""
# Inside another message, what is unknown is written by that.
_OWN = "type(m) is {} and "
_WRITE_FLATTENED = """\
at = ""
b = encode_${type.snake}(m)
if b:
    w($tag)
    w(varint(len(b)))
    w(b)
"""
_READ_FLATTENED = """\
if t == $raw:
    $length
    pos = s + n
    if pos > end: raise IndexError
    read_flattened(_read_${type.snake}, $tag, data, s, pos, depth + 1, m)
    $next
"""
_READ_REPEATED = """\
if t == $raw:
    x$number = m.$attribute
    while t == $raw:
        $one
        $next
    if pos >= end: break
"""
_READ_PACKED = """\
if t == $raw:
    $length
    pos = s + n
    if pos > end: raise IndexError
    $all
    $next
"""
_READ_VARINTS = """\
x$number = m.$attribute
for n in read_varints(data, s, pos):
    $long
    x$number($value)
"""
_READ_ENTRY = """\
$length
pos = s + n
if pos > end: raise IndexError
k, v = read_entry(data, s, pos, $tags, $merged)
$key
$item
x$number[k$number] = v$number
"""


def emit_protobuf(package: Package) -> str:
    """The text of protobuf.py."""
    body = "".join(map(_message, package.messages))
    names = [f"{way}_{m.snake}" for m in package.messages for way in ("decode", "encode")]
    text = "\n" + _tables(package, body) + body
    return module(package, "Every message as protobuf.", _IMPORTS, names, text)


def _tables(package: Package, body: str) -> str:
    """What the functions look up."""
    tags = sorted(set(re.findall(r"\b_T([0-9A-F]+)\[", body)))
    text = "".join(f"_T{tag} = prefixes({_literal(bytes.fromhex(tag))})\n" for tag in tags)
    for enum in sorted(package.enums, key=lambda enum: enum.name):
        if re.search(rf"\b_{enum.constant}_MEMBERS\b", body):
            text += fill(_ENUM, enum=enum)
    return text


def _message(message: Message) -> str:
    fields = sorted(message.fields, key=lambda field: field.number)
    tags = [(f, 2, "") for f in fields if f.cardinality == "repeated" and f.type.wire_type != 2]
    tags += [(f, f.wire_type, f.attribute if f.cardinality == "repeated" else "") for f in fields]
    one_of = "".join(
        f'at = "{name}"\none_of({", ".join(f"m.{each.attribute}" for each in members)})\n'
        for name, members in message.oneofs.items()
    )
    # A flattened message has no part in the path of a field.
    shown = {f.number: "" if f.options.flatten else f.name for f in fields}
    names = {_raw(f.number, wire_type): f'("{shown[f.number]}", "{items}")' for f, wire_type, items in tags}
    return fill(
        _MESSAGE,
        type=message,
        names=", ".join(f"{raw}: {name}" for raw, name in sorted(names.items())),
        tags=sorted(f.number << 3 | wire_type for f, wire_type, _ in tags),
        encoding=one_of + "".join(map(_write, fields)),
        decoding=_read_fields(message, fields),
        own=_OWN.format(message.name) if message.flattened else "",
        depth=_TOO_DEEP if message.cyclic else "",
    )


def _tag(number: int, wire_type: int) -> bytes:
    return encode_varint(number << 3 | wire_type)


def _raw(number: int, wire_type: int) -> int:
    """A tag as decoders hold it in `t`."""
    return sum(byte << 7 * at for at, byte in enumerate(_tag(number, wire_type)))


def _literal(data: bytes) -> str:
    return 'b"' + "".join(f"\\x{byte:02x}" for byte in data) + '"'


def _write(field: Field) -> str:
    """Statements that write a field, unless it is not set."""
    type_, number, value = field.type, field.number, f"v{field.number}"
    tag, given = _tag(number, field.wire_type), f"{value} := m.{field.attribute}"
    if field.options.flatten:
        return fill(_WRITE_FLATTENED, type=type_.message, tag=_literal(tag))
    if field.key is not None:
        key = _write_part(field.key, 1, f"k{number}", "e")
        item = _write_part(type_, 2, f"x{number}", "b")
        lines = fill(_WRITE_ENTRIES, number=number, key=key, item=item, size=_size(tag))
    elif field.packed:
        lines = _write_sized(f'b"".join([{type_.write("v")} for v in {value}])', _tag(number, 2))
    elif field.cardinality == "repeated":
        each = indented(_write_value(type_, tag, f"x{number}"))
        lines = f"for i, x{number} in enumerate({value}):\n{each}i = -1\n"
    else:
        lines = _write_value(type_, tag, value)
    if field.nullable:
        given = f"({given}) is not None"
    elif field.cardinality == "singular" and type_.enum is not None:
        # Its identity tells most often; a type checker objects where there is no other member.
        other = f"is not {type_.default} and {value} " if len(type_.enum.values) > 1 else ""
        given = f'({given}) {other}!= "{type_.enum.values[0].value}"'
    elif field.cardinality == "singular" and type_.annotation == "float":
        # Zero is left out, but a negative zero is not.
        given = f'({given}) or str({value}) == "-0.0"'
    return f'if {given}:\n    at = "{field.name}"\n{indented(lines)}'


def _write_value(type_: Type, tag: bytes, value: str) -> str:
    """Statements that write a value with its tag."""
    if type_.kind == "bool":
        return f"w({_literal(tag + bytes([1]))} if {value} else {_literal(tag + bytes([0]))})\n"
    if type_.wire_type != 2:
        return f"w({_literal(tag)})\nw({type_.write(value)})\n"
    return _write_sized(type_.write(value), tag, long=type_.message is not None)


def _write_sized(payload: str, tag: bytes, long: bool = False) -> str:
    """Statements that write a tag, a length, which may often be a `long` one, and what has that length."""
    head = f"w({_literal(tag)})\nw(SHORT[n] if n < 16384 else varint(n))" if long else f"w({_size(tag)})"
    return f"b = {payload}\nn = len(b)\n{head}\nw(b)\n"


def _size(tag: bytes) -> str:
    """The tag and the length `n`."""
    return f"_T{tag.hex().upper()}[n] if n < 128 else {_literal(tag)} + varint(n)"


def _write_part(type_: Type, number: int, value: str, into: str) -> str:
    """Statements that assign a field of a small message, tag included."""
    tag = _tag(number, type_.wire_type)
    if type_.wire_type != 2:
        return f"{into} = {_literal(tag)} + ({type_.write(value)})\n"
    return f"{into} = {type_.write(value)}\nn = len({into})\n{into} = ({_size(tag)}) + {into}\n"


def _read_fields(message: Message, fields: list[Field]) -> str:
    text, width = "", 1
    for field in fields:
        for further in range(width, len(_tag(field.number, 0))):
            text += _widen(further)
            width = further + 1
        others = [f for f in message.oneofs.get(field.oneof, ()) if f is not field]
        text += _read_many(field, width) if field.many else _read_one(field, others, width)
    return text


def _widen(width: int) -> str:
    """The statement that adds a further byte to `t`, if the tag has one."""
    most = sum(255 << 7 * at for at in range(width - 1)) + (127 << 7 * (width - 1))
    return f"if t > {most}: t += data[pos + {width}] << {7 * width}\n"


def _next(width: int) -> str:
    """Statements that move on to the next tag, or out of the loop."""
    return "if pos >= end: break\nt = data[pos]\n" + "".join(map(_widen, range(1, width)))


def _read_one(field: Field, others: list[Field], width: int) -> str:
    target = f"m.{field.attribute}"
    if field.options.flatten:
        tag, raw = _literal(_tag(field.number, 2)), _raw(field.number, 2)
        holes = {"tag": tag, "raw": raw, "length": _varint("s", width), "next": _next(width)}
        return fill(_READ_FLATTENED, type=field.type.message, **holes)
    lines, value = _read_value(field.type, width, target)
    if field.type.kind == "decimal" and field.nullable:
        value = value.replace(' or "0"', "")
    lines += f"{target} = {value}\n"
    if others:
        lines += f"{' = '.join(f'm.{other.attribute}' for other in others)} = None\n"
    return f"if t == {_raw(field.number, field.wire_type)}:\n{indented(lines + _next(width))}"


def _read_many(field: Field, width: int) -> str:
    number, type_, attribute = field.number, field.type, field.attribute
    raw, move = _raw(number, field.wire_type), _next(width)
    if field.key is not None:
        one = _read_entry(number, field.key, type_, width)
        return fill(_READ_REPEATED, raw=raw, number=number, attribute=attribute, one=one, next=move)
    one, value = _read_value(type_, width)
    holes = {"number": number, "attribute": f"{attribute}.append"}
    text = fill(_READ_REPEATED, raw=raw, one=one + f"x{number}({value})\n", next=move, **holes)
    if type_.wire_type == 2:
        return text
    if type_.wire_type in SIZES:
        unpacked = f"{type_.kind.upper()}.iter_unpack(data[s:pos])"
        every = f"m.{attribute} += [v for (v,) in {unpacked}]\n"
    else:
        every = fill(_READ_VARINTS, long=LONG_VARINTS.get(type_.kind, ""), value=type_.read(), **holes)
    length = _varint("s", width)
    return text + fill(_READ_PACKED, raw=_raw(number, 2), length=length, all=every, next=move)


def _read_entry(number: int, key: Type, item: Type, width: int) -> str:
    return fill(
        _READ_ENTRY,
        length=_varint("s", width),
        number=number,
        tags=f"{8 | key.wire_type}, {16 | item.wire_type}",
        merged=item.is_message,
        key=_read_part(key, "k", number),
        item=_read_part(item, "v", number),
    )


def _read_part(type_: Type, part: str, number: int) -> str:
    """Statements that read a value from the payload `part`, which is empty where it was not there."""
    text = f"{part}{number} = {type_.read(part).replace('[:]', '')}"
    if type_.wire_type in SIZES:
        text += f" if {part} else {type_.default}"
    elif type_.wire_type == 0:
        first = [f"n = read_varint({part}, 0)[0] if {part} else 0", LONG_VARINTS.get(type_.kind, "")]
        text = "\n".join(filter(None, [*first, text]))
    return f"{text}\n"


def _read_value(type_: Type, width: int, earlier: str = "None") -> tuple[str, str]:
    """Statements that move `pos` behind a value, and the expression of the value."""
    value = type_.read("data", "s", "pos", earlier)
    if type_.wire_type in SIZES:
        return f"pos += {width + SIZES[type_.wire_type]}\n", value
    if type_.wire_type == 0:
        return _varint("pos", width, type_.kind), value
    lines = _varint("s", width) + "pos = s + n\n"
    return lines + "if pos > end: raise IndexError\n" * type_.is_message, value


def _varint(to: str, width: int, kind: str = "") -> str:
    """Statements that read a varint `n`, a length or a value of a kind, behind a tag of `width` bytes."""
    long = LONG_VARINTS.get(kind, "")
    return fill(_VARINT, to=to, width=width, one=width + 1, two=width + 2, long=long)
