"""What this package knows of a provider: who it is, what it answers, and how to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["Normalizer", "Provider"]

# Writes what a payload states into a record.
Normalizer = Callable[[dict[str, Any], UsageRecord], None]
# (payload, its usage without nulls or None) -> the name of the API whose shape it is, or "".
Detector = Callable[[dict[str, Any], "dict[str, Any] | None"], str]
# (payload, its usage) -> whether this provider served it.
Mark = Callable[[dict[str, Any], dict[str, Any]], bool]


class Provider(NamedTuple):
    """One provider; "" where whoever served the call is stated in the payload or by the caller.

    `apis` are its APIs by name. `chat` reads its dialect of OpenAI's chat, where it has one. `models` are
    prefixes of its models' names. `objects` gives the API for a value of the payload's `object`.
    `shared` are APIs that others serve too, and `serves` tells by API whether this provider did.
    `unique_ids` is False when two calls may share an id: no idempotency key is made of those.
    """

    name: str
    apis: Mapping[str, Normalizer]
    chat: Normalizer | None = None
    models: tuple[str, ...] = ()
    objects: Mapping[str, str] = {}
    detect: Detector | None = None
    serves: Mapping[str, Mark] = {}
    shared: frozenset[str] = frozenset()
    unique_ids: bool = True
