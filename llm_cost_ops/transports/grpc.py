"""The gRPC leaves, on grpclib's HTTP/2.

The call itself is ours: grpclib's client loses calls at a graceful GOAWAY, can't tell whether a
request may have been applied, and ends calls in a way that breaks an enclosing asyncio.timeout.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, TypeVar

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.portal import SLACK, Portal
from llm_cost_ops.rpc.status import client_closed
from llm_cost_ops.transports.grpc_bridge import LATE, Bridge
from llm_cost_ops.transports.grpc_dial import proxy_of, target_of
from llm_cost_ops.transports.grpc_exchange import GrpcExchange
from llm_cost_ops.transports.grpc_lane import Lane
from llm_cost_ops.transports.grpc_streaming import StreamingExchange
from llm_cost_ops.transports.serializer import Serializer
from llm_cost_ops.transports.tls import ssl_context

__all__ = ["AsyncGrpcLeaf", "GrpcLeaf"]

E = TypeVar("E", bound=GrpcExchange)

# A stream that is closed early is over within so many seconds, or left to the loop.
LONGEST_END = 1.0

# At DEBUG these show every header that is sent, credentials included. Who sets their levels gets that.
for _logger in map(logging.getLogger, ("hpack.hpack", "hpack.table")):
    if _logger.level == logging.NOTSET:
        _logger.setLevel(logging.INFO)


class _GrpcLeaf:
    """Where calls go, and with what settings.

    `base_url` is grpc://host:port, grpcs://host (port 443 unless it names another) or
    grpc:///path/to.sock. `channels` connections carry the calls, each any number of them at a time.
    `tls` is the context for grpcs://, by default one that verifies with the usual authorities.
    `proxy` is the URL of an HTTP proxy that tunnels; without one GRPC_PROXY, HTTPS_PROXY (HTTP_PROXY
    without TLS), ALL_PROXY and NO_PROXY are heeded. Answers of more than `max_response_bytes` are
    errors. With a `serializer` messages are not protobuf. Raises ValueError for a wrong `base_url` or
    proxy.
    """

    def __init__(
        self,
        base_url: str,
        *,
        channels: int = 1,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
        max_response_bytes: int = 64 * 1024 * 1024,
        serializer: Serializer | None = None,
    ) -> None:
        self._target = target_of(base_url)
        self._serializer = serializer
        self._channels = channels
        self._tls = tls
        self._proxy = proxy_of(self._target, proxy)
        self._max_response_bytes = max_response_bytes
        self.closed = False

    def _begin(self, request: Any, context: CallContext) -> GrpcExchange:
        return self._exchange(GrpcExchange, request, context)

    def _begin_stream(self, request: Any, context: CallContext) -> StreamingExchange:
        return self._exchange(StreamingExchange, request, context)

    def _exchange(self, kind: type[E], request: Any, context: CallContext) -> E:
        if self.closed:
            raise client_closed()
        scheme = "https" if self._target.tls else "http"
        return kind(
            scheme, self._target.authority, request, context, self._max_response_bytes, self._serializer
        )

    def _open(self) -> Lane:
        if self._target.tls and self._tls is None:
            self._tls = ssl_context(None, verify=True, alpn=("h2",))
        return Lane(self._target, self._tls if self._target.tls else None, self._proxy, self._channels)


class AsyncGrpcLeaf(_GrpcLeaf):
    """The async leaf, for asyncio. Each event loop that uses it has its own connections."""

    def __init__(self, base_url: str, **settings: Any) -> None:
        super().__init__(base_url, **settings)
        self._lanes: dict[asyncio.AbstractEventLoop, Lane] = {}

    async def unary_unary(self, request: Any, context: CallContext) -> Any:
        """Send the request, and return the response or raise RpcError."""
        exchange = self._begin(request, context)
        await self._lane().run(exchange)
        return exchange.finish()

    async def unary_stream(self, request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        """Send the request, and yield the responses as they come, or raise RpcError.

        The requests of a stream leave as they come, whether or not somebody waits for a response.
        """
        async with aclosing(self._lane().stream(self._begin_stream(request, context))) as messages:
            async for message in messages:
                yield message

    stream_stream = unary_stream

    def _lane(self) -> Lane:
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            for gone in [known for known in self._lanes if known.is_closed()]:
                del self._lanes[gone]
            lane = self._lanes[loop] = self._open()
        return lane

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        self.closed = True
        lane = self._lanes.pop(asyncio.get_running_loop(), None)
        if lane is not None:
            await lane.aclose()


class _Crossing(NamedTuple):
    """A lane in the thread of a portal."""

    portal: Portal
    lane: Lane


class GrpcLeaf(_GrpcLeaf):
    """The sync leaf: it never suspends, and crosses to a thread with an event loop for its sockets.

    Threads may share it; a forked child gets its own thread and connections.
    """

    def __init__(self, base_url: str, **settings: Any) -> None:
        super().__init__(base_url, **settings)
        # By process: what a parent left is neither used nor closed, only kept from collection.
        self._crossings: dict[int, _Crossing] = {}

    async def unary_unary(self, request: Any, context: CallContext) -> Any:
        """Send the request, and return the response or raise RpcError."""
        exchange = self._begin(request, context)
        crossing = self._crossing()
        try:
            crossing.portal.run(partial(crossing.lane.run, exchange), exchange.seconds_left())
        except TimeoutError as error:
            raise exchange.out_of_time() from error
        except RuntimeError as error:
            raise exchange.failure(error) if not self.closed else client_closed() from error
        return exchange.finish()

    async def unary_stream(self, request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        """Send the request, and yield the responses as they come, or raise RpcError."""
        async with aclosing(self._stream(self._begin_stream(request, context), Bridge(None))) as messages:
            async for message in messages:
                yield message

    async def stream_stream(self, requests: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        """Send requests while a response is waited for, and yield the responses, or raise RpcError."""
        bridge = Bridge(aiter(requests))
        exchange = self._begin_stream(bridge.outgoing(), context)
        async with aclosing(self._stream(exchange, bridge)) as messages:
            async for message in messages:
                yield message

    async def _stream(self, exchange: StreamingExchange, bridge: Bridge) -> AsyncGenerator[Any, None]:
        crossing = self._crossing()
        try:
            work = crossing.portal.start(partial(bridge.carry, crossing.lane.stream(exchange)))
        except RuntimeError as error:
            raise client_closed() from error
        try:
            while True:
                left = exchange.seconds_left()
                try:
                    message = bridge.next(None if left is None else left + SLACK)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    raise client_closed() from None
                if message is LATE:
                    raise exchange.out_of_time()
                yield message
        finally:
            work.cancel()
            bridge.wait_for_end(LONGEST_END)

    def _crossing(self) -> _Crossing:
        return self._crossings.get(os.getpid()) or self._crossings.setdefault(
            os.getpid(), _Crossing(Portal("llm-cost-ops-grpc"), self._open())
        )

    async def aclose(self) -> None:
        """Close the connections, and end the thread. Does not suspend."""
        self.closed = True
        crossing = self._crossings.pop(os.getpid(), None)
        if crossing is None:
            return
        try:
            crossing.portal.run(crossing.lane.aclose, 1.0)
        except (TimeoutError, RuntimeError):
            pass  # the thread does not answer, or was closed before
        finally:
            crossing.portal.close()
