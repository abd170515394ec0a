"""What a caller sent, as bytes that tell the same content from another one."""

from __future__ import annotations

from typing import Any

import msgspec

from llm_cost_ops.wire.unknown import Unknown

__all__ = ["content_of"]


def _unknown(value: Any) -> Any:
    if type(value) is Unknown:
        return {"binary": value.binary, "json": value.json}
    raise TypeError(f"a {type(value).__name__} is no part of a message")


# Maps are sorted, so that their order is no part of the content.
content_of = msgspec.json.Encoder(enc_hook=_unknown, order="deterministic").encode
"""The content of a message, fields that this version does not know included."""
