"""OpenAI's Responses API, also as served by Azure, xAI and others.

input_tokens and output_tokens are inclusive. Calls of hosted tools are billed but are not in the
usage: they are counted from the output items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import Operation, Outcome
from llm_cost_ops.normalizers.checks import check_record, check_total, fit_details
from llm_cost_ops.normalizers.details import cache_writes, read_modality
from llm_cost_ops.normalizers.dialects import read_gateway_cost, read_xai_extras, xai_output
from llm_cost_ops.normalizers.filling import (
    set_identity,
    set_meter,
    set_stated,
    set_tier,
    set_tokens,
    set_unknown,
)
from llm_cost_ops.normalizers.reading import count, counted, has, items, money, section, text

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
    "image_generation_call": "image_generation_calls",
    "shell_call": "containers",
}


def read_responses(payload: dict[str, object], record: UsageRecord) -> None:
    """A response object of the Responses API."""
    record.operation = _CHAT
    set_identity(record, payload, "created_at")
    set_tier(record, text(payload, "service_tier"))
    record.outcome = _OUTCOMES.get(text(payload, "status"), record.outcome)
    usage = section(payload, "usage", "usage")
    if usage is None or not _read_tokens(usage, record):
        set_unknown(record)
        _count_calls(payload, record)
        return
    if record.provider == "x-ai" or "cost_in_usd_ticks" in usage:
        read_xai_extras(usage, record)
    if not has(usage, "server_side_tool_usage_details") and not has(usage, "server_side_tools_used"):
        _count_calls(payload, record)
    if "cost" in usage:
        _read_cost(usage, record)
    if record.provider == "openrouter":
        fit_details(record)
    check_record(record, NAMES)


def _read_tokens(usage: dict[str, object], record: UsageRecord) -> bool:
    """False when input or output is not stated and does not follow from the total."""
    total = counted(usage, "total_tokens", "usage")
    given, returned = counted(usage, "input_tokens", "usage"), counted(usage, "output_tokens", "usage")
    if not set_stated(record, given, returned, total):
        return False
    prompt, output = record.input_tokens or 0, record.output_tokens or 0
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
    return True


def _count_calls(payload: dict[str, object], record: UsageRecord) -> None:
    if not payload.get("output"):
        return
    preview = _is_preview(payload, record.model_id)
    containers: set[str] = set()
    for item in items(payload, "output", "output"):
        kind = text(item, "type")
        meter = _CALLS.get(kind)
        if meter is None or (kind == "web_search_call" and not _is_search(item)):
            continue
        if kind == "web_search_call" and preview:
            meter = "web_search_previews"
        elif kind == "image_generation_call" and text(item, "status") == "failed":
            continue
        elif kind == "code_interpreter_call" and record.provider == "x-ai":
            # xAI bills its code tool by the call.
            meter = "code_executions"
        elif kind in ("code_interpreter_call", "shell_call"):
            # A container is billed once however many calls run in it; a local shell has none.
            container = text(item, "container_id")
            if kind == "shell_call":
                environment = section(item, "environment", "output.environment") or {}
                container = text(environment, "container_id")
                if not container and not text(environment, "type").startswith("container"):
                    continue
            if container and container in containers:
                continue
            containers.add(container)
        set_meter(record, meter, 1)


def _is_preview(payload: dict[str, object], model: str) -> bool:
    """Whether searches are web_search_preview's with a model that does not reason: they cost more."""
    return model.rpartition("/")[2].startswith(("gpt-4o", "gpt-4.1")) and any(
        text(tool, "type").startswith("web_search_preview") for tool in items(payload, "tools", "tools")
    )


def _is_search(item: dict[str, object]) -> bool:
    """Opening a page and finding something in it are calls too, but only searches are billed."""
    action = section(item, "action", "output.action")
    return action is None or text(action, "type") in ("", "search")


def _read_cost(usage: dict[str, object], record: UsageRecord) -> None:
    cost = usage["cost"]
    if isinstance(cost, dict):
        record.reported_cost = money(cost.get("total_cost"), "usage.cost.total_cost")
    else:
        read_gateway_cost(usage, record)
