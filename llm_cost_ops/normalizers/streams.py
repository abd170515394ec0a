"""Putting a streamed response together, and taking responses out of what they come wrapped in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import msgspec

from llm_cost_ops._gen.messages import Outcome
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import as_mapping, section, text

__all__ = ["Streamed", "Unwrapped", "fold", "fold_all", "is_stream", "is_wrapper", "unwrap"]

_EMPTY: tuple[object, ...] = (None, "", [], {})


class Streamed(NamedTuple):
    """What a stream amounts to. `complete` is False when it broke off before its final counts."""

    payload: dict[str, Any]
    api: str
    complete: bool


def is_stream(response: object) -> TypeGuard[Iterable[object]]:
    """Whether this is a list or an iterator of events, not a response."""
    return (
        isinstance(response, (list, tuple))
        or (isinstance(response, Iterator) and not isinstance(response, Mapping))
        or _is_iterable(response)
    )


def _is_iterable(response: object) -> bool:
    """Something to iterate over that has no fields: botocore's EventStream is no iterator."""
    kind = type(response)
    known = (Mapping, str, bytes, msgspec.Struct)
    return (
        hasattr(kind, "__iter__")
        and not isinstance(response, known)
        and not any(hasattr(kind, name) for name in ("model_fields", "model_dump", "to_dict", "keys"))
    )


def fold(events: Iterable[object]) -> Streamed:
    """One payload from the events of any provider, given as dicts, SDK objects or parsed SSE.

    PayloadError when the events are of more than one response.
    """
    found = fold_all(events)
    if len(found) > 1:
        raise PayloadError("", "the events are of more than one response: usages_from_response reads them")
    return found[0]


def fold_all(events: Iterable[object]) -> list[Streamed]:
    """The payloads of all responses in the events, in order; at least one."""
    states = [_State()]
    for index, event in enumerate(events):
        fields = _data(event, index)
        if not fields:
            continue
        try:
            states[-1].take(fields)
        except _AnotherResponseError:
            states.append(_State())
            states[-1].take(fields)
    return [Streamed(state.payload, state.api, state.complete) for state in states]


class _AnotherResponseError(Exception):
    """The event begins, or ends, a response after one that is complete."""


def _data(event: object, index: int) -> dict[str, object]:
    """The data of an event: itself, or what its SSE field `data` holds."""
    fields = as_mapping(event, f"[{index}]")
    chunk = fields.get("chunk")
    if isinstance(chunk, Mapping) and isinstance(chunk.get("bytes"), bytes):
        fields = {"data": chunk["bytes"]}
    data = fields.get("data")
    if data is None or not fields.keys() <= {"event", "data", "id", "retry"}:
        return fields
    if isinstance(data, (str, bytes)):
        if data in ("[DONE]", b"[DONE]", "", b""):
            return {}
        try:
            data = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PayloadError(f"[{index}].data", f"is not JSON: {error}") from None
    return as_mapping(data, f"[{index}].data")


class _State:
    def __init__(self) -> None:
        self.payload: dict[str, Any] = {}
        self.api = ""
        self.complete = True
        self._responses = 0
        self._counted = ""

    def take(self, event: dict[str, object]) -> None:
        kind = text(event, "type")
        if "serverContent" in event or "server_content" in event:
            if event.get("usageMetadata") or event.get("usage_metadata"):
                # Each usage of a Live session is that of one turn.
                self._once()
                self._merge(event)
        elif text(event, "event_type") == "stream-end":
            self._once()
            self._merge(section(event, "response", "response") or {})
        elif "interaction" in event:
            self._merge(section(event, "interaction", "interaction") or {})
            self._merge(section(event, "metadata", "metadata") or {})
        elif kind == "content_block_start":
            block = section(event, "content_block", "content_block") or {}
            to = section(block, "to", "content_block.to") if text(block, "type") == "fallback" else None
            if to and text(to, "model"):
                self.payload["model"] = text(to, "model")
        elif kind == "message_start":
            self._start_message(event)
        elif kind == "message_delta":
            self._update_usage(event)
        elif kind.startswith("response."):
            self._take_response(event, kind)
        elif kind == "message-end":
            delta = section(event, "delta", "delta") or {}
            self._merge({"id": event.get("id"), "usage": delta.get("usage")})
        elif "metadata" in event and "usage" in (metadata := section(event, "metadata", "metadata") or {}):
            self._merge(metadata)
        elif text(event, "object").endswith(".chunk"):
            self._take_chunk(event)
        elif kind in ("", "message-start", "speech.audio.done", "transcript.text.done") or "usage" in event:
            self._merge(event)

    def _merge(self, fields: dict[str, object]) -> None:
        """Later events win, but what they leave empty stays."""
        self.payload.update((key, value) for key, value in fields.items() if value not in _EMPTY)

    def _take_chunk(self, event: dict[str, object]) -> None:
        """Chunks of chat: usage under another id than the usage before is another call's."""
        if event.get("usage"):
            response_id = text(event, "id")
            if self._counted and response_id and response_id != self._counted:
                raise _AnotherResponseError
            self._counted = response_id or self._counted
        self._merge(event)

    def _start_message(self, event: dict[str, object]) -> None:
        """Anthropic's first event has the input; the output is final with the last message_delta only."""
        message = as_mapping(event.get("message"), "message")
        usage = section(message, "usage", "message.usage") or {}
        self._once()
        self.payload = {**message, "usage": dict(usage)}
        self.api = "anthropic.messages"
        self.complete = False

    def _update_usage(self, event: dict[str, object]) -> None:
        usage = section(event, "usage", "usage")
        if usage is not None:
            # The counts are cumulative: they replace, they do not add up.
            kept = self.payload.setdefault("usage", {})
            whole = "iterations" in usage
            for key, value in usage.items():
                before = kept.get(key)
                if value is None or (value == 0 and type(value) is int and before and not whole):
                    # Gateways send 0 for what they do not know; with iterations a 0 is a count.
                    continue
                kept[key] = value
            self.api = "anthropic.messages"
            self.complete = True

    def _take_response(self, event: dict[str, object], kind: str) -> None:
        response = section(event, "response", "response")
        if response is None:
            return
        if kind in ("response.completed", "response.done", "response.incomplete", "response.failed"):
            self._once()
        self.payload = response
        is_realtime = kind == "response.done" or response.get("object") == "realtime.response"
        self.api = "openai.realtime" if is_realtime else "openai.responses"

    def _once(self) -> None:
        self._responses += 1
        if self._responses > 1:
            raise _AnotherResponseError


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
