"""Emits codecs.py: the JSON codecs, with a quick look at what has to be settled, and the constants."""

from __future__ import annotations

from llm_cost_ops.codegen.nodes import Field, Message, Package
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
    text = _json(package) + "\n" + "".join(_constant(message, package.python) for message in package.messages)
    imports = {
        "datetime": ["UTC"],
        f"{package.python}.messages": sorted(m.name for m in package.messages),
        f"{package.python}.validators": sorted(f"validate_{m.snake}" for m in package.messages),
        "llm_cost_ops.rpc.method": ["MessageCodec"],
        "llm_cost_ops.wire.json": ["JsonCodec", "several"],
    }
    names = [message.constant for message in package.messages]
    return module("Every message as protobuf and as JSON.", imports, names, text)


def _constant(message: Message, python: str) -> str:
    arguments = [
        message.name,
        f'"{message.full_name}"',
        f'protobuf="{python}.protobuf:{message.snake}"',
        f"encode_json=_json_{message.snake}.encode",
        f"decode_json=_json_{message.snake}.decode",
        f"validate=validate_{message.snake}",
    ]
    lines = [f"{message.constant} = MessageCodec(", *(f"    {each}," for each in arguments), ")"]
    return "\n".join([*lines, ""])


def _json(package: Package) -> str:
    """The functions, and the JsonCodec of each message."""
    needed = _settling(package)
    text = "".join(_settled(message, needed) for message in package.messages if message.name in needed)
    lines = [""]
    for message in package.messages:
        arguments = [message.name]
        if message.name in needed:
            arguments.append(f"settled=_settled_{message.snake}")
        itemized = [f.rest_name for f in message.fields if f.itemized]
        if itemized:
            arguments.append(f"itemized={_strings(itemized)}")
        groups = [_strings([f.rest_name for f in group]) for group in message.oneofs.values()]
        if groups:
            arguments.append(f"oneofs=[{', '.join(groups)}]")
        lines.append(wrapped(f"_json_{message.snake} = JsonCodec(", arguments, ")"))
    return text + "\n" + "\n".join(lines) + "\n"


def _strings(names: list[str]) -> str:
    """The text of a tuple of strings."""
    return "(" + ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "") + ")"


def _settled(message: Message, needed: set[str]) -> str:
    """A quick look at what would have to be settled: times that are not in UTC, oneofs with two members."""
    body = []
    for field in message.fields:
        if field.type.kind == "timestamp" or (field.type.message and field.type.message.name in needed):
            body += _look(field)
    for members in message.oneofs.values():
        given = [f"m.{f.attribute}" for f in members]
        body += [wrapped("if several(", given, "):"), "    return False"]
    lines = ["", "", f"def _settled_{message.snake}(m: {message.name}) -> bool:"]
    lines += [f"    {line}" for part in body for line in part.splitlines()]
    return "\n".join([*lines, "    return True", ""])


def _look(field: Field) -> list[str]:
    at, cls = f"m.{field.attribute}", field.type.message
    each = f"{at}.values()" if field.cardinality == "map" else at
    if cls is not None:
        fails = f"not _settled_{cls.snake}({{}})"
    else:
        fails = "{}.tzinfo is not UTC"
    if field.cardinality in ("repeated", "map"):
        # A variable of its own, for the type checker.
        one = f"each{field.number}"
        return [f"for {one} in {each}:", f"    if {fails.format(one)}:", "        return False"]
    return [f"if {at} is not None and {fails.format(at)}:", "    return False"]
