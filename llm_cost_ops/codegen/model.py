"""Reads descriptors into the model that the emitters take.

`read_package(files, proto_packages, python)` makes one `Package` of some proto packages. All their messages
are in it; so are the messages of other packages that their fields need (google.protobuf.Any, FieldMask…), but
for Timestamp, Duration, Struct, Value, ListValue and the wrappers, which are kinds of their own. Only proto3
is read; anything else raises ModelError.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import betterproto
from betterproto.lib.google.protobuf import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from llm_cost_ops.codegen import nodes
from llm_cost_ops.codegen.nodes import Enum, EnumValue, Field, Message, ModelError, Package, Rules, Type

__all__ = ["read_package"]

_WELL_KNOWN = {
    "Timestamp": ("timestamp", ""),
    "Duration": ("duration", ""),
    "Struct": ("struct", ""),
    "Value": ("value", ""),
    "ListValue": ("list_value", ""),
    **{
        f"{name}Value": ("wrapper", name.lower())
        for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
    },
}

# What generated modules use by these names, so that no class and no attribute may have them.
_TAKEN_ATTRIBUTES = frozenset(
    "self unknown_ int str bool float bytes list dict datetime timedelta msgspec".split()
)
_TAKEN_CLASSES = frozenset(
    "Any Annotated Decimal OpenEnum Unknown UnsetType UNSET Struct Violation Mapping Sequence Protocol"
    " Iterable Iterator Generator AsyncIterator AsyncIterable AsyncGenerator CallContext Channel AsyncChannel"
    " MethodDescriptor MessageCodec HttpRule QueryField Cardinality Idempotency None True False".split()
)


def read_package(
    files: Sequence[FileDescriptorProto],
    proto_packages: Iterable[str],
    python: str = "generated",
    *,
    well_known_messages: bool = False,
) -> Package:
    """The model of some proto packages, out of a closed set of file descriptors, for a Python package.

    A file that declares extensions holds options for the generator: its messages are left out unless used.
    With `well_known_messages`, Timestamp and its like are messages as any other: no nanosecond is rounded.
    """
    return _Reader(files, python, {} if well_known_messages else _WELL_KNOWN).read(set(proto_packages))


@dataclass
class _Declared:
    proto: Any
    file: FileDescriptorProto
    path: tuple[int, ...]
    flat_name: str


class _Reader:
    def __init__(
        self, files: Sequence[FileDescriptorProto], python: str, well_known: dict[str, tuple[str, str]]
    ) -> None:
        self.well_known = well_known
        self.files = sorted(files, key=lambda f: f.name)
        self.declared: dict[str, _Declared] = {}
        self.comments: dict[str, dict[tuple[int, ...], str]] = {}
        for file in self.files:
            self.comments[file.name] = _comments(file)
            for full_name, declared in _declarations(file):
                self.declared[full_name] = declared
        self.package = Package(python)
        self.types: dict[str, Message | Enum] = {}
        self.names: set[str] = set()
        self.pending: list[str] = []

    def read(self, proto_packages: set[str]) -> Package:
        wanted = [file for file in self.files if file.package in proto_packages]
        for file in wanted:
            if not file.extension:
                for full_name, declared in self.declared.items():
                    if declared.file is file:
                        self.type(full_name)
        for file in wanted:
            for index, service in enumerate(file.service):
                self.package.services.append(self.service(service, file, index))
        while self.pending:
            self.fill(self.pending.pop(0))
        _mark_cycles(self.package.messages)
        return self.package

    def type(self, full_name: str) -> Message | Enum:
        if full_name not in self.types:
            declared = self.declared.get(full_name)
            if declared is None:
                raise ModelError(f"the type {full_name} is not among the files")
            if declared.file.syntax != "proto3":
                raise ModelError(f"{declared.file.name}: {full_name} is not proto3")
            comment = self.comment(declared.file, declared.path)
            name = self.class_name(declared.flat_name)
            if isinstance(declared.proto, EnumDescriptorProto):
                self.types[full_name] = enum = Enum(full_name, name, comment)
                enum.values = self.enum_values(declared)
                self.package.enums.append(enum)
            else:
                omit = bool(_extensions(declared.proto.options).get(50101))
                self.types[full_name] = message = Message(full_name, name, comment, omit_defaults=omit)
                self.package.messages.append(message)
                self.pending.append(full_name)
        return self.types[full_name]

    def class_name(self, flat_name: str) -> str:
        name = flat_name.replace("_", "") if "_" in flat_name and flat_name[0].isupper() else flat_name
        while name in _TAKEN_CLASSES or keyword.iskeyword(name) or name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def message(self, full_name: str) -> Message:
        found = self.type(full_name.lstrip("."))
        assert isinstance(found, Message)
        return found

    def comment(self, file: FileDescriptorProto, path: tuple[int, ...]) -> str:
        return self.comments[file.name].get(path, "")

    def enum_values(self, declared: _Declared) -> list[EnumValue]:
        prefix = nodes.constant_name(declared.proto.name) + "_"
        by_number: dict[int, EnumValue] = {}
        by_name: dict[str, EnumValue] = {}
        for index, proto in enumerate(declared.proto.value):
            short = proto.name.removeprefix(prefix)
            if not short or short[0].isdigit():
                short = proto.name
            first = by_number.get(proto.number)
            if short.upper() in by_name:
                # protoc lets names differ in case alone only where the numbers are the same.
                continue
            comment = self.comment(declared.file, (*declared.path, 2, index))
            string = first.value if first else short.lower()
            value = EnumValue(short.upper(), string, proto.number, comment, first is not None)
            by_number.setdefault(proto.number, value)
            by_name[value.name] = value
        return list(by_name.values())

    def fill(self, full_name: str) -> None:
        message = self.message(full_name)
        declared = self.declared[full_name]
        proto: DescriptorProto = declared.proto
        maps = {f".{full_name}.{n.name}": n for n in proto.nested_type if n.options.map_entry}
        taken: set[str] = set()
        for index, descriptor in enumerate(proto.field):
            made = self.field(proto, descriptor, maps)
            made.comment = self.comment(declared.file, (*declared.path, 2, index))
            while made.attribute in taken:
                made.attribute += "_"
            taken.add(made.attribute)
            message.fields.append(made)

    def field(
        self, owner: DescriptorProto, proto: FieldDescriptorProto, maps: dict[str, DescriptorProto]
    ) -> Field:
        options = _extensions(proto.options)
        entry = maps.get(proto.type_name)
        key = None if entry is None else self.field_type(entry.field[0], {})
        value = self.field_type(proto if entry is None else entry.field[1], options)
        real_oneof = proto.is_set("oneof_index") and not proto.proto3_optional
        repeated = proto.label == 3
        cardinality = "singular"
        if entry is not None:
            cardinality = "map"
        elif repeated:
            cardinality = "repeated"
        elif real_oneof or proto.proto3_optional:
            cardinality = "optional"
        packed = cardinality == "repeated" and value.packable
        if proto.options.is_set("packed"):
            packed = packed and proto.options.packed
        return Field(
            name=proto.name,
            attribute=_attribute(proto.name),
            rest_name=_text(options.get(50002)) or proto.name,
            number=proto.number,
            type=value,
            cardinality=cardinality,
            key=key,
            packed=packed,
            oneof=owner.oneof_decl[proto.oneof_index].name if real_oneof else "",
            rules=_rules(options.get(50008)),
            moment=bool(options.get(50005)),
            itemized=bool(options.get(50006)),
            example=_text(options.get(50007)),
            rest_aliases=tuple(_text([alias]) for alias in options.get(50004, ())),
        )

    def field_type(self, proto: FieldDescriptorProto, options: dict[int, list[Any]]) -> Type:
        wire = (proto.type.name or "").removeprefix("TYPE_").lower()
        if wire == "group":
            raise ModelError(f"field {proto.name}: groups are not proto3")
        if wire == "message":
            name = proto.type_name.lstrip(".")
            kind, wrapped = self.well_known.get(name.removeprefix("google.protobuf."), ("", ""))
            if kind and name.startswith("google.protobuf."):
                return Type("message", kind, wrapped=wrapped)
            return Type("message", "message", message=self.message(name))
        if wire == "enum":
            enum = self.type(proto.type_name.lstrip("."))
            assert isinstance(enum, Enum)
            return Type("enum", "enum", enum=enum)
        if options.get(50001):
            return Type(wire, "decimal")
        return Type(wire, "raw_json" if options.get(50003) else wire)

    def service(self, proto: ServiceDescriptorProto, file: FileDescriptorProto, index: int) -> nodes.Service:
        full_name = f"{file.package}.{proto.name}" if file.package else proto.name
        stem = nodes.snake_case(proto.name.removesuffix("Service") or proto.name)
        resource = _text(_extensions(proto.options).get(50301)) or stem
        service = nodes.Service(full_name, proto.name, resource, self.comment(file, (6, index)))
        for at, rpc in enumerate(proto.method):
            options = _extensions(rpc.options)
            streams = ("stream" if rpc.client_streaming else "unary", rpc.server_streaming)
            snake = nodes.snake_case(rpc.name)
            service.methods.append(
                nodes.Method(
                    name=rpc.name,
                    attribute=_attribute(snake),
                    python_name=_callable(_text(options.get(50201)) or snake),
                    service=service,
                    request=self.message(rpc.input_type),
                    response=self.message(rpc.output_type),
                    cardinality=f"{streams[0]}_{'stream' if streams[1] else 'unary'}",
                    idempotency=("UNKNOWN", "NO_SIDE_EFFECTS", "IDEMPOTENT")[rpc.options.idempotency_level],
                    comment=self.comment(file, (6, index, 2, at)),
                    http=_http(options.get(72295728)),
                    http_status=(options.get(50202) or [200])[-1],
                    idempotency_key=_text(options.get(50203)),
                )
            )
        return service


def _declarations(file: FileDescriptorProto) -> Iterator[tuple[str, _Declared]]:
    prefix = f"{file.package}." if file.package else ""

    def walk(proto: DescriptorProto, path: tuple[int, ...], name: str, flat: str) -> Iterator[Any]:
        if proto.options.map_entry:
            return
        yield name, _Declared(proto, file, path, flat)
        for at, enum in enumerate(proto.enum_type):
            yield f"{name}.{enum.name}", _Declared(enum, file, (*path, 4, at), flat + enum.name)
        for at, inner in enumerate(proto.nested_type):
            yield from walk(inner, (*path, 3, at), f"{name}.{inner.name}", flat + inner.name)

    for at, enum in enumerate(file.enum_type):
        yield prefix + enum.name, _Declared(enum, file, (5, at), enum.name)
    for at, proto in enumerate(file.message_type):
        yield from walk(proto, (4, at), prefix + proto.name, proto.name)


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    found = {}
    for location in file.source_code_info.location:
        text = location.leading_comments or location.trailing_comments
        if text:
            found[tuple(location.path)] = "\n".join(line.strip() for line in text.strip().splitlines())
    return found


def _extensions(options: Any) -> dict[int, list[Any]]:
    """The extensions of an options message: betterproto leaves them in its unknown fields."""
    found: dict[int, list[Any]] = {}
    for parsed in betterproto.parse_fields(options._unknown_fields):
        found.setdefault(parsed.number, []).append(parsed.value)
    return {number: values for number, values in found.items() if values != [0]}


def _text(values: list[Any] | None) -> str:
    return values[-1].decode() if values else ""


def _rules(values: list[Any] | None) -> Rules:
    if not values:
        return Rules()
    given = {p.number: p.value for raw in values for p in betterproto.parse_fields(raw)}
    signed = {n: v - 2**64 if v >= 2**63 else v for n, v in given.items()}
    return Rules(
        required=bool(signed.get(1)),
        max_length=signed.get(2),
        minimum=signed.get(3),
        maximum=signed.get(4),
        max_items=signed.get(5),
        multiline=bool(signed.get(6)),
    )


def _http(values: list[Any] | None) -> nodes.Http | None:
    verbs = {2: "GET", 3: "PUT", 4: "POST", 5: "DELETE", 6: "PATCH"}
    given = {p.number: p.value for raw in values or () for p in betterproto.parse_fields(raw)}
    for number, verb in verbs.items():
        if number in given:
            return nodes.Http(
                verb, given[number].decode(), given.get(7, b"").decode(), given.get(12, b"").decode()
            )
    return None


def _attribute(name: str) -> str:
    if name.startswith("__"):
        # Python would mangle it in a class body.
        name = name.lstrip("_") + "_"
    return f"{name}_" if keyword.iskeyword(name) or name in _TAKEN_ATTRIBUTES else name


def _callable(name: str) -> str:
    # In a class of methods only, nothing is read by a builtin's name.
    return f"{name}_" if keyword.iskeyword(name) else name


def _mark_cycles(messages: list[Message]) -> None:
    for message in messages:
        seen: set[str] = set()
        todo = [message]
        while todo and not message.cyclic:
            for member in todo.pop().fields:
                inner = member.type.message
                message.cyclic = message.cyclic or inner is message
                if inner is not None and inner.full_name not in seen:
                    seen.add(inner.full_name)
                    todo.append(inner)
