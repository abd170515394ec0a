"""Emits codecs.py: the JSON codecs, with a quick look at what has to be settled, and the constants."""

from __future__ import annotations

from tools.codegen.nodes import Field, Message, Package
from tools.codegen.text import fill, module, strings, wrapped

__all__ = ["emit_codecs"]

_IMPORTS = """\
datetime UTC
$package.messages *
llm_cost_ops.rpc.method MessageCodec
llm_cost_ops.wire.json JsonCodec several
"""
# Times that are not in UTC and oneofs with two members have to be settled.
_SETTLED = """

def _settled_${message.snake}(m: ${message.name}) -> bool:
    $looks
    return True
"""


def emit_codecs(package: Package) -> str:
    """The text of codecs.py."""
    settled = {m.full_name for m in package.messages if any(map(_unsettled, [m, *m.within.values()]))}
    looks = [_settled(message, settled) for message in package.messages if message.full_name in settled]
    codecs = "".join(_codec(message, settled) for message in package.messages)
    body = "".join([*looks, f'\n\n_PROTOBUF = "{package.python}.protobuf"\n\n', codecs])
    names = [message.constant for message in package.messages]
    return module(package, "Every message as protobuf and as JSON.", _IMPORTS, names, body)


def _unsettled(message: Message) -> bool:
    return bool(message.oneofs) or any(field.type.kind == "timestamp" for field in message.fields)


def _settled(message: Message, settled: set[str]) -> str:
    looks = "".join(_look(field, settled) for field in message.flat)
    for members in message.oneofs.values():
        looks += wrapped("if several(", [f"m.{f.attribute}" for f in members], "):") + "    return False\n"
    return fill(_SETTLED, message=message, looks=looks)


def _look(field: Field, settled: set[str]) -> str:
    inner, at = field.type.message, f"m.{field.attribute}"
    # A variable of its own, for the type checker.
    one = f"each{field.number}" if field.many else at
    if inner is not None and inner.full_name in settled:
        fails = f"not _settled_{inner.snake}({one})"
    elif field.type.kind == "timestamp":
        fails = f"{one}.tzinfo is not UTC"
    else:
        return ""
    if not field.many:
        return f"if {at} is not None and {fails}:\n    return False\n"
    each = f"{at}.values()" if field.key else at
    return f"for {one} in {each}:\n    if {fails}:\n        return False\n"


def _codec(message: Message, settled: set[str]) -> str:
    json = [message.name]
    if message.full_name in settled:
        json.append(f"settled=_settled_{message.snake}")
    if itemized := [f.rest_name for f in message.fields if f.options.itemized]:
        json.append(f"itemized={strings(itemized)}")
    if groups := [strings(f.rest_name for f in members) for members in message.oneofs.values()]:
        json.append(f"oneofs=[{', '.join(groups)}]")
    items = [message.name, f'"{message.full_name}"', f'protobuf=f"{{_PROTOBUF}}:{message.snake}"']
    items.append(f"json=JsonCodec({', '.join(json)})")
    return wrapped(f"{message.constant} = MessageCodec(", items, ")", filled=True)
