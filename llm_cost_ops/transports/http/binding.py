"""HTTP bindings: from a message to an HTTP request and back, by a method's google.api.http rule.

Pure, and shared: the client's transport and the server's router derive all they know of paths and query
strings from the descriptors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec

from llm_cost_ops.rpc.method import HttpRule, MessageCodec, MethodDescriptor, QueryField
from llm_cost_ops.rpc.status import Violation, invalid_argument, invalid_arguments
from llm_cost_ops.wire import DecodeError, EncodeError
from llm_cost_ops.wire.json_keys import REPEATED, path_text, repeated_keys

__all__ = ["Binding", "Dialect", "HttpRequest", "Route", "Router", "binding_of"]


MAX_PARAMETERS = 1000

_VARIABLE = re.compile(r"\{(\w+)\}")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,19})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?")
_NEEDS_ESCAPE = re.compile(r"\\(?=[\\,])|,")
_SEPARATED = re.compile(r"\\([\\,])|(,)")


class HttpRequest(NamedTuple):
    """An HTTP request without its origin and its headers. `path` and `query` are percent-encoded."""

    verb: str
    path: str
    query: str
    body: bytes | None

    @property
    def target(self) -> str:
        """The path and the query string."""
        return f"{self.path}?{self.query}" if self.query else self.path


class _Parameter(NamedTuple):
    field: QueryField
    json_name: str
    convert: Any


class Binding:
    """One method's rule, prepared. Raises ValueError when the method has none."""

    def __init__(self, method: MethodDescriptor[Any, Any]) -> None:
        if method.http is None:
            raise ValueError(f"{method.full_name} has no HTTP rule")
        self.method = method
        self.rule: HttpRule = method.http
        self.variables: tuple[str, ...] = tuple(_VARIABLE.findall(self.rule.path))
        parameters = _parameters(method, self.rule)
        by_name = {name: p for p in parameters for name in (p.field.name, p.field.attribute)}
        self._in_path = {name: by_name[name] for name in self.variables}
        in_path = {p.field for p in self._in_path.values()}
        self._in_query = [] if self.rule.body == "*" else [p for p in parameters if p.field not in in_path]
        self._by_name = {name: p for p in self._in_query for name in (p.field.name, *p.field.aliases)}
        self._dialect = Dialect(method)

    # Towards the server.

    def encode(self, request: object) -> HttpRequest:
        """The HTTP request for a message. RpcError INVALID_ARGUMENT when it can't be one."""
        rule, body = self.rule, None
        try:
            if rule.body == "*":
                body = self.method.request.encode_json(request)
            elif rule.body is not None:
                part = getattr(request, rule.body)
                body = b"{}" if part is None else _body_codec(rule).encode_json(part)
            values: dict[str, Any] = {}
            if self._in_path or self._in_query:
                values = msgspec.json.decode(self.method.request.encode_json(request))
        except EncodeError as error:
            raise invalid_argument(error.path, error.reason, origin="client") from error
        path = self._path(values)
        if self._in_path and rule.body == "*" and body is not None:
            body = _without(body, [p.json_name for p in self._in_path.values()])
        query = "&".join(pair for p in self._in_query for pair in _pairs(p, values.get(p.json_name)))
        return HttpRequest(rule.verb, path, query, body)

    def decode_response(self, body: bytes) -> object:
        """The message in the body of a success. DecodeError when there is none."""
        try:
            body = self._dialect.normalize(body)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"is not JSON of the expected shape: {error}") from error
        return self.method.response.decode_json(body)

    def _path(self, values: dict[str, object]) -> str:
        path = self.rule.path
        for name, parameter in self._in_path.items():
            text = _text(values.get(parameter.json_name, ""))
            if text in {"", ".", ".."}:
                # They would make it the path of something else.
                rule = "must be given" if not text else "may not be '.' or '..'"
                raise invalid_argument(name, rule, origin="client")
            path = path.replace(f"{{{name}}}", quote(text, safe=""), 1)
        return path

    # Towards the servicer.

    def decode(self, variables: Sequence[str], query: str, body: bytes) -> Any:
        """The message in an HTTP request; `variables` are those of the path, decoded.

        RpcError INVALID_ARGUMENT with every parameter that is unknown, repeated or malformed.
        """
        values, violations = self._read(variables, query)
        rule = self.rule
        if rule.body == "*" and not violations:
            return _decoded(self.method.request, _with(body, values) if values else body)
        request = self._from_values(values, violations)
        if rule.body is not None:
            setattr(request, rule.body, _decoded(_body_codec(rule), body))
        return request

    @property
    def body_codec(self) -> MessageCodec[Any] | None:
        """What decodes the body by itself; None where there is none, or the path holds a part of it."""
        if self.rule.body == "*":
            return None if self._in_path else self.method.request
        return self.rule.body_codec

    def decode_around(self, variables: Sequence[str], query: str, part: object) -> object:
        """As `decode`, where the body has become `part` by `body_codec`."""
        values, violations = self._read(variables, query)
        if self.rule.body == "*" and not violations:
            return part
        request = self._from_values(values, violations)
        setattr(request, str(self.rule.body), part)
        return request

    def _read(self, variables: Sequence[str], query: str) -> tuple[dict[str, object], list[Violation]]:
        violations: list[Violation] = []
        values = self._read_query(query, violations)
        for parameter, text in zip(self._in_path.values(), variables, strict=True):
            values[parameter.json_name] = parameter.convert(text)
        return values, violations

    def encode_response(self, response: object) -> bytes:
        """The body that tells a success."""
        return self.method.response.encode_json(response)

    def _read_query(self, query: str, violations: list[Violation]) -> dict[str, object]:
        given: dict[str, list[tuple[str, str]]] = {}
        for name, text in _split_query(query, violations):
            base, bracket, key = name.partition("[")
            parameter = self._by_name.get(base)
            is_map = parameter is not None and parameter.field.kind == "map"
            if parameter is None or bool(bracket) != is_map or (is_map and not key.endswith("]")):
                violations.append(Violation(name, "is not a parameter of this method"))
                continue
            given.setdefault(parameter.json_name, []).append((key[:-1], text))
        values: dict[str, Any] = {}
        for parameter in self._in_query:
            pairs = given.get(parameter.json_name)
            if pairs is not None:
                values[parameter.json_name] = _value(parameter, pairs, violations)
        return values

    def _from_values(self, values: dict[str, object], violations: list[Violation]) -> object:
        codec = self.method.request
        together = Violation("query", "is not what this method takes")
        if not violations:
            try:
                return codec.decode_json(msgspec.json.encode(values))
            except DecodeError as error:
                together = Violation(error.path or "query", error.reason)
        for name, value in values.items():
            try:
                codec.decode_json(msgspec.json.encode({name: value}))
            except DecodeError as error:
                violations.append(Violation(error.path or name, error.reason))
        raise invalid_arguments(violations or [together])


@lru_cache(maxsize=1024)
def binding_of(method: MethodDescriptor[Any, Any]) -> Binding:
    """The method's binding, made once."""
    return Binding(method)


class Route(NamedTuple):
    """What a path leads to: bindings by verb, and the path's variables, decoded, in order."""

    bindings: dict[str, Binding]
    variables: list[str]


class Router:
    """Finds the methods of a path. Fixed segments win over variables."""

    def __init__(self, methods: Iterable[MethodDescriptor[Any, Any]]) -> None:
        self._root: dict[str, Any] = {}
        for method in methods:
            if method.http is not None:
                self._add(binding_of(method))

    def _add(self, binding: Binding) -> None:
        node = self._root
        for segment in binding.rule.path.strip("/").split("/"):
            # "{}" and "" can't be segments of a request: they can't clash with one.
            node = node.setdefault("{}" if _VARIABLE.fullmatch(segment) else segment, {})
        node.setdefault("", {})[binding.rule.verb] = binding

    def match(self, path: str) -> Route | None:
        """The route of a path that is still percent-encoded. RpcError when the encoding is broken."""
        if not path.startswith("/"):
            return None
        segments = path[1:].split("/")
        found = self._walk(self._root, segments, 0)
        if found is None:
            return None
        bindings, texts = found
        variables = [value for text in texts if (value := _unquoted(text)) is not None]
        if len(variables) < len(texts):
            raise invalid_argument("path", "must be percent-encoded UTF-8")
        return Route(bindings, variables)

    def _walk(
        self, node: dict[str, Any], segments: list[str], at: int
    ) -> tuple[dict[str, Binding], list[str]] | None:
        if at == len(segments):
            bindings = node.get("")
            return (bindings, []) if bindings else None
        segment = segments[at]
        if segment in {"", "{}"}:
            return None
        if segment in node:
            found = self._walk(node[segment], segments, at + 1)
            if found is not None:
                return found
        if "{}" in node:
            found = self._walk(node["{}"], segments, at + 1)
            if found is not None:
                found[1].insert(0, segment)
                return found
        return None


def _parameters(method: MethodDescriptor[Any, Any], rule: HttpRule) -> list[_Parameter]:
    types = {field.name: field for field in msgspec.structs.fields(method.request.type)}
    parameters = []
    for field in rule.fields:
        declared = types[field.attribute]
        kind = _element(msgspec.inspect.type_info(declared.type))
        parameters.append(_Parameter(field, declared.encode_name, _CONVERT.get(kind, str)))
    return parameters


def _element(info: msgspec.inspect.Type) -> type[msgspec.inspect.Type]:
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(t for t in info.types if not isinstance(t, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.ListType):
        info = info.item_type
    elif isinstance(info, msgspec.inspect.DictType):
        info = info.value_type
    return type(info)


def _integer(text: str) -> object:
    return int(text) if _INTEGER.fullmatch(text) else text


def _number(text: str) -> object:
    return float(text) if _NUMBER.fullmatch(text) else text


def _boolean(text: str) -> object:
    return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)


# What can't be converted stays text, and the codec says what it should have been.
_CONVERT: dict[type[msgspec.inspect.Type], Any] = {
    msgspec.inspect.IntType: _integer,
    msgspec.inspect.FloatType: _number,
    msgspec.inspect.BoolType: _boolean,
}


def _body_codec(rule: HttpRule) -> Any:
    if rule.body_codec is None:
        raise TypeError(f"the rule of {rule.path} names a body but no codec for it")
    return rule.body_codec


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _pairs(parameter: _Parameter, value: Any) -> Iterator[str]:
    if value is None:
        return
    name = quote(parameter.field.name, safe="")
    if parameter.field.kind == "scalar":
        yield f"{name}={quote(_text(value), safe='')}"
    elif parameter.field.kind == "map":
        for key, item in value.items():
            yield f"{name}%5B{quote(key, safe='')}%5D={quote(_text(item), safe='')}"
    elif len(value) == 1:
        # A key that comes once is split at commas.
        escaped = _NEEDS_ESCAPE.sub(lambda match: "\\" + match[0], _text(value[0]))
        yield f"{name}={quote(escaped, safe='')}"
    else:
        for item in value:
            yield f"{name}={quote(_text(item), safe='')}"


def _split_query(query: str, violations: list[Violation]) -> Iterator[tuple[str, str]]:
    if not query:
        return
    pairs = query.split("&", MAX_PARAMETERS + 1)
    if len(pairs) > MAX_PARAMETERS:
        violations.append(Violation("query", f"may have at most {MAX_PARAMETERS} parameters"))
        return
    for pair in pairs:
        if not pair:
            continue
        raw_name, _, raw_text = pair.partition("=")
        name, text = (_unquoted(raw.replace("+", " ")) for raw in (raw_name, raw_text))
        if name is None or text is None:
            violations.append(Violation(name or "query", "must be percent-encoded UTF-8"))
        else:
            yield name, text


def _unquoted(text: str) -> str | None:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        return None
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return None


def _separate(text: str) -> list[str]:
    parts = [""]
    end = 0
    for match in _SEPARATED.finditer(text):
        parts[-1] += text[end : match.start()] + (match[1] or "")
        if match[2]:
            parts.append("")
        end = match.end()
    parts[-1] += text[end:]
    return parts


def _value(parameter: _Parameter, pairs: list[tuple[str, str]], violations: list[Violation]) -> object:
    name, kind = parameter.field.name, parameter.field.kind
    if kind == "map":
        values = {}
        for key, text in pairs:
            if key in values:
                violations.append(Violation(f"{name}[{key}]", REPEATED))
            values[key] = parameter.convert(text)
        return values
    if kind == "list":
        texts = _separate(pairs[0][1]) if len(pairs) == 1 else [text for _, text in pairs]
        return [parameter.convert(text) for text in texts]
    if len(pairs) > 1:
        violations.append(Violation(name, REPEATED))
    return parameter.convert(pairs[0][1])


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _without(body: bytes, names: list[str]) -> bytes:
    fields = _OBJECT.decode(body)
    for name in names:
        fields.pop(name, None)
    return msgspec.json.encode(fields)


def _with(body: bytes, values: dict[str, object]) -> bytes:
    try:
        fields: dict[str, Any] = dict(_OBJECT.decode(body))
        repeated = repeated_keys(body)
    except (ValueError, RecursionError):
        return body
    if repeated:
        raise invalid_argument(path_text(repeated[0]), REPEATED)
    return msgspec.json.encode(fields | values)


def _decoded(codec: Any, body: bytes) -> object:
    try:
        return codec.decode_json(body, unique=True)
    except DecodeError as error:
        raise invalid_argument(error.path or "body", error.reason) from error


# What servers call the fields of a page, beside the documented names.
_ALIASES = {
    "limit": "page_size",
    "per_page": "page_size",
    "total": "total_items",
    "total_count": "total_items",
    "pages": "total_pages",
    "has_more": "has_next",
    "has_previous": "has_prev",
    "next": "next_cursor",
    "current_page": "page",
}
_OTHER_SPELLINGS = _ALIASES.keys() - {"per_page"}
_OURS = {"page", "page_size", "per_page", "has_next", "has_prev", "next_cursor"}
_NAMES = frozenset(("page", "page_size", "total_items", "total_pages", "has_next", "has_prev", "next_cursor"))

_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder(dict[str, Any])


class Dialect:
    """How a method's answer is brought into its message's shape before it is decoded.

    An object without "data" is taken as the data, where the method returns that; a bare list as
    the data of a list. The fields of a page may have other names, stand beside the data, or be
    missing where they follow from the others.
    """

    def __init__(self, method: MethodDescriptor[Any, Any]) -> None:
        fields = {field.name: field for field in msgspec.structs.fields(method.response.type)}
        self._wraps = method.unwrap == "data"
        self._pages = "data" in fields and "pagination" in fields

    def normalize(self, body: bytes) -> bytes:
        """The body, changed only where it has to be. Raises ValueError when it is not JSON."""
        if self._wraps:
            if body.startswith(b'{"data":') or "data" in _RAW.decode(body):
                return body
            return b'{"data":' + body + b"}"
        if not self._pages:
            return body
        if body.lstrip()[:1] == b"[":
            return b'{"data":' + body + b"}"
        return _page(body)


def _page(body: bytes) -> bytes:
    envelope = _RAW.decode(body)
    raw = envelope.get("pagination")
    pagination = {} if raw is None or bytes(raw) == b"null" else _ANY.decode(raw)
    if (
        pagination.keys() >= _OURS
        and not pagination.keys() & _OTHER_SPELLINGS
        and None not in map(pagination.get, _OURS)
    ):
        return body
    if not pagination:
        beside = [name for name in envelope if name in _NAMES or name in _ALIASES]
        pagination = {name: msgspec.json.decode(envelope.pop(name)) for name in beside}
        if not pagination:
            return body
    envelope["pagination"] = msgspec.Raw(msgspec.json.encode(_completed(pagination)))
    return msgspec.json.encode(envelope)


def _completed(pagination: dict[str, object]) -> dict[str, object]:
    page = {name: value for name, value in pagination.items() if value is not None and name not in _ALIASES}
    for alias, name in _ALIASES.items():
        value = pagination.get(alias)
        if value is not None:
            page.setdefault(name, value)
    size, number, items = (_count(page.get(name)) for name in ("page_size", "page", "total_items"))
    if "page_size" in page:
        page.setdefault("per_page", page["page_size"])
    if items is not None and size and items < size << 31:
        page.setdefault("total_pages", -(-items // size))
    pages = _count(page.get("total_pages"))
    page.setdefault("has_next", bool(page.get("next_cursor")) or (number or 1) < (pages or 0))
    page.setdefault("has_prev", (number or 0) > 1)
    return page


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
