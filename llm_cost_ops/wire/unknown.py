"""What a message carries beyond its type: fields that a newer peer sent, or that somebody misspelt."""

from __future__ import annotations

import msgspec

__all__ = ["UNKNOWN_FIELDS", "Unknown"]

UNKNOWN_FIELDS = "llm-cost-ops-unknown-fields"
"""The metadata by which a caller says what becomes of unknown fields in a write: "keep" or "refuse"."""


class Unknown:  # noqa: PLW1641 - it is mutable, and so has no hash
    """The `unknown_` slot of a generated struct; the slot is msgspec.UNSET (false) where nothing is unknown.

    `binary` holds unknown protobuf fields as they came, `json` unknown JSON fields by name, in their exact
    text. Each codec writes back its own. `error` is set on an element of an itemized list that could not
    be decoded: it says why, and `error_field` is the path of the field inside the element.
    """

    # No dataclass and no Struct: msgspec must leave it to the codec's hooks.
    __slots__ = ("binary", "error", "error_field", "json")

    def __init__(
        self,
        binary: bytes = b"",
        json: dict[str, msgspec.Raw] | None = None,
        error: str = "",
        error_field: str = "",
    ) -> None:
        self.binary = binary
        self.json: dict[str, msgspec.Raw] = {} if json is None else json
        self.error = error
        self.error_field = error_field

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Unknown):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__slots__ if getattr(self, name))
        return f"Unknown({', '.join(shown)})"
