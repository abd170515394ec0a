"""Chat completions of xAI, DeepSeek, Perplexity and OpenRouter: where they differ from OpenAI's."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from llm_cost_ops.normalizers.chat import NAMES, inclusive_output, read_chat
from llm_cost_ops.normalizers.checks import check_record
from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.filling import set_meter
from llm_cost_ops.normalizers.reading import count, duration_ms, items, money, section, text

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = [
    "read_deepseek_chat",
    "read_gateway_cost",
    "read_groq_chat",
    "read_openrouter_chat",
    "read_perplexity_chat",
    "read_xai_chat",
    "read_xai_extras",
    "xai_output",
]

# xAI states costs in ticks of 10^-10 US dollars.
_TICK = Decimal("1e-10")
_XAI_TOOLS = (
    ("web_search_calls", "web_searches"),
    ("x_search_calls", "social_searches"),
    ("code_interpreter_calls", "code_executions"),
    ("file_search_calls", "file_searches"),
    ("document_search_calls", "file_searches"),
    ("attachment_search_calls", "attachment_searches"),
    ("image_generation_calls", "image_generation_calls"),
)
# The tools that a response of the gRPC API lists, one for each call; viewing images and MCP are free.
_XAI_CALLS = {
    "WEB_SEARCH": "web_searches",
    "X_SEARCH": "social_searches",
    "CODE_EXECUTION": "code_executions",
    "COLLECTIONS_SEARCH": "file_searches",
    "ATTACHMENT_SEARCH": "attachment_searches",
    "IMAGE_GENERATION": "image_generation_calls",
}
# Sonar models whose price has a fee per request; that fee pays for their searches.
_FEE_PER_REQUEST = frozenset({"sonar", "sonar-pro", "sonar-reasoning", "sonar-reasoning-pro"})


def xai_output(prompt: int, completion: int, reasoning: int, total: int | None) -> tuple[int, int]:
    """Reasoning is not in xAI's completion_tokens; gateways may have folded it in: the total tells."""
    if total == prompt + completion and reasoning <= completion:
        return completion, reasoning
    if total is None or total == prompt + completion + reasoning:
        return completion + reasoning, reasoning
    raise PayloadError(
        "usage.total_tokens",
        f"is {total}: neither prompt_tokens + completion_tokens ({prompt + completion}) "
        f"nor that with reasoning_tokens ({prompt + completion + reasoning})",
    )


def read_xai_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """xAI: reasoning tested against the total, tool calls, the stated cost."""
    usage = read_chat(payload, record, xai_output)
    if usage is not None:
        read_xai_extras(usage, record)


def read_xai_extras(usage: dict[str, object], record: UsageRecord) -> None:
    """Server-side tool calls and the stated cost of xAI's usage objects."""
    ticks = usage.get("cost_in_usd_ticks")
    if ticks is not None:
        record.reported_cost = count(usage, "cost_in_usd_ticks", "usage") * _TICK
    seconds = usage.get("billable_audio_seconds")
    if seconds is not None:
        # Voice is billed by the second alone.
        set_meter(record, "audio_ms", duration_ms(seconds, "usage.billable_audio_seconds"))
        record.input_tokens = record.output_tokens = record.total_tokens = record.modality = None
        record.cached_tokens = record.reasoning_tokens = 0
    path = "usage.server_side_tool_usage_details"
    details = section(usage, "server_side_tool_usage_details", path)
    if details is not None:
        for key, meter in _XAI_TOOLS:
            set_meter(record, meter, count(details, key, path))
        return
    used = usage.get("server_side_tools_used")
    for tool in used if isinstance(used, (list, tuple)) else ():
        name = tool if isinstance(tool, str) else getattr(tool, "name", "")
        meter = _XAI_CALLS.get(str(name).removeprefix("SERVER_SIDE_TOOL_"), "")
        if meter:
            set_meter(record, meter, 1)


def read_deepseek_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """DeepSeek: prompt_cache_hit_tokens are the cache reads, hits and misses make the prompt."""
    usage = read_chat(payload, record, inclusive_output)
    if usage is None or usage.get("prompt_cache_hit_tokens") is None:
        return
    hits = count(usage, "prompt_cache_hit_tokens", "usage")
    if record.cached_tokens not in (0, hits):
        raise PayloadError(
            "usage.prompt_cache_hit_tokens",
            f"is {hits}, but {NAMES['cached_tokens']} is {record.cached_tokens}",
        )
    record.cached_tokens = hits
    if usage.get("prompt_cache_miss_tokens") is not None:
        misses = count(usage, "prompt_cache_miss_tokens", "usage")
        if hits + misses != record.input_tokens:
            raise PayloadError(
                "usage.prompt_tokens",
                f"is {record.input_tokens}, but prompt_cache_hit_tokens + prompt_cache_miss_tokens "
                f"is {hits + misses}",
            )
    check_record(record, {**NAMES, "cached_tokens": "usage.prompt_cache_hit_tokens"})


def _perplexity_output(prompt: int, completion: int, reasoning: int, total: int | None) -> tuple[int, int]:
    """Perplexity's reasoning is billed beside completion_tokens, and is in no total."""
    if total != prompt + completion + reasoning:
        inclusive_output(prompt, completion, reasoning, total)
    return completion + reasoning, reasoning


def read_perplexity_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """Perplexity: reasoning and citation tokens beside the total, searches, request fee, stated cost."""
    usage = read_chat(payload, record, _perplexity_output)
    if usage is None:
        return
    set_meter(record, "citation_tokens", count(usage, "citation_tokens", "usage"))
    if record.model_id.removeprefix("perplexity/") in _FEE_PER_REQUEST:
        set_meter(record, "requests", 1)
    else:
        set_meter(record, "web_searches", count(usage, "num_search_queries", "usage"))
    cost = section(usage, "cost", "usage.cost")
    if cost is not None:
        record.reported_cost = money(cost.get("total_cost"), "usage.cost.total_cost")


def read_openrouter_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """OpenRouter: models carry their maker's prefix, usage.cost is what was charged.

    With a key of one's own (is_byok) the upstream's charge comes on top of OpenRouter's.
    """
    usage = read_chat(payload, record, inclusive_output)
    if usage is None:
        return
    read_gateway_cost(usage, record)
    for key in ("server_tool_use_details", "server_tool_use"):
        tools = section(usage, key, f"usage.{key}")
        if tools is not None:
            set_meter(record, "web_searches", count(tools, "web_search_requests", f"usage.{key}"))
            break


def read_gateway_cost(usage: dict[str, object], record: UsageRecord) -> None:
    """What OpenRouter charged, and with a key of one's own what the upstream charged on top."""
    cost = money(usage.get("cost"), "usage.cost")
    if cost is not None and usage.get("is_byok"):
        details = section(usage, "cost_details", "usage.cost_details") or {}
        path = "usage.cost_details.upstream_inference_cost"
        cost += money(details.get("upstream_inference_cost"), path) or 0
    record.reported_cost = cost


def read_groq_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """Groq: a compound system is billed by the models that it used, which usage_breakdown names."""
    read_chat(payload, record, inclusive_output)
    breakdown = section(payload, "usage_breakdown", "usage_breakdown")
    if breakdown is None:
        return
    models = items(breakdown, "models", "usage_breakdown.models")
    if len(models) == 1:
        if text(models[0], "model") == record.model_id:
            return
        record.requested_model_id, record.model_id = record.model_id, text(models[0], "model")
    elif models:
        set_meter(record, "other_model_calls", len(models))
