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
from llm_cost_ops.codegen.protobuf_templates import (
    DEFAULTS,
    ENTRY,
    FROM_BYTES,
    FROM_VARINT,
    IMPORTS,
    LONG_VARINT,
    MESSAGE,
    PACKED,
    PARTS,
    PLAIN,
    REPEATED,
    SIZES,
    TO_BYTES,
    TOO_DEEP,
    VARINT,
    WIRE_TYPES,
)
from llm_cost_ops.codegen.structs import module, python_type

__all__ = ["emit_protobuf"]


def emit_protobuf(package: Package, target: str) -> str:
    """The text of protobuf.py in the Python package `target`, beside its messages.py."""
    emitter = _Emitter()
    body = [line for message in package.messages for line in emitter.message(message)]
    classes = sorted([m.name for m in package.messages] + [e.name for e in package.enums])
    imports = {words[0]: words[1:] for words in map(str.split, IMPORTS.strip().split("\n"))}
    imports[f"{target}.messages"] = classes
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
    return 2 if field.cardinality == "map" else WIRE_TYPES[field.type.proto]


def _packs(field: Field) -> bool:
    return field.cardinality == "repeated" and field.type.packable


def _widen(width: int) -> str:
    """The statement that adds a further byte to `t`, if the tag has one."""
    most = sum(255 << 7 * at for at in range(width - 1)) + (127 << 7 * (width - 1))
    return f"if t > {most}: t += data[pos + {width}] << {7 * width}"


def _next(width: int) -> list[str]:
    """Statements that move on to the next tag, or out of the loop."""
    return ["if pos >= end: break", "t = data[pos]", *map(_widen, range(1, width))]


def _varint(pos: str, to: str, width: int, data: str = "data", proto: str = "") -> list[str]:
    """Statements that read a varint `n`, a length or a value of a type, behind `width` bytes."""
    first = f" + {width}" if width else ""
    long = [LONG_VARINT[proto]] if proto in LONG_VARINT else []
    return _fill(VARINT, data=data, pos=pos, to=to, first=first, one=width + 1, two=width + 2, long=long)


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
            plain, type_ = PLAIN.get(name, "int"), Type(name, name)
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
        return self.expression(DEFAULTS.get(type_.wrapped or type_.kind, "0"), type_)

    def message(self, message: Message) -> list[str]:
        fields = sorted(message.fields, key=lambda f: f.number)
        keys = [(f, 2, "") for f in fields if _packs(f)]
        keys += [(f, _wire_type(f), f.attribute if f.cardinality == "repeated" else "") for f in fields]
        names = {_raw(f.number, wire_type): f'("{f.name}", "{items}")' for f, wire_type, items in keys}
        return _fill(
            MESSAGE,
            upper=message.constant,
            snake=message.snake,
            cls=message.name,
            names=", ".join(f"{raw}: {name}" for raw, name in sorted(names.items())),
            tags=str(sorted(f.number << 3 | wire_type for f, wire_type, _ in keys)),
            encoding=[*_one_of(message), *(line for field in fields for line in self.encode(field))],
            decoding=self.cascade(message, fields),
            depth=_fill(TOO_DEEP) if message.cyclic else [],
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
            return [at, packed, f"if b != {_literal(bytes(SIZES[tag[0] & 7]))}: w({_literal(tag)} + b)"]
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
        if WIRE_TYPES[type_.proto] != 2:
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
        if WIRE_TYPES[kind] == 0:
            return f"SHORT[{value}] if 0 <= {value} < 16384 else {kind}({value})"
        return f"{kind.upper()}.pack({value})"

    def payload(self, type_: Type, value: str, into: str) -> list[str]:
        """Statements that assign the bytes of a value that has a length before it."""
        if type_.kind != "wrapper":
            return [f"{into} = {self.expression(TO_BYTES[type_.kind], type_, v=value)}"]
        wire_type = WIRE_TYPES[type_.wrapped]
        empty = _literal(_tag(1, wire_type) + bytes(SIZES.get(wire_type, 1)))
        lines = self.part(Type(type_.wrapped, type_.wrapped), 1, value, into)
        return [*lines, f'if {into} == {empty}: {into} = b""']

    def part(self, type_: Type, number: int, value: str, into: str) -> list[str]:
        """Statements that assign a field of a small message, tag included."""
        tag = _tag(number, WIRE_TYPES[type_.proto])
        if WIRE_TYPES[type_.proto] != 2:
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
        lines = _fill(REPEATED, raw=raw, number=number, attribute=attribute, one=one, next=_next(width))
        if not _packs(field):
            return lines
        if wire_type in SIZES:
            unpacked = f"{field.type.proto.upper()}.iter_unpack(data[s:pos])"
            each = [f"m.{field.attribute} += [v for (v,) in {unpacked}]"]
        else:
            value = f"x{number}({self.expression(FROM_VARINT[field.type.proto], field.type)})"
            each = [
                f"x{number} = m.{attribute}",
                "while s < pos:",
                *_indent([*_varint("s", "s", 0, proto=field.type.proto), value]),
            ]
            each.append("if s != pos: raise IndexError")
        length = _varint("pos", "s", width)
        return lines + _fill(PACKED, raw=_raw(number, 2), length=length, all=each, next=_next(width))

    def entry(self, field: Field, width: int) -> list[str]:
        assert field.key is not None
        key, item, type_ = f"k{field.number}", f"v{field.number}", field.type
        merged = type_.proto == "message" and type_.kind not in ("value", "wrapper")
        default = self.default(type_)
        return _fill(
            ENTRY,
            length=_varint("pos", "s", width),
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
            lines.append(f"if u == {number << 3 | WIRE_TYPES[type_.proto]}:")
            lines += _indent([*read, f"{name} = {value}", "if s >= r: break", "u = d[s]"])
        known = tuple(number << 3 | WIRE_TYPES[type_.proto] for number, type_, _ in members)
        return _fill(PARTS, members=lines, known=str(known))

    def value(
        self, type_: Type, width: int, earlier: str, names: tuple[str, ...] = ("data", "pos", "s", "end")
    ) -> tuple[list[str], str]:
        """Statements that move the position behind a value, and the expression of the value.

        `names` are those of the data, the position, the value's start, and the message's end.
        """
        data, pos, start, end = names
        wire_type = WIRE_TYPES[type_.proto]
        if wire_type in SIZES:
            size = SIZES[wire_type]
            value = f"{type_.proto.upper()}.unpack_from({data}, {pos} - {size})[0]"
            return [f"{pos} += {width + size}"], value
        lines = _varint(pos, pos if wire_type == 0 else start, width, data, type_.proto)
        if wire_type == 0:
            return lines, self.expression(FROM_VARINT[type_.proto], type_)
        lines.append(f"{pos} = {start} + n")
        if type_.proto == "message":
            lines.append(f"if {pos} > {end}: raise IndexError")
        if type_.kind == "wrapper":
            self.wrappers.add(type_.wrapped)
        value = self.expression(
            FROM_BYTES[type_.kind], type_, data=data, start=start, stop=pos, earlier=earlier
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
