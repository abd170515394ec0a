"""Emits resources.py: a sync and an async class per service, from one template."""

from __future__ import annotations

import textwrap

from llm_cost_ops.codegen.methods import resolve, unwrapped
from llm_cost_ops.codegen.nodes import Field, Message, Method, Package, Service
from llm_cost_ops.codegen.structs import annotation, module, python_type, wrapped

__all__ = ["emit_resources"]

# What the methods call by these names, so that no parameter may have them.
_RESERVED = frozenset(
    "coerce fields headers idempotency_key methods record request requests response retry timeout".split()
)


def emit_resources(package: Package) -> str:
    """The text of resources.py."""
    text = "".join(_resource(service, prefix) for service in package.services for prefix in ("", "Async"))
    names = [f"{prefix}{_title(s)}Resource" for s in package.services for prefix in ("", "Async")]
    types = sorted([m.name for m in package.messages] + [e.name for e in package.enums])
    imports = {
        "collections.abc": [
            "AsyncGenerator",
            "AsyncIterable",
            "Generator",
            "Iterable",
            "Mapping",
            "Sequence",
        ],
        "datetime": ["date", "datetime", "timedelta"],
        "decimal": ["Decimal"],
        "typing": ["Any"],
        package.python: ["methods"],
        f"{package.python}.messages": types,
        "llm_cost_ops.config": ["RetryConfig"],
        "llm_cost_ops.rpc.channel": ["UNSET", "AsyncChannel", "Channel"],
        "llm_cost_ops.rpc.pager": ["AsyncPager", "Pager"],
        "llm_cost_ops.wire": ["coerce"],
        "llm_cost_ops.wire.validation": ["EMPTY", "ZERO"],
    }
    return module("The methods of the client, a class per service.", imports, names, text)


def _title(service: Service) -> str:
    return "".join(part.capitalize() for part in service.resource.split("_"))


def _resource(service: Service, prefix: str) -> str:
    name = f"{prefix}{_title(service)}Resource"
    comment = service.comment.splitlines()[0] if service.comment else f"The methods of {service.name}."
    lines = ["", "", f"class {name}:", f'    """{comment}"""', "", '    __slots__ = ("_channel",)', ""]
    lines += [f"    def __init__(self, channel: {prefix}Channel) -> None:", "        self._channel = channel"]
    for method in service.methods:
        lines += ["", *(f"    {line}".rstrip() for line in _method(method, prefix))]
    names = [method.python_name for method in service.methods]
    paged = [method.python_name for method in service.methods if _item(method)]
    if len(paged) == 1 and "list" not in names:
        lines += ["", f"    list = {paged[0]}"]
    return "\n".join([*lines, ""])


def _method(method: Method, prefix: str) -> list[str]:
    taken = resolve(method.request, method.idempotency_key)
    key = taken[-1] if taken else None
    body = _body(method)
    fields = [f for f in (body or method.request).fields if f is not key and "Output only." not in f.comment]
    if body and key is None:
        # Of a record that is not written: such a method carries no key.
        fields = [f for f in fields if f.attribute != "idempotency_key"]
    streams_in = method.cardinality.startswith("stream")
    required = [] if body else [f for f in fields if f.rules.required]
    if streams_in:
        parameters = [f"requests: {prefix}Iterable[{method.request.name}]", "*"]
    elif body:
        parameters = [f"record: {body.name} | None = None", "/", "*"]
        parameters += [_parameter(f, False) for f in fields]
    else:
        first = [_parameter(f, True) for f in required]
        rest = [_parameter(f, False) for f in fields if f not in required]
        parameters = [*first, "*", *rest] if len(first) == 1 else ["*", *first, *rest]
    parameters += ["timeout: float | None = UNSET", "headers: Mapping[str, str] | None = None"]
    parameters.append("retry: RetryConfig | None = UNSET")
    if key is not None:
        parameters.append('idempotency_key: str = ""')
    data = unwrapped(method)
    returned = data.type.message.name if data and data.type.message else method.response.name
    result, streams_out = returned, method.cardinality.endswith("stream")
    call, item = method.cardinality, _item(method)
    if streams_out:
        result = f"AsyncGenerator[{returned}, None]" if prefix else f"Generator[{returned}, None, None]"
    elif item:
        call, result = "pages", f"{prefix}Pager[{returned}, {item}]"
    waits = bool(prefix) and not streams_out and not item
    lines = [f"{'async ' if waits else ''}def {method.python_name}(", "    self,"]
    lines += [*(f"    {parameter}," for parameter in parameters), f") -> {result}:"]
    lines += [
        f"    {line}".rstrip()
        for line in _doc(method, None if streams_in else body, [] if streams_in else fields)
    ]
    request = "requests"
    if not streams_in:
        lines += _request(method, body, fields)
        request = "request"
    arguments = [f"methods.{method.constant}", request, "timeout", "headers", "retry"]
    arguments += ["idempotency_key"] * (key is not None)
    start = f"response: {result} = {'await ' if waits else ''}self._channel.{call}("
    # These lines are shifted once more, into the class.
    sent = wrapped(start, arguments, ")", "        ").splitlines()
    return [*lines, *(line[4:] for line in sent), "    return response"]


def _item(method: Method) -> str:
    """What a method lists page by page; empty when it does not."""
    answer = {field.name: field for field in method.response.fields}
    asked = {field.name for field in method.request.fields}
    data = answer.get("data")
    if data is None or data.cardinality != "repeated" or data.type.message is None:
        return ""
    paged = "pagination" in answer and {"cursor", "page"} <= asked and method.cardinality == "unary_unary"
    return data.type.message.name if paged else ""


def _body(method: Method) -> Message | None:
    if method.http is None or method.http.body in ("", "*"):
        return None
    return method.request.field(method.http.body).type.message


def _request(method: Method, body: Message | None, fields: list[Field]) -> list[str]:
    made, target = body or method.request, "fields" if body else "request"
    required = [] if body else [f for f in fields if f.rules.required]
    given = [f"{field.attribute}={_coerced(field)}" for field in required]
    lines = wrapped(f"{target} = {made.name}(", given, ")", "    ").splitlines()
    for field in fields:
        if field not in required:
            # Most arguments are left out: setting the others costs less than passing them all.
            lines += [f"    if {_given(field)}:", f"        {target}.{field.attribute} = {_coerced(field)}"]
    if body:
        assert method.http is not None
        attribute = method.request.field(method.http.body).attribute
        lines.append(f"    request = {method.request.name}({attribute}=coerce.either(record, fields))")
    return lines


def _given(field: Field) -> str:
    name, default = _name(field), _parameter(field, required=False).rpartition(" = ")[2]
    if field.cardinality in ("repeated", "map"):
        return name
    constant = {'""': "EMPTY", "0": "ZERO"}.get(default, default)
    return f"{name} != {constant}" if default in ("0.0", 'b""') else f"{name} is not {constant}"


def _name(field: Field) -> str:
    return f"{field.attribute}_" if field.attribute in _RESERVED else field.attribute


def _parameter(field: Field, required: bool) -> str:
    type_, default = annotation(field)
    one = python_type(field.type)
    accepted = {"WireDecimal": "Decimal | str | int"}.get(one, one)
    if field.type.enum is not None:
        # Not the member: Python looks that up slowly, and each call would do it.
        accepted, default = f"{one} | str", default if field.nullable else '""'
    if field.cardinality == "repeated":
        type_, default = f"Sequence[{accepted}]", "()"
        if one == "str" or field.type.enum is not None:
            type_ = f"str | {type_}"
    elif field.cardinality == "map":
        key = type_.removeprefix("dict[").split(",")[0]
        key = {"IntKey": "int", "BoolKey": "bool"}.get(key, key)
        type_, default = f"Mapping[{key}, {accepted}] | None", "None"
    elif field.moment:
        type_, default = "str | date | None", "None"
    elif accepted != one:
        type_ = f"{accepted} | None" if field.nullable else accepted
        default = default.replace("Decimal(0)", "0")
    for alias, plain in (("Int32", "int"), ("Int64", "int"), ("UInt32", "int"), ("UInt64", "int")):
        type_ = type_.replace(alias, plain)
    return f"{_name(field)}: {type_}" if required else f"{_name(field)}: {type_} = {default}"


def _coerced(field: Field) -> str:
    name, kind = _name(field), field.type.kind
    enum = field.type.enum.name if field.type.enum is not None else ""
    if field.cardinality == "map":
        return f"coerce.mapping({name})"
    if field.cardinality == "repeated":
        one = {"string": "texts", "decimal": "decimals"}.get(kind, "listed")
        return f"coerce.members({enum}, {name})" if enum else f"coerce.{one}({name})"
    if enum:
        return f"coerce.member({enum}, {name})"
    coercer = "moment" if field.moment else {"decimal": "decimal", "timestamp": "instant"}.get(kind)
    return f"coerce.{coercer}({name})" if coercer else name


def _doc(method: Method, body: Message | None, fields: list[Field]) -> list[str]:
    text = method.comment or f"Call {method.service.name}.{method.name}."
    lines = [f'"""{line}' if at == 0 else line for at, line in enumerate(text.splitlines())]
    rows = [f"    record: a ready {body.name}, in place of its fields."] if body else []
    for field in fields:
        example = f' Example: "{field.example}".' if field.example else ""
        text = f"{_name(field)}: {' '.join(field.comment.split())}{example}"
        text = text.replace('"""', "'''").replace("\\", "\\\\")
        rows += textwrap.wrap(text, 94, initial_indent="    ", subsequent_indent="        ")
    whole = "stream" if "stream" in method.cardinality else "call"
    rows.append(f"    timeout: seconds for the whole {whole}, retries included; None for no limit.")
    rows.append("    headers: metadata to send beside that of the client.")
    rows.append("    retry: how to retry this call, instead of as the client does; None for not at all.")
    if method.idempotency_key:
        rows.append("    idempotency_key: makes a repeated call count once; made when not given.")
    return [*lines, "", "Args:", *rows, '"""']
