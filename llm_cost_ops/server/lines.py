"""Bodies that are streams of lines: the requests of a call as they are read, and its answer as it is sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.method import Cardinality, MethodDescriptor
from llm_cost_ops.rpc.runtime import Runtime
from llm_cost_ops.rpc.slices import Slices
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.server.calls import Receive, Send
from llm_cost_ops.server.decoding import INLINE_BYTES
from llm_cost_ops.service.failures import log_failure
from llm_cost_ops.transports.http.binding import Binding
from llm_cost_ops.transports.http.errors import error_to_response
from llm_cost_ops.transports.http.ndjson import MEDIA_TYPE, PAUSE, Lines, LineSplitter
from llm_cost_ops.transports.net.headers import REQUEST_ID_HEADER, to_headers

__all__ = [
    "LINE_TYPES",
    "MAX_BLANK_LINES",
    "DisconnectedError",
    "StreamAnswer",
    "messages_of",
    "metadata_headers",
]


_log = logging.getLogger("llm_cost_ops.server")

LINE_TYPES = frozenset(("", MEDIA_TYPE, "application/ndjson", "application/jsonl", "application/json"))

MAX_BLANK_LINES = 10_000

# Lines of an export are sent in pieces of so many bytes.
_PIECE = 32 * 1024


class DisconnectedError(Exception):
    """The client went away."""


def metadata_headers(metadata: Metadata | None) -> list[tuple[str, str]]:
    """The metadata that a servicer sends with its answer, as headers."""
    if metadata is None:
        return []
    return [pair for pair in to_headers(metadata) if pair[0] != REQUEST_ID_HEADER]


async def messages_of(
    receive: Receive, splitter: LineSplitter, method: MethodDescriptor[Any, Any], runtime: Runtime
) -> AsyncGenerator[object, None]:
    """The messages in the lines of a body, read as they are asked for."""
    lines, slices = Lines(method), Slices(runtime)
    more = True
    try:
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                raise DisconnectedError
            more = part.get("more_body", False)
            for line in splitter.feed_slowly(part.get("body", b"")):
                await slices.pause()
                if line != PAUSE:
                    yield await _line(lines, line, splitter.limit, runtime)
        for line in splitter.end():
            yield await _line(lines, line, splitter.limit, runtime)
    except ValueError as error:
        violations = [Violation("body", str(error))]
        raise RpcError(StatusCode.INVALID_ARGUMENT, str(error), violations=violations) from error


async def _line(lines: Lines, line: bytes | None, limit: int, runtime: Runtime) -> object:
    if line is not None and len(line) > INLINE_BYTES:
        return await runtime.offload(lines.request, line, limit)
    return lines.request(line, limit)


class StreamAnswer:
    """One answer that is a stream: its head goes out with the first message.

    An error before that is raised, for a plain error response. After it the last line tells the error:
    `{"error": {"status", "code", "message", "details"}, "request_id"}`.
    """

    def __init__(self, binding: Binding, context: CallContext, send: Send) -> None:
        self._binding = binding
        self._context = context
        self._send = send
        self._lines = Lines(binding.method)
        # An acknowledgement goes out at once.
        self._piece = 0 if binding.method.cardinality is Cardinality.STREAM_STREAM else _PIECE
        self._begun = False

    async def run(self, stream: AsyncGenerator[object, None], receive: Receive | None = None) -> None:
        """Send all that a stream yields, by the deadline.

        With `receive`, for a request that has been read to its end, it ends when the client goes away.
        """
        gone = None if receive is None else asyncio.create_task(_disconnected(receive))
        try:
            tail = await self._messages(stream, gone)
        except Exception as error:
            if not self._begun or isinstance(error, DisconnectedError):
                raise
            tail = self._last_line(error)
        except asyncio.CancelledError:
            if not self._begun:
                raise
            tail = self._last_line(RpcError(StatusCode.UNAVAILABLE, "the server is stopping"))
        finally:
            if gone is not None:
                gone.cancel()
        await self._write(tail, more=False)

    async def _messages(self, stream: AsyncGenerator[object, None], gone: asyncio.Task[None] | None) -> bytes:
        """Send the messages, and return the bytes that are left for the end."""
        data = bytearray()
        try:
            async with asyncio.timeout(self._context.remaining()), aclosing(stream):
                async for message in stream:
                    data += self._lines.response_lines(message)
                    if len(data) >= self._piece:
                        if gone is not None and gone.done():
                            raise DisconnectedError
                        await self._write(bytes(data), more=True)
                        data.clear()
        except TimeoutError as error:
            self._context.check_deadline(maybe_applied=True)
            raise RpcError(StatusCode.INTERNAL, "internal error") from error
        except Exception as error:
            if not self._begun and not data:
                raise
            return bytes(data) + self._last_line(error)
        return bytes(data)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            context = self._context
            headers = [
                ("content-type", MEDIA_TYPE),
                *metadata_headers(context.response_metadata),
                (REQUEST_ID_HEADER, context.request_id),
            ]
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            status = context.response_status or self._binding.rule.status
            await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _last_line(self, error: Exception) -> bytes:
        context = self._context
        if isinstance(error, DisconnectedError):
            raise error
        if not isinstance(error, RpcError):
            _log.error("%s failed, request %s", context.method.name, context.request_id, exc_info=error)
            error = RpcError(StatusCode.INTERNAL, "internal error")
        log_failure(error, context.request_id)
        status, _, body = error_to_response(error, context.request_id)
        answer: dict[str, Any] = msgspec.json.decode(body)
        answer["error"]["status"] = status
        if error.retry_after is not None:
            answer["error"]["retry_after"] = error.retry_after
        return msgspec.json.encode(answer) + b"\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
