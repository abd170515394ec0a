"""OpenTelemetry: the spans of calls become usage records, in the process that makes them.

    provider.add_span_processor(CostOpsSpanProcessor(client))

Spans from elsewhere are taken by the server, at /v1/traces. Needs opentelemetry-sdk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_cost_ops.rpc.extras import missing_library

if TYPE_CHECKING:
    from llm_cost_ops.telemetry.processor import CostOpsSpanProcessor

__all__ = ["CostOpsSpanProcessor"]


def __getattr__(name: str) -> Any:
    if name != "CostOpsSpanProcessor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from llm_cost_ops.telemetry.processor import CostOpsSpanProcessor
    except ImportError as error:
        raise missing_library(error, name, "opentelemetry-sdk") from None

    globals()[name] = CostOpsSpanProcessor
    return CostOpsSpanProcessor
