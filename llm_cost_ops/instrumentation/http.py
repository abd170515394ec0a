"""`send` of an HTTP client (httpx, httpx2; sync and async), wrapped on the instance.

The libraries are alike and neither is imported: the types that are needed are those of the objects at hand.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import iscoroutinefunction
from typing import Any, Protocol

from llm_cost_ops.instrumentation.answers import (
    MAX_FORM,
    Watch,
    events_of,
    may_ask,
    reader_of,
    report,
    watch,
    watch_lines,
    with_usage,
)
from llm_cost_ops.instrumentation.calls import (
    KEY_HEADER,
    PROVIDER_HEADER,
    Call,
    Options,
    model_in_path,
)
from llm_cost_ops.instrumentation.fetched import Background, ResultLines
from llm_cost_ops.instrumentation.providers import api_of, bedrock_model, fetched_of
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.rules.providers import provider_at

__all__ = ["options_of", "unwrap_client", "wrap_client"]

_log = logging.getLogger("llm_cost_ops.instrumentation")

_SDK_PROVIDERS = {"cohere": "cohere", "google": "google", "mistralai": "mistral", "ollama": "ollama"}
# Of what is decompressed, in bytes: what comes before a fault is had to the last such piece.
_PIECE = 4096
_BACKGROUND_APIS = ("google.interactions", "openai.responses")


def wrap_client(
    http_client: Any, options: Options, owner: object, only: re.Pattern[str] | None = None
) -> None:
    """Record an HTTP client's calls; where `only` is given, those whose path contains it.

    `owner` is the SDK's client that sends by it. One that is wrapped already takes the new options, with a
    warning where other calls than this owner's are then recorded otherwise than was said.
    """
    hook = _hook_of(http_client)
    if hook is None:
        hook = _Hook()
        original = http_client.send
        wrap = _async_send if iscoroutinefunction(original) else _sync_send
        hook.send = http_client.send = wrap(original, hook)
        hook.send.llm_cost_ops_hook = hook
    elif hook.options is not None and hook.owner != id(owner) and _differ(hook.options, options):
        _log.warning(
            "clients that share an HTTP client are instrumented: what was said of the last (%s) holds for "
            "the calls of all; give each its own, or say whose a call is by attribute(…)",
            type(owner).__qualname__,
        )
    hook.options, hook.only, hook.owner = options, only, id(owner)


def options_of(http_client: Any) -> Options | None:
    """How an HTTP client's calls are recorded, None where they are not."""
    hook = _hook_of(http_client)
    return None if hook is None else hook.options


def _differ(before: Options, now: Options) -> bool:
    """Whether other options would record a call made now differently."""
    return (before.sink, before.provider, before.attributes()) != (now.sink, now.provider, now.attributes())


def unwrap_client(http_client: Any) -> None:
    """Undo `wrap_client`."""
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
        if exchange.may_refuse_usage(response):
            response.read()
            if exchange.refuses_usage(response):
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
        if exchange.may_refuse_usage(response):
            await response.aread()
            if exchange.refuses_usage(response):
                response = await original(exchange.request, *args, **kwargs)
        return exchange.answered(response)

    return send


class _Request(Protocol):
    """What is used of a request of either library."""

    method: str
    url: Any
    headers: Any
    content: bytes
    stream: Any
    extensions: Any


class _Response(Protocol):
    """What is used of an answer of either library."""

    status_code: int
    headers: Any
    content: bytes
    is_stream_consumed: bool
    stream: Any
    request: Any


class _Hook:
    """What a wrapped client's calls have in common."""

    def __init__(self) -> None:
        self.options: Options | None = None
        self.only: re.Pattern[str] | None = None
        self.owner = 0
        self.send: Any = None
        self.refusing: set[str] = set()
        self.background = Background()

    def begin(self, request: _Request) -> _Exchange | None:
        """The exchange of a request, None where it is not one to record. Never raises."""
        options = self.options
        if options is None:
            return None
        try:
            method, path = request.method, request.url.path
            if self.only is not None and not self.only.search(path):
                return None
            if method == "POST" and (api := api_of(path, _provider(request, options))):
                return _Asking(self, options, request, api, path)
            fetched = fetched_of(method, path)
            if fetched == "batch":
                return _FetchedResults(self, options, request, "", path)
            return _Fetched(self, options, request, fetched, path) if fetched else None
        except Exception:  # noqa: BLE001  # the caller's call goes on, whatever is wrong with ours
            report("a call can't be recorded")
            return None


def _provider(request: _Request, options: Options) -> str:
    """Who serves a request; "" when neither the caller, the host nor the SDK tells."""
    return options.provider or provider_at(request.url.host) or _SDK_PROVIDERS.get(options.sdk, "")


class _Exchange:
    """A request and its answer."""

    def __init__(self, hook: _Hook, options: Options, request: _Request, api: str, path: str) -> None:
        self.request = request
        self._options = options
        self._known = provider_at(request.url.host)
        self._provider = _provider(request, options)
        self._handed_on = False
        self._asks = False
        if path.endswith("/decisions") and self._provider == "google":
            api = "google.interactions"
        billed = bedrock_model(path)
        self._call = self._begin(api, billed or model_in_path(path))
        self._call.billed_model = billed
        self._complete: Callable[..., None] = self._call.finish

    def _begin(self, api: str = "", model: str = "") -> Call:
        return Call(self._options, api, self._provider, known_host=bool(self._known), model=model)

    def may_refuse_usage(self, response: _Response) -> bool:
        """Whether the server may have refused `stream_options`, which was added to the request."""
        return False

    def refuses_usage(self, response: _Response) -> bool:
        """Whether it did; the request is then the caller's own again."""
        return False

    def answered(self, response: _Response) -> _Response:
        """Look at an answer as it passes. Never raises."""
        try:
            if response.status_code < 300:
                self._look(response)
        except Exception:  # noqa: BLE001  # the caller's call goes on, whatever is wrong with ours
            report("an answer can't be recorded")
        return response

    def _look(self, response: _Response) -> None:
        call = self._call
        if provider := response.headers.get(PROVIDER_HEADER, ""):
            call.served_by(provider)
            call.left_to_proxy = self._handed_on
        kind = response.headers.get("content-type", "")
        if not response.is_stream_consumed:
            encoding = response.headers.get("content-encoding", "")
            decompressed = functools.partial(_decompressed, type(response))
            seen = watch(call, kind, encoding, decompressed, hide=self._asks, complete=self._complete)
            _put_before(response, seen)
            return
        content = response.content
        reader = reader_of(kind)
        if reader is not None:
            call.events = functools.partial(events_of, content, type(reader))
        else:
            call.body = lambda: content
        self._complete(finished=True)


class _Fetched(_Exchange):
    """A request for the state of work in the background, and its answer."""

    def __init__(self, hook: _Hook, options: Options, request: _Request, api: str, path: str) -> None:
        super().__init__(hook, options, request, api, path)
        self._complete = functools.partial(hook.background.fetched, self._call)


class _FetchedResults(_Exchange):
    """A file that may be the results of a batch."""

    def _look(self, response: _Response) -> None:
        url = self.request.url
        lines = ResultLines(self._begin, f"{url.host}{url.path}")
        if response.is_stream_consumed:
            lines.feed(response.content)
            lines.rest()
        else:
            encoding = response.headers.get("content-encoding", "")
            decompressed = functools.partial(_decompressed, type(response))
            _put_before(response, watch_lines(lines, encoding, decompressed))


class _Asking(_Exchange):
    """A request for an answer to be made, and that answer."""

    def __init__(self, hook: _Hook, options: Options, request: _Request, api: str, path: str) -> None:
        super().__init__(hook, options, request, api, path)
        self._hook = hook
        self._given = request
        self._host = host = request.url.host
        headers = request.headers
        if headers.get("content-type", "").startswith("multipart/"):
            self._call.request_body = _watch_form(request)
        else:
            self._call.request_body = functools.partial(_content, request)
        if options.proxy is not None and options.proxy.serves(request.url):
            self._handed_on = True
            self._call.key = uuid7()
            headers.update({**options.proxy.headers(self._call.attributes), KEY_HEADER: self._call.key})
        if api in _BACKGROUND_APIS and b'"background"' in _content(request):
            self._complete = functools.partial(hook.background.asked, self._call)
        if (
            api == "openai.chat"
            and path.endswith("completions")
            # What AWS signed can't be changed.
            and "x-amz-date" not in headers
            and may_ask(options, self._known, host, hook.refusing)
        ):
            asking = _asking(request)
            if asking is not None:
                self.request, self._asks = asking, True

    def may_refuse_usage(self, response: _Response) -> bool:
        return self._asks and response.status_code in (400, 422)

    def refuses_usage(self, response: _Response) -> bool:
        """Whether it did; then this host is not sent it again."""
        if b"stream_options" not in response.content:
            return False
        self._hook.refusing.add(self._host)
        self.request, self._asks = self._given, False
        return True

    def answered(self, response: _Response) -> _Response:
        if self._asks:
            response.request = self._given
        return super().answered(response)


class _Tee:
    """Stands before an answer's own stream."""

    def __init__(self, inner: Any, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _SyncTee(_Tee):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._inner:
                if passing := self._watch.feed(data):
                    yield passing
            if rest := self._watch.end():
                yield rest
        finally:
            # Not every SDK closes an answer whose reading was broken off.
            self._watch.finish()

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
            self._watch.finish()
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
        if len(self._head) < MAX_FORM:
            self._head.extend(data[:MAX_FORM])


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


def _put_before(response: _Response, seen: Watch) -> None:
    """Put a `_Tee` before the stream of an answer."""
    sync_tee, async_tee, _ = _stream_types(_library_of(response))
    tee = async_tee if hasattr(response.stream, "aclose") else sync_tee
    response.stream = tee(response.stream, seen)


def _asking(request: _Request) -> _Request | None:
    """A chat request that asks for usage too; None where it is no stream, or asks by itself."""
    body = with_usage(_content(request))
    if body is None:
        return None
    headers = request.headers.copy()
    headers.pop("content-length", None)
    # What the chunk is cut out of must be plain.
    headers["accept-encoding"] = "identity"
    made: Any = type(request)
    asking: _Request = made(
        request.method, request.url, headers=headers, content=body, extensions=request.extensions
    )
    return asking


def _content(request: _Request) -> bytes:
    """The body of a request, where it is in memory."""
    try:
        content: bytes = request.content
    except Exception:  # noqa: BLE001  # RequestNotRead of either library
        return b""
    return content


def _watch_form(request: _Request) -> Callable[[], bytes]:
    """Keep the beginning of a form as it is sent."""
    head = bytearray()
    *_, form = _stream_types(_library_of(request))
    request.stream = form(request.stream, head)
    return lambda: bytes(head)


def _decompressed(response: type, encoding: str, body: bytes) -> bytes:
    """A body as the library reads it, up to where it broke off: who saw the last event may leave."""
    pieces = (body[at : at + _PIECE] for at in range(0, len(body), _PIECE))
    made = response(200, headers={"content-encoding": encoding}, content=pieces)
    plain = bytearray()
    # Each library has errors of its own.
    with contextlib.suppress(Exception):
        for part in made.iter_bytes():
            plain += part
    return bytes(plain)
