"""Chat completions as OpenAI defined them and many providers serve them.

`prompt_tokens` and `completion_tokens` are inclusive; details are subsets. Providers that count
otherwise pass a rule of their own for the output.
"""

from __future__ import annotations

from collections.abc import Callable

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import count, counted, money, section, shallow, text
from llm_cost_ops.normalizers.record import (
    CLAUDE_WRITES,
    cache_writes,
    check_record,
    check_total,
    claude_writes,
    count_grounded,
    fit_details,
    read_modality,
    set_geography,
    set_identity,
    set_meter,
    set_speed,
    set_stated,
    set_tier,
    set_tokens,
    set_unknown,
)

__all__ = ["inclusive_output", "read_chat", "read_gateway_cost", "read_plain_chat", "xai_output"]

# (prompt, completion, reasoning, stated total or None) -> (all output, reasoning)
OutputRule = Callable[[int, int, int, "int | None"], tuple[int, int]]

_CHAT, _TEXT = Operation.CHAT, Operation.TEXT_COMPLETION
_INPUTS = "usage.prompt_tokens_details"
_OUTPUTS = "usage.completion_tokens_details"
# Cache reads beside the totals: Moonshot, Mistral, xAI's SDK, LiteLLM for Claude, hosts of DeepSeek.
_BESIDE = (
    "cached_tokens",
    "num_cached_tokens",
    "cached_prompt_text_tokens",
    "cache_read_input_tokens",
    "prompt_cache_hit_tokens",
)
# What gateways say beside OpenAI's fields: searches, as Anthropic counts them, and what chose the price.
_OF_GATEWAYS = frozenset(("server_tool_use", "server_tool_use_details", "inference_geo", "speed"))
# xAI states its searches in these fields, and LiteLLM then repeats them in others.
_OF_XAI = ("server_side_tool_usage_details", "server_side_tools_used", "num_sources_used")
_COUNTED_SEARCHES = frozenset(("web_search_requests", "google_maps_grounding_requests"))
# Each answer of these models is one search that is billed.
_SEARCH_MODELS = ("gpt-4o-search-preview", "gpt-4o-mini-search-preview", "gpt-5-search-api")
NAMES = {
    "input_tokens": "usage.prompt_tokens",
    "output_tokens": "usage.completion_tokens",
    "cached_tokens": "usage.prompt_tokens_details.cached_tokens",
    "cache_write_tokens": "usage.prompt_tokens_details.cache_write_tokens",
    "cache_write_extended_tokens": "usage.prompt_tokens_details.cache_write_tokens_details.ttl_12h",
    "reasoning_tokens": "usage.completion_tokens_details.reasoning_tokens",
    "input_audio_tokens": "usage.prompt_tokens_details.audio_tokens",
    "output_audio_tokens": "usage.completion_tokens_details.audio_tokens",
}


def inclusive_output(prompt: int, completion: int, reasoning: int, total: int | None) -> tuple[int, int]:
    """OpenAI's rule: completion_tokens is all output, reasoning is in it."""
    if total is not None and total != prompt + completion:
        check_total("usage.total_tokens", total, prompt + completion, "prompt_tokens + completion_tokens")
    return completion, reasoning


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


def read_plain_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """OpenAI, Azure OpenAI, Groq and everything compatible with them."""
    read_chat(payload, record, inclusive_output)


def read_chat(payload: dict[str, object], record: UsageRecord, rule: OutputRule) -> dict[str, object] | None:
    """Fill in the record and return the payload's usage, None when it has none."""
    record.operation = _TEXT if payload.get("object") == "text_completion" else _CHAT
    set_identity(record, payload)
    set_tier(record, text(payload, "service_tier"))
    usage = section(payload, "usage")
    if usage is None and (groq := section(payload, "x_groq")) is not None:
        usage = section(groq, "usage", "x_groq")
    if usage is None:
        set_unknown(record)
        return usage
    prompt = counted(usage, "prompt_tokens", "usage")
    completion = counted(usage, "completion_tokens", "usage")
    total = counted(usage, "total_tokens", "usage")
    if prompt is None or completion is None:
        if not set_stated(record, prompt, completion, total):
            return usage
        prompt, completion = record.input_tokens or 0, record.output_tokens or 0
    # The runs of assistants have one letter less.
    named = section(usage, "prompt_tokens_details", "usage")
    inputs = named or section(usage, "prompt_token_details", "usage") or {}
    outputs = section(usage, "completion_tokens_details", "usage") or {}
    output, record.reasoning_tokens = rule(prompt, completion, _reasoning(outputs, usage), total)
    set_tokens(record, prompt, output)
    record.cached_tokens = _cached(inputs, usage)
    if inputs or outputs:
        record.cache_write_tokens, record.cache_write_extended_tokens = cache_writes(inputs, _INPUTS)
        read_modality(inputs, _INPUTS, outputs, _OUTPUTS, record)
    of_claude = not (CLAUDE_WRITES.isdisjoint(usage) and CLAUDE_WRITES.isdisjoint(inputs))
    if of_claude and not record.cache_write_tokens:
        record.cache_write_tokens, record.cache_write_extended_tokens = claude_writes(inputs, _INPUTS, usage)
    if not (_OF_GATEWAYS.isdisjoint(usage) and _COUNTED_SEARCHES.isdisjoint(inputs)):
        _read_gateway_facts(usage, inputs, record)
    model = record.model_id
    if "search" in model and model.startswith(_SEARCH_MODELS) and record.provider in ("openai", "azure", ""):
        set_meter(record, "web_searches", 1)
    if record.provider == "openrouter":
        fit_details(record)
    check_record(record, NAMES)
    return usage


def _read_gateway_facts(usage: dict[str, object], inputs: dict[str, object], record: UsageRecord) -> None:
    """What OpenRouter and LiteLLM say of a call in a provider's own words: searches, speed, geography."""
    searches = count(inputs, "web_search_requests", _INPUTS)
    for key in ("server_tool_use_details", "server_tool_use"):
        # If it is not an object, it states no searches.
        tools = shallow(usage.get(key))
        if tools is not None:
            searches = count(tools, "web_search_requests", f"usage.{key}")
            break
    if not any(map(usage.get, _OF_XAI)):
        set_meter(record, "web_searches", count_grounded(record, searches))
    maps = count(inputs, "google_maps_grounding_requests", _INPUTS)
    set_meter(record, "map_searches", count_grounded(record, maps))
    set_speed(record, text(usage, "speed"))
    set_geography(record, text(usage, "inference_geo"))


def read_gateway_cost(usage: dict[str, object], record: UsageRecord) -> None:
    """What OpenRouter charged, and with a key of one's own what the upstream charged on top.

    A cost of 0 is a price at OpenRouter alone, which has free models: other gateways state it where they know
    none. With a key of one's own the fee is no price without what the upstream charged.
    """
    cost = money(usage.get("cost"), "usage.cost")
    is_own = bool(usage.get("is_byok"))
    if cost is not None and is_own:
        details = section(usage, "cost_details", "usage") or {}
        path = "usage.cost_details.upstream_inference_cost"
        upstream = money(details.get("upstream_inference_cost"), path)
        cost = None if upstream is None else cost + upstream
    record.reported_cost = cost if cost or (record.provider == "openrouter" and not is_own) else None


def _reasoning(details: dict[str, object], usage: dict[str, object]) -> int:
    """Perplexity and xAI's SDK put reasoning beside the totals instead of under them."""
    if details.get("reasoning_tokens") is not None:
        return count(details, "reasoning_tokens", _OUTPUTS)
    return count(usage, "reasoning_tokens", "usage")


def _cached(details: dict[str, object], usage: dict[str, object]) -> int:
    if details.get("cached_tokens") is not None:
        return count(details, "cached_tokens", _INPUTS)
    for key in _BESIDE:
        if usage.get(key) is not None:
            return count(usage, key, "usage")
    return 0
