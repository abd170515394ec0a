"""Emits validators: a quick look at every field in line, and a call for what it did not pass."""

from __future__ import annotations

from dataclasses import replace

from llm_cost_ops.codegen.nodes import INT_RANGES, Field, Message, Package, Rules, Type
from llm_cost_ops.codegen.structs import module, wrapped

__all__ = ["emit_validators"]


def emit_validators(package: Package) -> str:
    """The text of validators.py: `validate_<message>(message, path, violations)` for each message."""
    itemized = {
        f.type.message.name for m in package.messages for f in m.fields if f.itemized and f.type.message
    }
    text = "".join(_validator(message, message.name in itemized) for message in package.messages)
    checks = "bytes decimal entries enum float instance int items json one_of text undecoded".split()
    imports = {
        "datetime": ["datetime", "timedelta"],
        "typing": ["Any"],
        f"{package.python}.messages": sorted(
            [*(m.name for m in package.messages), *(e.name for e in package.enums)]
        ),
        "llm_cost_ops.rpc.status": ["Violation"],
        "llm_cost_ops.wire.validation": [
            *("EMPTY", "ZERO"),
            *(f"check_{check}" for check in checks),
            *("entry", "missing", "relocate"),
        ],
    }
    names = [f"validate_{message.snake}" for message in package.messages]
    return module("What the fields of the messages must satisfy.", imports, names, text)


def _validator(message: Message, itemized: bool) -> str:
    arguments = [f"m: {message.name}", "path: str", "violations: list[Violation]"]
    head = ["", "", wrapped(f"def validate_{message.snake}(", arguments, ") -> None:")]
    body: list[str] = []
    if itemized:
        body += ["if m.unknown_ and check_undecoded(m.unknown_, path, violations):", "    return"]
    if message.fields:
        body += ["start = len(violations)", "v: Any"]
    for field in message.fields:
        body += _field(field)
    for members in message.oneofs.values():
        given = [f'"{f.rest_name}": m.{f.attribute}' for f in members]
        body += wrapped("check_one_of(violations, {", given, "})", "").splitlines()
    if message.fields:
        body += ["if path and len(violations) != start:", "    relocate(violations, start, path)"]
    return "\n".join([*head, f'    """Check a {message.name}."""', *(f"    {line}" for line in body), ""])


def _field(field: Field) -> list[str]:
    name, rules = f'"{field.rest_name}"', field.rules
    load = f"v = m.{field.attribute}"
    if field.cardinality == "repeated":
        return [load, *_items(field)]
    if field.cardinality == "map":
        return [load, *_entries(field)]
    if field.type.kind == "value":
        return []
    quick, slow = _check(field.type, rules, name)
    if field.nullable or field.type.kind == "raw_json":
        given = f"v is not None and ({quick})" if " or " in quick else f"v is not None and {quick}"
        lines = [load, f"if {given if quick else 'v is not None'}:", f"    {slow}"]
        if rules.required:
            lines += ["if v is None:", f"    missing({name}, violations)"]
        return lines
    if rules.required and field.type.enum is None:
        quick = quick and f"not v or {quick}"
    elif field.type.kind in INT_RANGES or field.type.kind == "string":
        quick = f"v is not {'EMPTY' if field.type.kind == 'string' else 'ZERO'} and ({quick})"
    return [load, *_when(quick, [slow])]


def _when(condition: str, lines: list[str]) -> list[str]:
    return [f"if {condition}:", *(f"    {line}" for line in lines)] if condition else lines


def _check(type_: Type, rules: Rules, name: str, v: str = "v") -> tuple[str, str]:
    """The condition under which a value needs the call, "" for always, and the call."""
    kind = type_.wrapped or type_.kind
    required = ["required=True"] * rules.required
    bounds = [f"{key}={x}" for key, x in (("low", rules.minimum), ("high", rules.maximum)) if x is not None]
    length = [] if rules.max_length is None else [str(rules.max_length)]

    def call(function: str, *extra: str) -> str:
        return f"{function}({', '.join([v, name, 'violations', *extra])})"

    if type_.message is not None:
        cls = type_.message
        wrong = call("check_instance", cls.name)
        return "", f"validate_{cls.snake}({v}, {name}, violations) if type({v}) is {cls.name} else {wrong}"
    if type_.enum is not None:
        unset = f" or not {v}.number" if required else ""
        return f"type({v}) is not {type_.enum.name}{unset}", call("check_enum", type_.enum.name, *required)
    if kind == "string":
        long = f"len({v}) > {rules.max_length} or " if length else ""
        multiline = ["multiline=True"] * rules.multiline
        return f"type({v}) is not str or {long}not {v}.isprintable()", call(
            "check_text", *length, *required, *multiline
        )
    if kind in INT_RANGES:
        low, high = INT_RANGES[kind]
        low = low if rules.minimum is None else max(low, rules.minimum)
        high = high if rules.maximum is None else min(high, rules.maximum)
        quick = f"type({v}) is not int or not {low} <= {v} <= {high}"
        return quick, call("check_int", str(low), str(high), *required)
    if kind in ("double", "float"):
        return "" if bounds else f"type({v}) is not float", call("check_float", *bounds)
    if kind == "decimal":
        return "", call("check_decimal", *bounds, *required)
    if kind == "bool":
        return f"type({v}) is not bool", call("check_instance", "bool")
    if kind == "bytes":
        return "" if length else f"type({v}) is not bytes", call("check_bytes", *length)
    if kind in ("timestamp", "duration"):
        what = "datetime" if kind == "timestamp" else "timedelta"
        return f"type({v}) is not {what}", call("check_instance", what)
    return "", call("check_json", *(["list"] if kind == "list_value" else []))


def _collection(field: Field, check: str, kind: str) -> str:
    rules = field.rules
    extra = [] if rules.max_items is None else [f"max_items={rules.max_items}"]
    extra += ["required=True"] * rules.required
    arguments = ", ".join(["v", f'"{field.rest_name}"', "violations", *extra])
    some = "" if rules.required else f"(v or type(v) is not {kind}) and "
    return f"if {some}{check}({arguments}):"


def _items(field: Field) -> list[str]:
    lines = [_collection(field, "check_items", "list")]
    if field.type.kind == "value":
        return [*lines, "    pass"]
    cls = field.type.message
    if cls is None:
        at = f'f"{field.rest_name}[{{i}}]"'
        each = _when(*_unless(_check(field.type, replace(field.rules, required=False), at, "e")))
        return [*lines, "    for i, e in enumerate(v):", *(f"        {line}" for line in each)]
    # The path of an element is made only when it has a violation.
    return [
        *lines,
        "    for i, e in enumerate(v):",
        "        at = len(violations)",
        f"        if type(e) is {cls.name}:",
        f'            validate_{cls.snake}(e, "", violations)',
        "        else:",
        f'            check_instance(e, "", violations, {cls.name})',
        "        if len(violations) != at:",
        f'            relocate(violations, at, f"{field.rest_name}[{{i}}]")',
    ]


def _entries(field: Field) -> list[str]:
    assert field.key is not None
    at = f'entry("{field.rest_name}", k)'
    each = _when(*_unless(_check(field.key, Rules(max_length=field.rules.max_length), at, "k")))
    if field.type.kind != "value":
        each += _when(*_unless(_check(field.type, replace(field.rules, required=False), at, "e")))
    head = [_collection(field, "check_entries", "dict"), "    for k, e in v.items():"]
    return [*head, *(f"        {line}" for line in each)]


def _unless(check: tuple[str, str]) -> tuple[str, list[str]]:
    return check[0], [check[1]]
