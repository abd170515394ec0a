"""The gRPC transports, on grpclib's HTTP/2.

The call itself is ours: grpclib's client loses calls at a graceful GOAWAY, can't tell whether a
request may have been applied, and ends calls in a way that breaks an enclosing asyncio.timeout.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult

from h2.errors import ErrorCodes

from llm_cost_ops.rpc.backoff import Backoff
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.fifo import CallQueue
from llm_cost_ops.rpc.forks import PerProcess
from llm_cost_ops.rpc.status import RpcError, client_closed
from llm_cost_ops.rpc.streams import step
from llm_cost_ops.transports.grpc.connection import CallConnection, StreamFailedError
from llm_cost_ops.transports.grpc.dial import Target, dial, proxy_of, target_of
from llm_cost_ops.transports.grpc.exchange import GrpcExchange
from llm_cost_ops.transports.grpc.portal import SLACK, NoThreadError, Portal
from llm_cost_ops.transports.grpc.streaming import StreamingExchange
from llm_cost_ops.transports.net.loops import of_running_loop
from llm_cost_ops.transports.net.tls import ssl_context
from llm_cost_ops.transports.serializer import Serializer

__all__ = ["LATE", "AsyncGrpcTransport", "Bridge", "ConnectionPool", "GrpcTransport"]


E = TypeVar("E", bound=GrpcExchange)

# A stream that is closed early is over within so many seconds, or left to the loop.
MAX_END = 1.0

# At DEBUG these show every header that is sent, credentials included. Who sets their levels gets that.
for _logger in map(logging.getLogger, ("hpack.hpack", "hpack.table")):
    if _logger.level == logging.NOTSET:
        _logger.setLevel(logging.INFO)


class _GrpcTransport:
    """Where calls go, and with what settings.

    `base_url` is grpc://host:port, grpcs://host (port 443 unless it names another) or
    grpc:///path/to.sock. `channels` connections carry the calls, at most `max_in_flight` of them at a
    time; the others queue.
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
        max_in_flight: int = 100,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
        max_response_bytes: int = 64 * 1024 * 1024,
        serializer: Serializer | None = None,
    ) -> None:
        self._target = target_of(base_url)
        self._serializer = serializer
        self._channels = channels
        self._max_in_flight = max_in_flight
        self._tls = tls
        self._proxy = proxy_of(self._target, proxy)
        self._max_response_bytes = max_response_bytes
        # Whether the call before went as JSON: most likely the next one will.
        self._json = False
        self.closed = False

    def _begin(self, request: object, context: CallContext) -> GrpcExchange:
        return self._exchange(GrpcExchange, request, context)

    def _begin_stream(self, request: object, context: CallContext) -> StreamingExchange:
        return self._exchange(StreamingExchange, request, context)

    def _exchange(self, kind: type[E], request: object, context: CallContext) -> E:
        if self.closed:
            raise client_closed()
        scheme = "https" if self._target.tls else "http"
        return kind(
            scheme,
            self._target.authority,
            request,
            context,
            self._max_response_bytes,
            self._serializer,
            json=self._json,
        )

    def _open(self) -> ConnectionPool:
        if self._target.tls and self._tls is None:
            self._tls = ssl_context(None, verify=True, alpn=("h2",))
        return ConnectionPool(
            self._target,
            self._tls if self._target.tls else None,
            self._proxy,
            self._channels,
            self._max_in_flight,
        )


class AsyncGrpcTransport(_GrpcTransport):
    """The async transport, for asyncio. Each event loop that uses it has its own connections."""

    def __init__(self, base_url: str, **settings: Any) -> None:
        super().__init__(base_url, **settings)
        self._pools: dict[asyncio.AbstractEventLoop, ConnectionPool] = {}

    async def unary_unary(self, request: object, context: CallContext) -> object:
        """Send the request, and return the response or raise RpcError."""
        exchange = self._begin(request, context)
        await self._pool().run(exchange)
        self._json = exchange.json
        return exchange.finish()

    async def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        """Send the request, and yield the responses as they come, or raise RpcError.

        The requests of a stream leave as they come, whether or not somebody waits for a response.
        """
        async with aclosing(self._pool().stream(self._begin_stream(request, context))) as messages:
            async for message in messages:
                yield message

    stream_stream = unary_stream

    def _pool(self) -> ConnectionPool:
        return of_running_loop(self._pools, self._open)

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        self.closed = True
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()


class _Crossing(NamedTuple):
    """A pool in the thread of a portal."""

    portal: Portal
    pool: ConnectionPool


class GrpcTransport(_GrpcTransport):
    """The sync transport: it never suspends, and crosses to a thread with an event loop for its sockets.

    Threads may share it; a forked child gets its own thread and connections.
    """

    def __init__(self, base_url: str, **settings: Any) -> None:
        super().__init__(base_url, **settings)
        self._crossings = PerProcess[_Crossing]()

    async def unary_unary(self, request: object, context: CallContext) -> object:
        """Send the request, and return the response or raise RpcError."""
        exchange = self._begin(request, context)
        crossing = self._crossing()
        try:
            crossing.portal.run(partial(crossing.pool.run, exchange), exchange.seconds_left())
        except TimeoutError as error:
            raise exchange.out_of_time() from error
        except RuntimeError as error:
            raise exchange.failure(error) if not self.closed else exchange.closed() from error
        self._json = exchange.json
        return exchange.finish()

    async def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        """Send the request, and yield the responses as they come, or raise RpcError."""
        async with aclosing(self._stream(self._begin_stream(request, context), Bridge(None))) as messages:
            async for message in messages:
                yield message

    async def stream_stream(self, requests: Any, context: CallContext) -> AsyncGenerator[object, None]:
        """Send requests while a response is waited for, and yield the responses, or raise RpcError."""
        bridge = Bridge(aiter(requests))
        exchange = self._begin_stream(bridge.outgoing(), context)
        async with aclosing(self._stream(exchange, bridge)) as messages:
            async for message in messages:
                yield message

    async def _stream(self, exchange: StreamingExchange, bridge: Bridge) -> AsyncGenerator[object, None]:
        crossing = self._crossing()
        try:
            work = crossing.portal.start(partial(bridge.carry, crossing.pool.stream(exchange)))
        except NoThreadError as error:
            raise exchange.failure(error) from error
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
                    raise exchange.closed() from None
                if message is LATE:
                    raise exchange.out_of_time()
                yield message
        finally:
            work.cancel()
            bridge.wait_for_end(MAX_END)

    def _crossing(self) -> _Crossing:
        crossing = self._crossings.get(lambda: _Crossing(Portal("llm-cost-ops-grpc"), self._open()))
        if self.closed:  # by another thread, since the call began
            crossing.portal.close()
            raise client_closed()
        return crossing

    async def aclose(self) -> None:
        """Close the connections, and end the thread. Does not suspend."""
        self.closed = True
        crossing = self._crossings.made
        if crossing is None:
            return
        try:
            crossing.portal.run(crossing.pool.aclose, 1.0)
        except (TimeoutError, RuntimeError):
            pass  # the thread does not answer, or was closed before
        finally:
            crossing.portal.close()


LATE: Any = object()
"""What there is in place of a message that did not come in time."""

_NOTHING: Any = object()


class Bridge:
    """At most `limit` messages wait in either direction; who brings more waits.

    The caller's requests are taken in its own thread, while it waits for an answer.
    """

    def __init__(self, requests: AsyncIterator[object] | None, limit: int = 256) -> None:
        self._requests = requests
        self._limit = limit
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._outgoing: deque[Any] = deque()
        self._incoming: deque[Any] = deque()
        self._ended = False
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the loop: there are requests, or no more; there is room for answers. Each is cleared under
        # the lock, and set by a callback that the caller's thread leaves behind: no wake-up is lost.
        self._work = asyncio.Event()
        self._room = asyncio.Event()

    # In the loop's thread.

    async def carry(self, stream: AsyncGenerator[object, None]) -> None:
        """Take a stream's messages to the caller, to its end."""
        self._loop = asyncio.get_running_loop()
        try:
            async with aclosing(stream) as messages:
                async for message in messages:
                    while not self._arrived(message):
                        await self._room.wait()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            with self._lock:
                self._ended = True
                self._changed.notify_all()

    async def outgoing(self) -> AsyncGenerator[object, None]:
        """The caller's requests."""
        while True:
            with self._lock:
                request = self._outgoing.popleft() if self._outgoing else _NOTHING
                ended = self._requests is None
                if request is _NOTHING:
                    self._work.clear()
                self._changed.notify_all()
            if request is not _NOTHING:
                yield request
            elif ended:
                return
            else:
                await self._work.wait()

    def _arrived(self, message: object) -> bool:
        with self._lock:
            if len(self._incoming) >= self._limit:
                self._room.clear()
                return False
            self._incoming.append(message)
            self._changed.notify_all()
            return True

    # In the caller's thread.

    def next(self, seconds: float | None) -> object:
        """The next answer; StopAsyncIteration at the end, and LATE after some seconds.

        Raises what ended the stream in the loop, or what the caller's iterable raised here.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            with self._lock:
                if self._incoming:
                    message = self._incoming.popleft()
                    if len(self._incoming) == self._limit - 1:
                        self._tell(self._room)
                    return message
                if self._ended:
                    raise self._failure or StopAsyncIteration
                if self._requests is None or len(self._outgoing) >= self._limit:
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        return LATE
                    self._changed.wait(left)
                    continue
            self._offer(self._requests)

    def _offer(self, requests: AsyncIterator[object]) -> None:
        """Take a request from the caller's iterable and leave it for the loop."""
        try:
            request = step(requests)
        except StopAsyncIteration:
            request = _NOTHING
        with self._lock:
            if request is _NOTHING:
                self._requests = None
            else:
                self._outgoing.append(request)
            if request is _NOTHING or len(self._outgoing) == 1:
                self._tell(self._work)

    def _tell(self, event: asyncio.Event) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(event.set)

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the loop is done with the stream, but not for long."""
        with self._lock:
            self._changed.wait_for(lambda: self._ended, seconds)


# How often a call is sent again that the server did not touch: at once, and then after these waits.
MAX_RESENDS = 5
RESEND_BACKOFF = Backoff(0.02, 1.0)

# A connection that is closed says so to the loop within so many seconds, or is left to it.
MAX_CLOSE = 1.0


class _Channel:
    """A place for one connection. Callers share one connect; it ends when none of them waits."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: CallConnection | None = None
        self._connecting: asyncio.Task[CallConnection] | None = None
        self._waiters = 0

    @property
    def load(self) -> int:
        used = self._connection.load if self._connection is not None and self._connection.usable else 0
        return used + self._waiters

    def ready(self) -> CallConnection | None:
        connection = self._connection
        if connection is None or not connection.usable:
            return None
        if connection.stale:
            connection.drain()
            return None
        return connection

    async def get(self) -> CallConnection:
        task = self._connecting or self._connect()
        self._waiters += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task.cancelled() and current is not None and not current.cancelling():
                # Not the caller's task was cancelled but the connect, by `stop`.
                raise StreamFailedError("the client was closed", processed=False) from None
            raise
        finally:
            self._waiters -= 1
            if not self._waiters and not task.done():
                self.stop()

    def stop(self) -> None:
        task, self._connecting = self._connecting, None
        if task is not None:
            task.cancel()

    def _connect(self) -> asyncio.Task[CallConnection]:
        self._connecting = asyncio.create_task(self._pool.dial())
        self._connecting.add_done_callback(self._connected)
        return self._connecting

    def _connected(self, task: asyncio.Task[CallConnection]) -> None:
        if self._connecting is task:
            self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()


class ConnectionPool:
    """Up to `size` connections. A call takes the one with the fewest calls on it; at most `max_in_flight`
    are on them together, and the others queue.
    """

    def __init__(
        self,
        target: Target,
        tls: ssl.SSLContext | None,
        proxy: SplitResult | None,
        size: int,
        max_in_flight: int = 100,
    ) -> None:
        self._queue = CallQueue(max_in_flight)
        self._target = target
        self._tls = tls
        self._proxy = proxy
        self._open: set[CallConnection] = set()
        self._channels = [_Channel(self) for _ in range(size)]
        self._closed = False

    async def dial(self) -> CallConnection:
        """A new connection, known to the pool until it is gone."""
        connection = await dial(self._target, self._tls, self._proxy, self._open.discard)
        if not connection.gone.is_set():
            self._open.add(connection)
        return connection

    async def run(self, exchange: GrpcExchange) -> None:
        """Carry a call to the server and its answer back, by the deadline. Raises RpcError."""
        try:
            for resend in range(MAX_RESENDS + 1):
                self._check_open()
                try:
                    return await self._attempt(exchange)
                except StreamFailedError as error:
                    if error.processed or resend == MAX_RESENDS:
                        raise
                if resend:
                    async with asyncio.timeout(exchange.seconds_left()):
                        await asyncio.sleep(RESEND_BACKOFF.seconds(resend))
        except RpcError:
            raise
        except Exception as error:
            raise exchange.closed() if self._closed else exchange.failure(error) from error

    async def stream(self, exchange: StreamingExchange) -> AsyncGenerator[object, None]:
        """Carry a call with streams; yield the answers as they come, by the deadline. Raises RpcError."""
        try:
            for resend in range(MAX_RESENDS + 1):
                self._check_open()
                try:
                    async with aclosing(self._streamed(exchange)) as messages:
                        async for message in messages:
                            yield message
                except StreamFailedError as error:
                    if error.processed or exchange.begun or resend == MAX_RESENDS:
                        raise
                else:
                    return
                if resend:
                    async with asyncio.timeout(exchange.seconds_left()):
                        await asyncio.sleep(RESEND_BACKOFF.seconds(resend))
        except RpcError:
            raise
        except Exception as error:
            if exchange.broken is not None:
                raise exchange.broken from exchange.broken.__cause__  # the caller's own
            raise exchange.closed() if self._closed else exchange.failure(error) from error

    async def _streamed(self, exchange: StreamingExchange) -> AsyncGenerator[object, None]:
        async with self._turn(exchange):
            connection = await self._entered(exchange)
            try:
                exchange.write_in(json=bool(connection.takes_json))
                stream = connection.open(exchange.headers(), exchange.deadline)
                try:
                    async with aclosing(exchange.messages(stream)) as messages:
                        async for message in messages:
                            yield message
                finally:
                    connection.learn(exchange.takes_json)
                    connection.release(stream)
            finally:
                connection.leave()

    @asynccontextmanager
    async def _turn(self, exchange: GrpcExchange) -> AsyncGenerator[None, None]:
        """One of the calls that may be in flight."""
        if not self._queue.enter_now(exchange):
            async with asyncio.timeout(exchange.seconds_left()):
                await self._queue.enter_async(exchange)
        refused = False
        try:
            self._check_open()
            yield
            refused = exchange.refused
        except RpcError as error:
            refused = error.is_refusal
            raise
        except StreamFailedError as error:
            refused = not error.processed and error.code == ErrorCodes.REFUSED_STREAM
            raise
        finally:
            self._queue.leave(exchange, refused=refused)

    def _check_open(self) -> None:
        if self._closed:
            raise client_closed()

    def _least_loaded(self) -> _Channel:
        channels = self._channels
        return channels[0] if len(channels) == 1 else min(channels, key=lambda one: one.load)

    async def _entered(self, exchange: GrpcExchange) -> CallConnection:
        """A connection that has room for the call: from there on its stream keeps the deadline."""
        channel = self._least_loaded()
        connection = channel.ready()
        if connection is not None and connection.enter_now():
            return connection
        async with asyncio.timeout(exchange.seconds_left()):
            if connection is None:
                async with asyncio.timeout(exchange.connect_timeout):
                    connection = await channel.get()
            await connection.enter()
        return connection

    async def _attempt(self, exchange: GrpcExchange) -> None:
        async with self._turn(exchange):
            connection = await self._entered(exchange)
            try:
                exchange.write_in(json=bool(connection.takes_json))
                stream = connection.open(exchange.headers(), exchange.deadline)
                try:
                    await exchange.run(stream)
                finally:
                    connection.learn(exchange.takes_json)
                    connection.release(stream)
            finally:
                connection.leave()

    async def aclose(self) -> None:
        """Close every connection; calls in flight fail."""
        self._closed = True
        self._queue.close()
        for channel in self._channels:
            channel.stop()
        connections = list(self._open)
        for connection in connections:
            connection.shut()
        if connections:
            waits = [asyncio.ensure_future(connection.gone.wait()) for connection in connections]
            _, late = await asyncio.wait(waits, timeout=MAX_CLOSE)
            for wait in late:
                wait.cancel()
