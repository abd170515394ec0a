"""An event handler for LlamaIndex.

    get_dispatcher().add_event_handler(CostOpsEventHandler(client))

It can't see embeddings, whose events have no usage, nor the usage of streams that do not ask for it
(`additional_kwargs={"stream_options": {"include_usage": True}}` for its OpenAI): these are of unknown
usage.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from pydantic import PrivateAttr

from llm_cost_ops.callbacks.records import Open, payload_record, require, unknown_record
from llm_cost_ops.client.attribution import AttributionFields
from llm_cost_ops.client.observer import Observer
from llm_cost_ops.types import UsageRecord

if TYPE_CHECKING:
    from llama_index.core.instrumentation.events import BaseEvent

    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["CostOpsEventHandler"]

# Handlers of older ones are models of pydantic 1.
require("llama-index-core", "0.11")

_SOURCE = "llama_index"
# What LlamaIndex calls its models -> who serves them. Of others the answer tells.
_PROVIDERS = {
    "openai_llm": "openai",
    "openai_responses_llm": "openai",
    "azure_openai_llm": "azure",
    "Anthropic_LLM": "anthropic",
}


class _Begun:
    def __init__(self, model: str, provider: str) -> None:
        self.model, self.provider = model, provider
        self.at = time.monotonic()
        self.seen: Any = None


class CostOpsEventHandler(BaseEventHandler):
    """Records chats and completions, sync and async, whole and streamed.

    Without a client it is one that the environment sets up, as for `llm_cost_ops.instrument`. Calls count as
    those of the block of `attribute` around them, else as `attribution` says (the fields of `attribute`).
    Failed calls are not recorded; a stream that is broken off is of unknown usage.
    """

    _observer: Observer = PrivateAttr()
    _open: Open[_Begun] = PrivateAttr()

    def __init__(
        self,
        client: CostOpsClient | AsyncCostOpsClient | None = None,
        **attribution: Unpack[AttributionFields],
    ) -> None:
        super().__init__()
        self._observer = Observer(client, attribution)
        self._open = Open()

    @classmethod
    def class_name(cls) -> str:
        """The name by which LlamaIndex knows handlers."""
        return "CostOpsEventHandler"

    def handle(self, event: BaseEvent, **_: object) -> None:
        """Record a call that has ended."""
        kind, call_id = event.class_name(), event.span_id or ""
        if kind in ("LLMChatStartEvent", "LLMCompletionStartEvent"):
            model = event.model_dict
            named = model.get("model") or model.get("model_name") or ""
            self._open.begin(call_id, _Begun(named, _PROVIDERS.get(model.get("class_name") or "", "")))
        elif kind in ("LLMChatInProgressEvent", "LLMCompletionInProgressEvent"):
            begun = self._open.find(call_id)
            if begun is not None:
                begun.seen = event.response.raw
        elif kind in ("LLMChatEndEvent", "LLMCompletionEndEvent"):
            begun = self._open.end(call_id) or _Begun("", "")
            if event.response is not None:
                latency_ms = int((time.monotonic() - begun.at) * 1000)
                self._observer.take(partial(_record, event.response.raw, begun, latency_ms))
        elif kind in ("ExceptionEvent", "SpanDropEvent"):
            begun = self._open.end(call_id)
            if begun is not None and begun.seen is not None:
                self._observer.take(partial(_broken_off, begun))


def _record(raw: object, begun: _Begun, latency_ms: int) -> UsageRecord:
    # The last event of a stream of responses has the response in it.
    raw = getattr(raw, "response", None) or raw
    record = payload_record(raw or {}, source=_SOURCE, provider=begun.provider, model=begun.model)
    record.latency_ms = latency_ms
    return record


def _broken_off(begun: _Begun) -> UsageRecord:
    response_id = getattr(begun.seen, "id", None)
    return unknown_record(
        source=_SOURCE,
        provider=begun.provider,
        model=begun.model,
        response_id=response_id if isinstance(response_id, str) else "",
    )
