"""Recording what a provider's SDK does: its client is wrapped, on the instance, and each call that it makes
becomes one record. No SDK is imported; what to wrap is told from the client's own parts.
"""

from __future__ import annotations

from llm_cost_ops.instrumentation.calls import Options, RecordingProxy, Sink
from llm_cost_ops.instrumentation.hooks import instrument, uninstrument

__all__ = ["Options", "RecordingProxy", "Sink", "instrument", "uninstrument"]
