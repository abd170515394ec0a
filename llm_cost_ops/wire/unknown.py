"""What a message carries beyond its type: fields that a newer peer sent, or that somebody misspelt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from llm_cost_ops.rpc.status import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llm_cost_ops.rpc.metadata import Metadata

__all__ = ["UNKNOWN_FIELDS", "Unknown", "keeps_unknown", "nearest", "refuse_unknown"]

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


def keeps_unknown(metadata: Metadata) -> bool:
    """Whether a call asks for its unknown fields to be kept."""
    return metadata.get(UNKNOWN_FIELDS) == "keep"


def refuse_unknown(message: Any, path: str, violations: list[Violation], *, nested: bool = True) -> None:
    """Add a violation for each JSON field that its message, or with `nested` one in it, does not have.

    A misspelt field may be a count or a price: dropped in silence, it would make the cost wrong.
    Unknown fields of protobuf have no names, come from newer peers only, and are kept.
    """
    for where, found in _messages(message, path) if nested else [(path, message)]:
        unknown = found.unknown_
        if not unknown or not unknown.json:
            continue
        known = [info.encode_name for info in msgspec.structs.fields(found) if info.name != "unknown_"]
        for name in unknown.json:
            shown = name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "…"
            meant = nearest(name, known)
            rule = "is not a known field" + (f": did you mean {meant}?" if meant else "")
            violations.append(Violation(f"{where}.{shown}" if where else shown, rule))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that may have been meant by another one, "" when none is near."""
    from difflib import get_close_matches

    if len(name) > _MAX_SHOWN:
        return ""
    plain = {candidate.replace("_", ""): candidate for candidate in known}
    wanted = name.replace("_", "").replace("-", "").lower()
    alias = _ELSEWHERE.get(wanted, "").replace("_", "")
    if alias in plain:
        return plain[alias]
    found = get_close_matches(wanted, plain, 1, 0.75)
    return plain[found[0]] if found else ""


_MAX_SHOWN = 64
# What other APIs call a record's fields, where the spelling is nearer to another field.
_ELSEWHERE = {
    "prompttokens": "input_tokens",
    "inputtokencount": "input_tokens",
    "completiontokens": "output_tokens",
    "outputtokencount": "output_tokens",
    "cachedinputtokens": "cached_tokens",
    "cachereadtokens": "cached_tokens",
    "cachereadinputtokens": "cached_tokens",
    "cachecreationinputtokens": "cache_write_tokens",
    "cachecreationtokens": "cache_write_tokens",
    "model": "model_id",
    "organization": "organization_id",
    "project": "project_id",
    "user": "user_id",
    "cost": "reported_cost",
    "created": "timestamp",
}


def _messages(message: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, message
    for name in message.__struct_fields__:
        value = getattr(message, name)
        inner = f"{path}.{name}" if path else name
        if isinstance(value, msgspec.Struct):
            yield from _messages(value, inner)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if not isinstance(item, msgspec.Struct):
                    break
                yield from _messages(item, f"{inner}[{index}]")
