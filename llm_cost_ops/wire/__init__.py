"""The primitives that generated codecs call. It knows no message."""

from __future__ import annotations

from llm_cost_ops.wire.errors import DecodeError, EncodeError

__all__ = ["DecodeError", "EncodeError"]
