"""The usage of Vercel's AI SDK, versions 4 to 6: totals are inclusive, their parts stand beside."""

from __future__ import annotations

from typing import Any

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.normalizers.payload import count, counted, has, section
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import check_record, check_total, set_identity, set_stated, set_unknown

__all__ = ["PROVIDER"]

_OWN = frozenset(
    ("cachedInputTokens", "reasoningTokens", "inputTokenDetails", "outputTokenDetails", "promptTokens")
)
_NAMES = {
    "input_tokens": "usage.inputTokens",
    "output_tokens": "usage.outputTokens",
    "cached_tokens": "usage.cachedInputTokens",
    "reasoning_tokens": "usage.reasoningTokens",
}


def _is_vercel(usage: dict[str, object]) -> bool:
    """Whether these are the SDK's names; inputTokens and outputTokens alone are Bedrock's too."""
    return not _OWN.isdisjoint(usage) or isinstance(usage.get("inputTokens"), dict)


def read_vercel(payload: dict[str, object], record: UsageRecord) -> None:
    """A result of generateText, or its `usage` beside a model."""
    record.operation = Operation.CHAT
    set_identity(record, payload)
    usage = section(payload, "usage")
    if usage is None:
        set_unknown(record)
        return
    inputs, given = _side(usage, "input", "promptTokens")
    outputs, returned = _side(usage, "output", "completionTokens")
    total = counted(usage, "totalTokens", "usage")
    cached = count(inputs, "cacheReadTokens", "usage.inputTokenDetails")
    cached = cached or count(usage, "cachedInputTokens", "usage")
    written = count(inputs, "cacheWriteTokens", "usage.inputTokenDetails")
    plain = counted(inputs, "noCacheTokens", "usage.inputTokenDetails")
    if plain is not None and given is not None and cached + written and plain == given:
        # Some providers of the SDK leave the cache out of the total.
        given = plain + cached + written
        total = None
    if not set_stated(record, given, returned, total):
        return
    if total is not None:
        sums = (record.input_tokens or 0) + (record.output_tokens or 0)
        check_total("usage.totalTokens", total, sums, "inputTokens + outputTokens")
    record.cached_tokens = cached
    record.cache_write_tokens = written
    reasoning = count(outputs, "reasoningTokens", "usage.outputTokenDetails")
    record.reasoning_tokens = reasoning or count(usage, "reasoningTokens", "usage")
    check_record(record, _NAMES)


def _side(usage: dict[str, Any], side: str, before: str) -> tuple[dict[str, object], int | None]:
    """The details and the total of one side; a provider's own usage has both in one object."""
    key = f"{side}Tokens"
    if isinstance(usage.get(key), dict):
        found = usage[key]
        renamed = {
            "noCacheTokens": found.get("noCache"),
            "cacheReadTokens": found.get("cacheRead"),
            "cacheWriteTokens": found.get("cacheWrite"),
            "reasoningTokens": found.get("reasoning"),
        }
        return renamed, counted(found, "total", f"usage.{key}")
    details = section(usage, f"{side}TokenDetails", "usage") or {}
    return details, counted(usage, key if has(usage, key) else before, "usage")


def _detect(_payload: dict[str, object], usage: dict[str, object] | None) -> str:
    return "vercel" if usage is not None and _is_vercel(usage) else ""


PROVIDER = Provider("", {"vercel": read_vercel}, detect=_detect)
