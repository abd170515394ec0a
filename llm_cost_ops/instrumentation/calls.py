"""One call of an SDK: what it is, from its request, and the record that its answer makes.

`Call` is filled in on the caller's thread and does next to nothing there; the answer is decoded and read when
the recorder's thread asks for the record.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from llm_cost_ops._gen.messages import UsageQuality, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.aws import region_of
from llm_cost_ops.normalizers.providers import APIS, UNIQUE_IDS
from llm_cost_ops.normalizers.record import fit_texts
from llm_cost_ops.normalizers.tolerant import decode_tolerantly
from llm_cost_ops.normalizers.usage import usage_from_response

__all__ = [
    "KEY_HEADER",
    "PROVIDER_HEADER",
    "Call",
    "Options",
    "RecordingProxy",
    "Sink",
    "model_in_path",
]

SOURCE = "instrument"

_log = logging.getLogger("llm_cost_ops.instrumentation")

KEY_HEADER = "x-lco-idempotency-key"
"""The header in which an instrumented client sends the recording proxy the key of a call."""

PROVIDER_HEADER = "x-lco-provider"
"""The header in which the recording proxy says that it records a call, and which provider serves it."""

# Types of events after which nothing more is counted.
_FINAL_TYPES = frozenset({
    "message_stop", "message-end", "response.completed", "response.incomplete", "response.failed",
    "response.done", "speech.audio.done", "transcript.text.done", "image_generation.completed",
    "image_edit.completed", "conversation.response.done", "interaction.completed",
})  # fmt: skip
_FORM_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]+)\r\n')
_PATH_MODEL = re.compile(r"(?:^|/)(?:models?|deployments)/([^/:?]+)")


class Sink(Protocol):
    """Where records go: a client's recorder."""

    def observe(self, build: Callable[[], UsageRecord], attributes: Any) -> None:
        """Take a record that is built later."""

    def observe_abandoned(self, build: Callable[[], UsageRecord], attributes: Any) -> None:
        """The same, perhaps from a finalizer, which may run in any place: takes no lock."""

    def expect(self) -> None:
        """Prepare for a record that may come from a finalizer."""


class RecordingProxy(msgspec.Struct, frozen=True, kw_only=True):
    """A recording proxy (`llm-cost-ops proxy`), and what calls through it carry."""

    url: str
    headers: Callable[[Any], dict[str, str]]
    """What a call with such attributes carries there, for it to be recorded as theirs."""

    def serves(self, url: Any) -> bool:
        """Whether a URL of httpx lies on it."""
        own = urlsplit(self.url)
        port = {"http": 80, "https": 443}
        return (own.scheme, own.hostname, own.port or port.get(own.scheme)) == (
            url.scheme,
            url.host,
            url.port or port.get(url.scheme),
        )


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How calls of a client are recorded."""

    sink: Sink
    attributes: Callable[[], Any]
    """Whose a call is that is made here and now; what it gives goes back to the sink."""
    provider: str = ""
    """Who serves the calls, when the host does not tell."""
    stream_usage: bool | Literal["auto"] = "auto"
    """Whether chat streams are asked for their usage; "auto": where the host is known to take it."""
    sdk: str = ""
    """The SDK's package."""
    proxy: RecordingProxy | None = None
    """The proxy that calls may go to."""
    source: str = SOURCE
    """What saw the calls: the `source` of their records."""


class _Asked(msgspec.Struct):
    """What of a request's body is read."""

    model: str = ""
    input: Any = None


# Made while the module is loaded, by one thread: see wire.json.decoder_of.
_requests = msgspec.json.Decoder(_Asked)
_answers: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Call:
    """One call, from its request to the record that is made of its answer.

    `key` is the record's idempotency key where the answer has no id that is unique; "" for one of its own.
    `trace` are the ids of the trace and the span around the call. With `left_to_proxy` the recording
    proxy records the call if its answer ends normally, and only one that breaks off is recorded here.
    """

    __slots__ = (
        "_abandonable", "_attributes", "_done", "_options", "_started", "api", "billed_model", "body",
        "events", "finished", "key", "latency_ms", "left_to_proxy", "model", "provider", "request_body",
        "time_to_first_ms", "timed", "trace", "unique",
    )  # fmt: skip

    def __init__(
        self, options: Options, api: str, provider: str, *, known_host: bool, model: str = ""
    ) -> None:
        self._options = options
        self._attributes = options.attributes()
        self.trace = _current_span()
        self._started = time.monotonic()
        self._abandonable = self._done = False
        self.api = api
        self.provider = provider
        self.unique = (known_host or bool(options.provider)) and provider in UNIQUE_IDS
        self.key = ""
        self.left_to_proxy = False
        self.model = model
        self.request_body: Callable[[], bytes] = bytes
        self.body: Callable[[], Any] | None = None
        self.events: Callable[[], list[bytes]] | None = None
        self.billed_model = ""
        """What the path names and is billed, where the answer names the model otherwise."""
        self.finished = False
        self.timed = True
        self.latency_ms: int | None = None
        self.time_to_first_ms: int | None = None

    @property
    def attributes(self) -> Any:
        """Whose the call is."""
        return self._attributes

    def served_by(self, provider: str) -> None:
        """Whom the call went to in the end, where only the answer tells."""
        if not self._options.provider:
            self.provider = provider
            self.unique = provider in UNIQUE_IDS

    def first_byte(self) -> None:
        """Note when the first bytes of a stream came."""
        if self.time_to_first_ms is None:
            self.time_to_first_ms = self._elapsed()

    def begin_stream(self) -> None:
        """The answer is a stream: when the caller drops it, what was seen so far is recorded."""
        self._options.sink.expect()
        self._abandonable = True

    def finish(self, *, finished: bool) -> None:
        """Record the call: its answer is complete, or was broken off. The second time does nothing."""
        if not self._done:
            self._done = True
            self._note_time()
            self.finished = finished
            self._abandonable = False
            if finished and self.left_to_proxy:
                return
            # What is broken off may be so by the garbage collector.
            sink = self._options.sink
            (sink.observe if finished else sink.observe_abandoned)(self.record, self._attributes)

    def drop(self) -> None:
        """End without a record."""
        self._done = True
        self._abandonable = False

    def wait(self) -> None:
        """The answer will be fetched later: drop the request, and measure no durations."""
        self.begin_stream()
        self.model = self._asked().model or self.model
        self.request_body = bytes
        self.timed = False
        self.time_to_first_ms = None

    def answer_later(self, fetched: Call) -> None:
        """Record what was fetched as the answer."""
        fetched.drop()
        self.body, self.events = fetched.body, fetched.events
        self.finish(finished=True)

    def __del__(self) -> None:
        if getattr(self, "_abandonable", False):
            # The collector may close the stream after this.
            self._done = True
            self._abandonable = False
            self._note_time()
            self._options.sink.observe_abandoned(_Kept(self).record, self._attributes)

    def _note_time(self) -> None:
        if self.timed:
            self.latency_ms = self._elapsed()

    def _elapsed(self) -> int:
        return int((time.monotonic() - self._started) * 1000)

    def record(self) -> UsageRecord:
        """The record of the call."""
        asked = self._asked()
        model = asked.model or self.model
        try:
            payload = self._payload(asked, model)
            api = None if isinstance(payload, list) and self.api in _STREAMS_TELL else self.api or None
            named: dict[str, Any] = {"model_id": model} if model and api in _NAMELESS else {}
            if self.billed_model:
                named = {"model_id": self.billed_model, "region": region_of(self.billed_model)}
            record = usage_from_response(payload, provider=self.provider, api=api, **named)
        except (PayloadError, ValueError, TypeError, RecursionError):
            # The call was made and is billed, though its answer can't be read.
            record = UsageRecord(provider=self.provider, quality=UsageQuality.UNKNOWN)
        if not self.finished:
            # Counts and cost, where any came, are those so far.
            record.quality, record.reported_cost = UsageQuality.UNKNOWN, None
        record.provider = record.provider or APIS.get(self.api, ("", None))[0] or "unknown"
        if model and record.model_id and record.model_id != model and not record.requested_model_id:
            record.requested_model_id = model
        record.model_id = record.model_id or model or "unknown"
        if not (self.unique and record.idempotency_key):
            record.idempotency_key = self.key
        record.observation = True
        record.source = record.source or self._options.source
        record.latency_ms = self.latency_ms
        record.time_to_first_token_ms = self.time_to_first_ms
        record.trace_id, record.span_id = self.trace
        fit_texts(record)
        if self.finished and self.events is not None and record.quality == UsageQuality.UNKNOWN:
            _warn_of_silent(record.provider, self.api)
        return record

    def _asked(self) -> _Asked:
        body = self.request_body()
        if body[:1] == b"{":
            try:
                return decode_tolerantly(_requests, body)
            except (ValueError, RecursionError):
                return _Asked()
        found = _FORM_MODEL.search(body)
        return _Asked(model=found[1].decode("utf-8", "replace") if found else "")

    def _payload(self, asked: _Asked, model: str) -> Any:
        if self.events is not None:
            events = [event for data in self.events() if (event := _decoded(data)) is not None]
            self.finished = self.finished or any(_is_final(event) for event in events)
            return events
        if self.api == "openai.speech":
            # The sound says nothing of its cost. The models before tokens are billed by the character.
            by_character = model.startswith("tts-1") and isinstance(asked.input, str)
            return {"model": model, "usage": {"characters": len(asked.input)} if by_character else None}
        body = b"" if self.body is None else self.body()
        if isinstance(body, dict):
            return body
        if self.api == "openai.embeddings":
            # The vectors are not looked at.
            parts = decode_tolerantly(_fields, body)
            return {name: msgspec.json.decode(raw) for name, raw in parts.items() if name != "data"}
        if self.api in _STREAMS_OF_LINES and b"\n{" in body:
            return [event for line in body.splitlines() if (event := _decoded(line)) is not None]
        payload = decode_tolerantly(_answers, body)
        if isinstance(payload, list) and self.api == "google.generate":
            return payload  # a stream that was not asked for as events
        if not isinstance(payload, dict):
            raise PayloadError("", "is not an object")
        return payload


# Providers whose streams were seen to end without usage.
_silent: set[str] = set()


def _warn_of_silent(provider: str, api: str) -> None:
    """Warn, once for each provider, that the cost of its streams is not known, and how it would be."""
    if provider in _silent:
        return
    _silent.add(provider)
    how = ""
    if api == "openai.chat":
        how = ': ask for it with stream_options={"include_usage": True}, or instrument(…, stream_usage=True)'
    _log.warning("a stream of %s ended without usage, and what it cost is not known%s", provider, how)


class _Kept:
    """A copy of a call that is being garbage-collected, to make its record later."""

    def __init__(self, call: Call) -> None:
        kept = object.__new__(Call)
        for name in Call.__slots__:
            setattr(kept, name, getattr(call, name, None))
        self.record = kept.record


# The APIs whose answers do not name the model.
_NAMELESS = frozenset({"bedrock.converse", "bedrock.invoke", "cohere.chat"})
# The APIs whose streams may be lines of JSON: Ollama's are, and Cohere's of its first version by default.
_STREAMS_OF_LINES = frozenset({"cohere.chat", "ollama"})
# The APIs whose streams say by their events which they are.
_STREAMS_TELL = frozenset({
    "anthropic.messages", "google.interactions", "openai.images", "openai.responses", "openai.transcription",
})  # fmt: skip


# The mark of the end, as the normalizers know it.
_DONE: dict[str, Any] = {"data": "[DONE]"}


def _decoded(data: bytes) -> dict[str, Any] | None:
    """The event of some data: `_DONE` for the end mark, None for what is no event."""
    if data.strip() == b"[DONE]":
        return _DONE
    try:
        event = decode_tolerantly(_answers, data)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _is_final(event: dict[str, Any]) -> bool:
    """Whether the counts of a stream do not change after this event."""
    if event is _DONE or event.get("type", event.get("event_type")) in _FINAL_TYPES:
        return True
    if event.get("type") == "message_delta":
        delta = event.get("delta")
        return isinstance(delta, dict) and bool(delta.get("stop_reason"))
    if "candidates" in event:
        candidates = event["candidates"]
        return any(isinstance(each, dict) and each.get("finishReason") for each in candidates or ())
    return event.get("choices") == [] and isinstance(event.get("usage"), dict)


def model_in_path(path: str) -> str:
    """The model that a path names: "" where it names none."""
    found = _PATH_MODEL.search(path)
    return found[1] if found else ""


def _current_span() -> tuple[str, str]:
    """The ids of the OpenTelemetry span around the call, in hexadecimal."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return "", ""
