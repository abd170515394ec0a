"""Emits methods.py (descriptors), servicers.py (what servers implement) and public.py (what users hold)."""

from __future__ import annotations

from tools.codegen.nodes import Field, Message, Method, Package, Service
from tools.codegen.text import docstring, fill, indented, module, strings, wrapped

__all__ = ["emit_methods", "emit_public", "emit_servicers"]

_METHODS_IMPORTS = """\
$package.codecs *
$package.messages *
$package.validators *
llm_cost_ops.rpc.method Cardinality HttpRule Idempotency MethodDescriptor QueryField
llm_cost_ops.rpc.context fill_idempotency_key
"""
_DESCRIPTOR = """
${rpc.constant}: MethodDescriptor[${rpc.request.name}, ${rpc.response.name}] = MethodDescriptor(
    "${rpc.service.full_name}",
    "${rpc.name}",
    cardinality=Cardinality.$cardinality,
    idempotency=Idempotency.${rpc.idempotency},
    request=${rpc.request.constant},
    response=${rpc.response.constant},
    validate=validate_${rpc.request.snake},
    $options
)
$docstring
"""
_SERVICERS_IMPORTS = """\
collections.abc AsyncGenerator AsyncIterator
typing Any Protocol
$package.messages *
$package.methods *
llm_cost_ops.rpc.context CallContext
llm_cost_ops.rpc.method MethodDescriptor
"""
_BIND = '''

$head
    """Pair the methods of $service with those of a servicer."""
    return [
        $pairs
    ]
'''


def emit_methods(package: Package) -> str:
    """The text of methods.py."""
    bases = {
        base.constant: base for method in package.methods if method.verb and (base := method.request.base)
    }
    shared = "".join(map(_shared, bases.values()))
    body = "".join(["\n", shared, *map(_descriptor, package.methods)])
    names = [method.constant for method in package.methods]
    return module(package, "The descriptors of the methods.", _METHODS_IMPORTS, names, body)


def _descriptor(method: Method) -> str:
    options = _http(method) if method.verb else ""
    if method.key_path:
        options += "fill_key=fill_idempotency_key({}),\n".format(
            ", ".join(f'"{field.attribute}"' for field in method.key_path)
        )
    if method.returned is not None:
        options += f'unwrap="{method.returned.attribute}",\n'
    holes = {"cardinality": method.cardinality.upper(), "docstring": docstring(method.comment)}
    return fill(_DESCRIPTOR, rpc=method, options=options, **holes)


def _http(method: Method) -> str:
    rule = method.options.http
    body = method.made if rule.body else None
    base = method.request.base
    # Those of a flattened message are in a tuple of their own, which several methods share.
    fields = [f"*_{base.constant}"] if base else []
    own = method.request.own if base else method.request.flat
    fields += [_query_field(field) for field in own if method.place(field)]
    arguments = [f'"{method.verb}"', f'"{method.path}"', f'"{rule.body}"' if rule.body else "None"]
    rows = "".join(f"    {field},\n" for field in fields)
    rows = f"({fields[0]},)" if len(fields) == 1 else f"(\n{rows})"
    arguments += [str(method.options.http_status or 200), rows if fields else "()"]
    arguments.append(body.constant if body else "None")
    if rule.response_body:
        answer = method.response.field(rule.response_body).type.message
        arguments += [f'"{rule.response_body}"', answer.constant if answer else "None"]
    if not fields:
        return wrapped("http=HttpRule(", arguments, ")")[:-1] + ",\n"
    return "http=HttpRule(\n" + indented("".join(f"{argument},\n" for argument in arguments)) + "),\n"


def _shared(base: Message) -> str:
    fields = "".join(f"    {_query_field(field)},\n" for field in base.fields)
    return f"\n_{base.constant} = (\n{fields})\n"


def _query_field(field: Field) -> str:
    kind = {"repeated": "list", "map": "map"}.get(field.cardinality, "scalar")
    aliases = f", {strings(field.options.rest_alias)}" if field.options.rest_alias else ""
    return f'QueryField("{field.rest_name}", "{field.attribute}", "{kind}"{aliases})'


def emit_servicers(package: Package) -> str:
    """The text of servicers.py."""
    body = "".join(_servicer(service) + _bind(service) for service in package.services)
    names = [name for s in package.services for name in (f"{s.name}r", f"bind_{s.snake}")]
    title = "What a server implements, one protocol per service."
    return module(package, title, _SERVICERS_IMPORTS, names, body)


def _servicer(service: Service) -> str:
    text = f"\n\nclass {service.name}r(Protocol):\n" + indented(docstring(service.comment))
    for method in service.methods:
        asked, result = f"request: {method.request.name}", method.response.name
        if method.cardinality.startswith("stream"):
            asked = f"requests: AsyncIterator[{method.request.name}]"
        define = "async def"
        if method.cardinality.endswith("stream"):
            define, result = "def", f"AsyncGenerator[{result}, None]"
        arguments = ["self", asked, "context: CallContext"]
        head = wrapped(f"{define} {method.attribute}(", arguments, f") -> {result}:", depth=4)
        text += "\n" + indented(head + indented(docstring(method.comment) or "...\n"))
    return text


def _bind(service: Service) -> str:
    result = ") -> list[tuple[MethodDescriptor[Any, Any], Any]]:"
    head = wrapped(f"def bind_{service.snake}(", [f"servicer: {service.name}r"], result)
    pairs = "".join(f"({method.constant}, servicer.{method.attribute}),\n" for method in service.methods)
    return fill(_BIND, head=head, service=service.name, pairs=pairs)


def emit_public(package: Package) -> str:
    """The text of public.py: the enums, and the messages that Python methods take or give, at any depth."""
    held: list[Message] = []
    for method in package.methods:
        held.append((method.returned and method.returned.type.message) or method.response)
        held += [field.type.message for field in method.made.flat if field.type.message]
        if method.made is not method.request:
            held.append(method.made)
        if method.cardinality.startswith("stream"):
            held.append(method.request)
    names = {message.name for each in held for message in (each, *each.within.values())}
    names |= {enum.name for enum in package.enums}
    title = "The messages and enums that users hold."
    used = wrapped(f"from {package.python}.messages import (", sorted(names), ")")
    return module(package, title, "", sorted(names), "").replace("\n__all__", f"\n{used}\n__all__", 1)
