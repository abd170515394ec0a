"""Putting a streamed response together, and taking responses out of what they come wrapped in."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import msgspec

from llm_cost_ops._gen.messages import Outcome
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import as_mapping, items, section, shallow, text
from llm_cost_ops.normalizers.tolerant import decode_tolerantly

__all__ = ["Streamed", "Unwrapped", "fold", "fold_all", "is_stream", "is_wrapper", "unwrap"]

_EMPTY: tuple[object, ...] = (None, "", [], {})

# Made while the module is loaded, by one thread: see wire.json.decoder_of.
_events: msgspec.json.Decoder[object] = msgspec.json.Decoder()


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
        if fields is None:
            states[-1].end()
        if not fields:
            continue
        try:
            states[-1].take(fields)
        except _AnotherResponseError:
            states.append(_State())
            states[-1].take(fields)
    return [Streamed(state.payload, state.api, state.complete and not state.is_cut()) for state in states]


class _AnotherResponseError(Exception):
    """The event begins, or ends, a response after one that is complete."""


def _data(event: object, index: int) -> dict[str, object] | None:
    """The data of an event: itself, or what its SSE field `data` holds; None for the mark of the end."""
    fields = as_mapping(event, f"[{index}]")
    chunk = fields.get("chunk")
    if isinstance(chunk, Mapping) and isinstance(chunk.get("bytes"), bytes):
        fields = {"data": chunk["bytes"]}
    data = fields.get("data")
    if data is None or not fields.keys() <= {"event", "data", "id", "retry"}:
        return fields
    if isinstance(data, (str, bytes)):
        if data in ("[DONE]", b"[DONE]"):
            return None
        if not data:
            return {}
        try:
            data = decode_tolerantly(_events, data)
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"[{index}].data", f"is not JSON: {error}") from None
    return as_mapping(data, f"[{index}].data")


class _State:
    def __init__(self) -> None:
        self.payload: dict[str, Any] = {}
        self.api = ""
        self.complete = True
        self._responses = 0
        self._counted = ""
        self._open: set[object] = set()
        self._closed: set[object] = set()
        self._counts_are_final = True
        self._grounding: dict[object, dict[str, object]] = {}
        # Of Claude's messages: whether counts of the output came, and whether the message stopped.
        self._returned = self._stopped = False
        # The answers whose pieces have "" for the reason why they ended, where others have null.
        self._blank: set[object] = set()

    def is_cut(self) -> bool:
        """Whether the last counts are those of a text that was still being written when the stream ended.

        Gemini, xAI, Perplexity and vLLM state the counts so far with every piece of text.
        """
        return bool(self._open) and not self._counts_are_final

    def end(self) -> None:
        """The provider said that nothing more comes: proxies leave out why each answer ended."""
        self._open.clear()
        self._stop()

    def take(self, event: dict[str, object]) -> None:
        kind = text(event, "type")
        if "serverContent" in event or "server_content" in event:
            if event.get("usageMetadata") or event.get("usage_metadata"):
                # Each usage of a Live session is that of one turn.
                self._once()
                self._merge(event)
        elif text(event, "event_type") == "stream-end":
            self._once()
            self._merge(section(event, "response") or {})
        elif "interaction" in event:
            self._merge(section(event, "interaction") or {})
            self._merge(section(event, "metadata") or {})
        elif kind == "content_block_start":
            block = section(event, "content_block") or {}
            to = section(block, "to", "content_block") if text(block, "type") == "fallback" else None
            if to and text(to, "model"):
                self.payload["model"] = text(to, "model")
        elif kind == "message_start":
            self._start_message(event)
        elif kind == "message_delta":
            self._update_usage(event)
        elif kind == "message_stop":
            self._stop()
        elif kind.startswith("response."):
            self._take_response(event, kind)
        elif kind == "message.output.delta":
            # Of Mistral's conversations the text alone says which model writes it.
            self._merge({"model": event.get("model")})
            outputs = self.payload.setdefault("outputs", [])
            if {"model": event.get("model")} not in outputs:
                outputs.append({"model": event.get("model")})
        elif kind == "message-end":
            delta = section(event, "delta") or {}
            self._merge({"id": event.get("id"), "usage": delta.get("usage")})
        elif "metadata" in event and "usage" in (metadata := section(event, "metadata") or {}):
            self._merge(metadata)
        elif "choices" in event or text(event, "object").endswith(".chunk"):
            self._take_chunk(event)
        elif "candidates" in event or "usageMetadata" in event or "usage_metadata" in event:
            self._take_candidates(event)
        elif "generation_token_count" in event:
            self._follow([event], "stop_reason", states=True)
            self._merge(event)
        elif kind in ("", "message-start", "speech.audio.done", "transcript.text.done") or "usage" in event:
            self._merge(event)

    def _merge(self, fields: dict[str, object]) -> None:
        """Later events win, but what they leave empty stays."""
        self.payload.update((key, value) for key, value in fields.items() if value not in _EMPTY)

    def _take_chunk(self, event: dict[str, object]) -> None:
        """Chunks of chat: usage under another id than the usage before is another call's."""
        usage = section(event, "usage")
        if usage:
            response_id = text(event, "id")
            if self._counted and response_id and response_id != self._counted:
                raise _AnotherResponseError
            self._counted = response_id or self._counted
        pieces = event.get("choices")
        if usage and usage.get("completion_tokens") and _are_empty(pieces):
            # OpenRouter states the counts beside a piece without text, after the last that has some.
            self._counts_are_final = not self._open
        else:
            self._follow(pieces, "finish_reason", states=bool(usage))
        for (delta,) in _fields_of(pieces, "delta"):
            tools = shallow(delta) if delta else None
            if tools and tools.get("executed_tools"):
                self._take_tools(items(tools, "executed_tools", "choices.delta"))
        self._merge(event)

    def _take_candidates(self, event: dict[str, object]) -> None:
        """Gemini's chunks, in the spelling of REST or of the SDKs."""
        is_snake = "usage_metadata" in event or "model_version" in event
        states = event.get("usage_metadata" if is_snake else "usageMetadata")
        pieces = event.get("candidates")
        self._follow(pieces, "finish_reason" if is_snake else "finishReason", states=bool(states))
        for index, *found in _fields_of(pieces, "index", "groundingMetadata", "grounding_metadata"):
            for stated in found:
                _add_grounding(self._grounding.setdefault(index or 0, {}), shallow(stated) or {})
        self._merge(event)
        if any(self._grounding.values()):
            # What the text is grounded in may come before its end, and in several chunks.
            self.payload["candidates"] = [{"groundingMetadata": each} for each in self._grounding.values()]

    def _take_tools(self, tools: list[dict[str, object]]) -> None:
        """Groq sends a chunk for each tool when it starts, and another one with its result."""
        found = self.payload.setdefault("executed_tools", {})
        for tool in tools:
            key = tool.get("index")
            if key is None:
                asked = (tool.get("type"), tool.get("arguments"))
                begun = (
                    name
                    for name, other in found.items()
                    if (other.get("type"), other.get("arguments")) == asked and not other.get("output")
                )
                key = (tool.get("output") and next(begun, None)) or f"#{len(found)}"
            found[key] = tool

    def _follow(self, pieces: object, reason: str, *, states: bool) -> None:
        """Note which answers are still being written, and whether the counts came after the last of them.

        `reason` is the field by which a piece of an answer says that it is the last; `states` is whether
        counts came with these pieces.
        """
        if states:
            self._counts_are_final = not pieces
        for index, reasons, delta in _fields_of(pieces, "index", reason, "delta"):
            key = index if isinstance(index, (int, str)) else 0
            if reasons:
                self._open.discard(key)
                self._closed.add(key)
            elif key in self._closed:
                continue
            elif reasons == "" and key not in self._blank and _calls_tools(delta):
                # xAI ends a call of tools with "", and all before with null.
                self._open.discard(key)
            else:
                self._open.add(key)
                if reasons == "":
                    self._blank.add(key)

    def _start_message(self, event: dict[str, object]) -> None:
        """Anthropic's first event has the input; the output is final with the last message_delta only."""
        message = as_mapping(event.get("message"), "message")
        usage = section(message, "usage", "message") or {}
        self._once()
        self.payload = {**message, "usage": dict(usage)}
        self.api = "anthropic.messages"
        self.complete = False

    def _update_usage(self, event: dict[str, object]) -> None:
        usage = section(event, "usage")
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
            self._returned = True
        delta = section(event, "delta") or {}
        if delta.get("stop_reason") is not None:
            self._stop()
        elif usage is not None:
            # Counts may come more than once: with the last, or after it, is why the message stopped.
            self.complete = self._stopped or "stop_reason" not in delta

    def _stop(self) -> None:
        """A message of Claude ended: it is complete if the counts of its output came."""
        self._stopped = True
        self.complete = self.complete or self._returned

    def _take_response(self, event: dict[str, object], kind: str) -> None:
        response = section(event, "response")
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


def _fields_of(pieces: object, *names: str) -> Iterator[tuple[object, ...]]:
    """The values of these fields of each piece, which is a dict or an object of an SDK."""
    for piece in pieces if isinstance(pieces, (list, tuple)) else ():
        read = piece.get if type(piece) is dict else functools.partial(_attribute, piece)
        yield tuple(read(name) for name in names)


def _calls_tools(delta: object) -> bool:
    return bool((shallow(delta) or {}).get("tool_calls"))


# Lists that come in parts: the queries and the results are those of all chunks together.
_GROUNDS = (
    "webSearchQueries",
    "web_search_queries",
    "imageSearchQueries",
    "image_search_queries",
    "groundingChunks",
    "grounding_chunks",
)


def _add_grounding(whole: dict[str, object], part: dict[str, object]) -> None:
    """Add the lists of a chunk's grounding to those of the chunks before; gateways repeat them whole."""
    for name in _GROUNDS:
        found, before = part.get(name), whole.get(name)
        if isinstance(found, (list, tuple)) and found:
            known = before if isinstance(before, list) else []
            whole[name] = [*known, *(each for each in found if each not in known)]


def _attribute(piece: object, name: str) -> object:
    return getattr(piece, name, None)


def _are_empty(pieces: object) -> bool:
    """Whether there are pieces, and no text, call or end in any of them."""
    found = list(_fields_of(pieces, "delta", "text", "finish_reason"))
    return bool(found) and not any(
        words or reason or any((shallow(delta) or {}).get(name) for name in _WRITTEN)
        for delta, words, reason in found
    )


# What a piece of an answer may hold of it.
_WRITTEN = ("content", "reasoning", "reasoning_content", "tool_calls", "function_call", "audio", "refusal")


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
    """The response inside; the payload itself when it is not one of the known wrappers.

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
    response = section(payload, "response") or {}
    if "custom_id" in payload:
        return _openai_batch(response)
    if text(payload, "type").startswith("response."):
        # The Realtime API and the Responses API share the event's name.
        realtime = text(payload, "type") == "response.done" or response.get("object") == "realtime.response"
        return Unwrapped(response, "openai.realtime" if realtime else "openai.responses")
    return Unwrapped(response, "google.generate", "batch")


def _anthropic_batch(result: dict[str, object]) -> Unwrapped:
    message = section(result, "message", "result")
    if message is not None:
        return Unwrapped(message, "anthropic.messages", "batch")
    outcome = _OUTCOMES.get(text(result, "type"), Outcome.FAILED)
    return Unwrapped({}, "anthropic.messages", "batch", outcome)


def _openai_batch(response: dict[str, object]) -> Unwrapped:
    body = section(response, "body", "response") or {}
    if body.get("error") is not None or not body:
        return Unwrapped({}, "openai.chat", "batch", Outcome.FAILED)
    return Unwrapped(body, "", "batch")
