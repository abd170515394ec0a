"""Putting a streamed response together: the events, in order, become one payload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.reading import as_mapping, section, text

__all__ = ["Streamed", "fold", "is_stream"]

_EMPTY: tuple[object, ...] = (None, "", [], {})


class Streamed(NamedTuple):
    """What a stream amounts to. `complete` is False when it broke off before its final counts."""

    payload: dict[str, Any]
    api: str
    complete: bool


def is_stream(response: object) -> bool:
    """Whether this is a list or an iterator of events, not a response."""
    return isinstance(response, (list, tuple)) or (
        isinstance(response, Iterator) and not isinstance(response, Mapping)
    )


def fold(events: Iterable[object]) -> Streamed:
    """One payload from the events of any provider, given as dicts, SDK objects or parsed SSE."""
    state = _State()
    for index, event in enumerate(events):
        fields = _data(event, index)
        if fields:
            state.take(fields)
    return Streamed(state.payload, state.api, state.complete)


def _data(event: object, index: int) -> dict[str, object]:
    """The data of an event: itself, or what its SSE field `data` holds."""
    fields = as_mapping(event, f"[{index}]")
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

    def take(self, event: dict[str, object]) -> None:
        kind = text(event, "type")
        if kind == "message_start":
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
        elif kind in ("", "message-start", "speech.audio.done", "transcript.text.done") or "usage" in event:
            self._merge(event)

    def _merge(self, fields: dict[str, object]) -> None:
        """Later events win, but what they leave empty stays."""
        self.payload.update((key, value) for key, value in fields.items() if value not in _EMPTY)

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
            kept.update((key, value) for key, value in usage.items() if value is not None)
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
            raise PayloadError("", "the events are of more than one response; record each on its own")
