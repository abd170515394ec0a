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

from string import Template

from llm_cost_ops.codegen.nodes import Field, Message, Package, Type, constant_name
from llm_cost_ops.codegen.structs import module, python_type

__all__ = ["emit_protobuf"]

# By type on the wire: the wire type, and the value of a varint `n`.
_SCALARS = """
int32    0 n if n < 0x80000000 else to_int32(n)
int64    0 n if n < 0x8000000000000000 else n - 0x10000000000000000
uint32   0 n & 0xFFFFFFFF
uint64   0 n
sint32   0 (n & 0xFFFFFFFF) >> 1 ^ -(n & 1)
sint64   0 n >> 1 ^ -(n & 1)
bool     0 n != 0
enum     0 $members.get(n) or read_enum($enum, $members, n)
fixed64  1 -
sfixed64 1 -
double   1 -
string   2 -
bytes    2 -
message  2 -
fixed32  5 -
sfixed32 5 -
float    5 -
"""
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
_SCALAR_ROWS = [line.split(maxsplit=2) for line in _SCALARS.strip().split("\n")]
_DELIMITED_ROWS = [[cell.strip() for cell in line.split("|")] for line in _DELIMITED.strip().split("\n")]
_WIRE_TYPES = {name: int(number) for name, number, _ in _SCALAR_ROWS}
_FROM_VARINT = {name: value for name, _, value in _SCALAR_ROWS}
_TO_BYTES = {name: value for name, _, value, _ in _DELIMITED_ROWS}
_FROM_BYTES = {name: value for name, _, _, value in _DELIMITED_ROWS}
_DEFAULTS = {name: value for name, value, _, _ in _DELIMITED_ROWS}
_DEFAULTS |= {"bool": "False", "double": "0.0", "float": "0.0", "enum": "${enum_0}"}
_PLAIN = {"bool": "bool", "double": "float", "float": "float", "string": "str", "bytes": "bytes"}
_SIZES = {1: 8, 5: 4}
# What generated code may use, by module.
_IMPORTS = {
    "datetime": "datetime timedelta",
    "decimal": "Decimal",
    "typing": "Any",
    "llm_cost_ops.wire.decimals": "from_text plain",
    "llm_cost_ops.wire.errors": "DecodeError EncodeError",
    "llm_cost_ops.wire.fields": "DECODE_FAULTS ENCODE_FAULTS MOST_NESTED enum_members enum_varint"
    " enum_varints keep_unknown read_enum respell skip_field unreadable unwritable",
    "llm_cost_ops.wire.structs": "read_list_value read_raw_json read_struct read_value write_list_value"
    " write_raw_json write_struct write_value",
    "llm_cost_ops.wire.timestamps": "ZERO_MOMENT read_duration read_timestamp write_duration write_timestamp",
    "llm_cost_ops.wire.varint": "DOUBLE FIXED32 FIXED64 FLOAT SFIXED32 SFIXED64 SHORT int32 int64 prefixes"
    " read_more sint32 sint64 to_int32 uint32 uint64 varint",
}
_MESSAGE = '''

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
_VARINT = """
n = $data[$pos$width]
$pos += $after
if n > 127:
    c = $data[$pos]; $pos += 1; n += (c << 7) - 128
    if c > 127: n, $pos = read_more($data, $pos, n)
"""
_REPEATED = """
if t == $raw:
    x$number = m.$attribute
    while t == $raw:
        $one
        $next
    if pos >= end: break
"""
_PACKED = """
if t == $raw:
    $length
    s = pos; pos += n
    if pos > end: raise IndexError
    $all
    $next
"""
_ENTRY = """
$length
d, s, r = data, pos, pos + n
pos = r
if pos > end: raise IndexError
$key = $key_default
$item = $item_default
$parts
x$number[$key] = $value
"""
# Reads the fields of a small message from `s` to `r` in `d` into local names.
_PARTS = """
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
_TOO_DEEP = """
if depth > MOST_NESTED:
    raise DecodeError(f"messages lie more than {MOST_NESTED} deep")
"""


def emit_protobuf(package: Package, target: str) -> str:
    """The text of protobuf.py in the Python package `target`, beside its messages.py."""
    emitter = _Emitter()
    body = [line for message in package.messages for line in emitter.message(message)]
    classes = sorted([m.name for m in package.messages] + [e.name for e in package.enums])
    imports = {where: names.split() for where, names in _IMPORTS.items()} | {f"{target}.messages": classes}
    names = [f"{way}_{m.snake}" for m in package.messages for way in ("decode", "encode")]
    return module("Every message as protobuf.", imports, names, "\n".join(["", *emitter.tables(), *body]))


def _fill(template: str, /, **holes: str | int | list[str]) -> list[str]:
    """The lines of a template. A list goes into a line that is its name alone, a line each."""
    out: list[str] = []
    for line in template.removeprefix("\n").removesuffix("\n").split("\n"):
        lines = holes.get(line.strip().removeprefix("$"))
        if isinstance(lines, list):
            out += [line[: line.index("$")] + each for each in lines]
        else:
            out.append(Template(line).substitute(holes))
    return out


def _indent(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def _tag(number: int, wire_type: int) -> bytes:
    value, out = number << 3 | wire_type, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _raw(number: int, wire_type: int) -> int:
    """A tag as decoders hold it in `t`."""
    return sum(byte << 7 * at for at, byte in enumerate(_tag(number, wire_type)))


def _literal(data: bytes) -> str:
    return 'b"' + "".join(f"\\x{byte:02x}" for byte in data) + '"'


def _wire_type(field: Field) -> int:
    return 2 if field.cardinality == "map" else _WIRE_TYPES[field.type.proto]


def _packs(field: Field) -> bool:
    return field.cardinality == "repeated" and field.type.packable


def _widen(width: int) -> str:
    """The statement that adds a further byte to `t`, if the tag has one."""
    most = sum(255 << 7 * at for at in range(width - 1)) + (127 << 7 * (width - 1))
    return f"if t > {most}: t += data[pos + {width}] << {7 * width}"


def _next(width: int) -> list[str]:
    """Statements that move on to the next tag, or out of the loop."""
    return ["if pos >= end: break", "t = data[pos]", *map(_widen, range(1, width))]


def _varint(pos: str, width: int, data: str = "data") -> list[str]:
    return _fill(_VARINT, data=data, pos=pos, width=f" + {width}" if width else "", after=width + 1)


class _Emitter:
    """Gathers which tables the functions look up, while they are emitted."""

    def __init__(self) -> None:
        self.prefixes: set[bytes] = set()
        self.enums: set[str] = set()
        self.wrappers: set[str] = set()

    def tables(self) -> list[str]:
        lines = [f"{self.prefix(tag)} = prefixes({_literal(tag)})" for tag in sorted(self.prefixes)]
        for name in sorted(self.enums):
            upper = constant_name(name)
            lines += [f"_{upper}_VARINTS = enum_varints({name})", f"_{upper}_MEMBERS = enum_members({name})"]
            lines.append(f"_{upper}_0 = _{upper}_MEMBERS[0]")
        for name in sorted(self.wrappers):
            plain, type_ = _PLAIN.get(name, "int"), Type(name, name)
            head = f"def _read_{name}_value(d: bytes, s: int, r: int, earlier: {plain} | None) -> {plain}:"
            first = f"v = {self.default(type_)} if earlier is None else earlier"
            lines += ["", "", head, *_indent([first, *self.parts([(1, type_, "v")]), "return v"])]
        return lines

    def prefix(self, tag: bytes) -> str:
        """The name of the table of a tag with every short length."""
        self.prefixes.add(tag)
        return f"_T{tag.hex().upper()}"

    def expression(self, template: str, type_: Type, **holes: str) -> str:
        """A cell of the tables above, for a type."""
        if type_.enum is not None:
            self.enums.add(type_.enum.name)
            table = f"_{constant_name(type_.enum.name)}"
            holes |= {"enum": type_.enum.name, "members": f"{table}_MEMBERS", "enum_0": f"{table}_0"}
        if type_.message is not None:
            holes |= {"cls": type_.message.name, "snake": type_.message.snake}
        return Template(template).substitute(holes, wrapped=type_.wrapped)

    def default(self, type_: Type) -> str:
        return self.expression(_DEFAULTS.get(type_.wrapped or type_.kind, "0"), type_)

    def message(self, message: Message) -> list[str]:
        fields = sorted(message.fields, key=lambda f: f.number)
        keys = [(f, 2, "") for f in fields if _packs(f)]
        keys += [(f, _wire_type(f), f.attribute if f.cardinality == "repeated" else "") for f in fields]
        names = {_raw(f.number, wire_type): f'("{f.name}", "{items}")' for f, wire_type, items in keys}
        return _fill(
            _MESSAGE,
            upper=message.constant,
            snake=message.snake,
            cls=message.name,
            names=", ".join(f"{raw}: {name}" for raw, name in sorted(names.items())),
            tags=str(sorted(f.number << 3 | wire_type for f, wire_type, _ in keys)),
            encoding=[*_one_of(message), *(line for field in fields for line in self.encode(field))],
            decoding=self.cascade(message, fields),
            depth=_fill(_TOO_DEEP) if message.cyclic else [],
        )

    # Encoding

    def encode(self, field: Field) -> list[str]:
        number, type_, value = field.number, field.type, f"v{field.number}"
        at, given = f'at = "{field.name}"', f"if {value} := m.{field.attribute}:"
        tag = _tag(number, _wire_type(field))
        if field.cardinality == "map":
            lines = self.encode_map(field, value)
        elif field.cardinality == "repeated" and field.packed:
            joined = f'b = b"".join([{self.scalar(type_, "v")} for v in {value}])'
            lines = [joined, *self.delimited(_tag(number, 2))]
        elif field.cardinality == "repeated":
            lines = [f"for i, x{number} in enumerate({value}):"]
            lines += [*_indent(self.encode_value(type_, tag, f"x{number}")), "i = -1"]
        elif type_.kind in ("double", "float") and not field.nullable:
            # Zero is left out, but a negative zero is not.
            packed = f"b = {self.scalar(type_, f'm.{field.attribute}')}"
            return [at, packed, f"if b != {_literal(bytes(_SIZES[tag[0] & 7]))}: w({_literal(tag)} + b)"]
        else:
            lines = self.encode_value(type_, tag, value)
        if field.nullable or (field.cardinality == "singular" and type_.kind == "raw_json"):
            given = f"if ({value} := m.{field.attribute}) is not None:"
        elif field.cardinality == "singular" and type_.enum is not None:
            # Its identity tells most often; a type checker objects where there is no other member.
            other = f"is not {self.default(type_)} and {value} != " if len(type_.enum.values) > 1 else "!= "
            given = f'if ({value} := m.{field.attribute}) {other}"{type_.enum.default.value}":'
        return [given, *_indent([at, *lines])]

    def encode_value(self, type_: Type, tag: bytes, value: str) -> list[str]:
        """Statements that write a value with its tag."""
        if type_.kind == "bool":
            return [f"w({_literal(tag + bytes([1]))} if {value} else {_literal(tag + bytes([0]))})"]
        if _WIRE_TYPES[type_.proto] != 2:
            return [f"w({_literal(tag)})", f"w({self.scalar(type_, value)})"]
        lines = self.payload(type_, value, "b")
        if type_.message is None:
            return [*lines, *self.delimited(tag)]
        size = "w(SHORT[n] if n < 16384 else varint(n))"
        return [*lines, "n = len(b)", f"w({_literal(tag)})", size, "w(b)"]

    def delimited(self, tag: bytes) -> list[str]:
        """Statements that write the payload `b`."""
        return ["n = len(b)", f"w({self.prefix(tag)}[n] if n < 128 else {_literal(tag)} + varint(n))", "w(b)"]

    def scalar(self, type_: Type, value: str) -> str:
        """The bytes of a value that has no length before it."""
        kind = type_.proto
        if type_.enum is not None:
            varints = self.expression("${members}", type_).replace("_MEMBERS", "_VARINTS")
            return f"{varints}.get({value}) or enum_varint({type_.enum.name}, {value})"
        if kind == "bool":
            return f'b"\\x01" if {value} else b"\\x00"'
        if kind in ("sint32", "sint64"):
            return f"{kind}({value})"
        if _WIRE_TYPES[kind] == 0:
            return f"SHORT[{value}] if 0 <= {value} < 16384 else {kind}({value})"
        return f"{kind.upper()}.pack({value})"

    def payload(self, type_: Type, value: str, into: str) -> list[str]:
        """Statements that assign the bytes of a value that has a length before it."""
        if type_.kind != "wrapper":
            return [f"{into} = {self.expression(_TO_BYTES[type_.kind], type_, v=value)}"]
        wire_type = _WIRE_TYPES[type_.wrapped]
        empty = _literal(_tag(1, wire_type) + bytes(_SIZES.get(wire_type, 1)))
        lines = self.part(Type(type_.wrapped, type_.wrapped), 1, value, into)
        return [*lines, f'if {into} == {empty}: {into} = b""']

    def part(self, type_: Type, number: int, value: str, into: str) -> list[str]:
        """Statements that assign a field of a small message, tag included."""
        tag = _tag(number, _WIRE_TYPES[type_.proto])
        if _WIRE_TYPES[type_.proto] != 2:
            return [f"{into} = {_literal(tag)} + ({self.scalar(type_, value)})"]
        size = f"({self.prefix(tag)}[n] if n < 128 else {_literal(tag)} + varint(n))"
        return [*self.payload(type_, value, into), f"n = len({into})", f"{into} = {size} + {into}"]

    def encode_map(self, field: Field, value: str) -> list[str]:
        assert field.key is not None
        tag, key, item = _tag(field.number, 2), f"k{field.number}", f"x{field.number}"
        lines = self.part(field.key, 1, key, "e") + self.part(field.type, 2, item, "b")
        size = f"w({self.prefix(tag)}[n] if n < 128 else {_literal(tag)} + varint(n))"
        lines += ["n = len(e) + len(b)", size, "w(e)", "w(b)"]
        return [f"for {key}, {item} in {value}.items():", *_indent(lines)]

    # Decoding

    def cascade(self, message: Message, fields: list[Field]) -> list[str]:
        lines: list[str] = []
        width = 1
        for field in fields:
            while width < len(_tag(field.number, 0)):
                lines.append(_widen(width))
                width += 1
            if field.cardinality in ("map", "repeated"):
                lines += self.decode_many(field, width)
            else:
                others = [f for f in message.oneofs.get(field.oneof, ()) if f is not field]
                lines += self.decode(field, others, width)
        return lines

    def decode(self, field: Field, others: list[Field], width: int) -> list[str]:
        target = f"m.{field.attribute}"
        lines, value = self.value(field.type, width, target)
        if field.type.kind == "decimal" and field.nullable:
            value = value.replace(' or "0"', "")
        lines.append(f"{target} = {value}")
        if others:
            lines.append(f"{' = '.join(f'm.{other.attribute}' for other in others)} = None")
        return [f"if t == {_raw(field.number, _wire_type(field))}:", *_indent([*lines, *_next(width)])]

    def decode_many(self, field: Field, width: int) -> list[str]:
        number, wire_type = field.number, _wire_type(field)
        if field.cardinality == "map":
            one, attribute = self.entry(field, width), field.attribute
        else:
            one, value = self.value(field.type, width, "None")
            one, attribute = [*one, f"x{number}({value})"], f"{field.attribute}.append"
        raw = _raw(number, wire_type)
        lines = _fill(_REPEATED, raw=raw, number=number, attribute=attribute, one=one, next=_next(width))
        if not _packs(field):
            return lines
        if wire_type in _SIZES:
            unpacked = f"{field.type.proto.upper()}.iter_unpack(data[s:pos])"
            each = [f"m.{field.attribute} += [v for (v,) in {unpacked}]"]
        else:
            value = f"x{number}({self.expression(_FROM_VARINT[field.type.proto], field.type)})"
            each = [f"x{number} = m.{attribute}", "while s < pos:", *_indent([*_varint("s", 0), value])]
            each.append("if s != pos: raise IndexError")
        length = _varint("pos", width)
        return lines + _fill(_PACKED, raw=_raw(number, 2), length=length, all=each, next=_next(width))

    def entry(self, field: Field, width: int) -> list[str]:
        assert field.key is not None
        key, item, type_ = f"k{field.number}", f"v{field.number}", field.type
        merged = type_.proto == "message" and type_.kind not in ("value", "wrapper")
        default = self.default(type_)
        return _fill(
            _ENTRY,
            length=_varint("pos", width),
            number=field.number,
            key=key,
            key_default=self.default(field.key),
            item=f"{item}: {python_type(type_)} | None" if merged else item,
            item_default="None" if merged else default,
            parts=self.parts([(1, field.key, key), (2, type_, item)]),
            value=f"{item} if {item} is not None else {default}" if merged else item,
        )

    def parts(self, members: list[tuple[int, Type, str]]) -> list[str]:
        lines = []
        for number, type_, name in members:
            read, value = self.value(type_, 1, name, ("d", "s", "q", "r"))
            lines.append(f"if u == {number << 3 | _WIRE_TYPES[type_.proto]}:")
            lines += _indent([*read, f"{name} = {value}", "if s >= r: break", "u = d[s]"])
        known = tuple(number << 3 | _WIRE_TYPES[type_.proto] for number, type_, _ in members)
        return _fill(_PARTS, members=lines, known=str(known))

    def value(
        self, type_: Type, width: int, earlier: str, names: tuple[str, ...] = ("data", "pos", "s", "end")
    ) -> tuple[list[str], str]:
        """Statements that move the position behind a value, and the expression of the value.

        `names` are those of the data, the position, the value's start, and the message's end.
        """
        data, pos, start, end = names
        wire_type = _WIRE_TYPES[type_.proto]
        if wire_type in _SIZES:
            size = _SIZES[wire_type]
            value = f"{type_.proto.upper()}.unpack_from({data}, {pos} - {size})[0]"
            return [f"{pos} += {width + size}"], value
        lines = _varint(pos, width, data)
        if wire_type == 0:
            return lines, self.expression(_FROM_VARINT[type_.proto], type_)
        lines.append(f"{start} = {pos}; {pos} += n")
        if type_.proto == "message":
            lines.append(f"if {pos} > {end}: raise IndexError")
        if type_.kind == "wrapper":
            self.wrappers.add(type_.wrapped)
        value = self.expression(
            _FROM_BYTES[type_.kind], type_, data=data, start=start, stop=pos, earlier=earlier
        )
        return lines, value


def _one_of(message: Message) -> list[str]:
    """Statements that refuse two members of a oneof."""
    lines = []
    for name, members in message.oneofs.items():
        count = " + ".join(f"(m.{member.attribute} is not None)" for member in members)
        lines += [f"if {count} > 1:", f'    at = "{name}"']
        lines.append('    raise EncodeError("only one of its members may be set")')
    return lines
