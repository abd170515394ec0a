"""Anthropic's messages.

input_tokens excludes cache reads and writes: the inclusive total is their sum. Compaction passes
stand in `iterations` and in no top-level count.
"""

from __future__ import annotations

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import count, counted, items, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import (
    check_record,
    check_total,
    set_geography,
    set_key,
    set_meter,
    set_model,
    set_speed,
    set_stated,
    set_tier,
    set_tokens,
    set_unknown,
)

__all__ = ["PROVIDER", "advisor_messages", "read_messages"]

_CHAT = Operation.CHAT
NAMES = {
    "output_tokens": "usage.output_tokens",
    "cache_write_tokens": "usage.cache_creation_input_tokens",
    "cache_write_extended_tokens": "usage.cache_creation.ephemeral_1h_input_tokens",
    "reasoning_tokens": "usage.output_tokens_details.thinking_tokens",
}


def read_messages(payload: dict[str, object], record: UsageRecord) -> None:
    """A message, as returned, as in a batch result, or as put together from a stream."""
    record.operation = _CHAT
    set_model(record, text(payload, "model"))
    set_key(record, text(payload, "id"))
    usage = section(payload, "usage")
    if usage is None:
        set_unknown(record)
        return
    given, returned = counted(usage, "input_tokens", "usage"), counted(usage, "output_tokens", "usage")
    if given is None or returned is None:
        set_stated(record, given, returned, None)
        return
    counts = _counts(usage, "usage", given, returned)
    if usage.get("iterations"):
        for index, iteration in enumerate(items(usage, "iterations", "usage")):
            kind = text(iteration, "type")
            if kind == "advisor_message":
                # By another model: `usages_from_response` gives a separate record for it.
                set_meter(record, "other_model_calls", 1)
            elif kind == "fallback_message" and text(iteration, "model"):
                _serve(record, text(iteration, "model"))
            elif kind == "compaction":
                path = f"usage.iterations[{index}]"
                both = count(iteration, "input_tokens", path), count(iteration, "output_tokens", path)
                added = _counts(iteration, path, *both)
                counts = tuple(map(sum, zip(counts, added, strict=True)))
    plain, read, written, written_1h, output = counts
    set_tokens(record, plain + read + written, output)
    record.cached_tokens = read
    record.cache_write_tokens = written
    record.cache_write_extended_tokens = written_1h
    _read_dimensions(usage, record)
    check_record(record, NAMES)


def advisor_messages(payload: dict[str, object]) -> list[dict[str, object]]:
    """The messages of other models inside a message, each as a message of its own."""
    usage = section(payload, "usage") or {}
    return [
        {"type": "message", "model": text(iteration, "model"), "usage": iteration}
        for iteration in items(usage, "iterations", "usage")
        if text(iteration, "type") == "advisor_message"
    ]


def _serve(record: UsageRecord, model: str) -> None:
    """The model that answered after another declined."""
    if record.model_id != model:
        record.requested_model_id, record.model_id = record.model_id, model


def _counts(usage: dict[str, object], path: str, given: int, returned: int) -> tuple[int, ...]:
    written, written_1h = _writes(usage, path)
    return given, count(usage, "cache_read_input_tokens", path), written, written_1h, returned


def _writes(usage: dict[str, object], path: str) -> tuple[int, int]:
    """All cache writes, and those kept for an hour.

    The split may be less than the total (a time to live that is not known here), never more.
    """
    written = count(usage, "cache_creation_input_tokens", path)
    creation = usage.get("cache_creation")
    if creation is None:
        return written, 0
    split = section(usage, "cache_creation", path) or {}
    short = count(split, "ephemeral_5m_input_tokens", f"{path}.cache_creation")
    long = count(split, "ephemeral_1h_input_tokens", f"{path}.cache_creation")
    if usage.get("cache_creation_input_tokens") is None:
        return short + long, long
    if long > written:
        raise PayloadError(
            f"{path}.cache_creation.ephemeral_1h_input_tokens",
            f"is {long}, more than {path}.cache_creation_input_tokens ({written}), its total",
        )
    if short + long > written:
        total = f"{path}.cache_creation_input_tokens"
        check_total(total, written, short + long, "the sum of its split in cache_creation")
    return written, long


def _read_dimensions(usage: dict[str, object], record: UsageRecord) -> None:
    set_tier(record, text(usage, "service_tier"))
    if speed := text(usage, "speed"):
        set_speed(record, speed)
    if geography := text(usage, "inference_geo"):
        set_geography(record, geography)
    tools = section(usage, "server_tool_use", "usage")
    if tools is not None:
        # Fetches are free: they are billed by the tokens that they bring in.
        searches = count(tools, "web_search_requests", "usage.server_tool_use")
        set_meter(record, "web_searches", searches)
    details = section(usage, "output_tokens_details", "usage")
    if details is not None:
        path = "usage.output_tokens_details"
        record.reasoning_tokens = count(details, "thinking_tokens", path)


def _detect(payload: dict[str, object], usage: dict[str, object] | None) -> str:
    is_message = payload.get("type") == "message" or (usage is not None and not _OWN_COUNTS.isdisjoint(usage))
    return "anthropic.messages" if is_message else ""


_OWN_COUNTS = frozenset(
    (
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "server_tool_use",
        "cache_creation",
        "inference_geo",
        "iterations",
    )
)
PROVIDER = Provider(
    "anthropic",
    {"anthropic.messages": read_messages},
    models=("claude-",),
    detect=_detect,
    shared=frozenset({"anthropic.messages"}),
)
