"""Metadata: the key-value pairs that travel beside a message (gRPC's word for headers)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["TRACING", "Metadata", "MetadataLike"]

MetadataLike = "Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]"

TRACING = frozenset({"b3", "baggage", "traceparent", "tracestate", "uber-trace-id"})
"""Keys that say which trace a call belongs to: they differ from call to call, and change no answer."""

MAX_PAIRS = 64
MAX_BYTES = 16 * 1024

_new = object.__new__
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_SECRET = re.compile(r"authorization|api[-_]?key|cookie|token|secret|password")


class Metadata:
    """An ordered multi-map with case-insensitive keys.

    A key that ends in "-bin" has bytes for a value, any other printable ASCII text. What is not
    allowed in a header (control characters, CR and LF above all) raises ValueError with the key.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]] = ()) -> None:
        self._pairs: list[tuple[str, str | bytes]] = []
        if isinstance(pairs, Metadata):
            self._pairs.extend(pairs._pairs)
            return
        if pairs:
            items = pairs.items() if hasattr(pairs, "items") else pairs
            for key, value in items:
                self.add(key, value)

    def add(self, key: str, value: str | bytes) -> None:
        """Add a pair after those that are there."""
        name = key.lower()
        if not _KEY.fullmatch(name):
            raise ValueError(f"metadata key {key!r} may hold only letters, digits, '_', '-' and '.'")
        if name.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"metadata {name!r} needs bytes, because its key ends in '-bin'")
        elif not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"metadata {name!r} needs printable ASCII text")
        self._pairs.append((name, value))
        if len(self._pairs) > MAX_PAIRS:
            raise ValueError(f"metadata may have at most {MAX_PAIRS} pairs")
        if sum(len(k) + len(v) for k, v in self._pairs) > MAX_BYTES:
            raise ValueError(f"metadata may have at most {MAX_BYTES} bytes")

    def set(self, key: str, value: str | bytes) -> None:
        """Put one pair in the place of all that have the key."""
        name = key.lower()
        self._pairs = [pair for pair in self._pairs if pair[0] != name]
        self.add(name, value)

    def put(self, pair: tuple[str, str | bytes]) -> None:
        """As `set`, for a pair that came out of another Metadata: it is not checked again."""
        pairs = self._pairs
        if pairs:
            name = pair[0]
            pairs = self._pairs = [known for known in pairs if known[0] != name]
        pairs.append(pair)

    def get(self, key: str, default: str = "") -> str:
        """The first text value of a key."""
        name = key.lower()
        for k, v in self._pairs:
            if k == name and isinstance(v, str):
                return v
        return default

    def get_all(self, key: str) -> list[str | bytes]:
        """Every value of a key, in order."""
        name = key.lower()
        return [v for k, v in self._pairs if k == name]

    def __contains__(self, key: object) -> bool:
        name = key.lower() if isinstance(key, str) else key
        return any(k == name for k, _ in self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self._pairs == other._pairs

    __hash__ = None  # type: ignore[assignment]  # mutable

    def copy(self) -> Metadata:
        """The same pairs, apart from this object."""
        made = _new(Metadata)
        made._pairs = self._pairs.copy()
        return made

    def __repr__(self) -> str:
        shown = [(k, "***" if _SECRET.search(k) else v) for k, v in self._pairs]
        return f"Metadata({shown!r})"
