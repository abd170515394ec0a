"""One gRPC call with streams: what it sends, and what comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from llm_cost_ops.rpc.answers import empty_message
from llm_cost_ops.rpc.batches import batches_in_asyncio
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.method import Cardinality
from llm_cost_ops.transports.grpc.connection import CallStream, StreamFailedError
from llm_cost_ops.transports.grpc.exchange import GrpcExchange
from llm_cost_ops.transports.net.headers import REQUEST_ID_HEADER
from llm_cost_ops.transports.serializer import Serializer

__all__ = ["StreamingExchange"]

# Requests that are there at the same time leave in one frame of HTTP/2.
_TOGETHER = 64
# Larger requests go as protobuf, whose bytes the server may still take where those of JSON are too many: a
# stream that has begun can't be sent again.
_MAX_JSON = 256 * 1024


class StreamingExchange(GrpcExchange):
    """A call whose answer is a stream, and whose request may be one: both flow at the same time.

    `begun` is True once a request was taken from the caller, or a message came: from then on the call
    can't be sent again here. `broken` is what the caller's own iterable raised.
    """

    def __init__(
        self,
        scheme: str,
        authority: str,
        request: object,
        context: CallContext,
        limit: int,
        serializer: Serializer | None = None,
        *,
        json: bool = False,
    ) -> None:
        self._streams_in = context.method.cardinality is Cardinality.STREAM_STREAM
        self.requests: Any = request
        self.begun = False
        self.broken: Exception | None = None
        super().__init__(scheme, authority, request, context, limit, serializer, json=json)

    def _framed(self, request: object, max_json: float = math.inf) -> bytes:
        return b"" if request is self.requests and self._streams_in else super()._framed(request, max_json)

    async def messages(self, stream: CallStream) -> AsyncGenerator[object, None]:
        """Send the requests, and yield the responses. Raises StreamFailedError, or RpcError."""
        self._sent = False
        sending = None
        if self._streams_in:
            sending = asyncio.create_task(self._send_all(stream))
        else:
            await self._send(stream)
        try:
            encoding = await self._begin(stream)
            if self.json:
                self._check_codec()
            self._answered()
            while encoding is not None:
                message = await self._read_message(stream, encoding)
                if message is None:
                    self._take(await stream.read_trailers())
                    break
                self.begun = True
                response = self._decoded(message)
                if not self._streams_in and (missing := empty_message(self._context.method, response)):
                    raise self._malformed(missing)
                yield response
            if self._status != "0":
                raise self._failed()
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.wait([sending])

    def _answered(self) -> None:
        context = self._context
        context.response_status = context.method.success_status
        context.request_id = self._metadata.get(REQUEST_ID_HEADER) or context.request_id

    async def _send_all(self, stream: CallStream) -> None:
        try:
            with suppress(StreamFailedError):  # who reads the answer tells
                async with aclosing(self._frames()) as frames:
                    async for frame in frames:
                        await stream.send(frame, end=False)
                        self._sent = True
                await stream.send(b"", end=True)
        except Exception as error:  # noqa: BLE001  # raised again by who reads the answer
            self.broken = error
            stream.abandon()
            stream.fail(StreamFailedError("the caller's requests ended with an error"))

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        requests: AsyncIterator[Any] = aiter(self.requests)
        batches = batches_in_asyncio(requests, _TOGETHER, 0, _for_ever)
        async with aclosing(batches):
            async for batch in batches:
                self.begun = True
                yield b"".join([self._framed(request, _MAX_JSON) for request in batch])


def _for_ever() -> None:
    return None
