"""Exports of gateways and tracers: LiteLLM, OpenRouter, Vercel, Helicone, Langfuse, LangSmith."""

from __future__ import annotations

import json
import re
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
    provider_of,
    text,
    whole_input,
)
from llm_cost_ops.normalizers import PayloadError, usage_from_response
from llm_cost_ops.rules.providers import provider_named
from llm_cost_ops.types import Operation, Outcome, UsageRecord

__all__ = ["HELICONE", "LANGFUSE", "LANGSMITH", "LITELLM", "OPENROUTER_ACTIVITY", "OPENROUTER_GENERATION"]

# Ids that other observers of the same call know as well.
_UNIQUE = (("openai", "chatcmpl-"), ("openai", "resp_"), ("anthropic", "msg_"), ("openrouter", "gen-"))
_EMBEDDINGS = ("embedding", "aembedding", "EMBEDDING")


def _elements(obj: dict[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a page under `data`, or the object itself."""
    data = obj.get("data")
    if isinstance(data, dict):
        yield "data", data
    elif isinstance(data, list):
        yield from ((f"data[{index}]", each) for index, each in enumerate(data) if isinstance(each, dict))
    else:
        yield "", obj


def _key(provider: str, response_id: str, format_name: str, own_id: str) -> str:
    if any(provider == who and response_id.startswith(prefix) for who, prefix in _UNIQUE):
        return f"{provider}:{response_id}"
    return f"{format_name}:{own_id or response_id}" if own_id or response_id else ""


def _milliseconds(start: object, end: object) -> int | None:
    try:
        begin, finish = moment(start), moment(end)
    except ValueError:
        return None
    if begin is None or finish is None or finish < begin:
        return None
    return round((finish - begin).total_seconds() * 1000)


def _is_litellm(obj: dict[str, object]) -> bool:
    return "spend" in obj and "request_id" in obj and ("call_type" in obj or "prompt_tokens" in obj)


def _read_litellm(obj: dict[str, object], _state: State) -> Found:
    """A row of /spend/logs. An answer from the proxy's own cache was no call of a provider."""
    if str(obj.get("cache_hit")).lower() == "true":
        return
    metadata = nested(obj, "metadata")
    usage = nested(metadata, "usage_object", "additional_usage_values")
    details = nested(usage, "prompt_tokens_details")
    cached = count(usage, "cache_read_input_tokens") or count(details, "cached_tokens") or 0
    written = count(usage, "cache_creation_input_tokens") or count(details, "cache_creation_tokens") or 0
    model = text(obj, "model")
    prefix, slash, rest = model.partition("/")
    stated = text(obj, "custom_llm_provider")
    provider = provider_named(stated) or (prefix if slash else "") or provider_of(model)
    output = count(obj, "completion_tokens")
    failed = text(obj, "status") == "failure"
    request_id = text(obj, "request_id")
    stated_input = count(obj, "prompt_tokens")
    # Models that it has no price for have a spend of 0, which is no price.
    spend = cost(obj.get("spend"), "spend") or None
    if spend and not stated_input and not output:
        # Images, speech and the like: it has no counts of them.
        stated_input = output = None
    record = made(
        provider=provider,
        model_id=rest if slash and prefix in (stated, provider) else model,
        input_tokens=whole_input(stated_input, cached, written, output, count(obj, "total_tokens")),
        output_tokens=output,
        cached=cached,
        written=written,
        reasoning_tokens=count(nested(usage, "completion_tokens_details"), "reasoning_tokens"),
        timestamp=moment(obj.get("startTime")),
        latency_ms=_milliseconds(obj.get("startTime"), obj.get("endTime")),
        reported_cost=spend,
        user_id=text(obj, "end_user", "user")[:255],
        session_id=text(obj, "session_id"),
        outcome=Outcome.FAILED if failed else None,
        operation=Operation.EMBEDDINGS if text(obj, "call_type") in _EMBEDDINGS else Operation.CHAT,
        tags=_tags(obj.get("request_tags")),
        labels={"team_id": text(obj, "team_id")} if text(obj, "team_id") else None,
        idempotency_key=_key(provider, request_id, "litellm", request_id),
        observation=True,
        source="litellm",
    )
    if usage and stated_input is not None:
        _set_litellm_details(record, usage)
    yield Part("", record)


# What was charged is the row's spend, the totals are its own too.
_OF_THE_ROW = frozenset({"cost", "cost_in_usd_ticks", "total_tokens"})


def _set_litellm_details(record: UsageRecord, usage: dict[str, object]) -> None:
    """What LiteLLM's usage says beside the totals of a row: searches, modalities, what set the price."""
    stated = {name: value for name, value in usage.items() if name not in _OF_THE_ROW}
    stated |= {"prompt_tokens": record.input_tokens, "completion_tokens": record.output_tokens}
    answer = {"object": "chat.completion", "usage": stated}
    try:
        # The model is what says by what its searches are billed.
        seen = usage_from_response(answer, api="openai.chat", provider="litellm", model_id=record.model_id)
    except PayloadError:
        return
    record.cache_write_extended_tokens = min(seen.cache_write_extended_tokens, record.cache_write_tokens)
    record.modality, record.meters = seen.modality, seen.meters
    record.speed, record.region = seen.speed, seen.region
    record.service_tier, record.processing = seen.service_tier, seen.processing


def _tags(value: object) -> list[str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return [tag for tag in value if isinstance(tag, str)] if isinstance(value, list) else []


def _first(obj: dict[str, object]) -> dict[str, object]:
    return next((each for _, each in _elements(obj)), {})


def _is_activity(obj: dict[str, object]) -> bool:
    return {"date", "model_permaslug", "requests"} <= _first(obj).keys()


def _read_activity(obj: dict[str, object], _state: State) -> Found:
    for where, row in _elements(obj):
        yield part_of(where, partial(_activity, row))


def _activity(row: dict[str, object]) -> UsageRecord:
    """A day of an endpoint: the sum of its calls, with what was charged for them."""
    # What was paid to the provider with a key of one's own comes on top.
    spent = cost(row.get("usage"), "usage")
    own = cost(row.get("byok_usage_inference"), "byok_usage_inference")
    parts = (row.get(name) for name in ("date", "model_permaslug", "endpoint_id", "provider_name"))
    return made(
        provider="openrouter",
        model_id=text(row, "model", "model_permaslug"),
        input_tokens=count(row, "prompt_tokens"),
        output_tokens=count(row, "completion_tokens"),
        reasoning_tokens=count(row, "reasoning_tokens"),
        request_count=count(row, "requests") or None,
        timestamp=moment(row.get("date")),
        reported_cost=None if spent is None else spent + (own or 0),
        idempotency_key=identity("openrouter-activity", *parts),
        operation=Operation.CHAT,
        source="openrouter-activity",
    )


def _is_generation(obj: dict[str, object]) -> bool:
    first = _first(obj)
    return "native_tokens_prompt" in first or {"generation_id", "cost_total", "tokens_prompt"} <= first.keys()


def _read_generation(obj: dict[str, object], _state: State) -> Found:
    """A generation of OpenRouter or of Vercel's gateway, or a row of OpenRouter's activity CSV."""
    for where, row in _elements(obj):
        yield part_of(where, partial(_generation, row))


def _generation(row: dict[str, object]) -> UsageRecord:
    own_id = text(row, "id", "generation_id")
    model = text(row, "model", "model_permaslug")
    vercel = own_id.startswith("gen_")
    maker, slash, rest = model.partition("/")
    provider = (maker if slash else text(row, "provider_name").lower()) if vercel else "openrouter"
    charged = cost(row.get("total_cost", row.get("cost_total")), "total_cost")
    if str(row.get("is_byok")).lower() == "true":
        own = cost(row.get("upstream_inference_cost"), "upstream_inference_cost")
        # The fee alone is not what the call cost.
        charged = None if own is None else (charged or 0) + own
    return made(
        provider=provider,
        model_id=rest if vercel and slash else model,
        input_tokens=count(row, "native_tokens_prompt", "tokens_prompt"),
        output_tokens=count(row, "native_tokens_completion", "tokens_completion"),
        cached=count(row, "native_tokens_cached", "tokens_cached"),
        reasoning_tokens=count(row, "native_tokens_reasoning", "tokens_reasoning"),
        timestamp=moment(row.get("created_at")),
        latency_ms=count(row, "generation_time", "generation_time_ms"),
        time_to_first_token_ms=count(row, "time_to_first_token_ms"),
        reported_cost=charged,
        user_id=text(row, "external_user", "user")[:255],
        outcome=Outcome.CANCELLED if str(row.get("cancelled")).lower() == "true" else None,
        idempotency_key=f"{'vercel' if vercel else 'openrouter'}:{own_id}" if own_id else "",
        operation=Operation.CHAT,
        observation=True,
        source="vercel" if vercel else "openrouter",
    )


def _is_helicone(obj: dict[str, object]) -> bool:
    first = _first(obj)
    return "request_id" in first and ("request_created_at" in first or "response_id" in first)


_NO_REFERENCE = "00000000-0000-0000-0000-000000000000"


def _read_helicone(obj: dict[str, object], _state: State) -> Found:
    """Requests as its API and its export tool give them. An answer from its cache was no call."""
    for where, row in _elements(obj):
        if text(row, "cache_reference_id") in ("", _NO_REFERENCE):
            yield part_of(where, partial(_helicone, row))


def _helicone(row: dict[str, object]) -> UsageRecord:
    record = _helicone_usage(row)
    record.timestamp = moment(row.get("request_created_at"))
    record.latency_ms = count(row, "delay_ms")
    status = count(row, "response_status", "status")
    record.user_id = text(row, "request_user_id", "user_id")[:255]
    record.outcome = Outcome.FAILED if status is not None and status >= 400 else record.outcome
    properties = nested(row, "request_properties", "properties")
    record.labels = {str(name): str(value)[:255] for name, value in list(properties.items())[:64]}
    record.idempotency_key = record.idempotency_key or f"helicone:{text(row, 'request_id')}"
    record.observation = True
    record.source = "helicone"
    return record


def _helicone_usage(row: dict[str, object]) -> UsageRecord:
    model = text(row, "model", "response_model", "model_override", "request_model")
    stated = text(row, "provider").lower()
    provider = provider_named(stated)
    if provider in ("", "custom"):
        provider = provider_of(model)
    body = nested(row, "response_body")
    if "usage" in body or "usageMetadata" in body:
        # The answer itself knows more than the columns.
        try:
            return usage_from_response(body, provider=provider)
        except PayloadError:
            pass
    cached = count(row, "prompt_cache_read_tokens") or 0
    written = count(row, "prompt_cache_write_tokens") or 0
    given, output = count(row, "prompt_tokens"), count(row, "completion_tokens")
    return made(
        provider=provider,
        model_id=model,
        input_tokens=whole_input(given, cached, written, output, count(row, "total_tokens")),
        output_tokens=output,
        cached=cached,
        written=written,
        reasoning_tokens=count(row, "reasoning_tokens"),
        audio=(count(row, "prompt_audio_tokens"), 0, count(row, "completion_audio_tokens")),
        operation=Operation.CHAT,
    )


# What of the details are tokens; a project may count anything else there too.
_OF_TOKENS = re.compile("(?i)(input|output|prompt|completion|cache|reasoning|total|thought)|.*token")
# The other units that its older usage may be in: the meter, and how many of it one is.
_UNITS = {
    "CHARACTERS": ("characters", 1),
    "IMAGES": ("images", 1),
    "REQUESTS": ("requests", 1),
    "SECONDS": ("audio_ms", 1000),
    "MILLISECONDS": ("audio_ms", 1),
}
_MAX_METER = 64
_GENERATION_TYPES = ("GENERATION", "EMBEDDING")


def _is_langfuse(obj: dict[str, object]) -> bool:
    first = _first(obj)
    if isinstance(first.get("observations"), list):
        return "timestamp" in first or "projectId" in first
    named = "traceId" in first or "trace_id" in first
    return named and "type" in first and ("startTime" in first or "start_time" in first)


def _read_langfuse(obj: dict[str, object], _state: State) -> Found:
    for where, row in _elements(obj):
        observations = row.get("observations")
        if not isinstance(observations, list):
            observations = [row]
        for index, each in enumerate(observations):
            place = where if each is row else f"{where}.observations[{index}]".lstrip(".")
            if isinstance(each, dict) and text(each, "type").upper() in _GENERATION_TYPES:
                yield part_of(place, partial(_langfuse, each, row))


# The names that it and the SDKs which report to it have for the three totals of a call.
_TOTALS = {
    **dict.fromkeys(("input", "inputtokens", "prompt", "prompttokens"), "input"),
    **dict.fromkeys(("output", "outputtokens", "completion", "completiontokens"), "output"),
    **dict.fromkeys(("total", "totaltokens"), "total"),
}


def _langfuse_names(given: dict[str, int]) -> dict[str, int]:
    """Usage details with the totals under one name each, however they are spelled; equal ones are one."""
    details: dict[str, int] = {}
    for name, value in given.items():
        plain = _TOTALS.get(name.lower().replace("_", ""), name)
        details[plain] = max(value, details.get(plain, 0))
    return details


def _langfuse_details(row: dict[str, object]) -> dict[str, int]:
    """The counts of a row by their names: its usage details, or the totals of one of the older forms."""
    usage = nested(row, "usageDetails", "usage_details")
    if details := _langfuse_names({name: count(usage, name) or 0 for name in usage}):
        return details
    if plain := nested(row, "usage"):
        given, returned = count(plain, "input", "promptTokens"), count(plain, "output", "completionTokens")
    else:
        given = count(row, "promptTokens", "prompt_tokens")
        returned = count(row, "completionTokens", "completion_tokens")
    stated = {"input": given, "output": returned}
    return {name: value for name, value in stated.items() if value is not None}


def _like(counts: dict[str, int], *words: str) -> int:
    """The sum of the counts that have one of the words in their names."""
    return sum(value for name, value in counts.items() if any(word in name for word in words))


def _langfuse(row: dict[str, object], trace: dict[str, object]) -> UsageRecord:
    """Usage details are parts that add up, unless the total shows that one contains another."""
    details = _langfuse_details(row)
    total = details.pop("total", None)
    meters = {
        re.sub("[^a-z0-9_]", "_", name.lower())[:_MAX_METER]: details.pop(name)
        for name in list(details)
        if not _OF_TOKENS.match(name)
    }
    if meter := _UNITS.get(text(nested(row, "usage"), "unit").upper()):
        counted = total if total is not None else sum(details.values())
        meters, details = {meter[0]: counted * meter[1]}, {}
    output_names = [name for name in details if name.startswith(("output", "completion", "reasoning"))]
    parts = {name: value for name, value in details.items() if name not in output_names}
    outputs = {name: details[name] for name in output_names}
    inside = total is not None and total == details.get("input", 0) + details.get("output", 0)

    def summed(of: dict[str, int], main: str) -> int | None:
        return of.get(main) if inside and main in of else (sum(of.values()) if of else None)

    model = text(row, "model", "providedModelName", "provided_model_name", "modelId")
    start, end = row.get("startTime", row.get("start_time")), row.get("endTime", row.get("end_time"))
    own_id = text(row, "id")
    return made(
        provider=provider_of(model),
        model_id=model,
        input_tokens=summed(parts, "input"),
        output_tokens=summed(outputs, "output"),
        cached=_like(parts, "cached", "cache_read"),
        written=_like(parts, "creation", "write"),
        cache_write_extended_tokens=_like(parts, "1h"),
        reasoning_tokens=_like(outputs, "reasoning"),
        audio=(_like(parts, "audio"), 0, _like(outputs, "audio")),
        meters={name: value for name, value in meters.items() if value},
        timestamp=moment(start),
        latency_ms=_milliseconds(start, end),
        user_id=text(trace, "userId", "user_id")[:255],
        session_id=text(trace, "sessionId", "session_id")[:255],
        operation=Operation.EMBEDDINGS if text(row, "type") in _EMBEDDINGS else Operation.CHAT,
        idempotency_key=f"langfuse:{own_id}" if own_id else "",
        observation=True,
        source="langfuse",
    )


def _is_langsmith(obj: dict[str, object]) -> bool:
    runs = obj.get("runs")
    first = runs[0] if isinstance(runs, list) and runs else _first(obj)
    return isinstance(first, dict) and "run_type" in first


def _read_langsmith(obj: dict[str, object], _state: State) -> Found:
    """Runs of models; a chain's run repeats the sums of those in it."""
    runs = obj.get("runs")
    found = _elements({"data": runs}) if isinstance(runs, list) else _elements(obj)
    for where, run in found:
        if text(run, "run_type") in ("llm", "embedding"):
            yield part_of(where, partial(_langsmith, run))


def _langsmith(run: dict[str, object]) -> UsageRecord:
    metadata = nested(nested(run, "extra"), "metadata")
    usage = nested(nested(run, "outputs"), "usage_metadata") or nested(metadata, "usage_metadata")
    given = nested(usage, "input_token_details") or nested(run, "prompt_token_details")
    returned = nested(usage, "output_token_details") or nested(run, "completion_token_details")
    extra = nested(run, "extra")
    model = text(metadata, "ls_model_name") or text(nested(extra, "invocation_params"), "model")
    stated = text(metadata, "ls_provider")
    # It states cache writes by their time to live, instead of their sum.
    cached, long = count(given, "cache_read") or 0, count(given, "ephemeral_1h_input_tokens") or 0
    written = (count(given, "ephemeral_5m_input_tokens") or 0) + long or count(given, "cache_creation") or 0
    read, output = count(usage, "input_tokens"), count(usage, "output_tokens")
    read = count(run, "prompt_tokens") if read is None else read
    output = count(run, "completion_tokens") if output is None else output
    total = count(usage, "total_tokens")
    total = count(run, "total_tokens") if total is None else total
    return made(
        provider=provider_named(stated) or provider_of(model),
        model_id=model,
        input_tokens=whole_input(read, cached, written, output, total),
        output_tokens=output,
        cached=cached,
        written=written,
        cache_write_extended_tokens=long,
        reasoning_tokens=count(returned, "reasoning"),
        audio=(count(given, "audio"), 0, count(returned, "audio")),
        timestamp=moment(run.get("start_time")),
        latency_ms=_milliseconds(run.get("start_time"), run.get("end_time")),
        session_id=text(metadata, "session_id", "thread_id")[:255],
        outcome=Outcome.FAILED if text(run, "error") else None,
        operation=Operation.EMBEDDINGS if text(run, "run_type") == "embedding" else Operation.CHAT,
        idempotency_key=f"langsmith:{text(run, 'id')}" if text(run, "id") else "",
        observation=True,
        source="langsmith",
    )


LITELLM = Format("LiteLLM spend logs", _is_litellm, _read_litellm)
OPENROUTER_ACTIVITY = Format("OpenRouter activity", _is_activity, _read_activity)
OPENROUTER_GENERATION = Format(
    "OpenRouter or Vercel AI Gateway generations", _is_generation, _read_generation
)
HELICONE = Format("Helicone requests", _is_helicone, _read_helicone)
LANGFUSE = Format("Langfuse observations", _is_langfuse, _read_langfuse)
LANGSMITH = Format("LangSmith runs", _is_langsmith, _read_langsmith)
