"""Emits codecs.py: the JSON codecs, with functions that settle what msgspec decoded, and the constants."""

from __future__ import annotations

from llm_cost_ops.codegen.model import Field, Message, Package
from llm_cost_ops.codegen.structs import module, wrapped

__all__ = ["emit_codecs"]


def _settling(package: Package) -> set[str]:
    """The names of the messages that hold a time or a oneof, at any depth."""
    found: set[str] = set()
    while True:
        more = {
            m.name
            for m in package.messages
            if m.oneofs
            or any(
                f.type.kind == "timestamp" or (f.type.message and f.type.message.name in found)
                for f in m.fields
            )
        }
        if more == found:
            return found
        found = more


def emit_codecs(package: Package) -> str:
    """The text of codecs.py."""
    text = _json(package) + "\n" + "".join(_constant(message) for message in package.messages)
    imports = {
        "datetime": ["UTC"],
        f"{package.python}.messages": sorted(m.name for m in package.messages),
        f"{package.python}.protobuf": sorted(
            f"{way}_{m.snake}" for m in package.messages for way in ("decode", "encode")
        ),
        f"{package.python}.validators": sorted(f"validate_{m.snake}" for m in package.messages),
        "llm_cost_ops.rpc.method": ["MessageCodec"],
        "llm_cost_ops.wire.errors": ["DecodeError"],
        "llm_cost_ops.wire.json": ["JsonCodec", "one_of", "settled"],
    }
    names = [message.constant for message in package.messages]
    return module("Every message as protobuf and as JSON.", imports, names, text)


def _constant(message: Message) -> str:
    arguments = [
        message.name,
        f'"{message.full_name}"',
        f"encode=encode_{message.snake}",
        f"decode=decode_{message.snake}",
        f"encode_json=_json_{message.snake}.encode",
        f"decode_json=_json_{message.snake}.decode",
        f"validate=validate_{message.snake}",
    ]
    lines = [f"{message.constant} = MessageCodec(", *(f"    {each}," for each in arguments), ")"]
    return "\n".join([*lines, ""])


def _json(package: Package) -> str:
    """The functions, and the JsonCodec of each message; elements of itemized lists come first."""
    needed = _settling(package)
    text = "".join(_settle(message, needed) for message in package.messages if message.name in needed)
    itemizing = {m.name for m in package.messages if any(f.itemized for f in m.fields)}
    lines = [""]
    for message in sorted(package.messages, key=lambda m: m.name in itemizing):
        arguments = [message.name]
        if message.name in needed:
            arguments.append(f"settle=_settle_{message.snake}")
        items = [
            f'"{f.rest_name}": _json_{f.type.message.snake}'
            for f in message.fields
            if f.itemized and f.type.message
        ]
        if items:
            arguments.append(f"itemized={{{', '.join(items)}}}")
        lines.append(wrapped(f"_json_{message.snake} = JsonCodec(", arguments, ")"))
    return text + "\n" + "\n".join(lines) + "\n"


def _settle(message: Message, needed: set[str]) -> str:
    body = []
    for field in message.fields:
        if field.type.kind == "timestamp" or (field.type.message and field.type.message.name in needed):
            body += _field(field)
    for members in message.oneofs.values():
        given = [f"{f.attribute}=m.{f.attribute}" for f in members]
        body += wrapped("one_of(", given, ")").splitlines()
    head = ["", "", f"def _settle_{message.snake}(m: {message.name}) -> None:"]
    return "\n".join([*head, *(f"    {line}" for line in body), ""])


def _field(field: Field) -> list[str]:
    at = f"m.{field.attribute}"
    cls = field.type.message
    if cls is not None:
        call = f"_settle_{cls.snake}"
        where = f'"{field.rest_name}"'
        lines = [f"    if {at} is not None:", f"        {call}({at})"]
        if field.cardinality != "singular" and field.cardinality != "optional":
            each = f"enumerate({at})" if field.cardinality == "repeated" else f"{at}.items()"
            where = f'f"{field.rest_name}[{{i}}]"'
            lines = [f"    for i, each in {each}:", f"        {call}(each)"]
        return ["try:", *lines, "except DecodeError as error:", f"    error.within({where})", "    raise"]
    if field.cardinality == "repeated":
        return [f'{at} = [settled(t, "{field.rest_name}") for t in {at}]']
    if field.cardinality == "map":
        return [f'{at} = {{k: settled(t, "{field.rest_name}") for k, t in {at}.items()}}']
    return [
        f"time = {at}",
        "if time is not None and time.tzinfo is not UTC:",
        f'    {at} = settled(time, "{field.rest_name}")',
    ]
