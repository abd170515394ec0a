"""The messages of gRPC: protobuf, or JSON where both ends speak it, which Python reads and writes faster.

The server says `llm-cost-ops-codecs: json` in every answer. From then on a client asks for JSON, by the
metadata `llm-cost-ops-codec: json` beside the content type: grpcio hides the content type of a request from
the server, and answers with its own. In a call that asks for JSON a message that begins with "{" is JSON, and
any other is protobuf, since JSON has no place for unknown fields of protobuf.
"""

from __future__ import annotations

from typing import Any

from llm_cost_ops.rpc.method import MessageCodec
from llm_cost_ops.wire.json import encode_quickly

__all__ = ["CODECS_HEADER", "CODEC_HEADER", "decode_message", "encode_message", "is_json"]

CODEC_HEADER = "llm-cost-ops-codec"
CODECS_HEADER = "llm-cost-ops-codecs"


def is_json(data: bytes) -> bool:
    """Whether a message of a call that asks for JSON is JSON. No message of ours begins so in protobuf."""
    return data[:1] == b"{"


def encode_message(codec: MessageCodec[Any], message: object, *, json: bool) -> bytes:
    """The bytes of a message: with `json` JSON, where that holds all of it. Raises EncodeError."""
    data = encode_quickly(message) if json else None
    return codec.encode(message) if data is None else data


def decode_message(codec: MessageCodec[Any], data: bytes, *, json: bool) -> object:
    """The message in bytes, which with `json` may be JSON. Raises DecodeError."""
    return codec.decode_json(data) if json and is_json(data) else codec.decode(data)
