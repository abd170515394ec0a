"""Gemini and Vertex AI: generateContent.

promptTokenCount includes the cached content but not the prompts of tools; candidatesTokenCount
excludes thoughts. Counts come by modality too; documents count as images.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import Operation
from llm_cost_ops.normalizers.checks import check_record, check_total
from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.filling import (
    set_key,
    set_meter,
    set_modality,
    set_model,
    set_tier,
    set_tokens,
    set_unknown,
)
from llm_cost_ops.normalizers.reading import count, items, moment, section, text

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["read_generate_content"]

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
# Looked up once: access to an enum's member by name is slow.
_CHAT = Operation.CHAT
_OLDER_THAN_3 = re.compile(r"(models/)?gemini-[12]\b")


def read_generate_content(payload: dict[str, object], record: UsageRecord) -> None:
    """A GenerateContentResponse in REST's camel case or the SDKs' snake case."""
    record.operation = _CHAT
    if "usage_metadata" in payload or "model_version" in payload:
        payload = _camel(payload)
    set_model(record, (text(payload, "modelVersion") or text(payload, "model")).removeprefix("models/"))
    set_key(record, text(payload, "responseId"))
    if payload.get("createTime") is not None:
        record.timestamp = moment(payload["createTime"], "createTime")
    usage = section(payload, "usageMetadata", "usageMetadata")
    if usage is None:
        set_unknown(record)
        return
    if "promptTokenCount" not in usage and ("prompt_token_count" in usage or "total_token_count" in usage):
        usage = _camel(usage)
    if "promptTokenCount" not in usage and "totalTokenCount" not in usage:
        set_unknown(record)
    else:
        _read_counts(usage, record)
        _read_modalities(usage, record)
        check_record(record, NAMES)
    tier = text(usage, "trafficType") or text(usage, "serviceTier")
    if tier and tier != "ON_DEMAND":
        set_tier(record, tier.lower().removeprefix("traffic_type_").removeprefix("on_demand_"))
    if payload.get("candidates"):
        _count_searches(payload, record)


def _read_counts(usage: dict[str, object], record: UsageRecord) -> None:
    path = "usageMetadata"
    prompt = count(usage, "promptTokenCount", path)
    tools = count(usage, "toolUsePromptTokenCount", path)
    # The Live API says response where generateContent says candidates.
    spoken = "candidatesTokenCount" if "candidatesTokenCount" in usage else "responseTokenCount"
    candidates = count(usage, spoken, path)
    thoughts = count(usage, "thoughtsTokenCount", path)
    if usage.get("totalTokenCount") is not None:
        check_total(
            f"{path}.totalTokenCount",
            count(usage, "totalTokenCount", path),
            prompt + tools + candidates + thoughts,
            f"promptTokenCount + toolUsePromptTokenCount + {spoken} + thoughtsTokenCount",
        )
    set_tokens(record, prompt + tools, candidates + thoughts)
    record.reasoning_tokens = thoughts
    record.cached_tokens = count(usage, "cachedContentTokenCount", path)
    if record.cached_tokens > prompt:
        raise PayloadError(
            NAMES["cached_tokens"],
            f"is {record.cached_tokens}, more than promptTokenCount ({prompt}), its total",
        )


def _read_modalities(usage: dict[str, object], record: UsageRecord) -> None:
    counts: dict[str, int] = {}
    for key, path, fields in _LISTS:
        entries = usage.get(key)
        if not entries:
            continue
        for entry in items(usage, key, path):
            field = fields.get(text(entry, "modality"))
            if field is not None:
                spelling = "tokenCount" if "tokenCount" in entry else "token_count"
                counts[field] = counts.get(field, 0) + count(entry, spelling, path)
    if counts:
        set_modality(record, **counts)


def _count_searches(payload: dict[str, object], record: UsageRecord) -> None:
    """Grounding is billed by the query from Gemini 3 on, by the grounded prompt before."""
    searches = 0
    for candidate in items(payload, "candidates", "candidates"):
        key = "groundingMetadata" if "groundingMetadata" in candidate else "grounding_metadata"
        if candidate.get(key) is None:
            continue
        grounding = section(candidate, key, "candidates.groundingMetadata")
        if grounding is not None:
            queries = grounding.get("webSearchQueries") or grounding.get("web_search_queries")
            searches += len(queries) if isinstance(queries, (list, tuple)) else 0
    if searches:
        set_meter(record, "web_searches", 1 if _OLDER_THAN_3.match(record.model_id) else searches)


def _camel(fields: dict[str, object]) -> dict[str, object]:
    return {re.sub(r"_([a-z])", lambda found: found[1].upper(), key): value for key, value in fields.items()}
