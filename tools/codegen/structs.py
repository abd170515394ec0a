"""Emits messages.py: enums and structs."""

from __future__ import annotations

from tools.codegen.nodes import Enum, Field, Message, Package
from tools.codegen.text import docstring, fill, indented, module, wrapped

__all__ = ["annotation", "emit_messages"]

_IMPORTS = """\
datetime datetime timedelta
decimal Decimal
typing Any ClassVar
msgspec
llm_cost_ops.wire.decimals WireDecimal
llm_cost_ops.wire.json_types BoolKey Int32 Int64 IntKey UInt32 UInt64
llm_cost_ops.wire.open_enum OpenEnum
llm_cost_ops.wire.json MessageStruct
llm_cost_ops.rpc.rows Table
"""
_STRUCT = """

$head
    $docstring

    $fields
"""


def emit_messages(package: Package) -> str:
    """The text of messages.py."""
    # A class comes after the one that it inherits.
    messages = sorted(package.messages, key=lambda message: not message.flattened)
    body = "".join([*map(_enum, package.enums), *map(_struct, messages)])
    names = [each.name for each in [*package.messages, *package.enums]]
    return module(package, "The messages and enums.", _IMPORTS, names, body)


def annotation(field: Field) -> tuple[str, str]:
    """The annotation of a struct's attribute, and its default."""
    inner = field.type.annotation
    if field.cardinality == "repeated":
        return f"list[{inner}]", "[]"
    if field.key is not None:
        key = {"str": "str", "bool": "BoolKey"}.get(field.key.annotation, "IntKey")
        return f"dict[{key}, {inner}]", "{}"
    if field.nullable:
        return inner if inner == "Any" else f"{inner} | None", "None"
    if field.type.enum is not None:
        return inner, f"{inner}.{field.type.enum.values[0].name}"
    return inner, field.type.default


def _enum(enum: Enum) -> str:
    text = f"\n\nclass {enum.name}(OpenEnum):\n"
    text += indented(docstring(enum.comment or f"The values of {enum.full_name}."))
    for value in enum.values:
        text += f'\n    {value.name} = "{value.value}", {value.number}\n{indented(docstring(value.comment))}'
    return text


def _struct(message: Message) -> str:
    base = message.base
    rows = message.options.rows
    config = ["Table"] * bool(rows) + ["MessageStruct" if base is None else base.name, "kw_only=True"]
    config += ["omit_defaults=True"] * message.options.omit_defaults + ["gc=False"] * (not message.cyclic)
    fields = [f'rows_in_: ClassVar[str] = "{rows}"\n'] * bool(rows) + list(map(_attribute, message.own))
    return fill(
        _STRUCT,
        head=wrapped(f"class {message.name}(", config, "):"),
        docstring=docstring(message.comment or f"The message {message.full_name}."),
        fields="".join(fields),
    )


def _attribute(field: Field) -> str:
    type_, default = annotation(field)
    if field.rest_name != field.attribute:
        made = {"[]": "default_factory=list", "{}": "default_factory=dict"}.get(default, f"default={default}")
        default = f'msgspec.field({made}, name="{field.rest_name}")'
    return f"{field.attribute}: {type_} = {default}\n{docstring(field.comment)}"
