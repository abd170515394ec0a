"""Whether a record that comes under a used key is the one that was kept: the same on every ledger."""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from llm_cost_ops._gen.messages import UsageQuality, UsageRecord

__all__ = ["is_duplicate"]

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


def is_duplicate(sent: UsageRecord, kept: UsageRecord, sent_at: datetime, kept_at: datetime) -> bool:
    """Whether `sent` says what `kept` says, which came first under the key; else it is a conflict.

    Both are as in Entry; `sent_at` and `kept_at` are their times, given or taken. A record without a time is
    also the one with the time that it was given since. Where either is an observation, the counts alone
    decide, whatever its labels, names and times: several instruments may have seen the same call. An
    observation of unknown usage says nothing against counts that are there.
    """
    if sent.observation or kept.observation:
        if sent.observation and sent.quality == UsageQuality.UNKNOWN:
            return True
        return all(getattr(sent, name) == getattr(kept, name) for name in _COUNTS) and (
            (sent.request_count or 1) == (kept.request_count or 1)
        )
    if sent == kept:
        return True
    return sent_at == kept_at and replace(sent, timestamp=None) == replace(kept, timestamp=None)
