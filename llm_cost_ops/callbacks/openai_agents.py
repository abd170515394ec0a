"""A tracing processor for openai-agents.

    agents.add_trace_processor(CostOpsTracingProcessor(client))

It can't see runs whose tracing is disabled (`set_tracing_disabled`, `RunConfig(tracing_disabled=True)`),
nor what is said of a response to chat completions but its counts: those have no id, so that a call which
something else records too counts twice. Where that matters, instrument the client that the model is given
instead.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from agents.tracing import TracingProcessor

from llm_cost_ops.callbacks.records import counted_record, payload_record, unknown_record
from llm_cost_ops.client.attribution import AttributionFields
from llm_cost_ops.client.observer import Observer
from llm_cost_ops.imports.values import count, nested
from llm_cost_ops.types import UsageRecord

if TYPE_CHECKING:
    from agents.tracing import Span, SpanData, Trace

    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["CostOpsTracingProcessor"]

_SOURCE = "openai_agents"
_FLUSH_SECONDS = 5.0


class CostOpsTracingProcessor(TracingProcessor):
    """Records the model calls of runs, by responses and by chat completions, whole and streamed.

    Without a client it is one that the environment sets up, as for `llm_cost_ops.instrument`. Calls count as
    those of the block of `attribute` around them, else as `attribution` says (the fields of `attribute`).
    Failed calls are not recorded; a run that is cancelled while its stream goes on is of unknown usage.
    """

    def __init__(
        self,
        client: CostOpsClient | AsyncCostOpsClient | None = None,
        **attribution: Unpack[AttributionFields],
    ) -> None:
        self._observer = Observer(client, attribution)

    def on_trace_start(self, trace: Trace) -> None:
        """Of a run as a whole nothing is recorded."""

    def on_trace_end(self, trace: Trace) -> None:
        """The same."""

    def on_span_start(self, span: Span) -> None:
        """A call is recorded when it ends."""

    def on_span_end(self, span: Span) -> None:
        """Record a call of a model."""
        data = span.span_data
        if data.type in ("generation", "response") and (span.error is None or _usage_of(data)):
            self._observer.take(partial(_record, data, span))

    def force_flush(self) -> None:
        """Wait until what was recorded is sent."""
        self._observer.flush(_FLUSH_SECONDS)

    def shutdown(self) -> None:
        """Send what is left."""
        self.force_flush()


def _usage_of(data: SpanData) -> Any:
    """The usage that a span states; those of responses have no such field in old versions."""
    return getattr(data, "usage", None)


def _record(data: SpanData, span: Span) -> UsageRecord:
    response = getattr(data, "response", None)
    if response is not None:
        record = payload_record(response, source=_SOURCE, provider="openai", api="openai.responses")
    else:
        model, usage = getattr(data, "model", None) or "", _usage_of(data)
        record = (
            counted_record(source=_SOURCE, provider="openai", model=model, **_counts(usage))
            if usage
            else unknown_record(source=_SOURCE, provider="openai", model=model)
        )
    # Not a trace of OpenTelemetry; the id of its span makes a unique key.
    record.idempotency_key = record.idempotency_key or f"{_SOURCE}:{span.span_id}"
    record.session_id = span.trace_id
    record.latency_ms = _latency(span)
    return record


def _counts(usage: dict[str, object]) -> dict[str, Any]:
    given, returned = nested(usage, "input_tokens_details"), nested(usage, "output_tokens_details")
    return {
        "input_tokens": count(usage, "input_tokens"),
        "output_tokens": count(usage, "output_tokens"),
        "cached": count(given, "cached_tokens"),
        "written": count(given, "cache_write_tokens"),
        "reasoning_tokens": count(returned, "reasoning_tokens"),
    }


def _latency(span: Span) -> int | None:
    if not span.started_at or not span.ended_at:
        return None
    between = datetime.fromisoformat(span.ended_at) - datetime.fromisoformat(span.started_at)
    return int(between.total_seconds() * 1000)
