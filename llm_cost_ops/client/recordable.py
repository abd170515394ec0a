"""What `record` takes, kept as it is now: the record is made later, beside the caller's work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops._gen.messages import ModalityTokens, UsageRecord
from llm_cost_ops.rpc.status import Violation, violations_text
from llm_cost_ops.rules.requests import check_record
from llm_cost_ops.wire.errors import DecodeError

__all__ = ["Recordable", "as_it_is", "as_they_are", "broken_rules", "read_record"]

Recordable = UsageRecord | Callable[[], UsageRecord] | None
"""A record, what makes one when it is its turn, or None where the fields are all."""

# The fields of a record that a caller may go on to change where they stand.
_CONTAINERS = ("labels", "tags", "meters", "metadata", "modality")
_CHANGEABLE = frozenset(_CONTAINERS)
_COPIED = (dict, list, set)


def as_it_is(record: Recordable) -> Recordable:
    """A record that later changes of the caller's do not reach."""
    if not isinstance(record, UsageRecord):
        return record
    containers = {name: _apart(name, getattr(record, name)) for name in _CONTAINERS}
    return msgspec.structs.replace(record, **containers)


def as_they_are(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record, likewise. Changes the mapping."""
    if _CHANGEABLE.isdisjoint(fields):
        return fields
    for name in _CONTAINERS:
        if name in fields:
            fields[name] = _apart(name, fields[name])
    tags = fields.get("tags")
    if isinstance(tags, Iterator):
        fields["tags"] = _elements(tags)
    return fields


def broken_rules(record: UsageRecord) -> str:
    """The rules that a record breaks by itself, "" where there are none: those that a server holds it to."""
    violations: list[Violation] = []
    check_record(record, "", None, violations, keep_unknown=True)
    return violations_text(violations) if violations else ""


def read_record(payload: bytes) -> UsageRecord | str:
    """The record that lies in the spool, or why it can't be read."""
    try:
        return USAGE_RECORD.decode_json(payload)
    except DecodeError as error:
        return f"what lies in the spool can't be read: {error}"


def _apart(name: str, value: Any) -> Any:
    """A copy of a value; itself where it can't be copied: it is rejected when its turn comes."""
    if value is None:
        return None
    try:
        if isinstance(value, _COPIED):
            return copy.deepcopy(value) if name == "metadata" and value else value.copy()
        return copy.copy(value) if isinstance(value, ModalityTokens) else value
    except Exception:  # noqa: BLE001  # the caller's call must go on, whatever a value of its does
        return value


def _elements(values: Iterator[Any]) -> Iterable[Any]:
    """What an iterator gives; where it fails, what gives the same and fails likewise when its turn comes."""
    given: list[Any] = []
    try:
        given.extend(values)
    except Exception as error:  # noqa: BLE001  # as above
        return _again(given, error)
    return given


def _again(values: list[Any], error: Exception) -> Iterator[Any]:
    yield from values
    raise error
