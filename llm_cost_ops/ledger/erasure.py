"""What is left of a record when a user is erased: the same on every ledger.

What counts stays: provider, model, project, counts, times, keys. What may identify somebody goes where it is
exactly the user's id, wherever it stands.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger.encoding import encode_texts
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.wire.unknown import Unknown

__all__ = [
    "ERASABLE",
    "HAS_UNKNOWN",
    "as_erased",
    "entry_to_rewrite",
    "erased_reason",
    "mention_of",
    "without_user",
]

_IDS = ("user_id", "session_id", "trace_id", "span_id", "retry_of_id")
ERASABLE = (*_IDS, "tags", "labels", "metadata", "unknown_")
"""The fields that an erasure may change; of `modality` it may take away those of a newer version."""

HAS_UNKNOWN = b'{"?unknown"'
"""What a stored record has where fields of a newer version are: they may name a user in other letters."""

_ERASED = "[erased]"
_ANY_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_UNPRICED = Pricing(CostStatus.UNPRICED, "")


def mention_of(user_id: str) -> bytes:
    """The id as it stands in a stored record, inside its quotes.

    A record that has neither it nor HAS_UNKNOWN has nothing to erase.
    """
    return encode_texts(user_id)[1:-1]


def without_user(record: UsageRecord, user_id: str) -> UsageRecord:
    """The record without a user; the same object where it does not name them."""
    changes: dict[str, Any] = {name: "" for name in _IDS if getattr(record, name) == user_id}
    if user_id in record.tags:
        changes["tags"] = [tag for tag in record.tags if tag != user_id]
    if user_id in record.labels or user_id in record.labels.values():
        changes["labels"] = _without(record.labels, user_id)
    if record.metadata:
        metadata = _without(record.metadata, user_id)
        if metadata != record.metadata:
            changes["metadata"] = metadata
    # Fields of a newer version, of which nothing is known but that they name the user.
    if _is_named(user_id, record.unknown_):
        changes["unknown_"] = UNSET
    modality = record.modality
    if modality is not None and _is_named(user_id, modality.unknown_):
        changes["modality"] = replace(modality, unknown_=UNSET)
    return replace(record, **changes) if changes else record


def _is_named(user_id: str, unknown: Unknown | UnsetType) -> bool:
    """Whether a user's id stands in unknown fields. JSON has many ways to write it: they are made one."""
    if not unknown:
        return False
    if user_id.encode() in unknown.binary:
        return True
    mention = json.dumps(user_id, ensure_ascii=False)[1:-1]
    try:
        return any(mention in _as_one_writes_it(bytes(raw)) for raw in unknown.json.values())
    except RecursionError:
        # What is nested too deep to be looked into does not stay.
        return True


def _as_one_writes_it(raw: bytes) -> str:
    """JSON without escapes, but for what has no other form. Of a name that an object has twice both stay."""
    value = json.loads(raw, parse_int=str, parse_float=str, object_pairs_hook=list)
    # A half of a surrogate pair, which JSON may have, is no UTF-8.
    return json.dumps(value, ensure_ascii=False)


def _without(value: Any, user_id: str) -> Any:
    """JSON without the items of objects and lists that are, or are named as, the user's id."""
    if isinstance(value, dict):
        items = value.items()
        return {key: _without(each, user_id) for key, each in items if user_id not in (key, each)}
    if isinstance(value, list):
        return [_without(each, user_id) for each in value if each != user_id]
    return value


def erased_reason(reason: str, user_id: str) -> str:
    """The reason of a revision, in which the id may be a part of a sentence."""
    return reason.replace(user_id, _ERASED)


def entry_to_rewrite(record: UsageRecord) -> Entry:
    """What a ledger makes the columns of that an erasure changes; the others of its row are not written."""
    return Entry(record, "", _ANY_TIME, None, _UNPRICED)


def as_erased(sent: UsageRecord, kept: UsageRecord) -> UsageRecord:
    """What is taken of `sent` where a user was erased from `kept`, which has its key: nobody's name."""
    made = replace(sent, **{name: getattr(kept, name) for name in ERASABLE})
    if sent.modality is not None and kept.modality is not None:
        made.modality = replace(sent.modality, unknown_=kept.modality.unknown_)
    return made
