"""OpenAI's Responses API, also as served by Azure, xAI and others.

input_tokens and output_tokens are inclusive. Calls of hosted tools are billed but are not in the
usage: they are counted from the output items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import Operation, Outcome
from llm_cost_ops.normalizers.checks import check_record, check_total
from llm_cost_ops.normalizers.details import cache_writes, read_modality
from llm_cost_ops.normalizers.dialects import read_xai_extras, xai_output
from llm_cost_ops.normalizers.filling import (
    set_identity,
    set_meter,
    set_tier,
    set_tokens,
    set_unknown,
)
from llm_cost_ops.normalizers.reading import count, items, money, section, text

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["read_responses"]

_CHAT = Operation.CHAT
NAMES = {
    "input_tokens": "usage.input_tokens",
    "output_tokens": "usage.output_tokens",
    "cached_tokens": "usage.input_tokens_details.cached_tokens",
    "cache_write_tokens": "usage.input_tokens_details.cache_write_tokens",
    "cache_write_extended_tokens": "usage.input_tokens_details.cache_write_tokens_details.ttl_12h",
    "reasoning_tokens": "usage.output_tokens_details.reasoning_tokens",
}
_INPUTS = "usage.input_tokens_details"
_OUTPUTS = "usage.output_tokens_details"
_OUTCOMES = {"failed": Outcome.FAILED, "cancelled": Outcome.CANCELLED}
_CALLS = {
    "web_search_call": "web_searches",
    "file_search_call": "file_searches",
    "code_interpreter_call": "code_interpreter_sessions",
    "x_search_call": "social_searches",
}


def read_responses(payload: dict[str, object], record: UsageRecord) -> None:
    """A response object of the Responses API."""
    record.operation = _CHAT
    set_identity(record, payload, "created_at")
    set_tier(record, text(payload, "service_tier"))
    record.outcome = _OUTCOMES.get(text(payload, "status"), record.outcome)
    usage = section(payload, "usage", "usage")
    if usage is None or not ("input_tokens" in usage or "output_tokens" in usage):
        set_unknown(record)
        return
    _read_tokens(usage, record)
    if usage.get("server_side_tool_usage_details") is not None or "cost_in_usd_ticks" in usage:
        read_xai_extras(usage, record)
    if usage.get("server_side_tool_usage_details") is None:
        _count_calls(payload, record)
    if "cost" in usage:
        _read_cost(usage, record)
    check_record(record, NAMES)


def _read_tokens(usage: dict[str, object], record: UsageRecord) -> None:
    prompt = count(usage, "input_tokens", "usage")
    output = count(usage, "output_tokens", "usage")
    total = count(usage, "total_tokens", "usage") if usage.get("total_tokens") is not None else None
    inputs = section(usage, "input_tokens_details", _INPUTS)
    outputs = section(usage, "output_tokens_details", _OUTPUTS)
    reasoning = count(outputs, "reasoning_tokens", _OUTPUTS) if outputs else 0
    if record.provider == "x-ai":
        output, reasoning = xai_output(prompt, output, reasoning, total)
    elif total is not None:
        check_total("usage.total_tokens", total, prompt + output, "input_tokens + output_tokens")
    set_tokens(record, prompt, output)
    record.reasoning_tokens = reasoning
    if inputs:
        # Perplexity names its cache reads as Anthropic does, but counts them in the total.
        key = "cached_tokens" if "cached_tokens" in inputs else "cache_read_input_tokens"
        record.cached_tokens = count(inputs, key, _INPUTS)
        record.cache_write_tokens, record.cache_write_extended_tokens = cache_writes(inputs, _INPUTS)
        read_modality(inputs, _INPUTS, outputs or {}, _OUTPUTS, record)


def _count_calls(payload: dict[str, object], record: UsageRecord) -> None:
    if not payload.get("output"):
        return
    containers: set[str] = set()
    for item in items(payload, "output", "output"):
        kind = text(item, "type")
        meter = _CALLS.get(kind)
        if meter is None or (kind == "web_search_call" and not _is_search(item)):
            continue
        if kind == "code_interpreter_call":
            # A container is billed once however many calls run in it.
            container = text(item, "container_id")
            if container and container in containers:
                continue
            containers.add(container)
        set_meter(record, meter, 1)


def _is_search(item: dict[str, object]) -> bool:
    """Opening a page and finding something in it are calls too, but only searches are billed."""
    action = section(item, "action", "output.action")
    return action is None or text(action, "type") in ("", "search")


def _read_cost(usage: dict[str, object], record: UsageRecord) -> None:
    cost = usage["cost"]
    if isinstance(cost, dict):
        record.reported_cost = money(cost.get("total_cost"), "usage.cost.total_cost")
    else:
        record.reported_cost = money(cost, "usage.cost")
