"""One HTTP exchange of streams without its I/O: what both transports share."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any

import msgspec

from llm_cost_ops.rpc.answers import empty_message
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.method import Cardinality
from llm_cost_ops.rpc.status import RESPONSE_TOO_LARGE, RpcError
from llm_cost_ops.rpc.streams import step
from llm_cost_ops.transports.http.binding import HttpRequest
from llm_cost_ops.transports.http.errors import error_from_response
from llm_cost_ops.transports.http.exchange import Answer, Exchange
from llm_cost_ops.transports.http.ndjson import ERROR_LINE, MEDIA_TYPE, Lines, LineSplitter
from llm_cost_ops.transports.net.headers import REQUEST_ID_HEADER
from llm_cost_ops.wire import DecodeError

__all__ = ["StreamExchange"]

# Requests are sent in chunks of so many bytes, or after so many seconds, whatever comes first.
_CHUNK = 64 * 1024
_MAX_WAIT = 0.02

_ERROR = msgspec.json.Decoder(dict[str, Any])


class StreamExchange(Exchange):
    """A call whose answer is a stream, and whose request may be one.

    HTTP/1.1 is half-duplex in practice: the answer is read once the last request has been sent. `limit`
    bounds a line of the answer. `broken` is what the caller's own iterable raised.
    """

    def __init__(self, origin: str, request: object, context: CallContext, limit: int, *, own: bool) -> None:
        self._streams_in = context.method.cardinality is Cardinality.STREAM_STREAM
        super().__init__(origin, request, context, limit, own=own)
        self._requests: Any = request if self._streams_in else None
        self._lines = Lines(context.method)
        self._splitter: LineSplitter | None = None
        self.broken: Exception | None = None

    def _encoded(self, request: object) -> HttpRequest:
        if not self._streams_in:
            return super()._encoded(request)
        return HttpRequest(self._binding.rule.verb, self._binding.rule.path, "", None)

    def _headers(self, left: float | None) -> list[tuple[str, str]]:
        headers = [pair for pair in super()._headers(left) if pair[0] not in {"accept", "content-type"}]
        headers.append(("accept", f"{MEDIA_TYPE}, application/json"))
        if self._streams_in:
            headers.append(("content-type", MEDIA_TYPE))
        elif self._http.body is not None:
            headers.append(("content-type", "application/json"))
        return headers

    def _content(self, *, asynchronous: bool) -> object:
        if not self._streams_in:
            return super()._content(asynchronous=asynchronous)
        return self._body_async() if asynchronous else self._body_sync()

    def _body_sync(self) -> Generator[bytes, None, None]:
        requests = aiter(self._requests)
        chunk = _Chunk()
        try:
            while True:
                try:
                    message = step(requests)
                except StopAsyncIteration:
                    break
                if chunk.add(self._lines.request_lines(message)):
                    yield chunk.take()
        except Exception as error:
            self.broken = error
            raise
        if chunk.data:
            yield chunk.take()

    async def _body_async(self) -> AsyncGenerator[bytes, None]:
        requests: AsyncIterator[Any] = aiter(self._requests)
        chunk = _Chunk()
        try:
            async for message in requests:
                if chunk.add(self._lines.request_lines(message)):
                    yield chunk.take()
        except Exception as error:
            self.broken = error
            raise
        if chunk.data:
            yield chunk.take()

    def start(self, answer: Answer) -> None:
        """Take the status and the headers."""
        super().start(answer)
        context = self._context
        context.response_metadata, context.response_status = self._metadata, self._status
        if not 200 <= self._status < 300:
            return
        if answer.kind != MEDIA_TYPE:
            raise self._malformed(f"its content type is {answer.kind[:100]!r}, not {MEDIA_TYPE}")
        context.request_id = self._metadata.get(REQUEST_ID_HEADER) or context.request_id
        self._splitter = LineSplitter(self._limit, answer.encoding)

    def messages(self, chunk: bytes) -> Iterator[object]:
        """The messages that a part of the answer ends. RpcError where it tells of an error."""
        if self._splitter is None:
            self.feed(chunk)
            return
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise self.out_of_time()
        yield from self._decoded(self._splitter.feed(chunk))

    def rest(self) -> Iterator[object]:
        """The messages that the end of the answer ends. RpcError when it was no success."""
        if self._splitter is None:
            self.finish()
            return
        yield from self._decoded(self._splitter.end())

    def _decoded(self, lines: Iterator[bytes | None]) -> Iterator[object]:
        try:
            for line in lines:
                if line is None:
                    reason = f"a line is longer than {self._limit} bytes"
                    raise self._malformed(reason, code=RESPONSE_TOO_LARGE)
                if line.startswith(ERROR_LINE):
                    raise self._decoded_error(line)
                message = self._lines.response(line)
                if not self._streams_in and (missing := empty_message(self._context.method, message)):
                    raise self._malformed(missing)
                yield message
        except DecodeError as error:
            raise self._malformed(f"a line {error}") from error
        except ValueError as error:
            raise self._malformed(str(error)) from error

    def _decoded_error(self, line: bytes) -> RpcError:
        """The error that a last line tells: what an error response would have told before the first."""
        try:
            status = _ERROR.decode(line)["error"]["status"]
        except (ValueError, KeyError, TypeError):
            status = 500
        status = status if type(status) is int and 400 <= status < 600 else 500
        error = error_from_response(
            status, self._metadata, line, safe=self._safe, now=self._context.runtime.now()
        )
        error.request_id = error.request_id or self._context.request_id
        return error


class _Chunk:
    """Lines on their way into one write."""

    __slots__ = ("_since", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._since = 0.0

    def add(self, line: bytes) -> bool:
        """Add a line, and tell whether it is time to write."""
        now = time.monotonic()
        if not self.data:
            self._since = now
        self.data += line
        return len(self.data) >= _CHUNK or now - self._since >= _MAX_WAIT

    def take(self) -> bytes:
        """All that was added."""
        data = bytes(self.data)
        self.data.clear()
        return data
