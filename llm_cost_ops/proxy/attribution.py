"""Whose a call is, as the `x-lco-` headers of its request say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops._gen.validators import validate_usage_record
from llm_cost_ops.client.attribution import Attributes
from llm_cost_ops.instrumentation.calls import KEY_HEADER
from llm_cost_ops.proxy.limits import RefusedError
from llm_cost_ops.rpc.status import Violation

__all__ = ["PREFIX", "Stated", "stated_of", "trace_of"]

PREFIX = b"x-lco-"

_API_KEY = b"x-lco-api-key"
_IDEMPOTENCY_KEY = KEY_HEADER.encode()
_TAGS = b"x-lco-tags"
_LABEL = b"x-lco-label-"
_FIELDS = {
    b"x-lco-organization": "organization_id",
    b"x-lco-project": "project_id",
    b"x-lco-user": "user_id",
    b"x-lco-session": "session_id",
}
_HEADERS = {field: name.decode() for name, field in _FIELDS.items()} | {
    "tags": _TAGS.decode(),
    "labels": _LABEL.decode() + "…",
    "idempotency_key": _IDEMPOTENCY_KEY.decode(),
}
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")

_NONE = Attributes()

_Pair = tuple[bytes, bytes]


class Stated(NamedTuple):
    """What a request says of itself; empty texts say nothing."""

    attributes: Attributes
    api_key: str
    idempotency_key: str


def stated_of(pairs: Iterable[_Pair], defaults: Attributes) -> Stated:
    """What the `x-lco-` headers among a request's headers say; `defaults` are added to that later.

    RefusedError for one that is not known, is given twice, or says what no record may hold: told after the
    call it would be lost.
    """
    secrets = {_API_KEY: "", _IDEMPOTENCY_KEY: ""}
    rest: list[_Pair] = []
    for pair in pairs:
        name = pair[0]
        if not name.startswith(PREFIX):
            continue
        if name not in secrets:
            rest.append(pair)
        elif secrets[name]:
            raise _wrong(name.decode(), "is given more than once")
        else:
            secrets[name] = _decoded(*pair)
    key = secrets[_IDEMPOTENCY_KEY]
    if key:
        _check(UsageRecord(idempotency_key=key))
    attributes = _attributes(tuple(rest), defaults) if rest else _NONE
    return Stated(attributes, secrets[_API_KEY], key)


def _attributes(pairs: tuple[_Pair, ...], defaults: Attributes) -> Attributes:
    stated = _parsed(pairs)
    found = stated.over(defaults)
    _check(
        UsageRecord(
            organization_id=found.organization_id,
            project_id=found.project_id,
            user_id=found.user_id,
            session_id=found.session_id,
            labels=dict(found.labels),
            tags=list(found.tags),
        )
    )
    return stated


@lru_cache(maxsize=1024)
def _parsed(pairs: tuple[_Pair, ...]) -> Attributes:
    fields: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for name, raw in pairs:
        value: Any = _decoded(name, raw)
        if name.startswith(_LABEL) and len(name) > len(_LABEL):
            known, place = labels, name[len(_LABEL) :].decode("latin-1")
        elif name == _TAGS or name in _FIELDS:
            known, place = fields, _FIELDS.get(name, "tags")
            if name == _TAGS:
                value = [_decoded(name, each) for each in raw.split(b",")]
        else:
            raise _wrong(name.decode("latin-1")[:100], "is no header of this proxy")
        if place in known:
            raise _wrong(name.decode("latin-1")[:100], "is given more than once")
        known[place] = value
    tags = [tag for tag in fields.pop("tags", ()) if tag]
    return Attributes(**fields, labels=labels, tags=tags)


def _check(record: UsageRecord) -> None:
    """Refuse what a record may not hold."""
    violations: list[Violation] = []
    record.organization_id = record.organization_id or "-"
    record.provider = record.model_id = "-"
    validate_usage_record(record, "", violations)
    if violations:
        field, _, _ = violations[0].field.partition("[")
        field = field.partition(".")[0]
        raise _wrong(_HEADERS.get(field, field), violations[0].description)


def _decoded(name: bytes, raw: bytes) -> str:
    """A header's value: other characters than ASCII may be percent-encoded."""
    try:
        return unquote(raw.decode().strip(), errors="strict")
    except UnicodeDecodeError:
        raise _wrong(name.decode("latin-1")[:100], "must be UTF-8") from None


def _wrong(header: str, rule: str) -> RefusedError:
    return RefusedError(400, "invalid_header", f"{header} {rule}")


def trace_of(traceparent: bytes) -> tuple[str, str]:
    """The trace and the span that a W3C `traceparent` names; empty texts where it names none."""
    found = _TRACEPARENT.match(traceparent)
    return (found[1].decode(), found[2].decode()) if found else ("", "")
