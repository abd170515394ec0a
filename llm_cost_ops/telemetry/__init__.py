"""OpenTelemetry: the spans of calls become usage records, in the process that makes them.

    provider.add_span_processor(CostOpsSpanProcessor(client))

Spans from elsewhere are taken by the server, at /v1/traces. Needs opentelemetry-sdk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops.lazy import load_by_name

if TYPE_CHECKING:
    from llm_cost_ops.telemetry.processor import CostOpsSpanProcessor

_NAMES = {"processor": "CostOpsSpanProcessor"}

__all__ = ["CostOpsSpanProcessor"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = load_by_name(__name__, _NAMES, "opentelemetry-sdk")
