"""google-genai: the four methods of its `_api_client`, wrapped on the instance.

Not `send`: it sends through httpx, aiohttp or requests, as they are installed; these four come before that.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import msgspec

from llm_cost_ops.instrumentation.calls import Call, Options, model_in_path
from llm_cost_ops.instrumentation.events import EventReader
from llm_cost_ops.normalizers.tolerant import decode_tolerantly

__all__ = ["METHODS", "PAST_METHODS", "unwrap_api_client", "wrap_api_client"]

METHODS = ("request", "request_streamed", "async_request", "async_request_streamed")

PAST_METHODS = re.compile(r"/interactions(?:/|$)|/decisions$")
"""What it sends by its HTTP client without those methods."""

_BILLED = ("generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents", "predict")
_OPTIONS = "llm_cost_ops_options"

_log = logging.getLogger("llm_cost_ops.instrumentation")


def wrap_api_client(api_client: Any, options: Options) -> None:
    """Record its calls. One that is wrapped already takes the new options."""
    if not hasattr(api_client, _OPTIONS):
        for name, wrap in zip(METHODS, (_request, _streamed, _async_request, _async_streamed), strict=True):
            original = getattr(api_client, name)
            setattr(api_client, name, functools.wraps(original)(wrap(original, api_client)))
    setattr(api_client, _OPTIONS, options)


def unwrap_api_client(api_client: Any) -> None:
    """Undo `wrap_api_client`."""
    if hasattr(api_client, _OPTIONS):
        for name in METHODS:
            delattr(api_client, name)
        delattr(api_client, _OPTIONS)


def _begin(api_client: Any, http_method: str, path: str) -> _Watch | _BatchWatch | None:
    """What watches a call, None where it is not billed. Never raises."""
    try:
        options: Options | None = getattr(api_client, _OPTIONS, None)
        if options is None:
            return None
        path, method = path.partition("?")[0], http_method.lower()
        provider = options.provider or "google"

        def begin(model: str) -> Call:
            return Call(options, "google.generate", provider, known_host=True, model=model)

        if method == "get" and path.startswith("batches/"):
            return _BatchWatch(begin)
        if method == "post" and path.rpartition(":")[2] in _BILLED:
            return _Watch(begin(model_in_path(path)))
        return None
    except Exception:  # noqa: BLE001  # the caller's call goes on, whatever is wrong with ours
        _log.warning("a call can't be recorded", exc_info=True)
        return None


class _Part(Protocol):
    """A whole answer, or a part of a stream; before 1.21 the SDK passes the object that the text is."""

    body: str | None


def _text_of(part: _Part | dict[str, Any]) -> bytes:
    return msgspec.json.encode(part) if isinstance(part, dict) else (part.body or "").encode()


class _Watch:
    """Sees the parts of an answer. Never raises."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._reader = EventReader()

    def whole(self, response: _Part | dict[str, Any]) -> None:
        """The one part of an answer that is no stream."""
        try:
            self._call.body = functools.partial(bytes, _text_of(response))
        except Exception:  # noqa: BLE001  # as above
            _log.warning("an answer can't be read", exc_info=True)
        self._finish(finished=True)

    def part(self, response: _Part | dict[str, Any]) -> None:
        """One part of a stream."""
        try:
            self._call.first_byte()
            self._reader.feed(b"data: " + _text_of(response) + b"\n\n")
        except Exception:  # noqa: BLE001  # as above
            _log.warning("a stream can't be read", exc_info=True)

    def begin_stream(self) -> None:
        """Parts will come."""
        self._call.events = self._reader.events
        self._call.begin_stream()

    def end(self, *, finished: bool) -> None:
        """No more parts will come."""
        self._finish(finished=finished)

    def _finish(self, *, finished: bool) -> None:
        try:
            self._call.finish(finished=finished)
        except Exception:  # noqa: BLE001  # as above
            _log.warning("a call can't be recorded", exc_info=True)


class _Answer(msgspec.Struct):
    response: msgspec.Raw = msgspec.Raw(b"")


class _Answers(msgspec.Struct, frozen=True, rename="camel"):
    inlined_responses: list[_Answer] = []


class _Output(msgspec.Struct, frozen=True, rename="camel"):
    inlined_responses: _Answers = _Answers()


class _BatchState(msgspec.Struct, frozen=True):
    model: str = ""
    output: _Output = _Output()


class _Batch(msgspec.Struct):
    """A batch whose results stand in it; those that stand in a file are not seen."""

    name: str = ""
    metadata: _BatchState = _BatchState()


# Made while the module is loaded, by one thread: see wire.json.decoder_of.
_batches = msgspec.json.Decoder(_Batch)


class _BatchWatch:
    """Sees a batch as it is fetched: each request that succeeded is one call. Never raises."""

    def __init__(self, begin: Callable[[str], Call]) -> None:
        self._begin = begin

    def whole(self, response: _Part | dict[str, Any]) -> None:
        """A batch as it is now."""
        try:
            batch = decode_tolerantly(_batches, _text_of(response) or b"{}")
            state = batch.metadata
            for number, answer in enumerate(state.output.inlined_responses.inlined_responses):
                if raw := bytes(answer.response):
                    call = self._begin(state.model.removeprefix("models/"))
                    call.body = functools.partial(bytes, b'{"key":"%d","response":%s}' % (number, raw))
                    call.key = f"google:{batch.name}/{number}"
                    call.finish(finished=True)
        except Exception:  # noqa: BLE001  # as above
            _log.warning("the results of a batch can't be recorded", exc_info=True)


def _request(original: Callable[..., Any], api_client: Any) -> Callable[..., Any]:
    def request(http_method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        watch = _begin(api_client, http_method, path)
        response = original(http_method, path, *args, **kwargs)
        if watch is not None:
            watch.whole(response)
        return response

    return request


def _async_request(original: Callable[..., Any], api_client: Any) -> Callable[..., Any]:
    async def async_request(http_method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        watch = _begin(api_client, http_method, path)
        response = await original(http_method, path, *args, **kwargs)
        if watch is not None:
            watch.whole(response)
        return response

    return async_request


def _streamed(original: Callable[..., Any], api_client: Any) -> Callable[..., Any]:
    def request_streamed(http_method: str, path: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        parts = original(http_method, path, *args, **kwargs)
        watch = _begin(api_client, http_method, path)
        if not isinstance(watch, _Watch):
            yield from parts
            return
        finished = begun = False
        try:
            for part in parts:
                if not begun:
                    begun = True
                    watch.begin_stream()
                watch.part(part)
                yield part
            finished = True
        finally:
            if begun:
                watch.end(finished=finished)

    return request_streamed


def _async_streamed(original: Callable[..., Any], api_client: Any) -> Callable[..., Any]:
    async def async_request_streamed(http_method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        watch = _begin(api_client, http_method, path)
        parts = await original(http_method, path, *args, **kwargs)
        if not isinstance(watch, _Watch):
            return parts
        watch.begin_stream()
        return _watched(parts, watch)

    return async_request_streamed


async def _watched(parts: Any, watch: _Watch) -> AsyncIterator[Any]:
    finished = False
    try:
        async for part in parts:
            watch.part(part)
            yield part
        finished = True
    finally:
        watch.end(finished=finished)
        if hasattr(parts, "aclose"):
            await parts.aclose()
