"""OTLP over HTTP: the spans in a request of either encoding, and the answers.

What of a request is not looked at is passed over, not decoded: most spans are no calls of a model, and most
of what is in one is the text that went in and came out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from llm_cost_ops.imports.spans import PREFIXES, Span
from llm_cost_ops.imports.values import whole
from llm_cost_ops.normalizers.tolerant import strict_json
from llm_cost_ops.rpc.status import StatusCode
from llm_cost_ops.wire import DecodeError
from llm_cost_ops.wire.fields import walk
from llm_cost_ops.wire.varint import DOUBLE, FIXED64, read_varint, varint

__all__ = ["JSON", "PROTOBUF", "encode_answer", "encode_error", "json_spans", "protobuf_spans"]

JSON, PROTOBUF = "application/json", "application/x-protobuf"

MAX_OBJECTS = 500_000
"""The most objects of a request in JSON: each attribute is two, and takes up to 300 bytes."""

MAX_FIELDS = 1_000_000
"""The most fields of a request in protobuf that are looked at: each takes up to a microsecond."""

_TOO_MANY = "has too many spans and attributes: export fewer at a time"

# Beside what begins with one of PREFIXES.
_ATTRIBUTES = frozenset({"enduser.id", "output.mime_type", "output.value", "session.id", "user.id"})
_OURS = "llm_cost_ops."
_RESOURCE = ("service.name", _OURS)
# A span without any of these is no call.
_MARKS = tuple(prefix.encode() for prefix in PREFIXES)
_ERROR = 2
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


# A null in JSON is as good as nothing.
class _Value(msgspec.Struct, frozen=True, rename="camel", gc=False):
    string_value: str | None = None
    int_value: int | str | None = None
    double_value: float | None = None
    bool_value: bool | None = None


class _Attribute(msgspec.Struct, frozen=True, gc=False):
    key: str = ""
    value: _Value | None = None


class _Status(msgspec.Struct, frozen=True, gc=False):
    code: int | str | None = None


class _Span(msgspec.Struct, frozen=True, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    start_time_unix_nano: int | str | None = None
    end_time_unix_nano: int | str | None = None
    attributes: list[_Attribute] | None = None
    status: _Status | None = None


class _Resource(msgspec.Struct, frozen=True):
    attributes: list[_Attribute] | None = None


# What is there where spans should be is found out before anything is kept of it.
class _Object(msgspec.Struct, frozen=True):
    pass


class _ScopeShape(msgspec.Struct, frozen=True):
    spans: list[_Object] | None = None


class _ResourceShape(msgspec.Struct, frozen=True, rename="camel"):
    scope_spans: list[_ScopeShape] | None = None


class _Shape(msgspec.Struct, frozen=True, rename="camel"):
    resource_spans: list[_ResourceShape] | None = None


# Undecoded first: to decode all at once would hold up every other thread.
class _Scope(msgspec.Struct, frozen=True):
    spans: list[msgspec.Raw] | None = None


class _ResourceSpans(msgspec.Struct, frozen=True, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[msgspec.Raw] | None = None


class _Request(msgspec.Struct, frozen=True, rename="camel"):
    resource_spans: list[msgspec.Raw] | None = None


# Made as this is loaded: two threads that make the first one of a struct end the process, as `decoder_of` in
# `wire/json.py` says.
_requests = msgspec.json.Decoder(_Request)
_resources = msgspec.json.Decoder(_ResourceSpans)
_scopes = msgspec.json.Decoder(_Scope)
_spans = msgspec.json.Decoder(_Span)
_shapes = msgspec.json.Decoder(_Shape)


def json_spans(data: bytes) -> Iterator[Span]:
    """The spans of a request in JSON that may be calls. Raises DecodeError."""
    if data.count(b"{") > MAX_OBJECTS:
        raise DecodeError(_TOO_MANY)
    try:
        data = _checked(data)
        for raw in _requests.decode(data).resource_spans or ():
            each = _resources.decode(raw)
            resource = {} if each.resource is None else _plain(each.resource.attributes)
            for scope in each.scope_spans or ():
                for raw_span in _scopes.decode(scope).spans or ():
                    span = bytes(raw_span)
                    if any(mark in span for mark in _MARKS):
                        yield _from_json(_spans.decode(span), resource)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"is not OTLP in JSON: {error}") from None


def _checked(data: bytes) -> bytes:
    """The request, once it has the shape of one. Raises msgspec.DecodeError.

    Exporters in JavaScript write half of a surrogate pair where they cut a text: it costs no other span.
    """
    try:
        _shapes.decode(data)
    except msgspec.DecodeError as error:
        if isinstance(error, msgspec.ValidationError) or not _SURROGATE.search(data):
            raise
        try:
            data = strict_json(data)
        except (ValueError, RecursionError):
            raise error from None
        _shapes.decode(data)
    return data


def _from_json(span: _Span, resource: dict[str, object]) -> Span:
    return Span(
        attributes=_plain(span.attributes),
        trace_id=(span.trace_id or "").lower(),
        span_id=(span.span_id or "").lower(),
        parent_id=(span.parent_span_id or "").lower(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        failed=span.status is not None and span.status.code in (_ERROR, "STATUS_CODE_ERROR"),
        resource=resource,
    )


def _plain(attributes: list[_Attribute] | None) -> dict[str, object]:
    plain: dict[str, object] = {}
    for each in attributes or ():
        value = each.value
        if value is None:
            continue
        if value.string_value is not None:
            plain[each.key] = value.string_value
        elif value.int_value is not None:
            # In JSON 64-bit numbers are text.
            number = value.int_value
            plain[each.key] = whole(number) if isinstance(number, str) else number
        elif value.double_value is not None:
            plain[each.key] = value.double_value
        elif value.bool_value is not None:
            plain[each.key] = value.bool_value
    return plain


def protobuf_spans(data: bytes) -> Iterator[Span]:
    """The spans of a request in protobuf that may be calls. Raises DecodeError."""
    reader = _Reader(data)
    try:
        for tag, start, stop in reader.fields(0, len(data)):
            if tag == _field(1):
                yield from reader.resource_spans(start, stop)
    except IndexError:
        raise DecodeError("the data ends within a field") from None
    except UnicodeDecodeError:
        raise DecodeError("has text that is not UTF-8") from None


def _field(number: int, wire_type: int = 2) -> int:
    return number << 3 | wire_type


class _Reader:
    """Reads one request; the numbers of fields are those of opentelemetry.proto.trace.v1."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._read = 0

    def fields(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The tag of each field, and where its value starts and stops."""
        for field in walk(self._data, start, stop):
            self._read += 1
            if self._read > MAX_FIELDS:
                raise DecodeError(_TOO_MANY)
            yield field

    def resource_spans(self, start: int, stop: int) -> Iterator[Span]:
        resource: dict[str, object] = {}
        # The resource may come after its spans, which may be in millions of places: those are not kept.
        for tag, at, end in self.fields(start, stop):
            if tag == _field(1):
                for inner, first, last in self.fields(at, end):
                    if inner == _field(1):
                        self._attribute(first, last, resource, of_resource=True)
        for tag, at, end in self.fields(start, stop):
            if tag == _field(2):
                yield from self._scope_spans(at, end, resource)

    def _scope_spans(self, start: int, stop: int, resource: dict[str, object]) -> Iterator[Span]:
        for tag, at, end in self.fields(start, stop):
            if tag == _field(2) and any(self._data.find(mark, at, end) >= 0 for mark in _MARKS):
                yield self._span(at, end, resource)

    def _span(self, start: int, stop: int, resource: dict[str, object]) -> Span:
        data = self._data
        attributes: dict[str, object] = {}
        found: dict[str, Any] = {}
        for tag, at, end in self.fields(start, stop):
            name = _IDS.get(tag)
            if name is not None:
                found[name] = data[at:end].hex()
            elif tag in _TIMES:
                found[_TIMES[tag]] = FIXED64.unpack_from(data, at)[0] or None
            elif tag == _field(9):
                self._attribute(at, end, attributes)
            elif tag == _field(15):
                found["failed"] = self._is_error(at, end)
        return Span(attributes=attributes, resource=resource, **found)

    def _is_error(self, start: int, stop: int) -> bool:
        codes = [at for tag, at, _ in self.fields(start, stop) if tag == _field(3, 0)]
        return bool(codes) and read_varint(self._data, codes[-1])[0] == _ERROR

    def _attribute(
        self, start: int, stop: int, into: dict[str, object], *, of_resource: bool = False
    ) -> None:
        name, value = "", None
        for tag, at, end in self.fields(start, stop):
            if tag == _field(1):
                name = self._data[at:end].decode()
                wanted = name.startswith(_RESOURCE if of_resource else (_OURS, *PREFIXES))
                if not wanted and name not in _ATTRIBUTES:
                    return
            elif tag == _field(2):
                value = self._value(at, end)
        if value is not None:
            into[name] = value

    def _value(self, start: int, stop: int) -> object:
        """A text or a number; lists and maps are not looked at."""
        value: object = None
        for tag, at, end in self.fields(start, stop):
            if tag == _field(1):
                value = self._data[at:end].decode()
            elif tag == _field(2, 0):
                value = bool(read_varint(self._data, at)[0])
            elif tag == _field(3, 0):
                number = read_varint(self._data, at)[0]
                value = number - (number >> 63 << 64)
            elif tag == _field(4, 1):
                value = DOUBLE.unpack_from(self._data, at)[0]
        return value


_IDS = {_field(1): "trace_id", _field(2): "span_id", _field(4): "parent_id"}
_TIMES = {_field(7, 1): "start", _field(8, 1): "end"}


def encode_answer(kind: str, rejected: int, message: str) -> bytes:
    """An ExportTraceServiceResponse: how many spans of calls were not recorded, and why."""
    if kind == JSON:
        partial = {"rejectedSpans": str(rejected), "errorMessage": message}
        return msgspec.json.encode({"partialSuccess": partial} if rejected else {})
    text = message.encode()
    inner = b"\x08" + varint(rejected) + b"\x12" + varint(len(text)) + text
    return b"\x0a" + varint(len(inner)) + inner if rejected else b""


def encode_error(kind: str, code: StatusCode, message: str) -> bytes:
    """A google.rpc.Status, the body of an error in OTLP."""
    if kind != PROTOBUF:
        return msgspec.json.encode({"code": code.value, "message": message})
    text = message.encode()
    return b"\x08" + varint(code.value) + b"\x12" + varint(len(text)) + text
