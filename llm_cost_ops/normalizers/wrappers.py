"""What responses come wrapped in: lines of batch results, and events that carry a whole response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_cost_ops._gen.messages import Outcome
from llm_cost_ops.normalizers.reading import as_mapping, section, text

__all__ = ["Unwrapped", "is_wrapper", "unwrap"]

_OUTCOMES = {"errored": Outcome.FAILED, "expired": Outcome.FAILED, "canceled": Outcome.CANCELLED}


class Unwrapped(NamedTuple):
    """A response out of its wrapper. `api` is "" unless the wrapper tells it."""

    payload: dict[str, Any]
    api: str = ""
    processing: str = ""
    outcome: Outcome = Outcome.UNSPECIFIED


def is_wrapper(payload: dict[str, object]) -> bool:
    """Whether a provider wrapped a response in this, rather than the caller."""
    if "custom_id" in payload and ("response" in payload or "result" in payload):
        return True
    if "response" not in payload:
        return False
    return text(payload, "type").startswith("response.") or "key" in payload or "processed_time" in payload


def unwrap(payload: dict[str, object]) -> Unwrapped:
    """The response inside; the payload itself when it is none of the known wrappers.

    Requests of a batch that failed are not billed: their counts are 0, their outcome says why.
    """
    if not is_wrapper(payload):
        inner = payload.get("response")
        if isinstance(inner, Mapping) and inner.get("object") == "realtime.response":
            # A realtime response beside its model, without the type of the event.
            return Unwrapped({"model": payload.get("model"), **inner}, "openai.realtime")
        return Unwrapped(payload)
    if "result" in payload:
        return _anthropic_batch(as_mapping(payload["result"], "result"))
    response = section(payload, "response", "response") or {}
    if "custom_id" in payload:
        return _openai_batch(response)
    if text(payload, "type").startswith("response."):
        # The Realtime API and the Responses API share the event's name.
        realtime = text(payload, "type") == "response.done" or response.get("object") == "realtime.response"
        return Unwrapped(response, "openai.realtime" if realtime else "openai.responses")
    return Unwrapped(response, "google.generate", "batch")


def _anthropic_batch(result: dict[str, object]) -> Unwrapped:
    message = section(result, "message", "result.message")
    if message is not None:
        return Unwrapped(message, "anthropic.messages", "batch")
    outcome = _OUTCOMES.get(text(result, "type"), Outcome.FAILED)
    return Unwrapped({}, "anthropic.messages", "batch", outcome)


def _openai_batch(response: dict[str, object]) -> Unwrapped:
    body = section(response, "body", "response.body") or {}
    if body.get("error") is not None or not body:
        return Unwrapped({}, "openai.chat", "batch", Outcome.FAILED)
    return Unwrapped(body, "", "batch")
