"""Spans: OTLP in JSON, spans as SDKs print them, OpenInference, and those of Vercel's AI SDK."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from llm_cost_ops.imports.values import (
    PROVIDERS,
    Format,
    Found,
    Part,
    State,
    count,
    made,
    moment,
    nested,
    provider_of,
    text,
    whole_input,
)
from llm_cost_ops.normalizers import PayloadError, usage_from_response
from llm_cost_ops.types import Operation, UsageRecord

__all__ = ["OTLP", "SPANS"]

_INFERENCE = ("chat", "text_completion", "generate_content", "embeddings", "completion", "responses")
_COUNTS = ("gen_ai.usage.", "llm.token_count.", "ai.usage.")
_PREFIXES = ("gen_ai.", "llm.", "ai.", "openinference.")


def _is_otlp(obj: dict[str, object]) -> bool:
    return isinstance(obj.get("resourceSpans", obj.get("resource_spans")), list)


def _read_otlp(obj: dict[str, object], _state: State) -> Found:
    spans: list[tuple[str, dict[str, Any]]] = []
    for index, resource in enumerate(_objects(obj, "resourceSpans", "resource_spans")):
        for place, scope in enumerate(_objects(resource, "scopeSpans", "scope_spans")):
            where = f"resourceSpans[{index}].scopeSpans[{place}].spans"
            found = _objects(scope, "spans")
            spans += [(f"{where}[{number}]", span) for number, span in enumerate(found)]
    counted = [(where, span, _attributes(span)) for where, span in spans]
    # A span that has the counts of spans below it repeats them.
    parents = {_parent(span) for _, span, attributes in counted if _has_counts(attributes)}
    for where, span, attributes in counted:
        if _span_id(span) not in parents or _is_inference(attributes):
            yield from _read(where, span, attributes)


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
    yield from _read("", obj, _attributes(obj))


def _attributes(span: dict[str, object]) -> dict[str, object]:
    """The attributes by their names, from OTLP's lists, from objects in each other, or from columns."""
    found = span.get("attributes")
    if isinstance(found, list):
        pairs = [each for each in found if isinstance(each, dict)]
        return {text(each, "key"): _value(each.get("value")) for each in pairs}
    flat: dict[str, Any] = {}
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
        return int(inner) if inner.lstrip("-").isdecimal() else inner
    return inner


def _flatten(value: object, path: str, flat: dict[str, object]) -> None:
    if isinstance(value, dict) and path.count(".") < 8:
        for name, inner in value.items():
            _flatten(inner, f"{path}.{name}" if path else name, flat)
    elif path:
        flat[path] = value


def _has_counts(attributes: dict[str, object]) -> bool:
    return any(name.startswith(_COUNTS) for name in attributes)


def _is_inference(attributes: dict[str, object]) -> bool:
    """Whether a span says that it is one call of a model, and no sum of several."""
    named = text(attributes, "ai.operationId")
    if named:
        return named.endswith((".doGenerate", ".doStream", ".doEmbed"))
    operation = text(attributes, "gen_ai.operation.name")
    if operation:
        return operation in _INFERENCE
    return text(attributes, "openinference.span.kind").upper() in ("LLM", "EMBEDDING")


def _tells_kind(attributes: dict[str, object]) -> bool:
    kinds = ("ai.operationId", "gen_ai.operation.name", "openinference.span.kind")
    return any(text(attributes, name) for name in kinds)


def _parent(span: dict[str, object]) -> str:
    return text(span, "parentSpanId", "parent_span_id", "parent_id").removeprefix("0x")


def _span_id(span: dict[str, object]) -> str:
    return text(span, "spanId", "span_id", "context.span_id") or text(nested(span, "context"), "span_id")


def _read(where: str, span: dict[str, object], attributes: dict[str, object]) -> Found:
    if not any(name.startswith(_PREFIXES) for name in attributes):
        return
    if not (_is_inference(attributes) if _tells_kind(attributes) else _has_counts(attributes)):
        return
    try:
        record = _record(attributes)
        start, end = _time(span, "start"), _time(span, "end")
    except (PayloadError, ValueError) as error:
        yield Part(where, str(error))
        return
    context = nested(span, "context")
    trace = text(span, "traceId", "trace_id", "context.trace_id") or text(context, "trace_id")
    trace, own = trace.removeprefix("0x"), _span_id(span).removeprefix("0x")
    record.timestamp = start
    if start is not None and end is not None and end >= start:
        record.latency_ms = round((end - start).total_seconds() * 1000)
    if len(trace) == 32 and len(own) == 16:
        record.trace_id, record.span_id = trace, own
    if not record.idempotency_key and trace and own:
        record.idempotency_key = f"{trace}:{own}"
    record.user_id = record.user_id or text(attributes, "user.id", "enduser.id")[:255]
    record.session_id = record.session_id or text(attributes, "session.id")[:255]
    record.observation = True
    record.source = "otlp"
    yield Part(where, record)


def _time(span: dict[str, object], which: str) -> datetime | None:
    names = (f"{which}TimeUnixNano", f"{which}_time_unix_nano", f"{which}_time", f"{which}Time")
    return moment(next((span[name] for name in names if span.get(name)), None))


def _record(attributes: dict[str, object]) -> UsageRecord:
    # The AI SDK writes both, and only its own tell what was cached.
    if any(name.startswith("ai.usage.") for name in attributes):
        return _vercel(attributes)
    if not any(name.startswith("gen_ai.usage.") for name in attributes) and any(
        name.startswith("llm.") for name in attributes
    ):
        return _openinference(attributes)
    return usage_from_response({"attributes": attributes}, api="opentelemetry")


def _openinference(attributes: dict[str, object]) -> UsageRecord:
    prefix = "llm.token_count."
    model = text(attributes, "llm.model_name", "embedding.model_name")
    cached = count(attributes, f"{prefix}prompt_details.cache_read") or 0
    written = count(attributes, f"{prefix}prompt_details.cache_write") or 0
    read, output = count(attributes, f"{prefix}prompt"), count(attributes, f"{prefix}completion")
    total = count(attributes, f"{prefix}total")
    stated = text(attributes, "llm.provider", "llm.system").lower()
    kind = text(attributes, "openinference.span.kind").upper()
    return made(
        provider=PROVIDERS.get(stated, stated) or provider_of(model),
        model_id=model,
        input_tokens=None if read is None else whole_input(read, cached, written, output or 0, total),
        output_tokens=output,
        cached=cached,
        written=written,
        reasoning_tokens=count(attributes, f"{prefix}completion_details.reasoning"),
        audio=(
            count(attributes, f"{prefix}prompt_details.audio"),
            0,
            count(attributes, f"{prefix}completion_details.audio"),
        ),
        operation=Operation.EMBEDDINGS if kind == "EMBEDDING" else Operation.CHAT,
    )


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
    return made(
        provider=PROVIDERS.get(stated, stated) or provider_of(model),
        model_id=model,
        input_tokens=None if read is None else whole_input(read, cached, written, output or 0, total),
        output_tokens=output,
        cached=cached,
        written=written,
        reasoning_tokens=count(
            attributes, "ai.usage.reasoningTokens", "ai.usage.outputTokenDetails.reasoningTokens"
        ),
        operation=Operation.EMBEDDINGS if embeds else Operation.CHAT,
    )


OTLP = Format("OpenTelemetry traces (OTLP JSON)", _is_otlp, _read_otlp)
SPANS = Format("OpenTelemetry or OpenInference spans", _is_span, _read_span)
