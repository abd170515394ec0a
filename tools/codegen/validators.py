"""Emits validators: a quick look at every field in line, and a call for what it did not pass.

The fields are taken out of a message all at once, which takes half of the time of as many attributes.
"""

from __future__ import annotations

import re
import textwrap

from tools.codegen.kinds import RANGES
from tools.codegen.nodes import Field, Message, Package, Type
from tools.codegen.options import Rules
from tools.codegen.text import fill, indented, module, wrapped

__all__ = ["emit_validators"]

_IMPORTS = """\
datetime datetime timedelta
msgspec.structs astuple
typing Any
$package.messages *
llm_cost_ops.rpc.status Violation
llm_cost_ops.wire.validation EMPTY ZERO check_bytes check_decimal check_entries check_enum check_float \
 check_instance check_int check_items check_json check_messages check_one_of check_text check_undecoded \
 entry missing plain_texts relocate
"""
_VALIDATOR = '''

$head
    """Check a ${message.name}."""
    $undecoded
    $checks
'''
_UNDECODED = "if m.unknown_ and check_undecoded(m.unknown_, path, violations):\n    return\n"
_CHECKS = """\
start = len(violations)
$fields
$checks
if path and len(violations) != start:
    relocate(violations, start, path)
"""


def emit_validators(package: Package) -> str:
    """The text of validators.py: `validate_<message>(message, path, violations)`."""
    itemized = {f.type.annotation for m in package.messages for f in m.fields if f.options.itemized}
    enums = {f.type.annotation: None for m in package.checked for f in m.fields if f.type.enum is not None}
    body = "\n" + "".join(f"{_unset(enum)} = {enum}.UNSPECIFIED\n" for enum in enums)
    body += "".join(_validator(message, message.name in itemized) for message in package.checked)
    names = [f"validate_{message.snake}" for message in package.checked]
    return module(package, "What the fields of the messages must satisfy.", _IMPORTS, names, body)


def _validator(message: Message, itemized: bool) -> str:
    arguments = [f"m: {message.name}", "path: str", "violations: list[Violation]"]
    checks = "".join(map(_field, message.fields))
    for member in message.fields:
        for required in member.options.rules.required_fields:
            checks += f'if not m.{required}: missing("{required}", violations)\n'
    for members in message.oneofs.values():
        given = [f'"{f.rest_name}": m.{f.attribute}' for f in members]
        checks += wrapped("check_one_of(violations, {", given, "})")
    return fill(
        _VALIDATOR,
        head=wrapped(f"def validate_{message.snake}(", arguments, ") -> None:"),
        message=message,
        undecoded=_UNDECODED if itemized else "",
        checks=fill(_CHECKS, fields=_fields(message), checks=checks) if checks else "",
    )


def _fields(message: Message) -> str:
    """What takes the fields out of a message, which may be of a class of the caller's own that has more.

    One by one where it inherits fields, or is looked at as a part of what inherits them.
    """
    fields = [field for field in message.fields if not field.options.flatten]
    if message.flattened or len(fields) < len(message.fields):
        return "".join(f"{_local(field)}: Any = m.{field.attribute}\n" for field in fields)
    names = textwrap.fill(f"({', '.join(['_', *map(_local, fields)])})", 100, subsequent_indent="    ")
    return f"{names} = astuple(m) if type(m) is {message.name} else astuple(m)[:{len(fields) + 1}]\n"


def _local(field: Field) -> str:
    """The local variable of a field: no name of Python's own."""
    return f"{field.attribute.rstrip('_')}_"


def _unset(enum: str) -> str:
    """The constant that is what an unset field of an enum holds."""
    return "_NO" + re.sub("(?=[A-Z])", "_", enum).upper()


def _field(field: Field) -> str:
    name, rules, v = f'"{field.rest_name}"', field.options.rules, _local(field)
    if field.options.flatten and field.type.message is not None:
        return f'validate_{field.type.message.snake}(m, "", violations)\n'
    if field.many:
        return _many(field, v)
    if field.type.kind == "value":
        return ""
    quick, slow = _check(field.type, rules, name, v, required=rules.required)
    if field.nullable:
        quick = f"({quick})" if " or " in quick else quick
        text = _when(" and ".join(filter(None, [f"{v} is not None", quick])), slow)
        return text + _when(f"{v} is None", f"missing({name}, violations)\n") * rules.required
    if rules.required and field.type.enum is None:
        quick = quick and f"{quick} or not {v}"
    elif field.type.default in ('""', "0"):
        quick = f"{v} is not {'ZERO' if field.type.default == '0' else 'EMPTY'} and ({quick})"
    elif field.type.enum is not None and not rules.required:
        quick = f"{v} is not {_unset(field.type.annotation)} and ({quick})"
    return _when(quick, slow)


def _when(condition: str, text: str) -> str:
    return f"if {condition}:\n{indented(text)}" if condition else text


def _check(type_: Type, rules: Rules, name: str, v: str, required: bool = False) -> tuple[str, str]:
    """The condition under which a value needs the call, "" for always, and the call."""
    kind, annotation = type_.scalar, type_.annotation
    bounds = [f"{key}={x}" for key, x in (("low", rules.minimum), ("high", rules.maximum)) if x is not None]
    needed = ["required=True"] * required
    length = [str(rules.max_length)] * (rules.max_length is not None)
    quick, check, extra = f"type({v}) is not {annotation}", "instance", [annotation]
    if type_.enum is not None:
        quick += f" or not {v}.number" if required else f" or {v}.number is None"
        check, extra = "enum", [annotation, *needed]
    elif kind == "string":
        quick += "".join(f" or len({v}) > {most}" for most in length) + f" or not {v}.isprintable()"
        check, extra = "text", [*length, *needed, *["multiline=True"] * rules.multiline]
    elif annotation in RANGES:
        low, high = RANGES[annotation]
        low = low if rules.minimum is None else max(low, rules.minimum)
        high = high if rules.maximum is None else min(high, rules.maximum)
        quick = f"type({v}) is not int or not {low} <= {v} <= {high}"
        check, extra = "int", [str(low), str(high), *needed]
    elif annotation == "float":
        quick, check, extra = "" if bounds else quick, "float", bounds
    elif kind == "decimal":
        quick, check, extra = "", "decimal", [*bounds, *needed]
    elif kind == "bytes":
        quick, check, extra = "" if length else quick, "bytes", length
    elif kind in ("struct", "list_value", "raw_json"):
        quick, check, extra = "", "json", ["list"] * (kind == "list_value")
    elif kind == "value":
        return "", ""
    call = f"check_{check}({', '.join([v, name, 'violations', *extra])})\n"
    if type_.message is not None:
        validate = f"validate_{type_.message.snake}({v}, {name}, violations)"
        return "", f"{validate} if type({v}) is {annotation} else {call}"
    return quick, call


def _many(field: Field, v: str) -> str:
    type_, rules, name = field.type, field.options.rules, f'"{field.rest_name}"'
    arguments = [v, name, "violations", *[f"max_items={rules.max_items}"] * (rules.max_items is not None)]
    arguments += ["required=True"] * rules.required
    if field.key is not None:
        at, kind, check = f"entry({name}, k)", "dict", "check_entries"
        each = _when(*_check(field.key, Rules(max_length=rules.max_length), at, "k"))
        each = f"for k, e in {v}.items():\n" + indented(each + _when(*_check(type_, rules, at, "e")))
    else:
        at, kind, check = f'f"{field.rest_name}[{{i}}]"', "list", "check_items"
        each = f"for i, e in enumerate({v}):\n" + indented(_when(*_check(type_, rules, at, "e")))
        if type_.message is not None:
            cls, validate = type_.annotation, f"validate_{type_.message.snake}"
            each = f"check_messages({v}, {name}, violations, {cls}, {validate})\n"
        elif type_.kind == "value":
            each = "pass\n"
    texts = not rules.required and {type_.scalar, (field.key or type_).scalar} == {"string"}
    if texts and None not in (rules.max_items, rules.max_length):
        check = f"not plain_texts({v}, {kind}, {rules.max_items}, {rules.max_length}) and {check}"
    some = "" if rules.required else f"(type({v}) is not {kind} or {v}) and "
    return _when(f"{some}{check}({', '.join(arguments)})", each)
