"""Emits resources.py: a sync and an async class per service, from one template, and what they are with
raw responses.
"""

from __future__ import annotations

import re
import textwrap

from tools.codegen.nodes import Field, Message, Method, Package, Service
from tools.codegen.text import docstring, fill, indented, module, wrapped

__all__ = ["emit_resources"]

# What the methods call by these names, so that no parameter may have them.
_RESERVED = frozenset(
    "coerce fields headers idempotency_key methods record request requests response retry timeout".split()
)
_IMPORTS = """\
collections.abc AsyncGenerator AsyncIterable Generator Iterable Mapping Sequence
datetime date datetime timedelta
decimal Decimal
typing Any Literal TypedDict
$package methods
$package.messages *
llm_cost_ops.config RetryConfig
llm_cost_ops.rpc.channel UNSET AsyncChannel Channel
llm_cost_ops.rpc.pager AsyncPager Pager
llm_cost_ops.rpc.raw RawResource async_raw async_raw_pages raw raw_pages
llm_cost_ops.wire coerce
llm_cost_ops.wire.validation EMPTY ZERO
"""
_RESOURCE = '''

class $name:
    """$comment"""

    __slots__ = ("_channel",)

    def __init__(self, channel: ${prefix}Channel) -> None:
        self._channel = channel
    $methods
'''
_RAW = '''

class Raw$name(RawResource):
    """$name, whose methods give a RawResponse. Streams have none."""

    $methods
'''
_METHOD = """
${define}def $name(
    self,
    $parameters
    timeout: float | None = UNSET,
    headers: Mapping[str, str] | None = None,
    retry: RetryConfig | None = UNSET,
    $key
) -> $result:
    $docstring
    $request
    $sent
    return response
"""
_EVERY_CALL = """\
    timeout: seconds for the whole {}, retries included; None for no limit.
    headers: metadata to send beside that of the client.
    retry: how to retry this call, instead of as the client does; None for not at all.
"""
# What fields of these names hold, by the field: strings on the wire, since a newer server knows more.
# The open ones also take a string that is in no list: "label:<key>".
_LITERALS = {
    "group_by": (
        "none provider model organization project user tag operation service_tier processing region status"
        " meter hour day week month"
    ).split(),
    "metrics": (
        "total_cost total_tokens total_requests input_tokens output_tokens cached_tokens unpriced_requests"
        " average_cost_per_request average_tokens_per_request"
    ).split(),
    "order": ["", "asc", "desc"],
    "sort": ["", "timestamp", "ingested_at"],
}
_OPEN = ("group_by",)
_KEY = "    idempotency_key: makes a repeated call count once; made when not given.\n"


def emit_resources(package: Package) -> str:
    """The text of resources.py."""
    both = [(service, prefix) for service in package.services for prefix in ("", "Async")]
    body = "".join(_resource(service, prefix) + _raw(service, prefix) for service, prefix in both)
    fields = {method.made.name: _typed_dict(method) for method in package.methods if _overlays(method)}
    used = [name for name in _LITERALS if re.search(rf": {_alias_name(name)}\b", body)]
    text = "\n" * bool(used) + "".join(map(_alias, used)) + "".join(fields.values()) + body
    bases = [method.made.base for method in package.methods if method.body is None]
    text = "".join({base.name: _setter(base) for base in bases if base}.values()) + text
    names = re.findall(r"^(?:class )?(\w+)(?: = |\(|:$)", text, re.MULTILINE)
    return module(package, "The methods of the client, a class per service.", _IMPORTS, names, text)


def _alias_name(field: str) -> str:
    return "".join(part.capitalize() for part in field.split("_"))


def _alias(field: str) -> str:
    values = [f'"{value}"' for value in _LITERALS[field]]
    return wrapped(f"{_alias_name(field)} = Literal[", values, "] | str" if field in _OPEN else "]")


def _overlays(method: Method) -> bool:
    """Whether its parameters are the fields of a record, which may also be given ready."""
    return method.body is not None and not method.cardinality.startswith("stream")


def _typed_dict(method: Method) -> str:
    name = method.made.name
    lines = [f"{_name(field)}: {_accepted(field)[0]}\n" for field in _fields(method)]
    lines += ["idempotency_key: str\n"] * bool(method.key_path)
    title = f'"""The fields of a {name}, as keyword arguments."""\n\n'
    return f"\n\nclass {name}Fields(TypedDict, total=False):\n" + indented(title + "".join(lines))


def _class(service: Service, prefix: str) -> str:
    return f"{prefix}{_title(service)}Resource"


def _title(service: Service) -> str:
    return "".join(part.capitalize() for part in service.resource.split("_"))


def _resource(service: Service, prefix: str) -> str:
    methods = "".join(_method(method, prefix) for method in service.methods)
    if listing := _listing(service):
        methods += f"\nlist = {listing}\n"
    name = _class(service, prefix)
    comment = service.comment.partition("\n")[0] or f"The methods of {service.name}."
    return fill(_RESOURCE, name=name, comment=comment, prefix=prefix, methods=methods)


def _listing(service: Service) -> str:
    """The method that is also called `list`, if any."""
    paged = [method.python_name for method in service.methods if _item(method)]
    taken = "list" in [method.python_name for method in service.methods]
    return paged[0] if len(paged) == 1 and not taken else ""


def _raw(service: Service, prefix: str) -> str:
    name = _class(service, prefix)
    raw = f"{prefix.lower()}_raw".lstrip("_")
    methods = "".join(
        f"{method.python_name} = {raw}{'_pages' * bool(_item(method))}({name}.{method.python_name})\n"
        for method in service.methods
        if not method.cardinality.endswith("stream")
    )
    if listing := _listing(service):
        methods += f"list = {listing}\n"
    return fill(_RAW, name=name, methods=methods) if methods else ""


def _method(method: Method, prefix: str) -> str:
    has_key, item = bool(method.key_path), _item(method)
    streams_in, streams_out = method.cardinality.startswith("stream"), method.cardinality.endswith("stream")
    fields = [] if streams_in else _fields(method)
    returned = method.returned.type.annotation if method.returned else method.response.name
    call, result = method.cardinality, returned
    if streams_out:
        result = f"AsyncGenerator[{returned}, None]" if prefix else f"Generator[{returned}, None, None]"
    elif item:
        call, result = "pages", f"{prefix}Pager[{returned}, {item}]"
    waits = bool(prefix) and not streams_out and not item
    arguments = [f"methods.{method.constant}", "requests" if streams_in else "request"]
    arguments += ["timeout", "headers", "retry", *["idempotency_key"] * has_key]
    start = f"response: {result} = {'await ' if waits else ''}self._channel.{call}("
    return fill(
        _METHOD,
        define="async " if waits else "",
        name=method.python_name,
        parameters="".join(f"{each},\n" for each in _parameters(method, fields, prefix)),
        key='idempotency_key: str = "",\n' if has_key else "",
        result=result,
        docstring=docstring(f"As {_title(method.service)}Resource.{method.python_name}.")
        if prefix
        else _docstring(method, fields),
        request="" if streams_in else _request(method, fields),
        sent=wrapped(start, arguments, ")", depth=8),
    )


def _item(method: Method) -> str:
    """What a method lists page by page; empty when it does not."""
    data = [f for f in method.response.fields if f.name == "data" and f.cardinality == "repeated"]
    answer = {field.name for field in method.response.fields}
    asked = {field.name for field in method.request.flat}
    paged = "pagination" in answer and {"cursor", "page"} <= asked and method.cardinality == "unary_unary"
    return data[0].type.message.name if paged and data and data[0].type.message else ""


def _fields(method: Method) -> list[Field]:
    fields = [f for f in method.made.flat if "Output only." not in f.comment]
    if method.key_path:
        return [field for field in fields if field is not method.key_path[-1]]
    # A record that is not written has no use for its key.
    return [field for field in fields if method.body is None or field.attribute != "idempotency_key"]


def _parameters(method: Method, fields: list[Field], prefix: str) -> list[str]:
    if method.cardinality.startswith("stream"):
        return [f"requests: {prefix}Iterable[{method.request.name}]", "*"]
    if method.body is not None:
        return [f"record: {method.made.name} | None = None", "/", "*", *map(_optional, fields)]
    required = [field for field in fields if field.options.rules.required]
    # What the path names comes by its place, and so does what alone is required.
    placed = [field for field in required if f"{{{field.name}}}" in method.path or len(required) == 1]
    named = [field for field in required if field not in placed]
    rest = [_optional(field) for field in fields if field not in required]
    given = [[f"{_name(field)}: {_accepted(field)[0]}" for field in group] for group in (placed, named)]
    return [*given[0], "*", *given[1], *rest]


def _optional(field: Field) -> str:
    return f"{_name(field)}: {' = '.join(_accepted(field))}"


def _name(field: Field) -> str:
    return f"{field.attribute}_" if field.attribute in _RESERVED else field.attribute


def _accepted(field: Field) -> tuple[str, str]:
    """The annotation of a parameter, and its default."""
    type_, default = field.type.plain, field.type.default
    if field.type.kind == "decimal":
        type_, default = "Decimal | str | int", "0"
    elif field.type.enum is not None:
        # Not the member: Python looks that up slowly, and each call would do it.
        type_, default = f"{type_} | {_texts(field)}", '""'
    if field.name in _LITERALS and field.type.kind == "string":
        alias = _alias_name(field.name)
        return (f"{alias} | Sequence[{alias}]", "()") if field.cardinality == "repeated" else (alias, '""')
    if field.cardinality == "repeated":
        single = "str | " if field.type.annotation == "str" or field.type.enum is not None else ""
        return f"{single}Sequence[{type_}]", "()"
    if field.key is not None:
        return f"Mapping[{field.key.plain}, {type_}] | None", "None"
    if field.options.moment or field.type.kind == "timestamp":
        return "str | date | None", "None"
    if field.nullable:
        return type_ if type_ == "Any" else f"{type_} | None", "None"
    return type_, default


def _texts(field: Field) -> str:
    """What an enum's argument may be but a member: any text, or of an interval one that is known."""
    if field.name != "interval" or field.type.enum is None:
        return "str"
    values = [f'"{value.value}"' for value in field.type.enum.values if value.number]
    return f'Literal["", {", ".join(values)}]'


def _request(method: Method, fields: list[Field]) -> str:
    """Statements that make the request."""
    body, made = method.body, method.made
    target = "request" if body is None else "fields"
    required = [field for field in fields if body is None and field.options.rules.required]
    given = [f"{field.attribute}={_coerced(field)}" for field in required]
    text = wrapped(f"{target} = {made.name}(", given, ")", depth=4)
    base = made.base if body is None else None
    shared = _shared(base) if base else []
    if base:
        text += wrapped(f"_set_{base.snake}(", ["request", *(_name(field) for field in shared)], ")", depth=4)
    for field in fields:
        if field not in required and field.name not in {each.name for each in shared}:
            # Most arguments are left out: setting the others costs less than passing them all.
            text += f"if {_given(field)}:\n    {target}.{field.attribute} = {_coerced(field)}\n"
    if body is not None:
        made_of = "fields if record is None else coerce.overlaid(record, fields)"
        text += wrapped(f"request = {method.request.name}(", [f"{body.attribute}={made_of}"], ")", depth=8)
    return text


def _shared(base: Message) -> list[Field]:
    return [field for field in base.fields if "Output only." not in field.comment]


def _setter(base: Message) -> str:
    """The function that sets the fields of a flattened message, which several requests have."""
    head = [f"request: {base.name}", *(f"{_name(field)}: {_accepted(field)[0]}" for field in _shared(base))]
    text = wrapped(f"def _set_{base.snake}(", head, ") -> None:")
    for field in _shared(base):
        text += f"    if {_given(field)}:\n        request.{field.attribute} = {_coerced(field)}\n"
    return f"\n\n{text}"


def _given(field: Field) -> str:
    """Whether an argument is another than the default."""
    name, default = _name(field), _accepted(field)[1]
    if field.many:
        return name
    if default in ("0.0", 'b""'):
        return f"{name} != {default}"
    constant = {'""': "EMPTY", "0": "ZERO"}.get(default, default)
    return f"{name} is not {constant}"


def _coerced(field: Field) -> str:
    name, kind = _name(field), field.type.kind
    enum = field.type.enum.name if field.type.enum is not None else ""
    if field.key is not None:
        return f"coerce.mapping({name})"
    if field.cardinality == "repeated":
        one = {"string": "texts", "decimal": "decimals"}.get(kind, "listed")
        return f"coerce.members({enum}, {name})" if enum else f"coerce.{one}({name})"
    if enum:
        return f"coerce.member({enum}, {name})"
    coercer = "moment" if field.options.moment else {"decimal": "decimal", "timestamp": "instant"}.get(kind)
    return f"coerce.{coercer}({name})" if coercer else name


def _docstring(method: Method, fields: list[Field]) -> str:
    text = f"{method.comment or f'Call {method.service.name}.{method.name}.'}\n\nArgs:\n"
    if method.body is not None and not method.cardinality.startswith("stream"):
        text += f"    record: a ready {method.made.name}, whose fields those given beside it replace.\n"
    for field in fields:
        example = f' Example: "{field.options.example}".' if field.options.example else ""
        about = f"{_name(field)}: {' '.join(field.comment.split())}{example}"
        text += textwrap.fill(about, 94, initial_indent="    ", subsequent_indent="        ") + "\n"
    text += _EVERY_CALL.format("stream" if "stream" in method.cardinality else "call")
    return docstring(text + _KEY * bool(method.key_path))
