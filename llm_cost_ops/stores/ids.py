"""The ids of usage records, which follow from their keys, and the form in which ids and keys are stored.

So one index finds a record by its id, and tells whether a key was used before.
"""

from __future__ import annotations

from hashlib import sha256

from llm_cost_ops.wire.uuid7 import uuid7

__all__ = ["as_key", "as_text", "usage_id"]


def usage_id(organization_id: str, key: str) -> tuple[str, bytes]:
    """The id of the record with a key, as text and as it is stored; another one each time without a key.

    A UUID (RFC 9562). Of a key that begins with a UUID of version 7 it keeps the time, so that ids which
    are made one after the other lie together in the index; the rest is a hash, as is all of it for another
    key (version 8).
    """
    if not key:
        made = uuid7()
        return made, bytes.fromhex(made.replace("-", ""))
    h = sha256(f"{len(organization_id)} {organization_id} {key}".encode()).hexdigest()
    if len(key) >= 36 and key[8:24:5] == "----" and key[14] == "7":
        try:
            stored = bytes.fromhex(f"{key[:8]}{key[9:13]}7{h[:3]}8{h[3:6]}{h[6:18]}")
        except ValueError:
            stored = b""
        if len(stored) == 16:
            return f"{key[:13].lower()}-7{h[:3]}-8{h[3:6]}-{h[6:18]}", stored
    made = f"{h[:8]}-{h[8:12]}-8{h[12:15]}-8{h[15:18]}-{h[18:30]}"
    return made, bytes.fromhex(made.replace("-", ""))


def as_key(text: str) -> str | bytes:
    """What an id or a key is stored as: 16 bytes where it is a UUID in its canonical form."""
    if len(text) == 36 and text[8:24:5] == "----":
        try:
            key = bytes.fromhex(text.replace("-", ""))
        except ValueError:
            return text
        # Shorter where there were spaces, which fromhex passes over, or more hyphens.
        if len(key) == 16 and text == text.lower():
            return key
    return text


def as_text(key: str | bytes) -> str:
    """The text that `as_key` was given."""
    if isinstance(key, str):
        return key
    h = key.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
