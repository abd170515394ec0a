"""Reads descriptors into the model that the emitters take.

`read_package(files, proto_packages, python)` makes one `Package` of some proto packages. All their messages
are in it; so are the messages of other packages that their fields need (google.protobuf.Any, FieldMask…), but
for Timestamp, Duration, Struct, Value, ListValue and the wrappers, which are kinds of their own. Only proto3
is read; anything else raises ModelError.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from betterproto import which_one_of
from betterproto.lib.google import protobuf as pb

from tools.codegen.nodes import (
    Enum,
    EnumValue,
    Field,
    Message,
    Method,
    ModelError,
    Package,
    Service,
    Type,
    snake_case,
)
from tools.codegen.options import Options, read_options

__all__ = ["read_package"]

_WELL_KNOWN = {
    "google.protobuf.Timestamp": Type("timestamp"),
    "google.protobuf.Duration": Type("duration"),
    "google.protobuf.Struct": Type("struct"),
    "google.protobuf.Value": Type("value"),
    "google.protobuf.ListValue": Type("list_value"),
    **{
        f"google.protobuf.{name}Value": Type("wrapper", wrapped=name.lower())
        for name in "Double Float Int64 UInt64 Int32 UInt32 Bool String Bytes".split()
    },
}
# What generated modules use by these names, so that no class and no attribute may have them.
_TAKEN_ATTRIBUTES = frozenset(
    "self unknown_ to_dict to_json int str bool float bytes list dict datetime timedelta msgspec".split()
)
_TAKEN_CLASSES = frozenset(
    "Any Annotated Decimal OpenEnum Unknown UnsetType UNSET Struct MessageStruct Violation Mapping Sequence"
    " Protocol Iterable Iterator Generator AsyncIterator AsyncIterable AsyncGenerator CallContext Channel"
    " AsyncChannel MethodDescriptor MessageCodec HttpRule QueryField Cardinality Idempotency"
    " None True False".split()
)
_IDEMPOTENCY = ("UNKNOWN", "NO_SIDE_EFFECTS", "IDEMPOTENT")


def read_package(
    files: Sequence[pb.FileDescriptorProto],
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


class _Declared(NamedTuple):
    proto: Any
    file: pb.FileDescriptorProto
    path: tuple[int, ...]
    flat_name: str


class _Reader:
    def __init__(
        self, files: Sequence[pb.FileDescriptorProto], python: str, well_known: dict[str, Type]
    ) -> None:
        self.well_known = well_known
        self.files = sorted(files, key=lambda f: f.name)
        self.declared = {name: declared for file in self.files for name, declared in _declarations(file)}
        self.comments = {key: text for file in self.files for key, text in _comments(file)}
        self.package = Package(python)
        self.types: dict[str, Any] = {}
        self.names: set[str] = set()
        self.pending: list[Message] = []

    def read(self, proto_packages: set[str]) -> Package:
        wanted = [file for file in self.files if file.package in proto_packages]
        for full_name, declared in self.declared.items():
            if declared.file in wanted and not declared.file.extension:
                self.type(full_name)
        for file in wanted:
            for index, service in enumerate(file.service):
                self.package.services.append(self.service(service, file, index))
        while self.pending:
            self.fill(self.pending.pop(0))
        for message in self.package.messages:
            for member in message.fields:
                if member.options.flatten:
                    _flatten(message, member)
                if member.many and member.type.message is not None:
                    for inner in [member.type.message, *member.type.message.within.values()]:
                        inner.listed = True
        return self.package

    def type(self, full_name: str) -> Any:
        """The Message or Enum, whose fields may still have to be filled in."""
        full_name = full_name.lstrip(".")
        if full_name not in self.types:
            proto, file, path, flat_name = declared = self.declared[full_name]
            if file.syntax != "proto3":
                raise ModelError(f"{file.name}: {full_name} is not proto3")
            named = (full_name, self.class_name(flat_name), self.comment(file, path))
            if isinstance(proto, pb.EnumDescriptorProto):
                self.types[full_name] = enum = Enum(*named, self.enum_values(declared))
                self.package.enums.append(enum)
            else:
                self.types[full_name] = message = Message(*named, read_options(proto))
                self.package.messages.append(message)
                self.pending.append(message)
        return self.types[full_name]

    def class_name(self, flat_name: str) -> str:
        name = flat_name.replace("_", "") if flat_name[0].isupper() else flat_name
        while name in _TAKEN_CLASSES or keyword.iskeyword(name) or name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def comment(self, file: pb.FileDescriptorProto, path: tuple[int, ...]) -> str:
        return self.comments.get((file.name, *path), "")

    def enum_values(self, declared: _Declared) -> list[EnumValue]:
        prefix = snake_case(declared.proto.name).upper() + "_"
        strings: dict[int, str] = {}
        values: dict[str, EnumValue] = {}
        for index, proto in enumerate(declared.proto.value):
            short = proto.name.removeprefix(prefix)
            if not short or short[0].isdigit():
                short = proto.name
            name = short.upper()
            # protoc lets names differ in case alone only where the numbers are the same.
            if name not in values:
                string = strings.setdefault(proto.number, short.lower())
                comment = self.comment(declared.file, (*declared.path, 2, index))
                values[name] = EnumValue(name, string, proto.number, comment)
        return list(values.values())

    def fill(self, message: Message) -> None:
        declared = self.declared[message.full_name]
        taken: set[str] = set()
        for index, proto in enumerate(declared.proto.field):
            made = self.field(declared.proto, proto, message.full_name)
            made.comment = self.comment(declared.file, (*declared.path, 2, index))
            while made.attribute in taken:
                made.attribute += "_"
            taken.add(made.attribute)
            message.fields.append(made)

    def field(self, owner: pb.DescriptorProto, proto: pb.FieldDescriptorProto, full_name: str) -> Field:
        options = read_options(proto)
        entries = (inner for inner in owner.nested_type if inner.options.map_entry)
        entry = next((inner for inner in entries if proto.type_name == f".{full_name}.{inner.name}"), None)
        type_ = self.field_type(proto if entry is None else entry.field[1], options)
        oneof, cardinality = "", "singular"
        if proto.is_set("oneof_index") and not proto.proto3_optional:
            oneof = owner.oneof_decl[proto.oneof_index].name
        if entry is not None:
            cardinality = "map"
        elif proto.label == 3:
            cardinality = "repeated"
        elif oneof or proto.proto3_optional:
            cardinality = "optional"
        packable = cardinality == "repeated" and type_.wire_type != 2
        return Field(
            name=proto.name,
            attribute=_attribute(proto.name),
            number=proto.number,
            type=type_,
            cardinality=cardinality,
            options=options,
            key=None if entry is None else self.field_type(entry.field[0], Options()),
            packed=packable and (not proto.options.is_set("packed") or proto.options.packed),
            oneof=oneof,
        )

    def field_type(self, proto: pb.FieldDescriptorProto, options: Options) -> Type:
        kind = (proto.type.name or "").removeprefix("TYPE_").lower()
        if kind == "group":
            raise ModelError(f"field {proto.name}: groups are not proto3")
        if kind == "message":
            known = self.well_known.get(proto.type_name.lstrip("."))
            return known or Type("message", message=self.type(proto.type_name))
        if kind == "enum":
            return Type("enum", enum=self.type(proto.type_name))
        return Type("decimal" if options.decimal else "raw_json" if options.raw_json else kind)

    def service(self, proto: pb.ServiceDescriptorProto, file: pb.FileDescriptorProto, index: int) -> Service:
        full_name = f"{file.package}.{proto.name}" if file.package else proto.name
        stem = snake_case(proto.name.removesuffix("Service") or proto.name)
        comment = self.comment(file, (6, index))
        service = Service(full_name, proto.name, comment, read_options(proto).resource or stem)
        for at, rpc in enumerate(proto.method):
            options, snake = read_options(rpc), snake_case(rpc.name)
            verb, path = which_one_of(options.http, "pattern")
            ways = [
                "stream" if streams else "unary" for streams in (rpc.client_streaming, rpc.server_streaming)
            ]
            if ways == ["stream", "unary"]:
                raise ModelError(f"{full_name}.{rpc.name}: a stream of requests needs a stream of answers")
            python_name = options.python_name or snake
            service.methods.append(
                Method(
                    full_name=f"{full_name}.{rpc.name}",
                    name=rpc.name,
                    comment=self.comment(file, (6, index, 2, at)),
                    attribute=_attribute(snake),
                    # In a class of methods only, nothing is read by a builtin's name.
                    python_name=f"{python_name}_" if keyword.iskeyword(python_name) else python_name,
                    service=service,
                    request=self.type(rpc.input_type),
                    response=self.type(rpc.output_type),
                    cardinality="_".join(ways),
                    idempotency=_IDEMPOTENCY[rpc.options.idempotency_level],
                    options=options,
                    verb=verb.upper(),
                    path=path or "",
                )
            )
        return service


def _flatten(message: Message, member: Field) -> None:
    """Mark the message that another one inherits. Raises ModelError where a class can't."""
    inner, where = member.type.message, f"{message.full_name}.{member.name}"
    if inner is None or member.cardinality != "singular":
        raise ModelError(f"{where}: only a message that comes once is flattened")
    if inner.base is not None or inner.oneofs or any(f.options.itemized for f in inner.fields):
        raise ModelError(f"{where}: what is flattened has no oneof, nothing itemized or flattened itself")
    if len(message.fields) - len(message.own) > 1:
        raise ModelError(f"{where}: one message is flattened at most")
    names = [name for f in message.flat for name in {f.attribute, f.rest_name}]
    if len(names) > len(set(names)):
        raise ModelError(f"{where}: a field of each has the same name")
    for name in member.options.rules.required_fields:
        inner.field(name)
    inner.flattened = True


def _declarations(file: pb.FileDescriptorProto) -> Iterator[tuple[str, _Declared]]:
    def walk(proto: pb.DescriptorProto, path: tuple[int, ...], name: str, flat: str) -> Iterator[Any]:
        if proto.options.map_entry:
            return
        yield name, _Declared(proto, file, path, flat)
        for at, enum in enumerate(proto.enum_type):
            yield f"{name}.{enum.name}", _Declared(enum, file, (*path, 4, at), flat + enum.name)
        for at, inner in enumerate(proto.nested_type):
            yield from walk(inner, (*path, 3, at), f"{name}.{inner.name}", flat + inner.name)

    prefix = f"{file.package}." if file.package else ""
    for at, enum in enumerate(file.enum_type):
        yield prefix + enum.name, _Declared(enum, file, (5, at), enum.name)
    for at, proto in enumerate(file.message_type):
        yield from walk(proto, (4, at), prefix + proto.name, proto.name)


def _comments(file: pb.FileDescriptorProto) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for location in file.source_code_info.location:
        text = (location.leading_comments or location.trailing_comments).strip()
        if text:
            yield (file.name, *location.path), "\n".join(map(str.strip, text.splitlines()))


def _attribute(name: str) -> str:
    if name.startswith("__"):
        # Python would mangle it in a class body.
        name = name.lstrip("_") + "_"
    return f"{name}_" if keyword.iskeyword(name) or name in _TAKEN_ATTRIBUTES else name
