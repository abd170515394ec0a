"""A logger for LiteLLM.

    litellm.callbacks = [CostOpsLogger(client)]

It can't see streams that are closed early, for which LiteLLM calls nobody back. Of streams that were not
asked for their usage (`stream_options={"include_usage": True}`) LiteLLM counts the tokens by itself: they
are estimated. Anthropic's and some others' answers get ids of LiteLLM's own: a call that something else
records too counts twice.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from litellm.integrations.custom_logger import CustomLogger

from llm_cost_ops.callbacks.records import Open, payload_record, require
from llm_cost_ops.client.attribution import Attributes, AttributionFields, current_attributes
from llm_cost_ops.client.observer import Observer
from llm_cost_ops.imports.values import nested, text
from llm_cost_ops.types import UsageQuality, UsageRecord

if TYPE_CHECKING:
    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["CostOpsLogger"]

# Older ones may call back with counts of their own of a stream that states its usage.
require("litellm", "1.63")

_SOURCE = "litellm"


class _Known(NamedTuple):
    provider: str
    model: str
    user: str
    estimated: bool


class CostOpsLogger(CustomLogger):
    """Records the calls that LiteLLM makes, sync and async, whole and streamed.

    Without a client it is one that the environment sets up, as for `llm_cost_ops.instrument`. Calls count as
    those of the block of `attribute` around them, else as `attribution` says (the fields of `attribute`).
    Failed calls are not recorded, nor is what LiteLLM's cache answers.
    """

    def __init__(
        self,
        client: CostOpsClient | AsyncCostOpsClient | None = None,
        **attribution: Unpack[AttributionFields],
    ) -> None:
        super().__init__()
        self._observer = Observer(client, attribution)
        self._open: Open[Attributes] = Open()

    def log_pre_api_call(self, model: object, messages: object, kwargs: Mapping[str, object]) -> None:
        """A call begins. Only this event comes on the caller's thread."""
        self._open.begin(str(kwargs.get("litellm_call_id")), current_attributes())

    def log_success_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """A call is answered."""
        within = self._open.end(str(kwargs.get("litellm_call_id")))
        if not kwargs.get("cache_hit"):
            seconds = (end_time - start_time).total_seconds()
            self._observer.take(partial(_record, _known(kwargs), response_obj, int(seconds * 1000)), within)

    async def async_log_success_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """The same, of a call that was awaited."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    def log_failure_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """A call failed: nothing was billed."""
        self._open.end(str(kwargs.get("litellm_call_id")))

    async def async_log_failure_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """The same, of a call that was awaited."""
        self._open.end(str(kwargs.get("litellm_call_id")))


def _known(kwargs: Mapping[str, object]) -> _Known:
    """The parts of a call that are read; the rest, with its messages, is left out."""
    stated = dict(kwargs)
    options = nested(stated, "optional_params")
    asked = nested(options, "stream_options").get("include_usage")
    return _Known(
        provider=text(stated, "custom_llm_provider"),
        model=text(stated, "model"),
        user=text(options, "user") or text(stated, "user"),
        estimated=bool(kwargs.get("stream")) and not asked,
    )


def _record(known: _Known, response: object, latency_ms: int) -> UsageRecord:
    payload: dict[str, Any] = {
        "id": _original_id(getattr(response, "id", None)),
        "model": getattr(response, "model", None) or known.model,
        "service_tier": getattr(response, "service_tier", None),
        "usage": getattr(response, "usage", None),
    }
    # LiteLLM gives usage in the fields of OpenAI's chat, whichever API was called.
    embeds = type(response).__name__ == "EmbeddingResponse"
    api = "openai.embeddings" if embeds else "openai.chat"
    record = payload_record(payload, source=_SOURCE, provider=known.provider, model=known.model, api=api)
    if known.estimated and record.quality != UsageQuality.UNKNOWN:
        record.quality = UsageQuality.ESTIMATED
    record.user_id = known.user[:255]
    record.latency_ms = latency_ms
    return record


def _original_id(given: object) -> str:
    """The provider's id, which LiteLLM packs into another id for responses."""
    found = given if isinstance(given, str) else ""
    if found.startswith("resp_"):
        try:
            packed = base64.b64decode(found.removeprefix("resp_") + "==").decode()
        except (binascii.Error, UnicodeDecodeError):
            return found
        return packed.rpartition("response_id:")[2] or found
    return found
