"""JSON that providers and their SDKs take, and a strict decoder does not."""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

__all__ = ["decode_tolerantly", "strict_json"]

T = TypeVar("T")


def decode_tolerantly(decoder: msgspec.json.Decoder[T], data: bytes | str) -> T:
    """What a decoder makes of JSON, of such too as Python's own parser takes: see `strict_json`.

    Raises what the decoder raises: ValueError or RecursionError.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except ValueError as error:
        try:
            strict = strict_json(data)
        except (ValueError, RecursionError):
            raise error from None
        return decoder.decode(strict)


def strict_json(data: bytes | str) -> bytes:
    """JSON as a strict decoder takes it: without a byte order mark, halves of surrogate pairs, and NaN.

    An answer that ends for its length may end within an emoji, of which JSON then has the first half: it
    becomes a "?". NaN and Infinity become objects: no text, so that a key which is NaN is none, and no count
    either. Raises ValueError or RecursionError for what is no JSON.
    """
    found = json.loads(data, parse_constant=lambda name: {name: None})
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
