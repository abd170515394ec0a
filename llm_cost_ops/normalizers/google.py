"""Gemini and Vertex AI: generateContent, Interactions, and the chat API in Google's counts.

promptTokenCount includes the cached content but not the prompts of tools; candidatesTokenCount
excludes thoughts. Counts come by modality too; documents count as images.
"""

from __future__ import annotations

import re

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.chat import inclusive_output, read_chat
from llm_cost_ops.normalizers.payload import count, counted, created_at, has, items, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import (
    check_record,
    check_total,
    count_grounded,
    set_key,
    set_meter,
    set_modality,
    set_model,
    set_tier,
    set_tokens,
    set_traffic,
    set_unknown,
    set_unstated,
    set_vertex_tier,
)

__all__ = ["PROVIDER"]

NAMES = {
    "input_tokens": "usageMetadata.promptTokenCount",
    "output_tokens": "usageMetadata.candidatesTokenCount",
    "cached_tokens": "usageMetadata.cachedContentTokenCount",
    "reasoning_tokens": "usageMetadata.thoughtsTokenCount",
    **{f"input_{kind}_tokens": "usageMetadata.promptTokensDetails" for kind in ("audio", "image", "video")},
    **{f"cached_{kind}_tokens": "usageMetadata.cacheTokensDetails" for kind in ("audio", "image", "video")},
}
# Each list, its path, and the field of the record for each modality; text has none.
_LISTS = tuple(
    (
        key,
        f"usageMetadata.{key}",
        {
            "AUDIO": f"{side}_audio_tokens",
            "IMAGE": f"{side}_image_tokens",
            "DOCUMENT": f"{side}_image_tokens",
            "VIDEO": f"{side}_video_tokens",
        },
    )
    for key, side in (
        ("promptTokensDetails", "input"),
        ("toolUsePromptTokensDetails", "input"),
        ("cacheTokensDetails", "cached"),
        ("candidatesTokensDetails", "output"),
        ("responseTokensDetails", "output"),
    )
)
_INTERACTION_LISTS = (
    ("input_tokens_by_modality", "input"),
    ("tool_use_tokens_by_modality", "input"),
    ("cached_tokens_by_modality", "cached"),
    ("output_tokens_by_modality", "output"),
)
# Looked up once: access to an enum's member by name is slow.
_CHAT = Operation.CHAT


def read_generate_content(payload: dict[str, object], record: UsageRecord) -> None:
    """A GenerateContentResponse in REST's camel case or the SDKs' snake case."""
    record.operation = _CHAT
    if "usage_metadata" in payload or "model_version" in payload:
        payload = _camel(payload)
    set_model(record, (text(payload, "modelVersion") or text(payload, "model")).rpartition("models/")[2])
    set_key(record, text(payload, "responseId"))
    if payload.get("createTime") is not None:
        record.timestamp = created_at(payload["createTime"])
    usage = section(payload, "usageMetadata")
    if usage is None:
        set_unknown(record)
        return
    if not has(usage, "promptTokenCount") and ("prompt_token_count" in usage or "total_token_count" in usage):
        usage = _camel(usage)
    if not has(usage, "promptTokenCount") and not has(usage, "totalTokenCount"):
        set_unknown(record)
    else:
        _read_counts(usage, record)
        _read_modalities(usage, record)
        check_record(record, NAMES)
    if traffic := text(usage, "trafficType") or text(usage, "serviceTier"):
        set_traffic(record, traffic)
    if payload.get("candidates"):
        _count_searches(payload, record)


def _read_counts(usage: dict[str, object], record: UsageRecord) -> None:
    path = "usageMetadata"
    tools = count(usage, "toolUsePromptTokenCount", path)
    # The Live API says response where generateContent says candidates.
    spoken = "responseTokenCount" if has(usage, "responseTokenCount") else "candidatesTokenCount"
    candidates = count(usage, spoken, path)
    thoughts = count(usage, "thoughtsTokenCount", path)
    total = counted(usage, "totalTokenCount", path)
    rest = tools + candidates + thoughts
    stated = counted(usage, "promptTokenCount", path)
    prompt = stated if stated is not None else max((total or 0) - rest, 0)
    # The Live API leaves the thoughts out of its total.
    live = spoken == "responseTokenCount" and total == prompt + tools + candidates
    if total is not None and not live:
        check_total(
            f"{path}.totalTokenCount",
            total,
            prompt + tools + candidates + thoughts,
            f"promptTokenCount + toolUsePromptTokenCount + {spoken} + thoughtsTokenCount",
        )
    if stated is None and total is None:
        record.output_tokens = candidates + thoughts
        set_unknown(record)
        return
    set_tokens(record, prompt + tools, candidates + thoughts)
    record.reasoning_tokens = thoughts
    record.cached_tokens = count(usage, "cachedContentTokenCount", path)
    if record.cached_tokens > prompt:
        raise PayloadError(
            NAMES["cached_tokens"],
            f"is {record.cached_tokens}, more than promptTokenCount ({prompt}), its total",
        )


def read_interaction(payload: dict[str, object], record: UsageRecord) -> None:
    """The Interactions API: input leaves out the tokens of tools, output those of thoughts."""
    record.operation = _CHAT
    set_model(record, text(payload, "model").rpartition("models/")[2])
    set_key(record, text(payload, "id"))
    record.timestamp = created_at(payload.get("created"))
    set_tier(record, text(payload, "service_tier"))
    usage = section(payload, "usage")
    if usage is None or not has(usage, "total_input_tokens"):
        set_unstated(record, payload)
        return
    given = count(usage, "total_input_tokens", "usage") + count(usage, "total_tool_use_tokens", "usage")
    record.reasoning_tokens = count(usage, "total_thought_tokens", "usage")
    returned = count(usage, "total_output_tokens", "usage") + record.reasoning_tokens
    total = counted(usage, "total_tokens", "usage")
    if total is not None:
        parts = "total_input_tokens + total_tool_use_tokens + total_output_tokens + total_thought_tokens"
        check_total("usage.total_tokens", total, given + returned, parts)
    set_tokens(record, given, returned)
    record.cached_tokens = count(usage, "total_cached_tokens", "usage")
    counts: dict[str, int] = {}
    for key, side in _INTERACTION_LISTS:
        for entry in items(usage, key, "usage"):
            kind = {"document": "image"}.get(text(entry, "modality").lower(), text(entry, "modality").lower())
            if kind in ("audio", "image", "video"):
                field = f"{side}_{kind}_tokens"
                counts[field] = counts.get(field, 0) + count(entry, "tokens", f"usage.{key}")
    set_modality(record, **counts)
    searches = sum(
        max(len(calls), 1) if isinstance(calls := _queries(step), (list, tuple)) else 1
        for step in items(payload, "steps")
        if text(step, "type") == "google_search_call"
    )
    if searches:
        set_meter(record, "web_searches", count_grounded(record, searches))
    check_record(record, {"cached_tokens": "usage.total_cached_tokens"})


def _queries(step: dict[str, object]) -> object:
    return (section(step, "arguments", "steps") or {}).get("queries")


def _read_modalities(usage: dict[str, object], record: UsageRecord) -> None:
    counts: dict[str, int] = {}
    for key, path, fields in _LISTS:
        entries = usage.get(key)
        if not entries:
            continue
        for entry in items(usage, key, "usageMetadata"):
            field = fields.get(text(entry, "modality"))
            if field is not None:
                spelling = "tokenCount" if "tokenCount" in entry else "token_count"
                counts[field] = counts.get(field, 0) + count(entry, spelling, path)
    if counts:
        set_modality(record, **counts)


def _count_searches(payload: dict[str, object], record: UsageRecord) -> None:
    """Grounding is billed by the query from Gemini 3 on, by the grounded prompt before.

    Google Maps tells no queries: a prompt that it grounded is counted once.
    """
    searches = maps = 0
    for candidate in items(payload, "candidates"):
        key = "groundingMetadata" if "groundingMetadata" in candidate else "grounding_metadata"
        if candidate.get(key) is None:
            continue
        grounding = section(candidate, key, "candidates")
        if grounding is None:
            continue
        set_meter(record, "image_searches", _length(grounding, "imageSearchQueries", "image_search_queries"))
        chunks = [
            chunk
            for name in ("groundingChunks", "grounding_chunks")
            for chunk in items(grounding, name, "candidates.groundingMetadata")
        ]
        places = any(has(chunk, "maps") for chunk in chunks)
        maps += places
        if not places or any(has(chunk, "web") for chunk in chunks):
            # Where Google Maps alone was asked, the queries are its own.
            searches += _length(grounding, "webSearchQueries", "web_search_queries")
    set_meter(record, "web_searches", count_grounded(record, searches))
    set_meter(record, "map_searches", min(maps, 1))


def _length(fields: dict[str, object], *names: str) -> int:
    """How many values a list has, under the first of its names that is given."""
    values = next((fields[name] for name in names if fields.get(name)), ())
    return len(values) if isinstance(values, (list, tuple)) else 0


def _camel(fields: dict[str, object]) -> dict[str, object]:
    return {re.sub(r"_([a-z])", lambda found: found[1].upper(), key): value for key, value in fields.items()}


def read_google_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """Gemini's OpenAI-compatible endpoint, where only total_tokens tells that the model thought."""

    def rule(prompt: int, completion: int, reasoning: int, total: int | None) -> tuple[int, int]:
        hidden = 0 if total is None else total - prompt - completion
        if hidden > 0 and reasoning in (0, hidden):
            return completion + hidden, hidden
        return inclusive_output(prompt, completion, reasoning, total)

    usage = read_chat(payload, record, rule)
    record.model_id = record.model_id.removeprefix("google/")
    if usage is not None:
        set_vertex_tier(record, usage)


def _detect(payload: dict[str, object], usage: dict[str, object] | None) -> str:
    if "usageMetadata" in payload or "usage_metadata" in payload:
        return "google.generate"
    if usage is not None:
        return "google.interactions" if "total_input_tokens" in usage else ""
    return "google.generate" if "candidates" in payload or "modelVersion" in payload else ""


def _serves_claude(payload: dict[str, object], _usage: dict[str, object]) -> bool:
    response_id = payload.get("id")
    return type(response_id) is str and response_id.startswith("msg_vrtx_")


def _serves(_payload: dict[str, object], usage: dict[str, object]) -> bool:
    beside = usage.get("extra_properties")
    return isinstance(beside, dict) and "google" in beside


PROVIDER = Provider(
    "google",
    {"google.generate": read_generate_content, "google.interactions": read_interaction},
    chat=read_google_chat,
    models=("gemini-", "models/gemini-"),
    objects={"interaction": "google.interactions"},
    detect=_detect,
    serves={"anthropic.messages": _serves_claude, "openai.chat": _serves, "openai.responses": _serves},
)
