"""The service as an ASGI app, for any ASGI server; its routes come from the method descriptors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from llm_cost_ops.rpc.context import CallContext, uuid7
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.method import Cardinality, MethodDescriptor
from llm_cost_ops.rpc.runtime import AsyncRuntime, Runtime
from llm_cost_ops.rpc.slices import Slices
from llm_cost_ops.rpc.status import RpcError, StatusCode, invalid_argument
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.server.calls import CallObserver, Receive, Scope, Send, Traffic, watched
from llm_cost_ops.server.decoding import (
    BATCHES,
    MAX_INLINE_RECEIPTS,
    decode_json,
    is_long_answer,
    key_of,
    max_bytes_of,
    violation_of,
)
from llm_cost_ops.server.limits import AsgiLimits
from llm_cost_ops.server.lines import (
    LINE_TYPES,
    MAX_BLANK_LINES,
    DisconnectedError,
    StreamAnswer,
    messages_of,
    metadata_headers,
)
from llm_cost_ops.service.failures import log_failure
from llm_cost_ops.transports.http.binding import Binding, Router
from llm_cost_ops.transports.http.errors import error_to_response
from llm_cost_ops.transports.http.ndjson import MEDIA_TYPE, LineSplitter
from llm_cost_ops.transports.net.bodies import BodyTooLargeError, BoundedBody
from llm_cost_ops.transports.net.headers import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    decode_timeout,
    from_headers,
    is_request_id,
)
from llm_cost_ops.wire import DecodeError
from llm_cost_ops.wire.unknown import UNKNOWN_FIELDS

__all__ = ["AsgiApp", "Pages", "Route"]


_log = logging.getLogger("llm_cost_ops.server")

Answer = tuple[int, list[tuple[str, str]], bytes]

_SERVED = {Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM}


class _Request:
    """One request's head, checked."""

    def __init__(self, scope: Scope, limits: AsgiLimits) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.raw_headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        for name, value in self.raw_headers:
            self.headers.setdefault(name.lower(), value)
        given = self.text(REQUEST_ID_HEADER)
        self.id = given if is_request_id(given) else uuid7()
        self.verb: str = scope["method"]
        raw = scope.get("raw_path")
        path: str = raw.decode("latin-1") if raw else quote(scope["path"])
        # The app may be mounted below a prefix of a bigger one.
        self.path = path.removeprefix(quote(scope.get("root_path", "")))
        self.query: str = scope.get("query_string", b"").decode("latin-1")
        self.limits = limits
        self.unknown_fields = ""
        self.call: CallContext | None = None

    def text(self, name: str) -> str:
        return self.headers.get(name.encode(), b"").decode("latin-1").strip()

    def check(self) -> None:
        if sum(len(name) + len(value) for name, value in self.raw_headers) > self.limits.max_header_bytes:
            raise _refused(431, f"the headers are larger than {self.limits.max_header_bytes} bytes")
        if b"transfer-encoding" in self.headers and b"content-length" in self.headers:
            # Two lengths are how requests are smuggled past a proxy.
            raise _refused(400, "a request has either Content-Length or Transfer-Encoding")

    async def body(
        self, receive: Receive, limit: int, runtime: Runtime, kinds: Collection[str] = ()
    ) -> bytes:
        """The whole body, decompressed: at most `limit` bytes. It is JSON, or of one of `kinds`."""
        length = self.text("content-length")
        if length.isdecimal() and int(length[:20]) > limit:
            raise _too_large(limit)
        kind = self.kind()
        if kind not in (kinds or {"", "application/json"}) and (
            kinds or not (kind.startswith("application/") and kind.endswith("+json"))
        ):
            asked = " or ".join(kinds) or "application/json"
            raise _refused(415, f"the content type must be {asked}")
        try:
            body = BoundedBody(limit, self.text("content-encoding"))
        except ValueError as error:
            raise _refused(415, str(error)) from error
        try:
            async with asyncio.timeout(self.limits.body_timeout):
                await _feed(body, receive, runtime)
            return body.whole()
        except BodyTooLargeError as error:
            raise _too_large(limit) from error
        except TimeoutError as error:
            raise _refused(408, f"the body took more than {self.limits.body_timeout:g} s") from error
        except ValueError as error:
            raise _refused(400, str(error)) from error

    def kind(self) -> str:
        return self.text("content-type").partition(";")[0].strip().lower()

    def lines(self) -> LineSplitter:
        """What cuts the body of a stream into lines."""
        if self.kind() not in LINE_TYPES:
            raise _refused(415, f"the content type must be {MEDIA_TYPE}")
        try:
            limits = self.limits
            encoding = self.text("content-encoding")
            return LineSplitter(
                limits.max_message_bytes,
                encoding,
                max_bytes=limits.max_stream_bytes,
                max_blank_lines=MAX_BLANK_LINES,
            )
        except ValueError as error:
            raise _refused(415, str(error)) from error

    def context(self, method: MethodDescriptor[Any, Any], runtime: Runtime) -> CallContext:
        try:
            metadata = from_headers(self.raw_headers, strict=True)
        except ValueError as error:
            raise _refused(400, str(error)) from error
        if self.unknown_fields:
            metadata.set(UNKNOWN_FIELDS, self.unknown_fields)
        unary = method.cardinality is Cardinality.UNARY_UNARY
        seconds = self.limits.call_timeout if unary else self.limits.stream_timeout
        if stated := self.text(DEADLINE_HEADER):
            asked = decode_timeout(stated)
            if asked is None:
                raise _refused(400, f"{DEADLINE_HEADER} must be digits and a unit, such as 1500m")
            seconds = min(seconds, asked)
        self.call = CallContext(
            method,
            runtime,
            metadata,
            runtime.monotonic() + seconds,
            key_of(metadata),
            request_id=self.id,
        )
        return self.call


class Route(Protocol):
    """What answers POSTs to a path that no method of the service has.

    Who may call it, and the size of its body, are those of `method`; its body and its answer are of one of
    the media types `kinds`.
    """

    @property
    def method(self) -> MethodDescriptor[Any, Any]: ...

    @property
    def kinds(self) -> Collection[str]: ...

    async def answer(self, kind: str, body: bytes, context: CallContext) -> bytes:
        """The body of the answer, or RpcError."""

    def error(self, kind: str, error: RpcError) -> bytes:
        """The body of an error."""


class Pages(Protocol):
    """Answers some requests by pages for browsers."""

    def serves(self, scope: Scope) -> bool:
        """Whether a request is for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""


class AsgiApp:
    """An ASGI app over a ServiceHandler.

    `close` lets go of what the handler holds; it is awaited when the ASGI server ends the lifespan.
    `admit` raises RpcError for a call that is not to be answered, before anything of it is decoded;
    `admission` refuses one before anything is looked at but its path. `routes` are further paths, and each
    of `pages` answers what it `serves`, in place of the methods. `observe` gets each request that was
    answered.
    Errors are `{"error": {"code", "message", "details"}, "request_id"}`. An error that a servicer
    did not mean to raise is logged under its request id and tells the client nothing. A servicer
    may set `context.response_status` and `context.response_metadata`.
    """

    def __init__(
        self,
        handler: ServiceHandler,
        *,
        close: Callable[[], Awaitable[None]] | None = None,
        admit: Callable[[CallContext], Awaitable[None]] | None = None,
        admission: Admission | None = None,
        limits: AsgiLimits | None = None,
        routes: Mapping[str, Route] | None = None,
        pages: Sequence[Pages] = (),
        observe: CallObserver | None = None,
    ) -> None:
        self._handler = handler
        self._observe = observe
        self._routes = routes or {}
        self._pages = pages
        self._close = close
        self._admit = admit
        self._admission = admission
        exempt = frozenset() if admission is None else admission.exempt
        self._exempt = {m.http.path for m in handler.methods.values() if m.http and m.path in exempt}
        self._limits = limits or AsgiLimits()
        self._runtime = AsyncRuntime()
        self._router = Router(m for m in handler.methods.values() if m.cardinality in _SERVED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            pages = next((pages for pages in self._pages if pages.serves(scope)), None)
            request = _Request(scope, self._limits)
            if self._observe is not None:
                await self._observed(self._observe, pages, request, scope, receive, send)
            elif pages is not None:
                await pages(scope, receive, send)
            else:
                await self._http(request, receive, send)
        else:
            raise NotImplementedError(f"no {scope['type']} here")

    async def aclose(self) -> None:
        """Close what the handler holds, as at the end of the lifespan; may be called twice."""
        if self._close is not None:
            await self._close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _observed(
        self,
        observe: CallObserver,
        pages: Pages | None,
        request: _Request,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        traffic, started = Traffic(), self._runtime.monotonic()
        receive, send = watched(traffic, receive, send)
        try:
            if pages is not None:
                await pages(scope, receive, send)
            else:
                await self._http(request, receive, send)
        finally:
            seconds = self._runtime.monotonic() - started
            observe(traffic.http_call(request.call, request.id, seconds, pages=pages is not None))

    async def _http(self, request: _Request, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(request, receive, send)
            if answer is None:
                return
            status, headers, body = answer
        except DisconnectedError:
            return
        except RpcError as error:
            status, headers, body = _error(error, request.id)
        except asyncio.CancelledError:
            # The server stops and waits no longer: the client is told, and the task ends here.
            status, headers, body = _error(
                RpcError(StatusCode.UNAVAILABLE, "the server is stopping"), request.id
            )
        except Exception:  # noqa: BLE001  # logged, and hidden from the client
            _log.exception("%s %s failed, request %s", request.verb, request.path, request.id)
            status, headers, body = _error(RpcError(StatusCode.INTERNAL, "internal error"), request.id)
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        if body and not any(name == b"content-type" for name, _ in raw):
            raw.append((b"content-type", b"application/json"))
        if status != 204:
            raw.append((b"content-length", str(len(body)).encode()))
        raw.append((REQUEST_ID_HEADER.encode(), request.id.encode()))
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if request.verb == "HEAD" else body})

    async def _answer(self, request: _Request, receive: Receive, send: Send) -> Answer | None:
        """Status, headers and body to answer with; None when it was a stream, which is answered then."""
        request.check()
        if self._admission is not None and self._admission.full() and request.path not in self._exempt:
            left = decode_timeout(request.text(DEADLINE_HEADER))
            refusal = await self._admission.refusal(self._runtime, left)
            if refusal is not None:
                raise refusal
        route = self._router.match(request.path)
        if route is None and request.path in self._routes:
            return await self._post(self._routes[request.path], request, receive)
        if route is None:
            raise RpcError(StatusCode.NOT_FOUND, f"there is no {request.path[:200]}", error_code="NOT_FOUND")
        verb = "GET" if request.verb == "HEAD" else request.verb
        binding = route.bindings.get(verb)
        if binding is None:
            allowed = sorted({*route.bindings, "OPTIONS", *(["HEAD"] if "GET" in route.bindings else [])})
            return _other_verb(request, allowed)
        _take_unknown(binding, request)
        context = request.context(binding.method, self._runtime)
        if self._admit is not None:
            await self._admit(context)
        if binding.method.cardinality is not Cardinality.UNARY_UNARY:
            return await self._stream(binding, route.variables, request, context, receive, send)
        message = await self._message(binding, route.variables, request, receive)
        return await self._call(binding, message, context)

    async def _message(
        self, binding: Binding, variables: list[str], request: _Request, receive: Receive
    ) -> object:
        if binding.rule.body is None:
            return binding.decode(variables, request.query, b"")
        limits, method = self._limits, binding.method
        most = max_bytes_of(method, limits.max_message_bytes, limits.max_body_bytes)
        body = await request.body(receive, most, self._runtime)
        codec = binding.body_codec
        if codec is None:
            return binding.decode(variables, request.query, body)
        try:
            part = await decode_json(
                codec, BATCHES.get(method.path), body, limits.max_message_bytes, self._runtime
            )
        except DecodeError as error:
            raise violation_of(error, "body") from error
        return binding.decode_around(variables, request.query, part)

    async def _stream(
        self,
        binding: Binding,
        variables: list[str],
        request: _Request,
        context: CallContext,
        receive: Receive,
        send: Send,
    ) -> Answer | None:
        context.check_deadline()
        if request.verb == "HEAD":
            return binding.rule.status, [("content-type", MEDIA_TYPE)], b""
        if binding.method.cardinality is Cardinality.STREAM_STREAM:
            incoming = messages_of(receive, request.lines(), binding.method, self._runtime)
            stream = self._handler.answers[binding.method.path](incoming, context)
            await StreamAnswer(binding, context, send).run(stream)
            return None
        message = await self._message(binding, variables, request, receive)
        stream = self._handler.answers[binding.method.path](message, context)
        await StreamAnswer(binding, context, send).run(stream, receive)
        return None

    async def _call(self, binding: Binding, message: object, context: CallContext) -> Answer:
        context.check_deadline()
        try:
            async with asyncio.timeout(context.remaining()):
                response = await self._handler.answers[binding.method.path](message, context)
        except RpcError as error:
            status, headers, body = _error(error, context.request_id)
            return status, headers + metadata_headers(context.response_metadata), body
        except TimeoutError as error:
            context.check_deadline(maybe_applied=True)
            raise RpcError(StatusCode.INTERNAL, "internal error") from error
        status = context.response_status or binding.rule.status
        return status, metadata_headers(context.response_metadata), await self._encoded(binding, response)

    async def _encoded(self, binding: Binding, response: object) -> bytes:
        if is_long_answer(binding.method, response, MAX_INLINE_RECEIPTS):
            return await self._runtime.offload(binding.encode_response, response)
        return binding.encode_response(response)

    async def _post(self, route: Route, request: _Request, receive: Receive) -> Answer:
        if request.verb != "POST":
            return _other_verb(request, ["OPTIONS", "POST"])
        kind = request.kind()
        try:
            context = request.context(route.method, self._runtime)
            if self._admit is not None:
                await self._admit(context)
            limits = self._limits
            most = max_bytes_of(route.method, limits.max_message_bytes, limits.max_body_bytes)
            body = await request.body(receive, most, self._runtime, route.kinds)
            try:
                async with asyncio.timeout(context.remaining()):
                    return 200, [("content-type", kind)], await route.answer(kind, body, context)
            except TimeoutError:
                context.check_deadline(maybe_applied=True)
                raise
        except RpcError as error:
            status, headers, _ = _error(error, request.id)
            shown = kind if kind in route.kinds else "application/json"
            return status, [*headers, ("content-type", shown)], route.error(kind, error)


def _other_verb(request: _Request, allowed: list[str]) -> Answer:
    allow = [("allow", ", ".join(allowed))]
    if request.verb == "OPTIONS":
        return 204, allow, b""
    verb = "GET" if request.verb == "HEAD" else request.verb
    status, headers, body = _error(_refused(405, f"{verb} is not allowed here"), request.id)
    return status, headers + allow, body


def _take_unknown(binding: Binding, request: _Request) -> None:
    """Take `?unknown=keep` or `refuse` out of the query of a request with a body."""
    if binding.rule.body is None or "unknown=" not in request.query:
        return
    pairs = request.query.split("&")
    given = [pair.partition("=")[2] for pair in pairs if pair.startswith("unknown=")]
    if given and (len(given) > 1 or given[0] not in ("keep", "refuse")):
        raise invalid_argument("unknown", "must be given once, as keep or refuse")
    if given:
        request.unknown_fields = given[0]
        request.query = "&".join(pair for pair in pairs if not pair.startswith("unknown="))


def _error(error: RpcError, request_id: str) -> Answer:
    log_failure(error, request_id)
    status, headers, body = error_to_response(error, request_id)
    if status in {400, 408, 431} and error.http_status is not None:
        # The rest of the request can't be told from the next one, or is not worth waiting for.
        headers.append(("connection", "close"))
    return status, headers + metadata_headers(error.metadata), body


def _refused(status: int, message: str) -> RpcError:
    code = StatusCode.DEADLINE_EXCEEDED if status == 408 else StatusCode.INVALID_ARGUMENT
    code = StatusCode.UNIMPLEMENTED if status == 405 else code
    error_code = "PAYLOAD_TOO_LARGE" if status == 413 else ""
    return RpcError(code, message, http_status=status, error_code=error_code)


def _too_large(limit: int) -> RpcError:
    return _refused(413, f"the body may have at most {limit} bytes")


async def _feed(body: BoundedBody, receive: Receive, runtime: Runtime) -> None:
    slices = Slices(runtime)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        for _ in body.inflate(message.get("body", b"")):
            await slices.pause()
        if not message.get("more_body", False):
            return
