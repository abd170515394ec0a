"""One request on its way to the provider, and its answer on the way back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable

import httpcore

from llm_cost_ops.instrumentation.answers import MAX_BODY, MAX_FORM, Watch, may_ask, watch, with_usage
from llm_cost_ops.instrumentation.calls import PROVIDER_HEADER, Call, Options
from llm_cost_ops.proxy.attribution import PREFIX
from llm_cost_ops.proxy.limits import ProxyLimits, RefusedError
from llm_cost_ops.proxy.upstreams import Answer, Headers, Upstream
from llm_cost_ops.server.calls import Receive, Scope, Send
from llm_cost_ops.transports.net.bodies import BoundedBody

__all__ = ["Passing"]

Content = bytes | AsyncIterator[bytes]

_log = logging.getLogger("llm_cost_ops.proxy")

# RFC 9110, 7.6.1, and what a connection has for itself.
_HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
_NOT_FORWARDED = _HOP_BY_HOP | {b"expect", b"host"}
# The server that answers the caller dates its answers itself.
_NOT_RETURNED = _HOP_BY_HOP | {b"date"}

_READABLE = frozenset({b"gzip", b"deflate", b"identity"})
# An error that may name what we asked for is read to this many bytes.
_MAX_ERROR = 64 * 1024


class Passing:
    """Passes one request and its answer. `record` first, where the call is to be recorded."""

    def __init__(
        self,
        scope: Scope,
        path: bytes,
        headers: Headers,
        upstream: Upstream,
        limits: ProxyLimits,
        receive: Receive,
        send: Send,
    ) -> None:
        query: bytes = scope.get("query_string", b"")
        self._target = path + b"?" + query if query else path
        self._method: str = scope["method"]
        self._given = headers
        self._upstream = upstream
        self._limits = limits
        self._receive = receive
        self._send = send
        self._call: Call | None = None
        self._options: Options | None = None
        self._refusing: set[str] = set()
        self._body = b""
        self._asks = False
        self._sent = self._gone = self._complete = False
        self._seen: Watch | None = None
        self._watching: asyncio.Task[None] | None = None
        self.begun = False

    def header(self, name: bytes) -> bytes:
        """A header of the request; b"" where it has none."""
        return next((value for each, value in self._given if each == name), b"")

    def record(self, call: Call, options: Options, refusing: set[str]) -> None:
        """Have the call recorded; `refusing` are the hosts that do not take the question for usage."""
        self._call = call
        self._options = options
        self._refusing = refusing

    async def run(self) -> None:
        """Pass it. RefusedError where there is no answer to pass back."""
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(self._limits.call_timeout) as timer:
                await self._pass(timer)
        except asyncio.CancelledError:
            self._end_abandoned()
            if not self._gone:
                raise
            task.uncancel()
        except TimeoutError:
            self._end_abandoned()
            self._broken("the provider did not answer in time", status=504, code="upstream_timeout")
        except _FAILURES as error:
            reason = "the answer broke off" if self.begun else "no answer"
            if self.begun:
                self._end_abandoned()
            # An error's own text may quote what was sent.
            self._broken(f"{reason}: {type(error).__name__}")
        finally:
            if self._watching is not None:
                self._watching.cancel()

    def _broken(self, reason: str, *, status: int = 502, code: str = "upstream_unreachable") -> None:
        _log.warning("%s: %s", self._upstream.name, reason)
        if not self.begun:
            raise RefusedError(status, code, f"{self._upstream.name}: {reason}")
        # Without the end of the body the server closes the connection: the caller sees that it broke.

    def _end_abandoned(self) -> None:
        """The provider may have done the work: what was seen is recorded, of unknown usage."""
        if self._seen is not None:
            self._seen.rest()
            self._seen.finish()
        elif self._call is not None and self._sent:
            self._call.finish(finished=False)

    async def _pass(self, timer: asyncio.Timeout) -> None:
        content, headers = await self._request()
        allow = _Allowance(timer).give
        allow(self._limits.answer_timeout)
        answer = await self._open(content, headers)
        try:
            if self._asks and answer.status in (400, 422):
                error = await _beginning(answer)
                if b"stream_options" in error:
                    await answer.aclose()
                    self._refusing.add(self._upstream.host)
                    self._asks = False
                    answer = await self._open(self._body, self._headers(len(self._body), readable=True))
                    error = b""
                await self._return(answer, error, allow)
            else:
                await self._return(answer, b"", allow)
        finally:
            await answer.aclose()

    async def _request(self) -> tuple[Content, Headers]:
        """The body, whole or as it comes, and the headers, as they are passed on."""
        length = self.header(b"content-length")
        chunked = bool(self.header(b"transfer-encoding"))
        call = self._call
        if call is None or self.header(b"content-type").startswith(b"multipart/"):
            if not chunked and length in (b"", b"0"):
                self._watch_caller()
                return b"", self._headers(None)
            head = None
            if call is not None:
                head = bytearray()
                call.request_body = functools.partial(bytes, head)
            self._check_length(length, self._limits.max_upload_bytes)
            return self._incoming(head), self._headers(None, chunked=chunked, readable=call is not None)
        self._check_length(length, self._limits.max_body_bytes)
        self._body = body = await self._whole_body()
        call.request_body = lambda: body
        asking = self._asking(call, body)
        if asking is not None:
            self._asks = True
            return asking, self._headers(len(asking), plain=True)
        return body, self._headers(len(body), readable=True)

    def _asking(self, call: Call, body: bytes) -> bytes | None:
        """The body that asks for usage too; None where it is not to be asked for."""
        upstream, options = self._upstream, self._options
        is_chat = call.api == "openai.chat" and self._target.partition(b"?")[0].endswith(b"completions")
        if not is_chat or options is None:
            return None
        if not may_ask(options, upstream.provider, upstream.host, self._refusing):
            return None
        return with_usage(body)

    def _headers(
        self,
        length: int | None,
        *,
        chunked: bool = False,
        readable: bool = False,
        plain: bool = False,
    ) -> Headers:
        """The request's headers as the provider gets them, with the length of a body that was read.

        The answer is asked for in an encoding that can be `readable` to us, or `plain`.
        """
        own = _named_by_connection(self._given)
        headers = [(b"host", self._upstream.authority)]
        for name, value in self._given:
            if name in _NOT_FORWARDED or name in own or name.startswith(PREFIX):
                continue
            if name == b"content-length":
                value = value if length is None else str(length).encode()
            elif name == b"accept-encoding" and (readable or plain):
                value = b"identity" if plain else _readable(value)
            headers.append((name, value))
        if length is not None and not self.header(b"content-length"):
            headers.append((b"content-length", str(length).encode()))
        if chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        return headers

    def _check_length(self, length: bytes, limit: int) -> None:
        if length.isdigit() and int(length[:20]) > limit:
            raise _too_large(limit)

    async def _whole_body(self) -> bytes:
        limit = self._limits.max_body_bytes
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                more = True
                while more:
                    part, more = await self._next_part()
                    if len(body) + len(part) > limit:
                        raise _too_large(limit)
                    body += part
        except TimeoutError:
            raise _late_body(self._limits.body_timeout) from None
        return bytes(body)

    async def _incoming(self, head: bytearray | None) -> AsyncIterator[bytes]:
        """The body as it comes; its beginning is kept in `head`."""
        taken, limit = 0, self._limits.max_upload_bytes
        more = True
        while more:
            try:
                async with asyncio.timeout(self._limits.body_timeout):
                    part, more = await self._next_part()
            except TimeoutError:
                raise _late_body(self._limits.body_timeout) from None
            taken += len(part)
            if taken > limit:
                raise _too_large(limit)
            if head is not None and len(head) < MAX_FORM:
                head += part[:MAX_FORM]
            if part:
                yield part

    async def _next_part(self) -> tuple[bytes, bool]:
        """A part of the body, and whether there are more. From the last one on the caller is watched."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
            raise asyncio.CancelledError
        more = message.get("more_body", False)
        if not more:
            self._watch_caller()
        return message.get("body", b""), more

    def _watch_caller(self) -> None:
        """From now on, end with the caller's connection."""
        task = asyncio.current_task()
        assert task is not None
        self._watching = asyncio.create_task(self._until_gone(task))

    async def _until_gone(self, task: asyncio.Task[object]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # A server says so too when the answer is complete.
        if not self._complete:
            self._gone = True
            task.cancel()

    async def _open(self, content: Content, headers: Headers) -> Answer:
        self._sent = True
        limits = self._limits
        return await self._upstream.send(self._method, self._target, headers, content, limits.connect_timeout)

    async def _return(self, answer: Answer, read: bytes, allow: Callable[[float], None]) -> None:
        """Give the caller an answer, of whose body this much was read already."""
        send, idle = self._send, self._limits.idle_timeout
        seen, left = None, -1
        if self._call is not None and answer.status < 300:
            headers = dict(answer.headers)
            length = headers.get(b"content-length", b"")
            left = int(length) if length.isdigit() else -1
            kind = headers.get(b"content-type", b"").decode("latin-1")
            encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
            self._seen = seen = watch(self._call, kind, encoding, _decompressed, hide=self._asks)
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": self._returned(answer)}
        )
        self.begun = True
        allow(idle)
        if read:
            await send({"type": "http.response.body", "body": read, "more_body": True})
        async for data in answer.parts:
            allow(idle)
            passing = data if seen is None else seen.feed(data)
            left -= len(data)
            if left == 0 and seen is not None:
                # A caller that has its whole answer is recorded.
                seen.finish(finished=True)
            if passing:
                await send({"type": "http.response.body", "body": passing, "more_body": True})
        if seen is not None:
            if rest := seen.rest():
                await send({"type": "http.response.body", "body": rest, "more_body": True})
            seen.finish(finished=True)
        self._complete = True
        await send({"type": "http.response.body", "body": b""})

    def _returned(self, answer: Answer) -> Headers:
        given = answer.headers
        own = _named_by_connection(given)
        dropped = _NOT_RETURNED | {b"content-length"} if self._asks else _NOT_RETURNED
        headers = [
            pair
            for pair in given
            if pair[0] not in dropped and pair[0] not in own and not pair[0].startswith(PREFIX)
        ]
        if self._call is not None and answer.status < 300:
            headers.append((PROVIDER_HEADER.encode(), self._call.provider.encode()))
        return headers


class _Allowance:
    """Time until the next part of an answer, within what is left for the whole call."""

    def __init__(self, timer: asyncio.Timeout) -> None:
        last = timer.when()
        assert last is not None
        self._timer = timer
        self._last = last
        self._clock = asyncio.get_running_loop().time
        self._given = self._seconds = 0.0

    def give(self, seconds: float) -> None:
        """Allow so many seconds from now on, or a tenth less: setting a timer costs more than a part."""
        now = self._clock()
        if seconds != self._seconds or now - self._given > min(1.0, seconds / 10):
            self._given, self._seconds = now, seconds
            self._timer.reschedule(min(self._last, now + seconds))


_FAILURES = (
    httpcore.ConnectTimeout,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    OSError,
)


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, "body_too_large", f"the body may have at most {limit} bytes")


def _late_body(seconds: float) -> RefusedError:
    return RefusedError(408, "body_timeout", f"the body took more than {seconds:g} s")


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """The headers that `Connection` names: they are for one connection only. The length is the message's."""
    stated = [value for name, value in headers if name == b"connection"]
    if not stated:
        return frozenset()
    return frozenset(name.strip().lower() for name in b",".join(stated).split(b",")) - {b"content-length"}


def _readable(accepted: bytes) -> bytes:
    """Of the encodings that a caller accepts those that we can read too."""
    kept = [each for each in accepted.split(b",") if each.partition(b";")[0].strip().lower() in _READABLE]
    return b",".join(kept).strip() or b"identity"


def _decompressed(encoding: str, body: bytes) -> bytes:
    """A body, up to where it broke off: who saw the last event may leave."""
    bounded = BoundedBody(MAX_BODY, encoding)
    with contextlib.suppress(ValueError):
        bounded.feed(body)
    return bounded.so_far()


async def _beginning(answer: Answer) -> bytes:
    """The body of an error; of a long one its beginning."""
    body = bytearray()
    async for data in answer.parts:
        body += data
        if len(body) > _MAX_ERROR:
            break
    return bytes(body)
