"""Emits protobuf.py: an encoder and a decoder per message, each a straight line through its fields.

What the shape rests on, measured on a 15-field record:
- A decoder tests the tag against each field in the order of the protocol, and goes on downward after a match,
  so that fields in order are read in one pass. Anything else falls through to the slow end of the loop.
- Varints of one and two bytes are read in line, and looked up when written.
- Slices forgive a length that runs past the end; one comparison at the end of the message does not.
- Every failure ends in one handler, which names the field by the tag at hand.

In decoders `t` is the tag at `pos` as it lies in the data: the sum of its bytes, each shifted by seven bits
more, with the continuation bits left in.
"""

from __future__ import annotations

from llm_cost_ops.codegen.model import Field, Message, Package, Type, constant_name
from llm_cost_ops.codegen.structs import module, python_type

__all__ = ["emit_protobuf"]

# By type on the wire: the wire type, and a varint `n` as the type's value.
_SCALARS = """
int32    0 n if n < 0x80000000 else to_int32(n)
int64    0 n if n < 0x8000000000000000 else n - 0x10000000000000000
uint32   0 n & 0xFFFFFFFF
uint64   0 n
sint32   0 (n & 0xFFFFFFFF) >> 1 ^ -(n & 1)
sint64   0 n >> 1 ^ -(n & 1)
bool     0 n != 0
enum     0 -
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
# By kind in Python, for what has a length: the default, the payload of a value V, and the value of the payload
# from START to STOP in DATA, where EARLIER is what came of an earlier part of the same field.
_DELIMITED = """
string     | ""         | V.encode()          | DATA[START:STOP].decode()
bytes      | b""        | V + b""             | DATA[START:STOP]
decimal    | Decimal(0) | plain(V).encode()   | from_text(DATA[START:STOP].decode() or "0")
raw_json   | None       | write_raw_json(V)   | read_raw_json(DATA[START:STOP])
timestamp  |            | write_timestamp(V)  | read_timestamp(DATA, START, STOP, EARLIER)
duration   |            | write_duration(V)   | read_duration(DATA, START, STOP, EARLIER)
struct     | {}         | write_struct(V)     | read_struct(DATA, START, STOP, depth + 1, EARLIER)
value      | None       | write_value(V)      | read_value(DATA, START, STOP, depth + 1, EARLIER)
list_value | []         | write_list_value(V) | read_list_value(DATA, START, STOP, depth + 1, EARLIER)
"""
_SCALAR_ROWS = [line.split(maxsplit=2) for line in _SCALARS.split("\n") if line]
_DELIMITED_ROWS = [[cell.strip() for cell in line.split(" | ")] for line in _DELIMITED.split("\n") if line]
_WIRE_TYPES = {name: int(number) for name, number, _ in _SCALAR_ROWS}
_FROM_VARINT = {name: value for name, _, value in _SCALAR_ROWS}
_TO_BYTES = {name: value for name, _, value, _ in _DELIMITED_ROWS}
_FROM_BYTES = {name: value for name, _, _, value in _DELIMITED_ROWS}
_DEFAULTS = {name: value for name, value, _, _ in _DELIMITED_ROWS} | {
    "bool": "False",
    "double": "0.0",
    "float": "0.0",
}
_SIZES = {1: 8, 5: 4}
# What generated code may use, by module.
_IMPORTS = {
    "decimal": "Decimal",
    "llm_cost_ops.wire.decimals": "from_text plain",
    "llm_cost_ops.wire.errors": "DecodeError EncodeError",
    "llm_cost_ops.wire.fields": "DECODE_FAULTS ENCODE_FAULTS MOST_NESTED enum_members enum_varint enum_varints"
    " keep_unknown read_enum respell skip_field unreadable unwritable",
    "llm_cost_ops.wire.structs": "read_list_value read_raw_json read_struct read_value write_list_value"
    " write_raw_json write_struct write_value",
    "llm_cost_ops.wire.timestamps": "read_duration read_timestamp write_duration write_timestamp",
    "llm_cost_ops.wire.varint": "DOUBLE FIXED32 FIXED64 FLOAT SFIXED32 SFIXED64 SHORT int32 int64 prefixes"
    " read_more sint32 sint64 to_int32 uint32 uint64 varint",
}
_VARINT = """\
n = {data}[{pos} + {width}]
{pos} += {after}
if n > 127:
    c = {data}[{pos}]
    {pos} += 1
    n += (c << 7) - 128
    if c > 127:
        n, {pos} = read_more({data}, {pos}, n)"""


def emit_protobuf(package: Package, target: str) -> str:
    """The text of protobuf.py in the Python package `target`, beside its messages.py."""
    emitter = _Emitter()
    body = [line for message in package.messages for line in emitter.message(message)]
    classes = sorted([m.name for m in package.messages] + [e.name for e in package.enums])
    imports = {where: names.split() for where, names in _IMPORTS.items()} | {f"{target}.messages": classes}
    names = [f"{way}_{m.snake}" for m in package.messages for way in ("decode", "encode")]
    return module("Every message as protobuf.", imports, names, "\n".join(["", *emitter.tables(), *body]))


def _tag(number: int, wire_type: int) -> bytes:
    value, out = number << 3 | wire_type, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _raw(tag: bytes) -> int:
    """A tag as decoders hold it in `t`."""
    return sum(byte << 7 * at for at, byte in enumerate(tag))


def _lit(data: bytes) -> str:
    return 'b"' + "".join(f"\\x{byte:02x}" for byte in data) + '"'


def _to_bytes(type_: Type, value: str) -> str:
    if type_.message is not None:
        return f"encode_{type_.message.snake}({value})"
    return _TO_BYTES.get(type_.kind, "").replace("V", value)


def _indent(lines: list[str], by: int = 1) -> list[str]:
    return ["    " * by + line if line else line for line in lines]


def _wire(field: Field) -> int:
    return 2 if field.cardinality == "map" else _WIRE_TYPES[field.type.proto]


class _Emitter:
    def __init__(self) -> None:
        self.prefixes: set[bytes] = set()
        self.enums: set[str] = set()
        self.wrappers: set[str] = set()

    def tables(self) -> list[str]:
        """What the functions look up; known once they are emitted."""
        lines = [f"{self.prefix(tag)} = prefixes({_lit(tag)})" for tag in sorted(self.prefixes)]
        for name in sorted(self.enums):
            upper = constant_name(name)
            lines += [f"_{upper}_VARINTS = enum_varints({name})", f"_{upper}_MEMBERS = enum_members({name})"]
            lines.append(f"_{upper}_0 = _{upper}_MEMBERS[0]")
        for name in sorted(self.wrappers):
            lines += self.wrapper_reader(Type(name, name))
        return lines

    def message(self, message: Message) -> list[str]:
        return [*self.constants(message), *self.encoder(message), *self.decoder(message)]

    def constants(self, message: Message) -> list[str]:
        raw, tags = {}, set()
        for field in message.fields:
            for wire_type in {_wire(field), *([2] if self.packs(field) else [])}:
                tag = _tag(field.number, wire_type)
                indexed = (
                    field.attribute if field.cardinality == "repeated" and wire_type == _wire(field) else ""
                )
                raw[_raw(tag)] = f'("{field.name}", "{indexed}")'
                tags.add(field.number << 3 | wire_type)
        upper = message.constant
        return [
            "",
            f"_{upper}_NAMES = {{{', '.join(f'{t}: {name}' for t, name in sorted(raw.items()))}}}"
            if raw
            else f"_{upper}_NAMES: dict[int, tuple[str, str]] = {{}}",
            f"_{upper}_TAGS: frozenset[int] = frozenset({sorted(tags)})",
        ]

    @staticmethod
    def packs(field: Field) -> bool:
        return field.cardinality == "repeated" and field.type.packable

    def prefix(self, tag: bytes) -> str:
        """The name of the table of a tag with every short length."""
        self.prefixes.add(tag)
        return f"_T{tag.hex().upper()}"

    # Encoding

    def encoder(self, message: Message) -> list[str]:
        lines = ["", "", f"def encode_{message.snake}(message: {message.name}) -> bytes:"]
        lines += [f'    """The protobuf bytes of a {message.name}."""', "    m = message"]
        lines += ["    out: list[bytes] = []", "    w = out.append", '    at = ""', "    i = -1", "    try:"]
        for name, members in message.oneofs.items():
            count = " + ".join(f"(m.{member.attribute} is not None)" for member in members)
            lines += [f"        if {count} > 1:", f'            at = "{name}"']
            lines.append('            raise EncodeError("only one of its members may be set")')
        for field in sorted(message.fields, key=lambda f: f.number):
            lines += _indent(self.encode_field(field), 2)
        return [
            *lines,
            "        if m.unknown_:",
            "            w(m.unknown_.binary)",
            "    except ENCODE_FAULTS as error:",
            "        raise unwritable(error, at, i) from None",
            '    return b"".join(out)',
        ]

    def encode_field(self, field: Field) -> list[str]:
        tag, value = _tag(field.number, _wire(field)), f"v{field.number}"
        at, given = f'at = "{field.name}"', f"if {value} := m.{field.attribute}:"
        if field.cardinality == "map":
            return [given, *_indent([at, *self.encode_map(field, tag, value)])]
        if field.cardinality == "repeated" and field.packed:
            joined = f'b"".join([{self.scalar(field.type, "v")} for v in {value}])'
            return [given, *_indent([at, f"b = {joined}", *self.delimited(_tag(field.number, 2), "b")])]
        if field.cardinality == "repeated":
            each = [f"for i, x{field.number} in enumerate({value}):"]
            each += _indent(self.encode_value(field.type, tag, f"x{field.number}"))
            return [given, *_indent([at, *each, "i = -1"])]
        if field.type.kind in ("double", "float") and not field.nullable:
            zero = f"bytes({_SIZES[_wire(field)]})"
            return [
                at,
                f"b = {self.scalar(field.type, f'm.{field.attribute}')}",
                f"if b != {zero}:",
                f"    w({_lit(tag)} + b)",
            ]
        if field.nullable or field.type.kind == "raw_json":
            given = f"if ({value} := m.{field.attribute}) is not None:"
        elif field.type.enum is not None:
            given = f'if ({value} := m.{field.attribute}) != "{field.type.enum.default.value}":'
            if len(field.type.enum.values) > 1:
                # The same test, four times as fast where it mostly fails.
                self.enums.add(field.type.enum.name)
                default = f"_{constant_name(field.type.enum.name)}_0"
                given = given.replace("!=", f"is not {default} and {value} !=")
        return [given, *_indent([at, *self.encode_value(field.type, tag, value)])]

    def encode_value(self, type_: Type, tag: bytes, value: str) -> list[str]:
        """Write a value with its tag."""
        if type_.kind == "bool":
            return [f"w({_lit(tag + bytes([1]))} if {value} else {_lit(tag + bytes([0]))})"]
        if _WIRE_TYPES[type_.proto] != 2:
            return [f"w({_lit(tag)})", f"w({self.scalar(type_, value)})"]
        if type_.message is not None:
            size = "SHORT[n] if n < 16384 else varint(n)"
            return [
                f"b = encode_{type_.message.snake}({value})",
                "n = len(b)",
                f"w({_lit(tag)})",
                f"w({size})",
                "w(b)",
            ]
        if type_.kind == "wrapper":
            scalar = Type(type_.wrapped, type_.wrapped)
            lines, number = self.part(scalar, 1, value, "b"), _WIRE_TYPES[type_.wrapped]
            zero = _lit(_tag(1, number) + bytes(_SIZES.get(number, 1)))
            return [*lines, f"if b == {zero}:", '    b = b""', *self.delimited(tag, "b")]
        return [f"b = {_to_bytes(type_, value)}", *self.delimited(tag, "b")]

    def delimited(self, tag: bytes, data: str) -> list[str]:
        return [
            f"n = len({data})",
            f"w({self.prefix(tag)}[n] if n < 128 else {_lit(tag)} + varint(n))",
            f"w({data})",
        ]

    def scalar(self, type_: Type, value: str) -> str:
        """The bytes of a value that is not length-delimited."""
        kind = type_.proto
        if type_.enum is not None:
            self.enums.add(type_.enum.name)
            return f"_{constant_name(type_.enum.name)}_VARINTS.get({value}) or enum_varint({type_.enum.name}, {value})"
        if kind == "bool":
            return f'b"\\x01" if {value} else b"\\x00"'
        if kind in ("sint32", "sint64"):
            return f"{kind}({value})"
        if _WIRE_TYPES[kind] == 0:
            return f"SHORT[{value}] if 0 <= {value} < 16384 else {kind}({value})"
        return f"{kind.upper()}.pack({value})"

    def part(self, type_: Type, number: int, value: str, into: str) -> list[str]:
        """Assign a field of a small message, tag included, to a name."""
        tag = _tag(number, _WIRE_TYPES[type_.proto])
        if _WIRE_TYPES[type_.proto] != 2:
            return [f"{into} = {_lit(tag)} + ({self.scalar(type_, value)})"]
        lines = [f"{into} = {_to_bytes(type_, value)}"]
        if type_.kind == "wrapper":
            lines = self.part(Type(type_.wrapped, type_.wrapped), 1, value, into)
        size = f"({self.prefix(tag)}[n] if n < 128 else {_lit(tag)} + varint(n))"
        return [*lines, f"n = len({into})", f"{into} = {size} + {into}"]

    def encode_map(self, field: Field, tag: bytes, value: str) -> list[str]:
        assert field.key is not None
        key, item = f"k{field.number}", f"x{field.number}"
        lines = self.part(field.key, 1, key, "e") + self.part(field.type, 2, item, "b")
        size = f"w({self.prefix(tag)}[n] if n < 128 else {_lit(tag)} + varint(n))"
        lines += ["n = len(e) + len(b)", size, "w(e)", "w(b)"]
        return [f"for {key}, {item} in {value}.items():", *_indent(lines)]

    # Decoding

    def decoder(self, message: Message) -> list[str]:
        name, upper = message.name, message.constant
        lines = ["", "", f"def decode_{message.snake}(data: bytes) -> {name}:"]
        lines += [f'    """The {name} that protobuf bytes hold. Raises DecodeError."""']
        lines += [f"    return _read_{message.snake}(data, 0, len(data), 0, None)", "", ""]
        lines.append(
            f"def _read_{message.snake}(data: bytes, pos: int, end: int, depth: int, m: {name} | None) -> {name}:"
        )
        if message.cyclic:
            lines += ["    if depth > MOST_NESTED:"]
            lines.append('        raise DecodeError(f"messages lie more than {MOST_NESTED} deep")')
        lines += [
            "    if m is None:",
            f"        m = {name}()",
            "    kept: list[bytes] = []",
            "    t = 0",
            "    try:",
        ]
        lines += ["        while pos < end:", "            t = data[pos]"]
        lines += _indent(self.cascade(message), 3)
        return [
            *lines,
            f"            if t in _{upper}_NAMES:",
            "                continue",
            f"            s = skip_field(data, pos, end, _{upper}_TAGS)",
            "            if s < 0:",
            f"                data = respell(data, pos, end, _{upper}_TAGS)",
            "                pos, end = 0, len(data)",
            "                continue",
            "            kept.append(data[pos:s])",
            "            pos = s",
            "        if pos != end:",
            "            raise IndexError",
            "    except DECODE_FAULTS as error:",
            f'        raise unreadable(error, m, _{upper}_NAMES.get(t, ("", "")), pos > end) from None',
            "    if kept:",
            "        m.unknown_ = keep_unknown(m.unknown_, kept)",
            "    return m",
        ]

    def cascade(self, message: Message) -> list[str]:
        lines: list[str] = []
        width = 1
        for field in sorted(message.fields, key=lambda f: f.number):
            wanted = len(_tag(field.number, 0))
            while width < wanted:
                lines += self.widen(width)
                width += 1
            lines += self.decode_field(field, message, width)
        return lines

    @staticmethod
    def widen(width: int) -> list[str]:
        """Add a further byte to `t`, if the tag has one."""
        most = _raw(bytes([255] * (width - 1) + [127]))
        return [f"if t > {most}:", f"    t += data[pos + {width}] << {7 * width}"]

    def next(self, width: int) -> list[str]:
        """Move on to the next tag, or out of the loop."""
        more = [line for done in range(1, width) for line in self.widen(done)]
        return ["if pos >= end:", "    break", "t = data[pos]", *more]

    def decode_field(self, field: Field, message: Message, width: int) -> list[str]:
        raw = _raw(_tag(field.number, _wire(field)))
        if field.cardinality in ("map", "repeated"):
            lines = (
                self.decode_entry(field, width)
                if field.cardinality == "map"
                else self.decode_item(field, width)
            )
            again = [f"while t == {raw}:", *_indent([*lines, *self.next(width)])]
            start = [
                f"x{field.number} = m.{field.attribute}{'' if field.cardinality == 'map' else '.append'}"
            ]
            lines = [f"if t == {raw}:", *_indent([*start, *again, "if pos >= end:", "    break"])]
            return lines + (self.decode_packed(field, width) if self.packs(field) else [])
        lines, value = self.value(field.type, width, f"m.{field.attribute}")
        if field.type.kind == "decimal" and field.nullable:
            value = value.replace(' or "0"', "")
        lines.append(f"m.{field.attribute} = {value}")
        others = [f"m.{o.attribute}" for o in message.oneofs.get(field.oneof, ()) if o is not field]
        if others:
            lines.append(f"{' = '.join(others)} = None")
        return [f"if t == {raw}:", *_indent([*lines, *self.next(width)])]

    def decode_item(self, field: Field, width: int) -> list[str]:
        lines, value = self.value(field.type, width, "None")
        return [*lines, f"x{field.number}({value})"]

    def decode_packed(self, field: Field, width: int) -> list[str]:
        attribute, wire_type = f"m.{field.attribute}", _WIRE_TYPES[field.type.proto]
        lines = [*_varint("pos", width), "s = pos", "pos += n", "if pos > end:", "    raise IndexError"]
        if wire_type in _SIZES:
            unpacked = f"{field.type.proto.upper()}.iter_unpack(data[s:pos])"
            lines.append(f"{attribute} += [v for (v,) in {unpacked}]")
        else:
            each = [*_varint("s", 0), f"x{field.number}({self.from_varint(field.type)})"]
            lines += [f"x{field.number} = {attribute}.append", "while s < pos:", *_indent(each)]
            lines += ["if s != pos:", "    raise IndexError"]
        return [f"if t == {_raw(_tag(field.number, 2))}:", *_indent([*lines, *self.next(width)])]

    def decode_entry(self, field: Field, width: int) -> list[str]:
        assert field.key is not None
        key, item = f"k{field.number}", f"v{field.number}"
        lines = [*_varint("pos", width), "d, s, r = data, pos, pos + n", "pos = r"]
        lines += ["if pos > end:", "    raise IndexError", f"{key} = {self.default(field.key)}"]
        given = field.type.proto == "message" and field.type.kind not in ("value", "wrapper")
        type_ = f": {python_type(field.type)} | None" if given else ""
        lines.append(f"{item}{type_} = {'None' if given else self.default(field.type)}")
        lines += self.parts([(1, field.key, key), (2, field.type, item)])
        value = f"{item} if {item} is not None else {self.default(field.type)}" if given else item
        return [*lines, f"x{field.number}[{key}] = {value}"]

    def wrapper_reader(self, type_: Type) -> list[str]:
        name = python_type(type_)
        lines = [
            "",
            "",
            f"def _read_{type_.kind}_value(d: bytes, s: int, r: int, earlier: {name} | None) -> {name}:",
        ]
        lines.append(f"    v = {self.default(type_)} if earlier is None else earlier")
        return [*lines, *_indent(self.parts([(1, type_, "v")])), "    return v"]

    def parts(self, members: list[tuple[int, Type, str]]) -> list[str]:
        """Read the fields of a small message from `s` to `r` in `d` into local names."""
        lines = ["t = d[s]"]
        tags = []
        for number, type_, name in members:
            tags.append(number << 3 | _WIRE_TYPES[type_.proto])
            read, value = self.value(type_, 1, name, ("d", "s", "q", "r"))
            lines += [f"if t == {tags[-1]}:", *_indent([*read, f"{name} = {value}"])]
            lines += _indent(["if s >= r:", "    break", "t = d[s]"])
        known = f"({', '.join(map(str, tags))},)"
        lines += [f"if t not in {known}:", f"    q = skip_field(d, s, r, {known})", "    if q < 0:"]
        lines += [f"        d = respell(d, s, r, {known})", "        q, r = 0, len(d)", "    s = q"]
        return ["while s < r:", *_indent(lines), "if s != r:", "    raise IndexError"]

    def default(self, type_: Type) -> str:
        """The value of a map's key or value that is not given, or of an empty wrapper."""
        kind = type_.wrapped or type_.kind
        if type_.message is not None:
            return f"{type_.message.name}()"
        if type_.enum is not None:
            self.enums.add(type_.enum.name)
            return f"_{constant_name(type_.enum.name)}_0"
        if kind in ("timestamp", "duration"):
            return f'read_{kind}(b"", 0, 0, None)'
        return _DEFAULTS.get(kind, "0")

    def value(
        self,
        type_: Type,
        width: int,
        earlier: str,
        names: tuple[str, str, str, str] = ("data", "pos", "s", "end"),
    ) -> tuple[list[str], str]:
        """Statements that move the position behind a value, and the expression of the value.

        `names` are those of the data, the position, the value's start, and the message's end.
        """
        data, pos, start, end = names
        wire_type = _WIRE_TYPES[type_.proto]
        if wire_type in _SIZES:
            size = _SIZES[wire_type]
            return [
                f"{pos} += {width + size}"
            ], f"{type_.proto.upper()}.unpack_from({data}, {pos} - {size})[0]"
        lines = _varint(pos, width, data)
        if wire_type == 0:
            return lines, self.from_varint(type_)
        lines += [f"{start} = {pos}", f"{pos} += n"]
        if type_.proto == "message":
            lines += [f"if {pos} > {end}:", "    raise IndexError"]
        if type_.message is not None:
            return lines, f"_read_{type_.message.snake}({data}, {start}, {pos}, depth + 1, {earlier})"
        if type_.kind == "wrapper":
            self.wrappers.add(type_.wrapped)
            return lines, f"_read_{type_.wrapped}_value({data}, {start}, {pos}, {earlier})"
        text = _FROM_BYTES[type_.kind].replace("START", start).replace("STOP", pos)
        return lines, text.replace("DATA", data).replace("EARLIER", earlier)

    def from_varint(self, type_: Type) -> str:
        if type_.enum is None:
            return _FROM_VARINT[type_.proto]
        self.enums.add(type_.enum.name)
        members = f"_{constant_name(type_.enum.name)}_MEMBERS"
        return f"{members}.get(n) or read_enum({type_.enum.name}, {members}, n)"


def _varint(pos: str, width: int, data: str = "data") -> list[str]:
    return _VARINT.format(data=data, pos=pos, width=width, after=width + 1).replace(" + 0]", "]").splitlines()
