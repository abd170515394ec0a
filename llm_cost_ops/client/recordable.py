"""What `record` takes, kept as it is now: the record is made later, beside the caller's work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import ModalityTokens, UsageRecord

__all__ = ["Recordable", "as_it_is", "as_they_are"]

Recordable = UsageRecord | Callable[[], UsageRecord] | None
"""A record, what makes one when it is its turn, or None where the fields are all."""

# The fields of a record that a caller may go on to change where they stand.
_CONTAINERS = ("labels", "tags", "meters", "metadata", "modality")


def as_it_is(record: Recordable) -> Recordable:
    """A record that later changes of the caller's do not reach."""
    if not isinstance(record, UsageRecord):
        return record
    containers = {name: _apart(value) for name in _CONTAINERS if (value := getattr(record, name))}
    return msgspec.structs.replace(record, **containers)


def as_they_are(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record, likewise. Changes the mapping."""
    for name in _CONTAINERS:
        if name in fields:
            fields[name] = _apart(fields[name])
    return fields


def _apart(value: Any) -> Any:
    if isinstance(value, dict | list):
        return value.copy()
    return copy.copy(value) if isinstance(value, ModalityTokens) else value
