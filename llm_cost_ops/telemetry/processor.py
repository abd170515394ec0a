"""The span processor: each span of a call that ends becomes a usage record."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Unpack

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode

from llm_cost_ops.client.attribution import AttributionFields
from llm_cost_ops.client.observer import Observer
from llm_cost_ops.imports.spans import Span, has_counts, is_call, is_embedding, observed
from llm_cost_ops.rpc.forks import ForkSafeLock

if TYPE_CHECKING:
    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["CostOpsSpanProcessor"]

# Spans that have not ended yet, and whose counts were those of a span within; more are forgotten.
_MAX_OPEN = 10_000


class CostOpsSpanProcessor(SpanProcessor):
    """Records the calls that instrumentors of OpenTelemetry (gen_ai) and OpenInference make spans of.

        provider.add_span_processor(CostOpsSpanProcessor(client))

    Without a client it is one that the environment sets up, as for `llm_cost_ops.instrument`. A record's own
    fields come from the span; then count the block of `attribute` in which it ends, `attribution` (the fields
    of `attribute`) and the client's defaults. Spans that are sampled out are not seen. Nothing is raised.
    """

    def __init__(
        self,
        client: CostOpsClient | AsyncCostOpsClient | None = None,
        **attribution: Unpack[AttributionFields],
    ) -> None:
        self._observer = Observer(client, attribution)
        # Spans around calls that were recorded: a framework's span of the same call repeats its counts.
        self._repeated: OrderedDict[tuple[str, str, bool], None] = OrderedDict()
        self._lock = ForkSafeLock()

    def on_end(self, span: ReadableSpan) -> None:
        """Record the span, if it is a call."""
        found = _span(span)
        if found is None or not is_call(found):
            return
        kind = is_embedding(found)
        with self._lock.held:
            repeats = (found.trace_id, found.span_id, kind) in self._repeated
            self._repeated.pop((found.trace_id, found.span_id, kind), None)
            if found.parent_id and (repeats or has_counts(found)):
                self._repeated[found.trace_id, found.parent_id, kind] = None
                if len(self._repeated) > _MAX_OPEN:
                    self._repeated.popitem(last=False)
        if not repeats:
            self._observer.take(partial(observed, found))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until what was recorded is sent; False when it was not, in time."""
        return self._observer.flush(timeout_millis / 1000)


def _span(span: ReadableSpan) -> Span | None:
    context, attributes = span.get_span_context(), span.attributes
    if context is None or not attributes:
        return None
    return Span(
        attributes=dict(attributes),
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id="" if span.parent is None else f"{span.parent.span_id:016x}",
        start=span.start_time,
        end=span.end_time,
        failed=span.status.status_code is StatusCode.ERROR,
        resource=span.resource.attributes,
    )
