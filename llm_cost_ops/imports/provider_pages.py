"""What providers say themselves: usage and cost pages of OpenAI and Anthropic, and console CSV."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llm_cost_ops.imports.values import (
    Format,
    Found,
    Part,
    State,
    cost,
    count,
    identity,
    made,
    moment,
    nested,
    part_of,
    text,
)
from llm_cost_ops.types import ModalityTokens, Operation, UsageQuality, UsageRecord

__all__ = ["ANTHROPIC_COSTS", "ANTHROPIC_CSV", "ANTHROPIC_USAGE", "OPENAI_PAGE"]

_SECONDS, _SESSIONS, _CALLS = "seconds", "num_sessions", "num_requests"
# Results of OpenAI's usage pages: the kind, what it counts in place of tokens, the meter, and the operation.
_OPENAI_METERS = {
    "images": ("images", "images", Operation.IMAGE),
    "audio_speeches": ("characters", "characters", Operation.SPEECH),
    "audio_transcriptions": (_SECONDS, "audio_ms", Operation.TRANSCRIPTION),
    "code_interpreter_sessions": (_SESSIONS, "code_interpreter_sessions", Operation.TOOL),
    "web_search_calls": (_CALLS, "web_searches", Operation.TOOL),
    "web_searches": (_CALLS, "web_searches", Operation.TOOL),
    "file_search_calls": (_CALLS, "file_searches", Operation.TOOL),
    "file_searches": (_CALLS, "file_searches", Operation.TOOL),
}
_OPERATIONS = {
    "completions": Operation.CHAT,
    "embeddings": Operation.EMBEDDINGS,
    "moderations": Operation.MODERATION,
    "decisions": Operation.UNSPECIFIED,
}
# The kinds that a page can group by batch and by service tier.
_GROUPED = frozenset({"completions", "decisions"})


def _results(obj: dict[str, object]) -> Iterator[tuple[str, dict[str, object], dict[str, object]]]:
    """Each result with its place and its bucket, from a page or from a bucket alone."""
    buckets = obj.get("data")
    if not isinstance(buckets, list):
        buckets = [obj]
    for index, bucket in enumerate(buckets):
        results = bucket.get("results") if isinstance(bucket, dict) else None
        for place, result in enumerate(results if isinstance(results, list) else ()):
            if isinstance(result, dict):
                where = f"results[{place}]" if bucket is obj else f"data[{index}].results[{place}]"
                yield where, bucket, result


def _first(obj: dict[str, object]) -> dict[str, object]:
    return next((result for _, _, result in _results(obj)), {})


def _is_openai_page(obj: dict[str, object]) -> bool:
    if obj.get("object") not in ("page", "bucket"):
        return False
    buckets = obj.get("data") if obj["object"] == "page" else [obj]
    return isinstance(buckets, list) and all(
        isinstance(each, dict) and each.get("object") == "bucket" for each in buckets
    )


def _read_openai_page(obj: dict[str, object], _state: State) -> Found:
    for where, bucket, result in _results(obj):
        yield part_of(where, partial(_openai_result, bucket, result))


def _openai_result(bucket: dict[str, object], result: dict[str, object]) -> UsageRecord | str:
    kind = text(result, "object").removeprefix("organization.").removesuffix(".result").removeprefix("usage.")
    record = made(
        provider="openai",
        model_id=text(result, "model"),
        timestamp=moment(bucket.get("start_time")),
        project_id=text(result, "project_id"),
        user_id=text(result, "user_id"),
        source=f"openai-{kind.replace('_', '-')}",
        idempotency_key=identity(
            "openai-page",
            kind,
            bucket.get("start_time"),
            bucket.get("end_time"),
            *(
                result.get(name)
                for name in ("model", "project_id", "user_id", "api_key_id", "batch", "service_tier")
            ),
            *(result.get(name) for name in ("line_item", "size", "source", "api_source")),
            *(result[name] for name in ("context_level", "vector_store_id") if result.get(name)),
        ),
    )
    if text(result, "api_key_id"):
        record.labels = {"api_key_id": text(result, "api_key_id")}
    if kind == "costs":
        return _openai_cost(result, record)
    requests = count(result, "num_model_requests")
    record.request_count = requests or None
    if result.get("batch") is True:
        record.processing = "batch"
    tier = text(result, "service_tier")
    if tier not in ("default", "auto", "standard"):
        record.service_tier = tier
    if kind in _OPENAI_METERS:
        field, meter, record.operation = _OPENAI_METERS[kind]
        record.meters = {meter: (count(result, field) or 0) * (1000 if field == _SECONDS else 1)}
        record.model_id = record.model_id or ("" if kind.startswith(("images", "audio")) else kind)
        return record
    if kind not in _OPERATIONS:
        return f"a result of kind {text(result, 'object')[:60]!r} is not of model calls"
    _openai_tokens(result, record, kind)
    return record


def _openai_tokens(result: dict[str, object], record: UsageRecord, kind: str) -> None:
    record.operation = _OPERATIONS[kind]
    record.input_tokens = count(result, "input_tokens")
    record.output_tokens = count(result, "output_tokens")
    record.cached_tokens = count(result, "input_cached_tokens") or 0
    _openai_cache_writes(result, record)
    if kind in _GROUPED and (result.get("batch") is None or result.get("service_tier") is None):
        # Not grouped by them: some of it may have cost half, or double.
        record.quality = UsageQuality.ESTIMATED
    if kind == "decisions" and (record.output_tokens or record.cached_tokens or record.cache_write_tokens):
        # They are billed by their input alone, whether it is cached or not; the model's prices have more.
        record.quality = UsageQuality.ESTIMATED
    # The counts of audio and images leave out what was cached of them, the input holds all.
    cached_audio = count(result, "input_cached_audio_tokens") or 0
    audio = (count(result, "input_audio_tokens") or 0) + cached_audio
    spoken = count(result, "output_audio_tokens") or 0
    cached_image = count(result, "input_cached_image_tokens") or 0
    images = (count(result, "input_image_tokens") or 0) + cached_image
    drawn = count(result, "output_image_tokens") or 0
    # Older pages count audio beside the text.
    if record.input_tokens is not None and audio > record.input_tokens:
        record.input_tokens += audio
    if record.output_tokens is not None and spoken > record.output_tokens:
        record.output_tokens += spoken
    record.modality = made(audio=(audio, min(cached_audio, record.cached_tokens), spoken)).modality
    if images or drawn:
        record.modality = record.modality or ModalityTokens()
        record.modality.input_image_tokens, record.modality.output_image_tokens = images, drawn
        record.modality.cached_image_tokens = cached_image


def _openai_cache_writes(result: dict[str, object], record: UsageRecord) -> None:
    """Set the cache writes: `input_cache_write_tokens` is all of them, or on older pages those of 30 minutes.

    A page that tells the 30 minutes apart is a newer one. On others the input that was not cached decides;
    where it is not told and either may be meant, the record is ESTIMATED.
    """
    long = count(result, "input_cache_write_12h_tokens") or 0
    short = count(result, "input_cache_write_30m_tokens")
    stated = count(result, "input_cache_write_tokens")
    record.cache_write_extended_tokens = long
    if short is not None or stated is None:
        record.cache_write_tokens = (short or 0) + long
        return
    record.cache_write_tokens = stated + long
    room = (record.input_tokens or 0) - record.cached_tokens
    uncached = count(result, "input_uncached_tokens")
    if stated < long or not long or (uncached is not None and room - uncached == stated + long):
        return
    if stated + long > room or (uncached is not None and room - uncached == stated):
        record.cache_write_tokens = stated
    else:
        record.quality = UsageQuality.ESTIMATED


def _openai_cost(result: dict[str, object], record: UsageRecord) -> UsageRecord | str:
    amount = nested(result, "amount")
    record.reported_cost = cost(amount.get("value"), "amount.value")
    record.reported_currency = text(amount, "currency").upper()
    record.model_id = text(result, "line_item") or "all models"
    return record if record.reported_cost is not None else "amount.value is missing"


def _is_anthropic_usage(obj: dict[str, object]) -> bool:
    return "uncached_input_tokens" in _first(obj)


def _is_anthropic_costs(obj: dict[str, object]) -> bool:
    first = _first(obj)
    return "amount" in first and "cost_type" in first and "object" not in first


def _read_anthropic_usage(obj: dict[str, object], _state: State) -> Found:
    for where, bucket, result in _results(obj):
        yield part_of(where, partial(_anthropic_usage, bucket, result))


def _anthropic_usage(bucket: dict[str, object], result: dict[str, object]) -> UsageRecord:
    created = nested(result, "cache_creation")
    record = _anthropic_row(
        result,
        moment(bucket.get("starting_at")),
        plain=count(result, "uncached_input_tokens"),
        short=count(created, "ephemeral_5m_input_tokens"),
        long=count(created, "ephemeral_1h_input_tokens"),
        read=count(result, "cache_read_input_tokens"),
        output=count(result, "output_tokens"),
        searches=count(nested(result, "server_tool_use"), "web_search_requests"),
    )
    if result.get("service_tier") is None:
        # Not grouped by it: some of it may have cost half.
        record.quality = UsageQuality.ESTIMATED
    record.model_id = text(result, "model")
    record.project_id = text(result, "workspace_id")
    _set_tier(record, text(result, "service_tier"))
    groups = (
        "model",
        "workspace_id",
        "api_key_id",
        "service_tier",
        "context_window",
        "inference_geo",
        "speed",
    )
    record.idempotency_key = _identity("anthropic-usage", bucket, *(result.get(name) for name in groups))
    return record


def _identity(name: str, bucket: dict[str, object], *parts: object) -> str:
    return identity(name, bucket.get("starting_at"), bucket.get("ending_at"), *parts)


def _anthropic_row(
    row: dict[str, object],
    when: object,
    *,
    plain: int | None,
    short: int | None,
    long: int | None,
    read: int | None,
    output: int | None,
    searches: int | None,
) -> UsageRecord:
    written = (short or 0) + (long or 0)
    total = (plain or 0) + written + (read or 0)
    record = made(
        provider="anthropic",
        timestamp=when,
        input_tokens=total,
        output_tokens=output or 0,
        cached=read,
        written=written,
        cache_write_extended_tokens=long or 0,
        request_count=_least_requests(total, text(row, "context_window")),
        meters={"web_searches": searches} if searches else None,
        region=text(row, "inference_geo").replace("not_available", "").replace("global", ""),
        speed=text(row, "speed").replace("standard", ""),
        source="anthropic-usage",
        operation=Operation.CHAT,
    )
    if text(row, "api_key_id", "api_key"):
        record.labels = {"api_key_id": text(row, "api_key_id", "api_key")}
    return record


def _least_requests(tokens: int, window: str) -> int | None:
    """The least number of calls in a row, which does not state it: no call exceeds its context window.

    It matters where prices have tiers: a sum of many short calls is none long one.
    """
    window = window.lower().replace(" ", "").replace("≤", "0-")
    if window.startswith(("200k-", ">200k")):
        # All of them are long ones, so that the tier of a long one is right for their sum.
        return None
    least = -(-tokens // 200_000)
    return least if least > 1 else None


def _set_tier(record: UsageRecord, tier: str) -> None:
    tier = tier.lower()
    if tier == "batch":
        record.processing = "batch"
    elif tier not in ("", "standard", "on_demand"):
        record.service_tier = tier


def _read_anthropic_costs(obj: dict[str, object], _state: State) -> Found:
    for where, bucket, result in _results(obj):
        yield part_of(where, partial(_anthropic_cost, bucket, result))


def _anthropic_cost(bucket: dict[str, object], result: dict[str, object]) -> UsageRecord:
    parts = (value for name, value in sorted(result.items()) if name != "amount")
    record = made(
        provider="anthropic",
        model_id=text(result, "model", "description") or "all models",
        # In the smallest unit of the currency.
        reported_cost=cost(result.get("amount"), "amount", per=100),
        timestamp=moment(bucket.get("starting_at")),
        reported_currency=text(result, "currency") or "USD",
        project_id=text(result, "workspace_id"),
        source="anthropic-costs",
        labels={name: text(result, name) for name in ("cost_type", "token_type") if text(result, name)},
        idempotency_key=_identity("anthropic-costs", bucket, *parts),
    )
    _set_tier(record, text(result, "service_tier"))
    return record


def _is_anthropic_csv(row: dict[str, object]) -> bool:
    return "usage_input_tokens_no_cache" in row or {"usage_date_utc", "cost_usd"} <= row.keys()


def _read_anthropic_csv(row: dict[str, object], _state: State) -> Found:
    when = moment(row.get("usage_date_utc"))
    parts = [value for name, value in sorted(row.items()) if "tokens" not in name and name != "cost_usd"]
    if "cost_usd" in row:
        labels = {name: text(row, name) for name in ("cost_type", "token_type") if text(row, name)}
        record = made(
            provider="anthropic",
            model_id=text(row, "model", "cost_type") or "all models",
            timestamp=when,
            reported_cost=cost(row["cost_usd"], "cost_usd"),
            reported_currency="USD",
            labels=labels,
            source="anthropic-costs",
        )
    else:
        record = _anthropic_row(
            row,
            when,
            plain=count(row, "usage_input_tokens_no_cache"),
            short=count(row, "usage_input_tokens_cache_write_5m"),
            long=count(row, "usage_input_tokens_cache_write_1h"),
            read=count(row, "usage_input_tokens_cache_read"),
            output=count(row, "usage_output_tokens"),
            searches=count(row, "web_search_count"),
        )
        record.model_id = text(row, "model_version")
        parts = [row.get(name) for name in sorted(row) if "tokens" not in name and name != "web_search_count"]
    record.project_id = text(row, "workspace")
    _set_tier(record, text(row, "usage_type").replace("message", ""))
    if when is not None:
        record.idempotency_key = identity("anthropic-csv", *parts)
    yield Part("", record)


OPENAI_PAGE = Format("OpenAI usage or costs page", _is_openai_page, _read_openai_page)
ANTHROPIC_USAGE = Format("Anthropic usage report", _is_anthropic_usage, _read_anthropic_usage)
ANTHROPIC_COSTS = Format("Anthropic cost report", _is_anthropic_costs, _read_anthropic_costs)
ANTHROPIC_CSV = Format("Anthropic console CSV", _is_anthropic_csv, _read_anthropic_csv)
