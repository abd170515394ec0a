"""`send` of an HTTP client (httpx, httpx2; sync and async), wrapped on the instance.

The libraries are alike and neither is imported: the types that are needed are those of the objects at hand.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import iscoroutinefunction
from typing import Any, Protocol

import msgspec

from llm_cost_ops.instrumentation.calls import Call, Options, model_in_path
from llm_cost_ops.instrumentation.events import EventReader, FrameReader
from llm_cost_ops.instrumentation.fetched import Background, ResultLines
from llm_cost_ops.instrumentation.providers import (
    TAKE_STREAM_OPTIONS,
    api_of,
    bedrock_model,
    fetched_of,
    provider_of,
)

__all__ = ["unwrap_client", "wrap_client"]

MAX_BODY = 64 * 1024 * 1024
"""Of a body that the caller streams so much is kept to be read, in bytes."""

_MAX_FORM = 16 * 1024
_SDK_PROVIDERS = {"cohere": "cohere", "google": "google", "mistralai": "mistral"}
_FRAMES = "application/vnd.amazon.eventstream"
_BACKGROUND_APIS = ("google.interactions", "openai.responses")
_BINARY = re.compile("(?:audio|video|image)/|application/octet-stream")

_log = logging.getLogger("llm_cost_ops.instrumentation")
_said: set[str] = set()


def wrap_client(http_client: Any, options: Options) -> None:
    """Have an HTTP client's calls recorded. One that is wrapped already takes the new options."""
    hook = _hook_of(http_client)
    if hook is None:
        hook = _Hook()
        original = http_client.send
        wrap = _async_send if iscoroutinefunction(original) else _sync_send
        hook.send = http_client.send = wrap(original, hook)
        hook.send.llm_cost_ops_hook = hook
    hook.options = options


def unwrap_client(http_client: Any) -> None:
    """Let an HTTP client be as it was."""
    hook = _hook_of(http_client)
    if hook is None:
        return
    # Where another wrapper lies above ours, ours stays and does nothing.
    hook.options = None
    if vars(http_client).get("send") is hook.send:
        del http_client.send
        if http_client.send != hook.send.__wrapped__:
            http_client.send = hook.send.__wrapped__


def _hook_of(http_client: Any) -> _Hook | None:
    """The hook of a client that is wrapped, by whomever it was wrapped again."""
    function = vars(http_client).get("send")
    while function is not None:
        hook = getattr(function, "llm_cost_ops_hook", None)
        if isinstance(hook, _Hook):
            return hook
        function = getattr(function, "__wrapped__", None)
    return None


def _sync_send(original: Callable[..., Any], hook: _Hook) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        exchange = hook.begin(request)
        if exchange is None:
            return original(request, *args, **kwargs)
        response = original(exchange.request, *args, **kwargs)
        if exchange.may_have_harmed(response):
            response.read()
            if exchange.harmed(response):
                response = original(exchange.request, *args, **kwargs)
        return exchange.answered(response)

    return send


def _async_send(original: Callable[..., Any], hook: _Hook) -> Callable[..., Any]:
    @functools.wraps(original)
    async def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        exchange = hook.begin(request)
        if exchange is None:
            return await original(request, *args, **kwargs)
        response = await original(exchange.request, *args, **kwargs)
        if exchange.may_have_harmed(response):
            await response.aread()
            if exchange.harmed(response):
                response = await original(exchange.request, *args, **kwargs)
        return exchange.answered(response)

    return send


class _Hook:
    """What a wrapped client's calls have in common."""

    def __init__(self) -> None:
        self.options: Options | None = None
        self.send: Any = None
        self.refusing: set[str] = set()
        self.background = Background()

    def begin(self, request: Any) -> _Exchange | None:
        """The exchange of a request, None where it is not one to record. Never raises."""
        options = self.options
        if options is None:
            return None
        try:
            method, path = request.method, request.url.path
            if method == "POST" and (api := api_of(path)):
                return _Asking(self, options, request, api, path)
            fetched = fetched_of(method, path)
            if fetched == "batch":
                return _FetchedResults(self, options, request, "", path)
            return _Fetched(self, options, request, fetched, path) if fetched else None
        except Exception:  # noqa: BLE001  # the caller's call goes on, whatever is wrong with ours
            _report("a call can't be recorded")
            return None


class _Exchange:
    """A request and its answer."""

    def __init__(self, hook: _Hook, options: Options, request: Any, api: str, path: str) -> None:
        self.request = request
        self._options = options
        self._known = known = provider_of(request.url.host)
        self._provider = options.provider or known or _SDK_PROVIDERS.get(options.sdk, "")
        if path.endswith("/decisions") and self._provider == "google":
            api = "google.interactions"
        billed = bedrock_model(path)
        self._call = self._begin(api, billed or model_in_path(path))
        self._call.billed_model = billed
        self._complete: Callable[..., None] = self._call.finish

    def _begin(self, api: str = "", model: str = "") -> Call:
        return Call(self._options, api, self._provider, known_host=bool(self._known), model=model)

    def may_have_harmed(self, response: Any) -> bool:
        """Whether an error may be due to what we asked for."""
        return False

    def harmed(self, response: Any) -> bool:
        """Whether it is; the request is then again as it was given."""
        return False

    def answered(self, response: Any) -> Any:
        """Look at an answer as it passes. Never raises."""
        try:
            if response.status_code < 300:
                self._look(response)
        except Exception:  # noqa: BLE001  # the caller's call goes on, whatever is wrong with ours
            _report("an answer can't be recorded")
        return response

    def _look(self, response: Any) -> None:
        call = self._call
        kind = response.headers.get("content-type", "")
        encoding = response.headers.get("content-encoding", "")
        reader = self._reader(kind)
        if response.is_stream_consumed:
            content = response.content
            if reader is not None:
                call.events = functools.partial(_events_of, type(reader), content)
            else:
                call.body = lambda: content
            self._complete(finished=True)
            return
        watch: _Watch
        if reader is not None and encoding in ("", "identity"):
            call.events = reader.events
            watch = _Watch(call, self._complete, reader)
        elif reader is None and _BINARY.match(kind):
            watch = _Watch(call, self._complete)
        else:
            body = bytearray()
            decoded = functools.partial(_decompressed, type(response), encoding, body)
            if reader is not None:
                call.events = lambda: _events_of(type(reader), decoded())
            else:
                call.body = decoded
            watch = _Watch(call, self._complete, body=body)
        call.begin_stream()
        _put_before(response, watch)

    def _reader(self, kind: str) -> EventReader | FrameReader | None:
        if kind.startswith("text/event-stream"):
            return EventReader()
        return FrameReader() if kind.startswith(_FRAMES) else None


class _Fetched(_Exchange):
    """A question after what is made in the background."""

    def __init__(self, hook: _Hook, options: Options, request: Any, api: str, path: str) -> None:
        super().__init__(hook, options, request, api, path)
        self._complete = functools.partial(hook.background.fetched, self._call)


class _FetchedResults(_Exchange):
    """A file that may be the results of a batch."""

    def _look(self, response: Any) -> None:
        url = self.request.url
        lines = ResultLines(self._begin, f"{url.host}{url.path}")
        if response.is_stream_consumed:
            lines.feed(response.content)
            lines.rest()
            return
        encoding = response.headers.get("content-encoding", "")
        if encoding in ("", "identity"):
            _put_before(response, _Watch(None, _nothing, lines))
            return
        body = bytearray()

        def complete(*, finished: bool) -> None:
            lines.feed(_decompressed(type(response), encoding, body))
            if finished:
                lines.rest()
            body.clear()

        _put_before(response, _Watch(None, complete, body=body))


class _Asking(_Exchange):
    """A request for work, and its answer."""

    def __init__(self, hook: _Hook, options: Options, request: Any, api: str, path: str) -> None:
        super().__init__(hook, options, request, api, path)
        self._hook = hook
        self._given = request
        self._host = request.url.host
        headers = request.headers
        if headers.get("content-type", "").startswith("multipart/"):
            self._call.request_body = _watch_form(request)
        else:
            self._call.request_body = functools.partial(_content, request)
        if api in _BACKGROUND_APIS and b'"background"' in _content(request):
            self._complete = functools.partial(hook.background.asked, self._call)
        self._asks = False
        # What AWS signed can't be changed.
        signed = "x-amz-date" in headers
        if (
            api == "openai.chat"
            and path.endswith("completions")
            and not signed
            and self._may_ask(options, self._known)
        ):
            asking = _asking(request)
            if asking is not None:
                self.request, self._asks = asking, True

    def _may_ask(self, options: Options, provider: str) -> bool:
        if options.stream_usage != "auto":
            return bool(options.stream_usage)
        return provider in TAKE_STREAM_OPTIONS and self._host not in self._hook.refusing

    def may_have_harmed(self, response: Any) -> bool:
        """Whether an error may be due to what we asked for."""
        return self._asks and response.status_code in (400, 422)

    def harmed(self, response: Any) -> bool:
        """Whether it is; the request is then again as it was given, and the host is not asked again."""
        if b"stream_options" not in response.content:
            return False
        self._hook.refusing.add(self._host)
        self.request, self._asks = self._given, False
        return True

    def answered(self, response: Any) -> Any:
        """Look at an answer as it passes. Never raises."""
        if self._asks:
            response.request = self._given
        return super().answered(response)

    def _reader(self, kind: str) -> EventReader | FrameReader | None:
        if self._asks and kind.startswith("text/event-stream"):
            return EventReader(hide=True)
        return super()._reader(kind)


class _Reader(Protocol):
    """Reads the bytes of an answer."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes, and give what may pass."""

    def rest(self) -> bytes:
        """At the end: what did not pass yet."""


class _Watch:
    """Sees the bytes of an answer as they pass. Never raises."""

    def __init__(
        self,
        call: Call | None,
        complete: Callable[..., None],
        reader: _Reader | None = None,
        body: bytearray | None = None,
    ) -> None:
        self._call = call
        self._complete = complete
        self._reader = reader
        self._body = body
        self._broken = self._ended = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes, and give what may pass."""
        if self._broken:
            return data
        try:
            if self._call is not None:
                self._call.first_byte()
            if self._reader is not None:
                return self._reader.feed(data)
            if self._body is not None and len(self._body) + len(data) <= MAX_BODY:
                self._body += data
        except Exception:  # noqa: BLE001  # the bytes pass, whatever is wrong with us
            self._broken = True
            _report("a stream can't be read")
        return data

    def end(self) -> bytes:
        """The answer ended as it should; what was held back."""
        rest = b""
        try:
            if self._reader is not None:
                rest = self._reader.rest()
            self.finish(finished=True)
        except Exception:  # noqa: BLE001  # as above
            _report("a stream can't be recorded")
        return rest

    def finish(self, *, finished: bool = False) -> None:
        """Nothing more will come."""
        if self._ended:
            return
        self._ended = True
        try:
            self._complete(finished=finished)
        except Exception:  # noqa: BLE001  # as above
            _report("a call can't be recorded")


class _Tee:
    """Stands before an answer's own stream."""

    def __init__(self, inner: Any, watch: _Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _SyncTee(_Tee):
    def __iter__(self) -> Iterator[bytes]:
        for data in self._inner:
            if passing := self._watch.feed(data):
                yield passing
        if rest := self._watch.end():
            yield rest

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._watch.finish()


class _AsyncTee(_Tee):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = aiter(self._inner)
        try:
            async for data in stream:
                if passing := self._watch.feed(data):
                    yield passing
            if rest := self._watch.end():
                yield rest
        finally:
            if hasattr(stream, "aclose"):
                await stream.aclose()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._watch.finish()


class _Form:
    """Stands before a form that is sent, and keeps its beginning: its fields come before its files."""

    def __init__(self, inner: Any, head: bytearray) -> None:
        self._inner = inner
        self._head = head

    def __iter__(self) -> Iterator[bytes]:
        for data in self._inner:
            self._keep(data)
            yield data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._inner:
            self._keep(data)
            yield data

    def _keep(self, data: bytes) -> None:
        if len(self._head) < _MAX_FORM:
            self._head.extend(data[:_MAX_FORM])


@functools.cache
def _stream_types(library: Any) -> tuple[type, type, type]:
    """The streams above as types of a library, which takes no others."""
    sync, asynchronous = library.SyncByteStream, library.AsyncByteStream
    return (
        type("SyncTee", (_SyncTee, sync), {}),
        type("AsyncTee", (_AsyncTee, asynchronous), {}),
        type("Form", (_Form, sync, asynchronous), {}),
    )


def _library_of(thing: Any) -> Any:
    """The library whose Request or Response this is."""
    home = next(kind for kind in type(thing).__mro__ if kind.__name__ in ("Request", "Response"))
    return sys.modules[home.__module__.partition(".")[0]]


def _asking(request: Any) -> Any:
    """A chat request that asks for usage too; None where it is no stream, or asks by itself."""
    content = _content(request)
    if b'"stream"' not in content:
        return None
    fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    if bytes(fields.get("stream", msgspec.Raw(b"false"))) != b"true":
        return None
    stated = msgspec.json.decode(fields.get("stream_options", msgspec.Raw(b"null"))) or {}
    if not isinstance(stated, dict) or stated.get("include_usage"):
        return None
    options = {**stated, "include_usage": True}
    body = msgspec.json.encode({**fields, "stream_options": msgspec.Raw(msgspec.json.encode(options))})
    headers = request.headers.copy()
    headers.pop("content-length", None)
    # What the chunk is cut out of must be plain.
    headers["accept-encoding"] = "identity"
    return type(request)(
        request.method, request.url, headers=headers, content=body, extensions=request.extensions
    )


def _content(request: Any) -> bytes:
    """The body of a request, where it is in memory."""
    try:
        content: bytes = request.content
    except Exception:  # noqa: BLE001  # RequestNotRead of either library
        return b""
    return content


def _watch_form(request: Any) -> Callable[[], bytes]:
    """Have the beginning of a form kept as it is sent."""
    head = bytearray()
    *_, form = _stream_types(_library_of(request))
    request.stream = form(request.stream, head)
    return lambda: bytes(head)


def _nothing(*, finished: bool) -> None:
    """Nothing is left to be done at the end of an answer."""


def _put_before(response: Any, watch: _Watch) -> None:
    """Have the bytes of an answer seen."""
    sync_tee, async_tee, _ = _stream_types(_library_of(response))
    tee = async_tee if hasattr(response.stream, "aclose") else sync_tee
    response.stream = tee(response.stream, watch)


def _events_of(kind: type[EventReader | FrameReader], content: bytes) -> list[bytes]:
    reader = kind()
    reader.feed(content)
    reader.rest()
    return reader.events()


def _decompressed(response: type, encoding: str, body: bytearray) -> bytes:
    """A body as the library reads it."""
    if encoding in ("", "identity"):
        return bytes(body)
    made = response(200, headers={"content-encoding": encoding}, content=bytes(body))
    content: bytes = made.content
    return content


def _report(trouble: str) -> None:
    """Log a kind of trouble once."""
    if trouble not in _said:
        _said.add(trouble)
        _log.warning("%s", trouble, exc_info=True)
