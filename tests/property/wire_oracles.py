"""What the codec tests hold our codecs against: google's protobuf and betterproto, on the same descriptors.

Nothing here is checked in: descriptors are compiled when the tests run. Google's classes live in a pool of
their own, so that the package name llm_cost_ops.v1 stays free in the process. Betterproto's plugin wants
packages that we have no other use for; its classes are therefore written from the descriptors, here.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import google.api
import grpc_tools
from betterproto.lib.google.protobuf import FileDescriptorSet
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from grpc_tools import protoc

from tools.codegen.model import read_package
from tools.codegen.protobuf import emit_protobuf
from tools.codegen.structs import emit_messages

__all__ = ["EVERYTHING", "OURS", "Codec", "better_class", "codecs", "google_class", "plain_codecs"]

ROOT = Path(__file__).resolve().parents[2]
OURS = "llm_cost_ops.v1"
EVERYTHING = "everything.v1"


class Codec(NamedTuple):
    """One message type: our functions, and google's class."""

    name: str
    type: Any
    encode: Any
    decode: Any
    google: Any


@cache
def _descriptor_set() -> bytes:
    proto, golden = ROOT / "proto", ROOT / "tests" / "golden"
    shared = Path(next(iter(google.api.__path__))).parents[1]
    shipped = Path(grpc_tools.__file__).with_name("_proto")
    files = [path.relative_to(proto).as_posix() for path in sorted(proto.rglob("*.proto"))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        include = [f"-I{where}" for where in (proto, golden, shipped, shared)]
        command = ["protoc", *include, "--include_imports", f"--descriptor_set_out={out}", *files]
        assert protoc.main([*command, "everything.proto"]) == 0
        return out.read_bytes()


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_descriptor_set()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def google_class(full_name: str) -> Any:
    """Google's class of a message."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


def _package(
    proto: str, python: str, *, well_known_messages: bool = False, other_way: bool = False
) -> list[Codec]:
    """The codecs of a package; with `other_way` those in line call functions, and the others are in line."""
    files = FileDescriptorSet().parse(_descriptor_set()).file
    package = read_package(files, [proto], python, well_known_messages=well_known_messages)
    for message in package.messages:
        message.listed ^= other_way
    if python not in sys.modules and python != "llm_cost_ops._gen":
        sys.modules[python] = types.ModuleType(python)
        for name, text in (("messages", emit_messages(package)), ("protobuf", emit_protobuf(package))):
            module = types.ModuleType(f"{python}.{name}")
            sys.modules[module.__name__] = module
            exec(compile(text, f"<{module.__name__}>", "exec"), module.__dict__)
    protobuf = importlib.import_module(f"{python}.protobuf")
    messages = importlib.import_module(f"{python}.messages")
    return [
        Codec(
            message.full_name,
            getattr(messages, message.name),
            getattr(protobuf, f"encode_{message.snake}"),
            getattr(protobuf, f"decode_{message.snake}"),
            google_class(message.full_name),
        )
        for message in package.messages
    ]


@cache
def codecs() -> dict[str, Codec]:
    """The codecs of our own messages, and of the test protocol's."""
    both = _package(OURS, "llm_cost_ops._gen") + _package(EVERYTHING, "everything_generated")
    other = _package(OURS, "ours_other", other_way=True)
    other += _package(EVERYTHING, "everything_other", other_way=True)
    return {codec.name: codec for codec in both} | {f"{codec.name} the other way": codec for codec in other}


@cache
def plain_codecs() -> dict[str, Codec]:
    """The codecs of the test protocol with well-known types as plain messages: exactly as protobuf has it."""
    made = _package(EVERYTHING, "everything_plain", well_known_messages=True)
    # Our own options give its strings a grammar.
    return {codec.name: codec for codec in made if codec.name != f"{EVERYTHING}.Special"}


_WRAPPERS = {
    f"google.protobuf.{name}": f"TYPE_{name.removesuffix('Value').upper()}"
    for name in ("DoubleValue", "FloatValue", "Int64Value", "UInt64Value", "Int32Value", "UInt32Value")
} | {f"google.protobuf.{name}Value": f"TYPE_{name.upper()}" for name in ("Bool", "String", "Bytes")}
_PYTHON = {"double": "float", "float": "float", "bool": "bool", "string": "str", "bytes": "bytes"}
_KINDS = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


@cache
def better_class(full_name: str) -> Any:
    """Betterproto's class of a message, written from google's descriptor."""
    module = sys.modules.setdefault("better_generated", types.ModuleType("better_generated"))
    name = full_name.replace(".", "_")
    if not hasattr(module, name):
        _write_better(google_class(full_name).DESCRIPTOR, module)
    return getattr(module, name)


def _write_better(descriptor: Descriptor, module: types.ModuleType) -> None:
    name = descriptor.full_name.replace(".", "_")
    lines = ["import betterproto, dataclasses, datetime, typing", "@dataclasses.dataclass(eq=False)"]
    lines.append(f"class {name}(betterproto.Message):")
    needed = []
    for field in sorted(descriptor.fields, key=lambda f: f.number):
        annotation, made, inner = _better_field(field)
        enum = _value_field(field).enum_type
        if enum is not None:
            lines[1:1] = _better_enum(enum)
        lines.append(f"    f_{field.name}: {annotation!r} = {made}")
        needed += [inner] if inner is not None else []
    setattr(module, name, None)
    for inner in needed:
        if not hasattr(module, inner.full_name.replace(".", "_")):
            _write_better(inner, module)
    exec("\n".join([*lines, "    pass"]), module.__dict__)


def _value_field(field: FieldDescriptor) -> FieldDescriptor:
    entry = field.message_type
    is_map = entry is not None and entry.GetOptions().map_entry
    return entry.fields_by_name["value"] if is_map else field


def _better_enum(enum: EnumDescriptor) -> list[str]:
    first = {value.number: value.name for value in reversed(enum.values)}
    members = [f"    {name} = {number}" for number, name in first.items()]
    return [f"class {enum.full_name.replace('.', '_')}(betterproto.Enum):", *members]


def _better_field(field: FieldDescriptor) -> tuple[str, str, Descriptor | None]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = (_better_type(message.fields_by_name[part]) for part in ("key", "value"))
        types_ = f"betterproto.TYPE_{key[0].upper()}, betterproto.TYPE_{value[0].upper()}"
        return f"dict[{key[1]}, {value[1]}]", f"betterproto.map_field({field.number}, {types_})", value[3]
    kind, annotation, extra, inner = _better_type(field)
    if field.is_repeated:
        annotation = f"list[{annotation}]"
    elif extra:
        annotation = f"typing.Optional[{annotation}]"
    oneof = field.containing_oneof
    if oneof is not None and oneof.name.startswith("_"):
        # The oneof that stands for proto3's `optional`.
        annotation, extra = f"typing.Optional[{annotation}]", ", optional=True"
    elif oneof is not None:
        extra += f", group={oneof.name!r}"
    return annotation, f"betterproto.{kind}_field({field.number}{extra})", inner


def _better_type(field: FieldDescriptor) -> tuple[str, str, str, Descriptor | None]:
    kind = _KINDS[field.type]
    if field.enum_type is not None:
        return kind, field.enum_type.full_name.replace(".", "_"), "", None
    if kind != "message":
        return kind, _PYTHON.get(kind, "int"), "", None
    name = field.message_type.full_name
    if name in _WRAPPERS:
        scalar = _WRAPPERS[name].removeprefix("TYPE_").lower()
        return kind, _PYTHON.get(scalar, "int"), f", wraps=betterproto.{_WRAPPERS[name]}", None
    if name == "google.protobuf.Timestamp":
        return kind, "datetime.datetime", "", None
    if name == "google.protobuf.Duration":
        return kind, "datetime.timedelta", "", None
    return kind, name.replace(".", "_"), "", field.message_type
