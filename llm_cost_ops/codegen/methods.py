"""Emits methods.py (descriptors) and servicers.py (what a server implements)."""

from __future__ import annotations

import re

from llm_cost_ops.codegen.nodes import Field, Message, Method, ModelError, Package, Service
from llm_cost_ops.codegen.structs import docstring, module, wrapped

__all__ = ["emit_methods", "emit_servicers", "resolve", "unwrapped"]

_SERVER = {
    "unary_unary": ("async def", "request: {req}", "{res}"),
    "unary_stream": ("def", "request: {req}", "AsyncGenerator[{res}, None]"),
    "stream_unary": ("async def", "requests: AsyncIterator[{req}]", "{res}"),
    "stream_stream": ("def", "requests: AsyncIterator[{req}]", "AsyncGenerator[{res}, None]"),
}


def resolve(message: Message, path: str) -> list[Field]:
    """The fields that a dotted path of proto names leads through."""
    fields: list[Field] = []
    inner: Message | None = message
    for name in filter(None, path.split(".")):
        if inner is None:
            raise ModelError(f"{message.full_name}: {path!r} leads through a field that is no message")
        fields.append(inner.field(name))
        inner = fields[-1].type.message
    return fields


def unwrapped(method: Method) -> Field | None:
    """The response's message field that the Python method returns in its place: `data`, or REST's body."""
    if method.http is not None and method.http.response_body:
        return method.response.field(method.http.response_body)
    for field in method.response.fields:
        if field.name == "data" and field.type.message is not None and field.cardinality == "singular":
            return field
    return None


def emit_methods(package: Package) -> str:
    """The text of methods.py."""
    methods = [method for service in package.services for method in service.methods]
    text = "".join(_descriptor(method) for method in methods)
    constants = sorted({c for method in methods for c in _codecs(method)})
    classes = sorted({m.name for method in methods for m in (method.request, method.response)})
    imports = {
        "llm_cost_ops.rpc.method": [
            "Cardinality",
            "HttpRule",
            "Idempotency",
            "MethodDescriptor",
            "QueryField",
        ],
        "llm_cost_ops.wire.keys": ["keyed"],
        f"{package.python}.codecs": constants,
        f"{package.python}.messages": classes,
    }
    names = [method.constant for method in methods]
    return module("The descriptors of the methods.", imports, names, text)


def _codecs(method: Method) -> list[str]:
    messages = (method.request, method.response, _body(method), _response_body(method))
    return [m.constant for m in messages if m is not None]


def _body(method: Method) -> Message | None:
    if method.http is None or not method.http.body:
        return None
    return method.request if method.http.body == "*" else method.request.field(method.http.body).type.message


def _response_body(method: Method) -> Message | None:
    if method.http is None or not method.http.response_body:
        return None
    return method.response.field(method.http.response_body).type.message


def _descriptor(method: Method) -> str:
    types = f"MethodDescriptor[{method.request.name}, {method.response.name}]"
    arguments = [
        f'"{method.service.full_name}"',
        f'"{method.name}"',
        f"cardinality=Cardinality.{method.cardinality.upper()}",
        f"idempotency=Idempotency.{method.idempotency}",
        f"request={method.request.constant}",
        f"response={method.response.constant}",
    ]
    if method.http is not None:
        arguments.append(_http(method))
    if method.idempotency_key:
        path = [f'"{field.attribute}"' for field in resolve(method.request, method.idempotency_key)]
        arguments.append(f"keyed=keyed({', '.join(path)})")
    data = unwrapped(method)
    if data is not None:
        arguments.append(f'unwrap="{data.attribute}"')
    lines = [f"    {line}" for argument in arguments for line in f"{argument},".splitlines()]
    text = [f"\n\n{method.constant}: {types} = MethodDescriptor(", *lines, ")"]
    return "\n".join([*text, *docstring(method.comment, "")])


def _http(method: Method) -> str:
    assert method.http is not None
    http, body = method.http, _body(method)
    in_path = set(re.findall(r"{(\w+)[^}]*}", http.path))
    fields = []
    for field in method.request.fields:
        in_query = http.body not in {"*", field.name} and field.type.proto != "message"
        if field.name in in_path or in_query:
            kind = {"repeated": "list", "map": "map"}.get(field.cardinality, "scalar")
            aliases = "".join(f', "{alias}"' for alias in field.rest_aliases).removeprefix(", ")
            extra = f", ({aliases}{',' if len(field.rest_aliases) == 1 else ''})" if aliases else ""
            fields.append(f'QueryField("{field.rest_name}", "{field.attribute}", "{kind}"{extra})')
    arguments = [f'"{http.verb}"', f'"{http.path}"', f'"{http.body}"' if http.body else "None"]
    arguments += [str(method.http_status)]
    codecs = [body.constant if body else "None"]
    answer = _response_body(method)
    if answer is not None:
        codecs += [f'"{http.response_body}"', answer.constant]
    if not fields:
        return wrapped("http=HttpRule(", [*arguments, "()", *codecs], ")")
    rows = [f"    {argument}," for argument in arguments]
    if len(fields) == 1:
        rows.append(f"    ({fields[0]},),")
    else:
        rows += ["    (", *(f"        {field}," for field in fields), "    ),"]
    rows += [f"    {codec}," for codec in codecs]
    return "\n".join(["http=HttpRule(", *rows, ")"])


def emit_servicers(package: Package) -> str:
    """The text of servicers.py."""
    text = "".join(_servicer(service) + _bind(service) for service in package.services)
    methods = [method for service in package.services for method in service.methods]
    imports = {
        "collections.abc": ["AsyncGenerator", "AsyncIterator"],
        "typing": ["Any", "Protocol"],
        "llm_cost_ops.rpc.context": ["CallContext"],
        "llm_cost_ops.rpc.method": ["MethodDescriptor"],
        f"{package.python}.messages": sorted({m.name for x in methods for m in (x.request, x.response)}),
        f"{package.python}.methods": sorted(method.constant for method in methods),
    }
    names = [name for s in package.services for name in (f"{s.name}r", f"bind_{s.snake}")]
    return module("What a server implements, one protocol per service.", imports, names, text)


def _servicer(service: Service) -> str:
    lines = ["", "", f"class {service.name}r(Protocol):", *docstring(service.comment, "    ")]
    for method in service.methods:
        define, argument, result = _SERVER[method.cardinality]
        argument = argument.format(req=method.request.name)
        result = result.format(res=method.response.name)
        arguments = ["self", argument, "context: CallContext"]
        start = f"{define} {method.attribute}("
        lines += ["", wrapped(start, arguments, f") -> {result}:", "    ")]
        lines += docstring(method.comment, "        ") or ["        ..."]
    return "\n".join([*lines, ""])


def _bind(service: Service) -> str:
    result = ") -> list[tuple[MethodDescriptor[Any, Any], Any]]:"
    pairs = [f"        ({method.constant}, servicer.{method.attribute})," for method in service.methods]
    return "\n".join(
        [
            "\n",
            wrapped(f"def bind_{service.snake}(", [f"servicer: {service.name}r"], result),
            f'    """Pair the methods of {service.name} with those of a servicer."""',
            "    return [",
            *pairs,
            "    ]",
            "",
        ]
    )
