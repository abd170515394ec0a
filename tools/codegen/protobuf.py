"""Emits protobuf.py: an encoder and a decoder per message, each a straight line through its fields.

Messages that come in lists, and what they hold, are read and written in line. One that comes once in a call
is not worth that: it calls functions, in a third of the lines (`in_line` is False).

What the shape in line rests on, measured on a 15-field record:
- A decoder holds the tag against each field in the order of the protocol, and goes on downward after a match,
  so that fields in order are read in one pass. All else falls through to the slow end of the loop.
- Varints of one and two bytes are read in line, and looked up when written; the length of a text if it is one
  byte.
- A message of a list is read in bytes of its own, where nearly all positions are below 256. Python holds the
  ints up to there ready; to make larger ones takes longer than that copy.
- Slices forgive a length that runs past the end; one comparison at the end of the message does not.
- Every failure ends in one handler, which names the field by the tag at hand.

A decoder reads from `pos` to `end`, by default all of the data, and adds to `m` where that was made of an
earlier part of the message; `depth` counts the messages that it lies in. `t` is the tag at `pos` as it lies
in the data: the sum of its bytes, each shifted by seven bits more, with the continuation bits left in.
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
llm_cost_ops.wire.fields DECODE_FAULTS ENCODE_FAULTS MAX_NESTED decode_error encode_error enum_members \
 enum_varint enum_varints keep_unknown one_of read_entry read_enum read_flattened read_text_entry skip_unknown
llm_cost_ops.wire.structs read_list_value read_raw_json read_struct read_value write_list_value \
 write_raw_json write_struct write_value
llm_cost_ops.wire.timestamps ZERO_MOMENT read_duration read_timestamp write_duration write_timestamp
llm_cost_ops.wire.wrappers read_wrapper write_wrapper
llm_cost_ops.wire.varint DOUBLE FIXED32 FIXED64 FLOAT SFIXED32 SFIXED64 SHORT int32 int64 prefixes read_more \
 read_sized read_varint read_varints sint32 sint64 to_int32 uint32 uint64 varint write_sized
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
    at, i = "", -1
    try:
        $encoding
        if ${own}m.unknown_: w(m.unknown_.binary)
    except ENCODE_FAULTS as error:
        raise encode_error(error, at, i) from None
    return b"".join(out)


def decode_${type.snake}(
    data: bytes, pos: int = 0, end: int = -1, depth: int = 0, m: ${type.name} | None = None
) -> ${type.name}:
    """The ${type.name} in protobuf bytes. Raises DecodeError."""
    if end < 0: end = len(data)
    $depth
    if m is None: m = ${type.name}()
    kept: list[bytes] = []
    t = 0
    try:
        while pos < end:
            t = data[pos]
            $decoding
            ${otherwise}data, pos, end = skip_unknown(data, pos, end, _${type.constant}_TAGS, kept)
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
if b: write_sized(w, $tag, b)
"""
_READ_FLATTENED = """\
if t == $raw:
    $length
    read_flattened(decode_${type.snake}, $tag, data, s, pos, depth + 1, m)
    $next
"""
_READ_REPEATED = """\
if t == $raw:
    x$number = $target
    while t == $raw:
        $one
        $next
    $end
"""
_READ_PACKED = """\
if t == $raw:
    $length
    $all
    $next
"""
_READ_VARINTS = """\
x$number = $target
for n in read_varints(data, s, pos):
    $long
    x$number($value)
"""
_READ_ENTRY = """\
$length
k, v = read_entry(data, s, pos, $tags, $merged)
$key
$item
$into[k$number] = v$number
"""


def emit_protobuf(package: Package) -> str:
    """The text of protobuf.py."""
    body = "".join(map(_message, package.messages))
    names = [f"{way}_{m.snake}" for m in package.messages for way in ("decode", "encode")]
    return module(package, "Every message as protobuf.", _IMPORTS, names, f"\n{_tables(package, body)}{body}")


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
    # In line a field that was read is after the others, but another may follow that is before it.
    known = f"if t in _{message.constant}_NAMES: continue\n" if message.listed else ""
    return fill(
        _MESSAGE,
        type=message,
        names=", ".join(f"{raw}: {name}" for raw, name in sorted(names.items())),
        tags=sorted(f.number << 3 | wire_type for f, wire_type, _ in tags),
        encoding=one_of + "".join(_write(field, message.listed) for field in fields),
        decoding=(_read_in_line if message.listed else _read_by_call)(message, fields) + known,
        otherwise="else: " if fields and not message.listed else "",
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


def _write(field: Field, in_line: bool) -> str:
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
        lines = _write_sized(f'b"".join([{type_.write("v")} for v in {value}])', _tag(number, 2), in_line)
    elif field.cardinality == "repeated":
        each = indented(_write_value(type_, tag, f"x{number}", in_line or type_.is_message))
        lines = f"for i, x{number} in enumerate({value}):\n{each}i = -1\n"
    else:
        lines = _write_value(type_, tag, value, in_line)
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


def _write_value(type_: Type, tag: bytes, value: str, in_line: bool) -> str:
    """Statements that write a value with its tag."""
    if type_.kind == "bool":
        return f"w({_literal(tag + bytes([1]))} if {value} else {_literal(tag + bytes([0]))})\n"
    if type_.wire_type != 2:
        return f"w({_literal(tag)})\nw({type_.write(value)})\n"
    return _write_sized(type_.write(value), tag, in_line, long=type_.message is not None)


def _write_sized(payload: str, tag: bytes, in_line: bool, long: bool = False) -> str:
    """Statements that write a tag, a length, which may often be a `long` one, and what has that length."""
    if not in_line:
        return f"write_sized(w, {_literal(tag)}, {payload})\n"
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


def _read_in_line(message: Message, fields: list[Field]) -> str:
    text, width = "", 1
    for field in fields:
        narrower, width = width, len(_tag(field.number, 0))
        text += "".join(map(_widen, range(narrower, width))) + _read_field(
            message, field, width, _next(width)
        )
    return text


def _read_by_call(message: Message, fields: list[Field]) -> str:
    widths = [len(_tag(field.number, 0)) for field in fields]
    read = (_read_field(message, field, width, "") for field, width in zip(fields, widths, strict=True))
    # Each begins with an `if` of its own, and so do the two of a list that may be packed.
    chain = re.sub(r"^if ", "elif ", "".join(read), flags=re.MULTILINE).removeprefix("el")
    return "".join(map(_widen, range(1, max(widths, default=1)))) + chain


def _widen(width: int) -> str:
    """The statement that adds a further byte to `t`, if the tag has one."""
    most = sum(255 << 7 * at for at in range(width - 1)) + (127 << 7 * (width - 1))
    return f"if t > {most}: t += data[pos + {width}] << {7 * width}\n"


def _next(width: int) -> str:
    """Statements that move on to the next tag, or out of the loop."""
    return "if pos >= end: break\nt = data[pos]\n" + "".join(map(_widen, range(1, width)))


def _read_field(message: Message, field: Field, width: int, move: str) -> str:
    """Statements that read a field, and `move` on: in line, where that is not empty."""
    if field.many:
        return _read_many(field, width, move)
    target, in_line = f"m.{field.attribute}", bool(move)
    if field.options.flatten:
        tag, raw = _literal(_tag(field.number, 2)), _raw(field.number, 2)
        holes = {"tag": tag, "raw": raw, "length": _length(width, in_line), "next": move}
        return fill(_READ_FLATTENED, type=field.type.message, **holes)
    lines, value = _read_value(field.type, width, in_line, target)
    if field.type.kind == "decimal" and field.nullable:
        value = value.replace(' or "0"', "")
    lines += f"{target} = {value}\n"
    others = [f"m.{each.attribute} = " for each in message.oneofs.get(field.oneof, ()) if each is not field]
    lines += f"{''.join(others)}None\n" if others else ""
    return f"if t == {_raw(field.number, field.wire_type)}:\n{indented(lines + move)}"


def _read_many(field: Field, width: int, move: str) -> str:
    number, type_, in_line = field.number, field.type, bool(move)
    raw, target = _raw(number, field.wire_type), f"m.{field.attribute}" + ".append" * (field.key is None)
    # Lists of messages are read in line wherever they are.
    looped = in_line or (type_.is_message and field.key is None)
    into = f"x{number}" if looped else target
    if field.key is not None:
        one = _read_entry(number, field.key, type_, width, in_line, into)
    else:
        lines, value = _read_value(type_, width, looped)
        value = type_.read("data[s:pos]", "", "n") if type_.is_message else value
        one = f"{lines}{into}({value})\n"
    text = f"if t == {raw}:\n{indented(one)}"
    if looped:
        holes = {"raw": raw, "number": number, "target": target, "one": one, "next": _next(width)}
        text = fill(_READ_REPEATED, end="if pos >= end: break\n" * in_line, **holes)
    if field.key is not None or type_.wire_type == 2:
        return text
    if type_.wire_type in SIZES:
        every = f"m.{field.attribute} += [v for (v,) in {type_.kind.upper()}.iter_unpack(data[s:pos])]\n"
    else:
        long = LONG_VARINTS.get(type_.kind, "")
        every = fill(_READ_VARINTS, number=number, target=target, long=long, value=type_.read())
    holes = {"raw": _raw(number, 2), "length": _length(width, in_line), "all": every, "next": move}
    return text + fill(_READ_PACKED, **holes)


def _read_entry(number: int, key: Type, item: Type, width: int, in_line: bool, into: str) -> str:
    length = _length(width, in_line)
    if key.kind == item.kind == "string":
        return f"{length}k{number}, v{number} = read_text_entry(data[s:pos])\n{into}[k{number}] = v{number}\n"
    parts = {"key": _read_part(key, "k", number), "item": _read_part(item, "v", number)}
    holes = {"length": length, "number": number, "into": into, "merged": item.is_message}
    return fill(_READ_ENTRY, tags=f"{8 | key.wire_type}, {16 | item.wire_type}", **holes, **parts)


def _read_part(type_: Type, part: str, number: int) -> str:
    """Statements that read a value from the payload `part`, which is empty where it was not there."""
    text = f"{part}{number} = {type_.read(part).replace('[:]', '')}"
    if type_.wire_type in SIZES:
        text += f" if {part} else {type_.default}"
    elif type_.wire_type == 0:
        first = [f"n = read_varint({part}, 0)[0] if {part} else 0", LONG_VARINTS.get(type_.kind, "")]
        text = "\n".join(filter(None, [*first, text]))
    return f"{text}\n"


def _read_value(type_: Type, width: int, in_line: bool, earlier: str = "None") -> tuple[str, str]:
    """Statements that move `pos` past a value, and the expression of the value."""
    value = type_.read("data", "s", "pos", earlier)
    if type_.wire_type in SIZES:
        return f"pos += {width + SIZES[type_.wire_type]}\n", value
    if type_.wire_type == 0:
        return _varint("pos", width, in_line, type_.kind), value
    return _length(width, in_line, checked=type_.is_message), value


def _length(width: int, in_line: bool, checked: bool = True) -> str:
    """Statements that move `pos` past a value with a length, and `s` to its start."""
    if not in_line:
        return f"s, pos = read_sized(data, pos + {width}, end)\n"
    short = f"n = data[pos + {width}]\ns = pos + {width + 1}\nif n > 127: n, s = read_varint(data, s - 1)\n"
    text = _varint("s", width, in_line) if checked else short
    return text + "pos = s + n\n" + "if pos > end: raise IndexError\n" * checked


def _varint(to: str, width: int, in_line: bool, kind: str = "") -> str:
    """Statements that read a varint `n`, a length or a value of a kind, after a tag of `width` bytes."""
    long = LONG_VARINTS.get(kind, "")
    if not in_line:
        return f"n, {to} = read_varint(data, pos + {width})\n" + f"{long}\n" * bool(long)
    return fill(_VARINT, to=to, width=width, one=width + 1, two=width + 2, long=long)
