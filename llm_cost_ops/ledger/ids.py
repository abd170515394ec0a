"""The ids of usage records, which follow from organization and key, and the form in which both are stored.

So one index on (organization, id) finds a record by its id, and tells whether a key was used before: the key
beside the id is compared, since two keys may have the same id.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

from llm_cost_ops.rpc.ids import uuid7

__all__ = ["NumberedIds", "as_key", "as_text", "usage_id"]

_LENGTH = 36
_TAIL = 2**60 - 1


def usage_id(organization_id: str, key: str, attempt: int = 0) -> tuple[str, bytes, str | bytes | None]:
    """The id of the record with a key, as text and as it is stored, and the key as it is stored.

    The id is a UUID (RFC 9562), another one each time without a key. Of a key that begins with a UUID of
    version 7 it keeps the first 18 characters, so that ids which are made one after the other lie together
    in the index; the rest is a hash, as is all of it for another key (version 8). The hash of a batch's key
    plus the number behind it is the rest for the keys of a batch. Where another key of the organization has
    that id already, the next `attempt` gives another one.

        key 01a20359-ab54-7000-bc5b-ba4c242805a1    id 01a20359-ab54-7000-8…
        key 01a20359-ab54-7000-bc5b-ba4c242805a1:7  id 01a20359-ab54-7000-9…
        key chatcmpl-123                            id ………-…-8…-8…
    """
    if not key:
        made = uuid7()
        return made, bytes.fromhex(made.replace("-", "")), None
    if attempt:
        organization_id = f"{organization_id} {attempt}"
    if len(key) > _LENGTH and (ids := NumberedIds.of(organization_id, key[:_LENGTH])) is not None:
        # As the keys in a batch: those of a call, and a number behind. Their ids lie behind each other.
        rest = key[_LENGTH:]
        if rest[0] == ":" and len(rest) < 12 and rest[1:].isdecimal():
            number = int(rest[1:])
        else:
            number = int.from_bytes(sha256(rest.encode()).digest()[:8], "big")
        return *ids.at(number), key
    stored = as_key(key)
    if type(stored) is bytes and key[14] == "7":
        h = sha256(stored + organization_id.encode()).hexdigest()
        made = f"{key[:18]}-8{h[:3]}-{h[3:15]}"
    else:
        h = sha256(f"{len(organization_id)} {organization_id} {key}".encode()).hexdigest()
        made = f"{h[:8]}-{h[8:12]}-8{h[12:15]}-8{h[15:18]}-{h[18:30]}"
    return made, bytes.fromhex(made.replace("-", "")), stored


class NumberedIds:
    """The ids of the records whose keys are one key, a UUID of version 7, and a number behind it."""

    __slots__ = ("_beginning", "_first", "_text")

    def __init__(self, organization_id: str, key: str) -> None:
        h = sha256(f"{len(organization_id)} {organization_id} {key}".encode()).digest()
        self._first = int.from_bytes(h[:8], "big")
        self._text = key[:18]
        self._beginning = bytes.fromhex(key[:18].replace("-", ""))

    def at(self, number: int) -> tuple[str, bytes]:
        """The id of the record with a number, as text and as it is stored."""
        end = (9 << 60 | self._first + number & _TAIL).to_bytes(8, "big")
        shown = end.hex()
        return f"{self._text}-{shown[:4]}-{shown[4:]}", self._beginning + end

    @staticmethod
    def of(organization_id: str, key: str) -> NumberedIds | None:
        """None for a key that is no UUID of version 7 in its canonical form."""
        return _numbered(organization_id, key) if key[14:15] == "7" else None


@lru_cache(maxsize=64)
def _numbered(organization_id: str, key: str) -> NumberedIds | None:
    return None if type(as_key(key)) is str else NumberedIds(organization_id, key)


def as_key(text: str) -> str | bytes:
    """What an id or a key is stored as: 16 bytes where it is a UUID in its canonical form."""
    if len(text) == _LENGTH and text[8:24:5] == "----":
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
