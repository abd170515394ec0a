"""Descriptors: all that the machinery knows of a message type and of a method.

Generated code builds them once, at import; nothing builds them per call.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

__all__ = ["Cardinality", "HttpRule", "Idempotency", "MessageCodec", "MethodDescriptor", "QueryField"]

M = TypeVar("M")
Req = TypeVar("Req")
Res = TypeVar("Res")


class Cardinality(enum.Enum):
    """How many messages go each way."""

    UNARY_UNARY = "unary_unary"
    UNARY_STREAM = "unary_stream"
    STREAM_STREAM = "stream_stream"


class Idempotency(enum.Enum):
    """What a second execution does: protobuf's idempotency_level."""

    UNKNOWN = 0
    NO_SIDE_EFFECTS = 1
    IDEMPOTENT = 2


class Format(Protocol[M]):
    """How messages of a type are written, and read."""

    def encode(self, message: M) -> bytes:
        """The bytes of a message."""

    def decode(self, data: bytes, *, unique: bool = False) -> M:
        """The message in bytes; with `unique`, no key may come twice in an object."""


class MessageCodec(Generic[M]):
    """How one message type becomes bytes and back, as protobuf and as REST JSON.

    Instead of `encode` and `decode`, `protobuf` may say where they are: "module:name" for
    `module.encode_name` and `module.decode_name`. That module is imported when the first message is
    encoded or decoded, since who speaks JSON only has no use for it.

    Decoders raise `llm_cost_ops.wire.DecodeError` with the path of the field, encoders
    `llm_cost_ops.wire.EncodeError`. `decode_json(data, unique=True)` refuses keys that come twice in an
    object.
    """

    __slots__ = ("decode", "decode_json", "encode", "encode_json", "full_name", "type")

    def __init__(
        self,
        type: type[M],
        full_name: str,
        *,
        encode: Callable[[M], bytes] | None = None,
        decode: Callable[[bytes], M] | None = None,
        protobuf: str = "",
        json: Format[M],
    ) -> None:
        self.type = type
        self.full_name = full_name
        self.encode: Callable[[M], bytes] = encode or partial(self._load, protobuf, "encode")
        self.decode: Callable[[bytes], M] = decode or partial(self._load, protobuf, "decode")
        self.encode_json = json.encode
        self.decode_json = json.decode

    def _load(self, protobuf: str, way: str, value: object) -> Any:
        module, _, name = protobuf.partition(":")
        functions = import_module(module)
        self.encode = getattr(functions, f"encode_{name}")
        self.decode = getattr(functions, f"decode_{name}")
        return getattr(self, way)(value)

    def __repr__(self) -> str:
        return f"MessageCodec({self.full_name})"


class QueryField(NamedTuple):
    """A request field that may stand in a query string or in a path.

    `kind` is "scalar", "list" (repeated keys or comma-separated) or "map" (`name[key]=value`).
    """

    name: str
    attribute: str
    kind: str
    aliases: tuple[str, ...] = ()


class HttpRule(NamedTuple):
    """A google.api.http rule: `body` is None, "*", or the request field that is the body.

    `response_body` is the response field that is the answer's body, None where the whole response is.
    """

    verb: str
    path: str
    body: str | None
    status: int
    fields: tuple[QueryField, ...]
    body_codec: MessageCodec[Any] | None
    response_body: str | None = None
    response_codec: MessageCodec[Any] | None = None


class MethodDescriptor(Generic[Req, Res]):
    """One method of one service.

    `fill_key(request, key, make)` returns the request, copied where it had to be changed, with its
    idempotency key filled: from `key` when that is not empty, else from `make()`; and the key. It is
    None for methods that carry none. `success_status` is the HTTP status of an ordinary success.
    `unwrap` names the response field that the Python method returns, if not the whole response; of a
    stream, it gives the elements of a list one by one. `validate(request, path, violations)` adds the rules
    that a request breaks to a list.
    """

    __slots__ = (
        "cardinality",
        "fill_key",
        "full_name",
        "http",
        "idempotency",
        "name",
        "path",
        "request",
        "response",
        "service",
        "success_status",
        "unwrap",
        "validate",
    )

    def __init__(
        self,
        service: str,
        name: str,
        *,
        cardinality: Cardinality,
        idempotency: Idempotency,
        request: MessageCodec[Req],
        response: MessageCodec[Res],
        validate: Callable[[Req, str, list[Any]], None],
        http: HttpRule | None = None,
        fill_key: Callable[..., tuple[Req, str]] | None = None,
        unwrap: str | None = None,
    ) -> None:
        self.service = service
        self.name = name
        self.full_name = f"{service}.{name}"
        self.path = f"/{service}/{name}"
        self.cardinality = cardinality
        self.idempotency = idempotency
        self.request = request
        self.response = response
        self.http = http
        self.success_status = 200 if http is None else http.status
        self.fill_key = fill_key
        self.unwrap = unwrap
        self.validate = validate

    def __repr__(self) -> str:
        return f"MethodDescriptor({self.full_name})"
