"""What a record under a used key is to the one that was kept: the same on every ledger."""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from llm_cost_ops._gen.messages import UsageQuality, UsageRecord

__all__ = ["is_duplicate", "supersedes", "superseding"]

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_extended_tokens",
    "reasoning_tokens",
    "modality",
    "meters",
)
# Who the call was made for: what came first knows it, where the one with the counts does not.
_ATTRIBUTION = ("project_id", "user_id", "tags", "labels", "session_id", "trace_id", "span_id")
_UNKNOWN = UsageQuality.UNKNOWN


def supersedes(sent: UsageRecord, kept: UsageRecord) -> bool:
    """Whether `sent` has the counts that `kept` lacks, of an observed call: then it takes its place."""
    return (sent.observation or kept.observation) and kept.quality == _UNKNOWN != sent.quality


def superseding(sent: UsageRecord, kept: UsageRecord) -> UsageRecord:
    """What becomes of a record that is superseded: `sent`, at the time of `kept`, for whom that was made.

    It is an observation from then on, so that counts alone decide about what comes after it.
    """
    first = {name: getattr(kept, name) for name in _ATTRIBUTION if not getattr(sent, name)}
    return replace(sent, timestamp=kept.timestamp, observation=True, **first)


def is_duplicate(sent: UsageRecord, kept: UsageRecord, sent_at: datetime, kept_at: datetime) -> bool:
    """Whether `sent` says what `kept` says, which came first under the key; else it is a conflict.

    Both are as in Entry; `sent_at` and `kept_at` are their times, given or taken. A record without a time is
    also the one with the time that it was given since. Where either is an observation, the counts alone
    decide, whatever its labels, names and times: several instruments may have seen the same call. One whose
    counts are unknown contradicts none.
    """
    if sent.observation or kept.observation:
        if sent.quality == _UNKNOWN:
            return True
        return all(getattr(sent, name) == getattr(kept, name) for name in _COUNTS) and (
            (sent.request_count or 1) == (kept.request_count or 1)
        )
    if sent == kept:
        return True
    return sent_at == kept_at and replace(sent, timestamp=None) == replace(kept, timestamp=None)
