"""Spans of calls: OTLP in JSON, spans as SDKs print them, OpenInference, and those of Vercel's AI SDK.

One reader for all of them: files, the server's /v1/traces and the span processor make a `Span` of what they
have, `calls_of` leaves those that are one call of a model each, and `observed` gives the record of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from llm_cost_ops.imports.values import (
    Format,
    Found,
    State,
    count,
    has_unsure_key,
    made,
    moment,
    nested,
    part_of,
    provider_of,
    text,
    whole,
    whole_input,
)
from llm_cost_ops.normalizers import usage_from_response
from llm_cost_ops.normalizers.record import fit_text, fit_texts, set_key
from llm_cost_ops.rules.providers import provider_named, served_by
from llm_cost_ops.types import Operation, UsageQuality, UsageRecord

__all__ = [
    "OTLP",
    "PREFIXES",
    "SPANS",
    "Span",
    "calls_of",
    "has_counts",
    "is_call",
    "is_embedding",
    "observed",
]

_INFERENCE = ("chat", "text_completion", "generate_content", "embeddings", "completion", "responses")
_COUNTS = ("gen_ai.usage.", "llm.token_count.", "ai.usage.")
PREFIXES = ("gen_ai.", "llm.", "ai.", "openinference.", "embedding.")
"""The prefixes of attributes that describe calls of models."""
_KINDS = ("ai.operationId", "gen_ai.operation.name", "openinference.span.kind")


class Span(NamedTuple):
    """A span in whatever form it came: ids in hexadecimal, times as `moment` takes them.

    `failed` is its status ERROR, `resource` has the attributes of what it runs in.
    """

    attributes: dict[str, object]
    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    start: object = None
    end: object = None
    failed: bool = False
    resource: Mapping[str, object] = {}
    where: str = ""


def is_call(span: Span) -> bool:
    """Whether a span is a call of a model that may be billed, and no sum of several.

    One that failed without an answer is not billed.
    """
    attributes = span.attributes
    if not any(name.startswith(PREFIXES) for name in attributes):
        return False
    if has_counts(span):
        return _is_inference(attributes) if any(text(attributes, name) for name in _KINDS) else True
    return _is_inference(attributes) and not (span.failed and not _response_id(attributes))


def has_counts(span: Span) -> bool:
    """Whether a span has counts of tokens."""
    return any(name.startswith(_COUNTS) for name in span.attributes)


def is_embedding(span: Span) -> bool:
    """Whether a span is a call for embeddings."""
    kinds = (text(span.attributes, name).lower() for name in _KINDS)
    return any("embed" in kind for kind in kinds)


def calls_of(spans: Iterable[Span]) -> list[Span]:
    """The spans that are calls: where one lies in another, the inner one that has counts.

    Frameworks and the SDKs below them each make a span of the same call.
    """
    calls = [span for span in spans if is_call(span)]
    counted = [span for span in calls if has_counts(span)]
    repeated = {(span.trace_id, span.parent_id, is_embedding(span)) for span in counted if span.parent_id}
    known = {(span.trace_id, span.span_id) for span in counted if span.span_id}
    return [
        span
        for span in calls
        if (span.trace_id, span.span_id, is_embedding(span)) not in repeated
        and (has_counts(span) or (span.trace_id, span.parent_id) not in known)
    ]


def _record_of(span: Span) -> UsageRecord:
    """The record of a call, an observation. Its key is the response's id, else the span's.

    Raises ValueError for counts or times that can't be.
    """
    record = _record(span.attributes)
    _clear_unsure_key(record)
    _set_times(record, span)
    _identify(record, span)
    return record


def observed(span: Span) -> UsageRecord:
    """The record of a call that was just made: one whose counts can't be read is of unknown usage."""
    attributes = span.attributes
    try:
        record = _record_of(span)
    except ValueError:
        # The call is billed all the same.
        stated = text(attributes, "gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
        model = text(attributes, "gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
        named = served_by(stated, text(attributes, "server.address"))
        provider = named or provider_of(model)
        record = UsageRecord(provider=provider, model_id=model, quality=UsageQuality.UNKNOWN)
        set_key(record, _response_id(attributes))
        _clear_unsure_key(record)
        try:
            _set_times(record, span)
        except ValueError:
            record.timestamp = None
        _identify(record, span)
    record.provider = record.provider or provider_of(record.model_id) or "unknown"
    record.model_id = record.model_id or "unknown"
    fit_texts(record)
    return record


def _clear_unsure_key(record: UsageRecord) -> None:
    if has_unsure_key(record):
        record.idempotency_key = ""


def _set_times(record: UsageRecord, span: Span) -> None:
    start, end = moment(span.start), moment(span.end)
    record.timestamp = start
    if start is not None and end is not None and end >= start:
        record.latency_ms = round((end - start).total_seconds() * 1000)


def _identify(record: UsageRecord, span: Span) -> None:
    """Say which call it is, and whose."""
    attributes, resource = span.attributes, dict(span.resource)
    if len(span.trace_id) == 32 and len(span.span_id) == 16:
        record.trace_id, record.span_id = span.trace_id, span.span_id
    # Ids of only zeros mean no id: as a key, all calls without an id would share it.
    if not record.idempotency_key and span.trace_id.strip("0") and span.span_id.strip("0"):
        record.idempotency_key = f"{span.trace_id}:{span.span_id}"
    record.user_id = record.user_id or text(attributes, "user.id", "enduser.id")[:255]
    record.session_id = record.session_id or text(attributes, "session.id")[:255]
    for name in ("organization_id", "project_id"):
        stated = f"llm_cost_ops.{name}"
        setattr(record, name, text(attributes, stated) or text(resource, stated))
    service = text(resource, "service.name")
    if service and not service.startswith("unknown_service"):
        record.labels = {**record.labels, "service": fit_text(service, 255)}
    record.observation = True
    record.source = "otlp"


def _is_otlp(obj: dict[str, object]) -> bool:
    return isinstance(obj.get("resourceSpans", obj.get("resource_spans")), list)


def _read_otlp(obj: dict[str, object], _state: State) -> Found:
    for span in calls_of(_otlp_spans(obj)):
        yield part_of(span.where, partial(_record_of, span))


def _otlp_spans(obj: dict[str, object]) -> Iterator[Span]:
    """The spans of an OTLP document in JSON."""
    for index, resource in enumerate(_objects(obj, "resourceSpans", "resource_spans")):
        of = _attributes(nested(resource, "resource"))
        for place, scope in enumerate(_objects(resource, "scopeSpans", "scope_spans")):
            where = f"resourceSpans[{index}].scopeSpans[{place}].spans"
            for number, span in enumerate(_objects(scope, "spans")):
                yield _span(span, f"{where}[{number}]", of)


def _objects(obj: dict[str, object], *names: str) -> list[dict[str, object]]:
    for name in names:
        value = obj.get(name)
        if isinstance(value, list):
            return [each for each in value if isinstance(each, dict)]
    return []


def _is_span(obj: dict[str, object]) -> bool:
    if any(name.startswith("attributes.") for name in obj):
        return True
    context = nested(obj, "context")
    named = "traceId" in obj or "trace_id" in obj or "trace_id" in context
    return named and isinstance(obj.get("attributes"), list | dict | str)


def _read_span(obj: dict[str, object], _state: State) -> Found:
    span = _span(obj)
    if is_call(span):
        yield part_of(span.where, partial(_record_of, span))


def _span(obj: dict[str, object], where: str = "", resource: Mapping[str, object] | None = None) -> Span:
    context, status = nested(obj, "context"), nested(obj, "status")
    trace = text(obj, "traceId", "trace_id", "context.trace_id") or text(context, "trace_id")
    own = text(obj, "spanId", "span_id", "context.span_id") or text(context, "span_id")
    state = status.get("code") or status.get("status_code") or obj.get("status_code")
    return Span(
        attributes=_attributes(obj),
        trace_id=trace.removeprefix("0x"),
        span_id=own.removeprefix("0x"),
        parent_id=text(obj, "parentSpanId", "parent_span_id", "parent_id").removeprefix("0x"),
        start=_time(obj, "start"),
        end=_time(obj, "end"),
        failed=state in (2, "STATUS_CODE_ERROR", "ERROR"),
        resource=_attributes(nested(obj, "resource")) if resource is None else resource,
        where=where,
    )


def _attributes(span: dict[str, object]) -> dict[str, object]:
    """The attributes by their names, from OTLP's lists, from objects in each other, or from columns."""
    found = span.get("attributes")
    if isinstance(found, list):
        pairs = [each for each in found if isinstance(each, dict)]
        return {text(each, "key"): _value(each.get("value")) for each in pairs}
    flat: dict[str, object] = {}
    _flatten(nested(span, "attributes"), "", flat)
    for name, value in span.items():
        if name.startswith("attributes.") and value not in (None, ""):
            flat[name.removeprefix("attributes.")] = value
    return flat


def _value(value: object) -> object:
    """A value of OTLP in JSON: whole numbers come as text."""
    if not isinstance(value, dict) or not value:
        return value
    kind, inner = next(iter(value.items()))
    if isinstance(inner, float) and inner.is_integer():
        return int(inner)
    if kind in ("intValue", "int_value") and isinstance(inner, str):
        return whole(inner)
    return inner


def _flatten(value: object, path: str, flat: dict[str, object]) -> None:
    if isinstance(value, dict) and path.count(".") < 8:
        for name, inner in value.items():
            _flatten(inner, f"{path}.{name}" if path else name, flat)
    elif path:
        flat[path] = value


def _is_inference(attributes: dict[str, object]) -> bool:
    """Whether a span says that it is one call of a model, and no sum of several."""
    named = text(attributes, "ai.operationId")
    if named:
        return named.endswith((".doGenerate", ".doStream", ".doEmbed"))
    operation = text(attributes, "gen_ai.operation.name")
    if operation:
        return operation in _INFERENCE
    return text(attributes, "openinference.span.kind").upper() in ("LLM", "EMBEDDING")


def _time(span: dict[str, object], which: str) -> object:
    names = (f"{which}TimeUnixNano", f"{which}_time_unix_nano", f"{which}_time", f"{which}Time")
    return next((span[name] for name in names if span.get(name)), None)


def _response_id(attributes: dict[str, object]) -> str:
    """The id of the response. OpenInference has it only within the whole response, where that is noted."""
    found = text(attributes, "gen_ai.response.id", "ai.response.id")
    if found or text(attributes, "output.mime_type") != "application/json":
        return found
    try:
        output = json.loads(text(attributes, "output.value"))
    except (ValueError, RecursionError):
        return ""
    return text(output, "id") if isinstance(output, dict) else ""


def _record(attributes: dict[str, object]) -> UsageRecord:
    # The AI SDK writes both, and only its own tell what was cached.
    if text(attributes, "ai.operationId") or _has(attributes, "ai.usage."):
        return _vercel(attributes)
    counted_by = "gen_ai.usage." if _has(attributes, "llm.token_count.") else "gen_ai."
    if not _has(attributes, counted_by):
        return _openinference(attributes)
    return usage_from_response({"attributes": attributes}, api="opentelemetry")


def _has(attributes: dict[str, object], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in attributes)


def _openinference(attributes: dict[str, object]) -> UsageRecord:
    prefix = "llm.token_count."
    asked = nested(attributes, "llm.invocation_parameters")
    model = text(attributes, "llm.model_name", "embedding.model_name") or text(asked, "model")
    cached = count(attributes, f"{prefix}prompt_details.cache_read") or 0
    written = count(attributes, f"{prefix}prompt_details.cache_write") or 0
    read, output = count(attributes, f"{prefix}prompt"), count(attributes, f"{prefix}completion")
    total = count(attributes, f"{prefix}total")
    stated = text(attributes, "llm.provider", "llm.system").lower()
    embeds = text(attributes, "openinference.span.kind").upper() == "EMBEDDING"
    if embeds and read is not None and output is None:
        output = 0
    record = made(
        provider=provider_named(stated) or provider_of(model),
        model_id=model,
        input_tokens=whole_input(read, cached, written, output, total),
        output_tokens=output,
        cached=cached,
        written=written,
        reasoning_tokens=count(attributes, f"{prefix}completion_details.reasoning"),
        audio=(
            count(attributes, f"{prefix}prompt_details.audio"),
            0,
            count(attributes, f"{prefix}completion_details.audio"),
        ),
        operation=Operation.EMBEDDINGS if embeds else Operation.CHAT,
    )
    set_key(record, _response_id(attributes))
    return record


def _vercel(attributes: dict[str, object]) -> UsageRecord:
    """The AI SDK's own attributes; `openai.responses` is the provider openai."""
    stated = text(attributes, "ai.model.provider").partition(".")[0]
    model = text(attributes, "ai.response.model", "ai.model.id")
    details = "ai.usage.inputTokenDetails."
    cached = count(attributes, "ai.usage.cachedInputTokens", f"{details}cacheReadTokens") or 0
    written = count(attributes, f"{details}cacheWriteTokens") or 0
    read = count(attributes, "ai.usage.inputTokens", "ai.usage.promptTokens", "ai.usage.tokens")
    output = count(attributes, "ai.usage.outputTokens", "ai.usage.completionTokens")
    total = count(attributes, "ai.usage.totalTokens")
    embeds = "doEmbed" in text(attributes, "ai.operationId")
    record = made(
        provider=provider_named(stated) or provider_of(model),
        model_id=model,
        input_tokens=whole_input(read, cached, written, output, total),
        output_tokens=output,
        cached=cached,
        written=written,
        reasoning_tokens=count(
            attributes, "ai.usage.reasoningTokens", "ai.usage.outputTokenDetails.reasoningTokens"
        ),
        operation=Operation.EMBEDDINGS if embeds else Operation.CHAT,
    )
    set_key(record, _response_id(attributes))
    return record


OTLP = Format("OpenTelemetry traces (OTLP JSON)", _is_otlp, _read_otlp)
SPANS = Format("OpenTelemetry or OpenInference spans", _is_span, _read_span)
