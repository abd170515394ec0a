"""Bodies in another form than JSON over HTTP and protobuf over gRPC."""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec

from llm_cost_ops.config import EMBEDDED
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.wire import DecodeError

__all__ = ["Serializer", "check_serializer", "from_wire", "subtype_of", "to_wire"]

_CONTENT_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")

_JSON = msgspec.json.Decoder(Any)


class Serializer(Protocol):
    """How messages are written on the wire, in place of JSON or protobuf.

    It is given what JSON would hold: dicts, lists, text, numbers, booleans and None, with decimals and
    times as text. `content_type` names the form, such as "application/msgpack". It is called from
    several threads. What `encode` raises reaches the caller as it is, before anything was sent; an
    answer that `decode` raises for can't be understood, and that is a ServerError.
    """

    content_type: str

    def encode(self, value: object) -> bytes:
        """The bytes of a value."""

    def decode(self, data: bytes) -> Any:
        """The value in bytes that came."""


def check_serializer(serializer: object, scheme: str) -> None:
    """Raise ConfigurationError for what is no Serializer, and for a transport that takes none."""
    if scheme in EMBEDDED:
        raise ConfigurationError(
            "serializer goes with an http(s) or grpc(s) base_url: the embedded engine serializes nothing",
            parameter="serializer",
        )
    kind = getattr(serializer, "content_type", None)
    if not isinstance(kind, str) or not _CONTENT_TYPE.fullmatch(kind):
        raise ConfigurationError(
            f"serializer: content_type must be lower-case type/subtype, not {kind!r}", parameter="serializer"
        )
    if not callable(getattr(serializer, "encode", None)) or not callable(getattr(serializer, "decode", None)):
        raise ConfigurationError("serializer must have the methods encode and decode", parameter="serializer")


def subtype_of(serializer: Serializer) -> str:
    """What stands after the plus in gRPC's content type."""
    return serializer.content_type.partition("/")[2]


def to_wire(serializer: Serializer, data: bytes) -> bytes:
    """What a serializer makes of JSON."""
    encoded = serializer.encode(_JSON.decode(data))
    if not isinstance(encoded, bytes):
        raise TypeError(f"the serializer's encode must return bytes, not {type(encoded).__name__}")
    return encoded


def from_wire(serializer: Serializer, data: bytes) -> bytes:
    """The JSON of what a serializer reads. DecodeError when it reads nothing."""
    try:
        return msgspec.json.encode(serializer.decode(data))
    except Exception as error:
        raise DecodeError(f"is not {serializer.content_type}: {error}") from error
