"""Chat completions of xAI, DeepSeek, Perplexity and OpenRouter: where they differ from OpenAI's."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from llm_cost_ops.normalizers.chat import NAMES, inclusive_output, read_chat
from llm_cost_ops.normalizers.checks import check_record
from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.filling import set_meter
from llm_cost_ops.normalizers.reading import count, money, section

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = [
    "read_deepseek_chat",
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
)
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
    path = "usage.server_side_tool_usage_details"
    details = section(usage, "server_side_tool_usage_details", path)
    if details is not None:
        for key, meter in _XAI_TOOLS:
            set_meter(record, meter, count(details, key, path))


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
    cost = money(usage.get("cost"), "usage.cost")
    if cost is not None and usage.get("is_byok"):
        details = section(usage, "cost_details", "usage.cost_details") or {}
        path = "usage.cost_details.upstream_inference_cost"
        cost += money(details.get("upstream_inference_cost"), path) or 0
    record.reported_cost = cost
