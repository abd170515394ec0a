"""What `record` takes, kept as it is now: the record is made later, beside the caller's work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops._gen.messages import ModalityTokens, UsageRecord
from llm_cost_ops.client.attribution import Attributes
from llm_cost_ops.client.flush_report import Rejected
from llm_cost_ops.client.submitting import text_of
from llm_cost_ops.rpc.context import uuid7_series
from llm_cost_ops.rpc.status import Violation, violations_text
from llm_cost_ops.rules.requests import check_record, is_ahead
from llm_cost_ops.wire.errors import DecodeError, EncodeError

__all__ = ["Builder", "Raw", "Recordable", "as_it_is", "as_they_are", "broken_rules", "read_record"]

Recordable = UsageRecord | Callable[[], UsageRecord] | None
"""A record, what makes one when it is its turn, or None where the fields are all."""

Raw = tuple[Recordable, Mapping[str, Any], Attributes, int, int]
"""What `record` was called with (the record, the fields), and whose the call is; when, in nanoseconds since
1970, and a number."""

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


def broken_rules(record: UsageRecord, now: datetime | None = None) -> str:
    """The rules that a record breaks by itself, "" where there are none: those that a server holds it to.

    Its timestamp is held against `now`, where given.
    """
    violations: list[Violation] = []
    check_record(record, "", now, violations, keep_unknown=True)
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


class Builder:
    """Makes records of what `record` was called with, each with its key and time."""

    def __init__(
        self, build: Callable[[Recordable, Mapping[str, Any], Attributes], UsageRecord], *, as_json: bool
    ) -> None:
        self._build = build
        self._as_json = as_json
        self._key_of = uuid7_series()

    def built(self, raw: Raw) -> tuple[UsageRecord, bytes] | Rejected:
        """The record of a call of `record`, as it is and as JSON, or why there is none."""
        record, fields, attributes, nanoseconds, number = raw
        try:
            built = self._build(record, fields, attributes)
            if not built.idempotency_key:
                built.idempotency_key = self._key_of(nanoseconds, number)
            # In JSON other types than a field's may become another value, or none that can be read again.
            broken = broken_rules(built) if self._as_json else ""
            moment = _moment(nanoseconds)
            if built.timestamp is None:
                built.timestamp = moment
            elif not broken and isinstance(built.timestamp, datetime) and is_ahead(built.timestamp, moment):
                # Looked at when it is sent, it could be the clock that was wrong.
                broken = broken_rules(built, moment)
            if broken:
                return Rejected(record=built, reason=broken)
            try:
                return built, USAGE_RECORD.encode_json(built)
            except EncodeError as error:
                return Rejected(record=built, reason=broken_rules(built) or str(error))
        except Exception as error:  # noqa: BLE001  # whatever it was, it is the caller's to be told, not to get
            return Rejected(record=record if isinstance(record, UsageRecord) else None, reason=text_of(error))


def _moment(nanoseconds: int) -> datetime:
    # Exact to the microsecond until the year 2106, and much faster than a timedelta.
    return datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
