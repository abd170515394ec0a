"""A callback handler for LangChain.

    model.invoke("hi", config={"callbacks": [CostOpsCallbackHandler(client)]})

It can't see embeddings, which have no callbacks, nor, where the model does not ask for it, the usage of
streams: ChatOpenAI with a `base_url` needs `stream_usage=True`, or its streams are of unknown usage.
Streams have no id of the provider's, so that one which something else records too counts twice: where that
matters, instrument the model's client instead (`client.instrument(model)`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack
from urllib.parse import urlsplit

from langchain_core.callbacks import BaseCallbackHandler

from llm_cost_ops.callbacks.records import Open, counted_record, payload_record, require, unknown_record
from llm_cost_ops.client.attribution import AttributionFields
from llm_cost_ops.client.observer import Observer
from llm_cost_ops.rules.providers import served_by
from llm_cost_ops.types import UsageRecord

if TYPE_CHECKING:
    from uuid import UUID

    from langchain_core.outputs import LLMResult

    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["CostOpsCallbackHandler"]

# Older ones call back for what their cache answers, and not for streams that are closed early.
require("langchain-core", "0.3")

_SOURCE = "langchain"

# What LangChain says of a call's model when it begins.
Stated = Mapping[str, str | None] | None


class _Begun(NamedTuple):
    provider: str = ""
    model: str = ""
    at: float | None = None
    host: str = ""

    def served_by(self, stated: str | None) -> str:
        """Who serves the call: LangChain says openai of every model that has OpenAI's API."""
        return served_by(stated or self.provider, self.host)

    def latency_ms(self) -> int | None:
        return None if self.at is None else int((time.monotonic() - self.at) * 1000)


class CostOpsCallbackHandler(BaseCallbackHandler):
    """Records the calls of chat models and LLMs, sync and async, whole and streamed.

    Without a client it is one that the environment sets up, as for `llm_cost_ops.instrument`. Calls count as
    those of the block of `attribute` around them, else as `attribution` says (the fields of `attribute`).
    Failed calls are not recorded; a stream that is broken off is of unknown usage; what LangChain's cache
    answers is no call.
    """

    # In the caller's own task, whose block of `attribute` it sees.
    run_inline = True

    def __init__(
        self,
        client: CostOpsClient | AsyncCostOpsClient | None = None,
        **attribution: Unpack[AttributionFields],
    ) -> None:
        super().__init__()
        self._observer = Observer(client, attribution)
        self._open: Open[_Begun] = Open()

    def on_chat_model_start(
        self, serialized: object, messages: object, *, run_id: UUID, metadata: Stated = None, **_: object
    ) -> None:
        """A call of a chat model begins."""
        self._begin(run_id, metadata, serialized)

    def on_llm_start(
        self, serialized: object, prompts: object, *, run_id: UUID, metadata: Stated = None, **_: object
    ) -> None:
        """A call of a model for texts begins."""
        self._begin(run_id, metadata, serialized)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: object) -> None:
        """A call is answered."""
        begun = self._open.end(str(run_id)) or _Begun()
        if not _is_cached(response):
            self._observer.take(partial(_record, response, begun, begun.latency_ms()))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **found: object) -> None:
        """A call failed, or its stream was broken off: then it is billed for what was made."""
        begun = self._open.end(str(run_id)) or _Begun()
        generation = _first(found.get("response"))
        if type(generation).__name__.endswith("Chunk"):
            details = getattr(getattr(generation, "message", None), "response_metadata", None) or {}
            provider = begun.served_by(details.get("model_provider"))
            self._observer.take(partial(unknown_record, source=_SOURCE, provider=provider, model=begun.model))

    def _begin(self, run_id: UUID, metadata: Stated, model: object) -> None:
        known = metadata or {}
        begun = _Begun(
            known.get("ls_provider") or "",
            known.get("ls_model_name") or "",
            time.monotonic(),
            _host_of(model, known.get("ls_provider")),
        )
        self._open.begin(str(run_id), begun)


def _host_of(model: object, provider: str | None) -> str:
    """The host that a model of OpenAI's API calls, where that is stated or in the environment; else ""."""
    options = model.get("kwargs") if isinstance(model, dict) else None
    url = options.get("openai_api_base") if isinstance(options, dict) else None
    if url is None and provider == "openai":
        url = os.environ.get("OPENAI_BASE_URL")  # OpenAI's SDK reads it
    try:
        return (urlsplit(url).hostname or "") if isinstance(url, str) else ""
    except ValueError:
        return ""


def _first(response: object) -> object:
    generations: list[list[object]] = getattr(response, "generations", None) or []
    return generations[0][0] if generations and generations[0] else None


def _is_cached(response: LLMResult) -> bool:
    usage = getattr(getattr(_first(response), "message", None), "usage_metadata", None)
    return isinstance(usage, dict) and usage.get("total_cost") == 0


def _record(response: LLMResult, begun: _Begun, latency_ms: int | None) -> UsageRecord:
    message = getattr(_first(response), "message", None)
    details = {
        **(getattr(response, "llm_output", None) or {}),
        **(getattr(message, "response_metadata", None) or {}),
    }
    provider = begun.served_by(details.get("model_provider"))
    model = details.get("model_name") or details.get("model") or begun.model
    payload = {name: details.get(name) for name in ("id", "model", "service_tier")}
    payload["model"] = payload["model"] or model
    stated, raw = details.get("token_usage"), details.get("usage")
    if isinstance(stated, dict) and "prompt_tokens" in stated:
        record = payload_record(
            {**payload, "usage": stated}, source=_SOURCE, provider=provider, api="openai.chat"
        )
    elif isinstance(raw, dict) and provider == "anthropic":
        record = payload_record(
            {**payload, "usage": raw}, source=_SOURCE, provider=provider, api="anthropic.messages"
        )
    else:
        usage = getattr(message, "usage_metadata", None) or {}
        record = counted_record(
            source=_SOURCE,
            provider=provider,
            model=model,
            response_id=details.get("id") or _own_id(message),
            **_counts(usage),
        )
    record.latency_ms = latency_ms
    return record


def _own_id(message: object) -> str:
    """The id of a message, where it is the provider's."""
    given = getattr(message, "id", None) or ""
    return "" if given.startswith(("lc_", "run-")) else given


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """LangChain's counts: details may have the service tier before their names."""
    given, returned = usage.get("input_token_details") or {}, usage.get("output_token_details") or {}
    long = given.get("ephemeral_1h_input_tokens") or 0
    return {
        "input_tokens": usage.get("input_tokens"),
        "output_tokens": usage.get("output_tokens"),
        "cached": _sum(given, "cache_read"),
        "written": _sum(given, "cache_creation") + (given.get("ephemeral_5m_input_tokens") or 0) + long,
        "cache_write_extended_tokens": long,
        "reasoning_tokens": _sum(returned, "reasoning"),
        "audio": (given.get("audio"), 0, returned.get("audio")),
        "service_tier": next((tier for tier in ("flex", "priority") if tier in given), ""),
    }


def _sum(details: Mapping[str, int | None], name: str) -> int:
    return sum(details.get(f"{tier}{name}") or 0 for tier in ("", "flex_", "priority_"))
