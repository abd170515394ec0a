"""One HTTP exchange without its I/O: what both transports share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import httpcore
import httpx

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.lazy import missing_library
from llm_cost_ops.rpc.answers import missing_answer
from llm_cost_ops.rpc.context import CallContext, Metadata, fits_header
from llm_cost_ops.rpc.method import Idempotency
from llm_cost_ops.rpc.status import RESPONSE_TOO_LARGE, RpcError, StatusCode, client_closed, invalid_argument
from llm_cost_ops.transports.http.binding import HttpRequest, binding_of
from llm_cost_ops.transports.http.errors import error_from_response
from llm_cost_ops.transports.net.advice import advice
from llm_cost_ops.transports.net.bodies import BodyTooLargeError, BoundedBody
from llm_cost_ops.transports.net.headers import (
    DEADLINE_HEADER,
    IDEMPOTENCY_HEADER,
    REQUEST_ID_HEADER,
    encode_timeout,
    from_headers,
    to_headers,
)
from llm_cost_ops.transports.net.proxies import environment_proxy
from llm_cost_ops.transports.serializer import Serializer, from_wire, to_wire
from llm_cost_ops.wire import DecodeError

__all__ = ["Answer", "Exchange", "origin_of", "proxy_for"]

USER_AGENT = "llm-cost-ops"

# Where there is no body, it is said.
_WITH_LENGTH = frozenset(("PATCH", "POST", "PUT"))

# Exceptions of httpx and httpcore by name, which they share, from before a request leaves.
_NOT_SENT = frozenset(
    (
        "ConnectError",
        "ConnectTimeout",
        "LocalProtocolError",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
    )
)


def origin_of(base_url: str) -> str:
    """A base URL without a slash at its end. Raises ValueError when it can't be one."""
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"base_url is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("base_url must begin with http:// or https:// and a host")
    if url.userinfo or url.query or url.fragment:
        raise ValueError("base_url may not have credentials, a query or a fragment")
    return str(url).rstrip("/")


def proxy_for(origin: str, proxy: str | None) -> httpx.Proxy | None:
    """The proxy to an origin: the one given, else what the environment says. Raises ConfigurationError."""
    url = httpx.URL(origin)
    if proxy is None:
        port = url.port or (443 if url.scheme == "https" else 80)
        proxy = environment_proxy((url.scheme, "all"), url.host, port)
    if not proxy:
        return None
    if proxy.startswith("socks"):
        try:
            import_module("socksio")
        except ImportError as error:
            raise ConfigurationError(
                str(missing_library(error, "a SOCKS proxy")), parameter="proxy"
            ) from None
    try:
        found = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    except (httpx.InvalidURL, ValueError):
        found = None
    if found is None or not found.url.host:
        # Its text may hold a password.
        rule = "must be a URL such as http://127.0.0.1:3128, also in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
        raise ConfigurationError(f"proxy {rule}", parameter="proxy")
    return found


# Parsing one takes a tenth of the time that a small request takes.
@lru_cache(maxsize=256)
def _url(text: str) -> httpx.URL:
    """A request's URL; INVALID_ARGUMENT when it can be none, as with thousands of values in a filter."""
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        rule = f"makes a URL that can't be sent: {error}"
        raise invalid_argument("query", rule, origin="client") from None


@lru_cache(maxsize=256)
def _pool_url(text: str) -> tuple[httpcore.URL, str]:
    """A URL as httpcore takes it, and its Host header."""
    url = _url(text)
    made = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return made, url.netloc.decode("ascii")


class Answer(NamedTuple):
    """An answer that has begun: `chunks` are its body as it comes, and `close` ends it.

    `decoded` says that the body is not compressed any more, whatever the headers say.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    chunks: Any
    close: Callable[[], Any]
    decoded: bool = False

    @property
    def kind(self) -> str:
        """The media type, without parameters."""
        return self._header(b"content-type").partition(";")[0].strip().lower()

    @property
    def encoding(self) -> str:
        """How the body is compressed."""
        return "" if self.decoded else self._header(b"content-encoding")

    def _header(self, name: bytes) -> str:
        return ", ".join([value.decode("latin-1") for key, value in self.headers if key.lower() == name])


class Exchange:
    """One call as one HTTP request and its response; the transport moves the bytes.

    `limit` bounds the decompressed response. `own` says that the connections are ours: then it is
    known when the request begins to leave, because they report each step. Without a `serializer` bodies
    are JSON.
    """

    def __init__(
        self,
        origin: str,
        request: object,
        context: CallContext,
        limit: int,
        *,
        own: bool,
        serializer: Serializer | None = None,
    ) -> None:
        context.check_deadline()
        self._serializer = serializer
        self._kind = "application/json" if serializer is None else serializer.content_type
        self._answered_so = False
        self._context = context
        self._binding = binding_of(context.method)
        self._safe = context.method.idempotency is Idempotency.NO_SIDE_EFFECTS
        self._own = own
        self._reported = self._sent = False
        self._connect_cut = False  # a connect has less time than the call, since there are other servers
        self.refused = False  # for having too many calls, see CallQueue
        self._limit = limit
        self._body = BoundedBody(limit)
        self._status = 0
        self._metadata = Metadata()
        self._deadline = None if context.deadline is None else time.monotonic() + (context.remaining() or 0.0)
        self._request = request
        self._http = self._encoded(request)
        self._origin = origin

    def _encoded(self, request: object) -> HttpRequest:
        http = self._binding.encode(request)
        if self._serializer is None or http.body is None:
            return http
        return http._replace(body=to_wire(self._serializer, http.body))

    def seconds_left(self) -> float | None:
        """What is left until the deadline, never negative."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def client_request(self, *, asynchronous: bool) -> httpx.Request:
        """The request for an httpx client of the user's own."""
        left = self.seconds_left()
        content: Any = self._content(asynchronous=asynchronous)
        return httpx.Request(
            self._http.verb,
            _url(self._origin + self._http.target),
            headers=self._headers(left),
            content=content,
            extensions=self._extensions(left, 0.0, asynchronous=asynchronous),
        )

    def pool_request(self, *, asynchronous: bool) -> httpcore.Request:
        """The request for our own connections; the sync ones take points in time for timeouts.

        Not by way of httpx: its requests and responses took a fifth of the computing time of a call.
        """
        left = self.seconds_left()
        url, host = _pool_url(self._origin + self._http.target)
        content: Any = self._content(asynchronous=asynchronous)
        headers = [("Host", host), *self._headers(left)]
        if isinstance(content, bytes) and content:
            headers.append(("Content-Length", str(len(content))))
        elif content:
            headers.append(("Transfer-Encoding", "chunked"))
        elif self._http.verb in _WITH_LENGTH:
            headers.insert(1, ("Content-Length", "0"))
        start = 0.0 if asynchronous else time.monotonic()
        extensions = self._extensions(left, start, asynchronous=asynchronous)
        return httpcore.Request(self._http.verb, url, headers=headers, content=content, extensions=extensions)

    def _content(self, *, asynchronous: bool) -> object:  # it matters to streams
        return self._http.body

    def _extensions(self, left: float | None, start: float, *, asynchronous: bool) -> dict[str, Any]:
        """The tracer of the steps, and their seconds from `start` on, which is 0 where they are durations."""
        step = connect = None if left is None else start + left
        share = None if self._context.route is None else self._context.route.connect_timeout
        if share is not None and (left is None or share < left):
            self._connect_cut = True
            connect = start + share
        timeout = {"connect": connect, "read": step, "write": step, "pool": left}
        return {"timeout": timeout, "trace": self._trace_async if asynchronous else self._trace}

    def _headers(self, left: float | None) -> list[tuple[str, str]]:
        context = self._context
        accept = self._kind if self._serializer is None else f"{self._kind}, application/json;q=0.5"
        headers = [("accept", accept), ("accept-encoding", "gzip")]
        if self._http.body is not None:
            headers.append(("content-type", self._kind))
        if "user-agent" not in context.metadata:
            headers.append(("user-agent", USER_AGENT))
        if left is not None:
            headers.append((DEADLINE_HEADER, encode_timeout(left)))
        key = context.idempotency_key
        if key and fits_header(key):
            headers.append((IDEMPOTENCY_HEADER, key))
        if context.request_id and context.request_id != context.idempotency_key:
            headers.append((REQUEST_ID_HEADER, context.request_id))
        own = {name for name, _ in headers}
        return headers + [pair for pair in to_headers(context.metadata) if pair[0] not in own]

    def _trace(self, event: str, info: Any) -> None:
        self._reported = True
        if event.endswith("send_request_headers.started"):
            # A tunnel's CONNECT tells the server nothing.
            self._sent = self._sent or getattr(info.get("request"), "method", b"") != b"CONNECT"

    async def _trace_async(self, event: str, info: object) -> None:
        self._trace(event, info)

    def start(self, answer: Answer) -> None:
        """Take the status and the headers."""
        self._sent = True
        self._status = answer.status
        self._metadata = from_headers(answer.headers)
        if self._serializer is not None:
            self._answered_so = answer.kind == self._kind
        try:
            self._body = BoundedBody(self._limit, answer.encoding)
        except ValueError as error:
            raise self._malformed(str(error)) from error

    def feed(self, chunk: bytes) -> None:
        """Take a part of the body."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise self.out_of_time()
        try:
            self._body.feed(chunk)
        except BodyTooLargeError as error:
            raise self._malformed(str(error), code=RESPONSE_TOO_LARGE) from error
        except ValueError as error:
            raise self._malformed(str(error)) from error

    def finish(self) -> object:
        """The response message. RpcError when the server told an error, or nothing that can be understood."""
        context = self._context
        context.response_metadata = self._metadata
        context.response_status = self._status
        try:
            body = self._body.whole()
        except BodyTooLargeError as error:
            raise self._malformed(str(error), code=RESPONSE_TOO_LARGE) from error
        except ValueError as error:
            raise self._malformed(str(error)) from error
        if not 200 <= self._status < 300:
            with suppress(DecodeError):
                body = self._json(body)
            raise self._refused(body)
        context.request_id = self._metadata.get(REQUEST_ID_HEADER) or context.request_id
        try:
            body = self._json(body) if body or self._status != 204 else b"{}"
            response = self._binding.decode_response(body)
        except DecodeError as error:
            raise self._malformed(f"the response {error}", body) from error
        if missing := missing_answer(context.method, self._request, response, body):
            raise self._malformed(missing, body)
        return response

    def _json(self, body: bytes) -> bytes:
        return from_wire(self._serializer, body) if self._serializer and self._answered_so else body

    def out_of_time(self, error: Exception | None = None) -> RpcError:
        """The deadline passed, or a client of the user's own did not wait that long."""
        passed = self._deadline is not None and time.monotonic() >= self._deadline - 0.001
        name = self._context.method.name
        return RpcError(
            StatusCode.DEADLINE_EXCEEDED,
            f"the deadline of {name} passed" if passed else f"{name} timed out",
            origin="client" if passed else "network",
            maybe_applied=self._maybe_applied(error),
            request_id=self._context.request_id,
        )

    def failure(self, error: Exception) -> RpcError:
        """What an exception of httpx, httpcore, ssl, asyncio or the socket means."""
        name = type(error).__name__
        late = isinstance(error, TimeoutError) or name.endswith("Timeout") or name == "TimeoutException"
        if late and not (self._connect_cut and name == "ConnectTimeout"):
            return self.out_of_time(error)
        reason = _reason(error)
        hint = advice(self._origin.partition(":")[0], reason)
        return RpcError(
            StatusCode.UNAVAILABLE,
            f"no answer from {self._origin}: {name}: {reason}{hint}",
            origin="network",
            maybe_applied=self._maybe_applied(error),
            request_id=self._context.request_id,
            error_code=RpcError.code_of_cause(error),
        )

    def closed(self, error: Exception | None = None) -> RpcError:
        """The client was closed meanwhile."""
        return client_closed(maybe_applied=self._maybe_applied(error))

    def _maybe_applied(self, error: Exception | None) -> bool:
        if self._safe or self._sent:
            return not self._safe
        if self._own and (error is None or isinstance(error, TimeoutError)):
            return False
        if error is None:
            return not self._reported
        return type(error).__name__ not in _NOT_SENT

    def _refused(self, body: bytes) -> RpcError:
        context = self._context
        refusal = error_from_response(
            self._status, self._metadata, body, safe=self._safe, now=context.runtime.now()
        )
        refusal.request_id = refusal.request_id or context.request_id
        self.refused = refusal.is_refusal
        return refusal

    def _malformed(self, reason: str, body: bytes = b"", code: str = "") -> RpcError:
        status = self._status
        if not 200 <= status < 300:
            return self._refused(b"")
        return RpcError(
            StatusCode.INTERNAL,
            f"the answer (HTTP {status}) can't be understood: {reason}",
            maybe_applied=not self._safe,
            request_id=self._metadata.get(REQUEST_ID_HEADER) or self._context.request_id,
            metadata=self._metadata,
            body=body[:1024],
            error_code=code,
        )


def _reason(error: BaseException) -> str:
    """The first exception of a chain that says something, says it."""
    seen: BaseException | None = error
    while seen is not None:
        if str(seen):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return "no reason given"
