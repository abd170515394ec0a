"""The HTTP/JSON transports, on httpx. They talk to any server that keeps the documented REST shapes.

A call ends by its deadline whatever the server does. In the sync transport every step on the socket is
cut there by `ConnectionPool`, in the async one the whole exchange by asyncio. With a
client of the user's own, the sync deadline is best effort: each step of it gets what is left.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
)
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import httpcore
import httpx

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.fifo import CallQueue
from llm_cost_ops.rpc.forks import PerProcess
from llm_cost_ops.rpc.status import RpcError, client_closed
from llm_cost_ops.transports.http.exchange import Answer, Exchange, origin_of, proxy_for
from llm_cost_ops.transports.http.sockets import AsyncioBackend, DeadlineBackend
from llm_cost_ops.transports.http.streaming import StreamExchange
from llm_cost_ops.transports.net.loops import of_running_loop
from llm_cost_ops.transports.net.tls import ssl_context
from llm_cost_ops.transports.serializer import Serializer

__all__ = ["AsyncConnectionPool", "AsyncHttpTransport", "HttpTransport"]


Client = TypeVar("Client")


class _Step:
    """Something that ends with TimeoutError after some seconds, or when the client is closed."""

    __slots__ = ("_steps", "_timeout")

    def __init__(self, steps: set[asyncio.Timeout], seconds: float | None) -> None:
        self._steps = steps
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._steps.add(self._timeout)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._steps.discard(self._timeout)
        await self._timeout.__aexit__(kind, error, trace)


class _Pool(NamedTuple):
    """What sends an exchange and gives its answer, in one process and event loop, and the queue before it.

    `connections` are ours, None with a client of the user's own. `steps` are what calls in asyncio do now,
    each with its timeout.
    """

    send: Callable[[Exchange], Any]
    queue: CallQueue
    connections: Any
    steps: set[asyncio.Timeout]

    def step(self, seconds: float | None) -> _Step:
        """What is ended after some seconds, or when the client is closed."""
        return _Step(self.steps, seconds)

    def end(self) -> None:
        """End what calls in asyncio do now."""
        now = asyncio.get_running_loop().time()
        for timeout in self.steps:
            timeout.reschedule(now)


class _HttpTransport(Generic[Client]):
    """Where calls go, and with what settings.

    `base_url` is http:// or https://, with a path or without. At most `max_connections` calls are
    in flight; the others queue. At most `max_keepalive_connections` idle connections are kept, and
    those for `keepalive_expiry` seconds. `verify` is True, False (which
    warns), or an ssl.SSLContext with a CA bundle or a client certificate. `proxy` is the URL of a
    proxy; without one HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are heeded, as are
    SSL_CERT_FILE and SSL_CERT_DIR. With `http_client` these settings are that client's own, and
    closing it is up to its owner. Answers of more than `max_response_bytes` are errors. With a
    `serializer` bodies are not JSON, but for streams. Raises ValueError for a wrong `base_url`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        max_connections: int = 100,
        max_keepalive_connections: int = 20,
        keepalive_expiry: float | None = 5.0,
        verify: bool | ssl.SSLContext = True,
        proxy: str | None = None,
        http_client: Client | None = None,
        max_response_bytes: int = 64 * 1024 * 1024,
        serializer: Serializer | None = None,
    ) -> None:
        self._origin = origin_of(base_url)
        self._serializer = serializer
        self._in_flight = max_connections
        self._max_idle = max_keepalive_connections
        self._keepalive_expiry = keepalive_expiry
        self._proxy = None if http_client is not None else proxy_for(self._origin, proxy)
        # Here and not at the first call, whose deadline reading a CA bundle could pass.
        self._ssl = None if http_client is not None else self._ssl_context(verify)
        self._client = http_client
        self._max_response_bytes = max_response_bytes
        self.closed = False

    def _begin(self, request: object, context: CallContext) -> Exchange:
        self._check_open()
        return Exchange(
            self._origin,
            request,
            context,
            self._max_response_bytes,
            own=self._client is None,
            serializer=self._serializer,
        )

    def _begin_stream(self, request: object, context: CallContext) -> StreamExchange:
        self._check_open()
        own = self._client is None
        return StreamExchange(self._origin, request, context, self._max_response_bytes, own=own)

    def _failure(self, exchange: Exchange, error: Exception) -> RpcError:
        return exchange.closed(error) if self.closed else exchange.failure(error)

    def _check_open(self) -> None:
        if self.closed:
            raise client_closed()

    def _connections(self, kind: Any) -> Any:
        return kind(
            verify=self._ssl,
            proxy=self._proxy,
            max_idle=self._max_idle,
            keepalive_expiry=self._keepalive_expiry,
        )

    def _ssl_context(self, verify: bool | ssl.SSLContext) -> ssl.SSLContext:
        if isinstance(verify, ssl.SSLContext):
            return verify
        if self._origin.startswith("http:") and (self._proxy is None or self._proxy.url.scheme != "https"):
            # Reading the CA bundle takes longer than a call.
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return ssl_context(None, verify=verify)


class HttpTransport(_HttpTransport[httpx.Client]):
    """The sync transport: it never suspends. Threads may share it; a forked child has its own connections."""

    def __init__(self, base_url: str, **settings: Any) -> None:
        super().__init__(base_url, **settings)
        self._pool = PerProcess[_Pool]()

    async def unary_unary(self, request: object, context: CallContext) -> object:
        """Send the request, and return the response or raise RpcError."""
        exchange = self._begin(request, context)
        pool = self._pool.get(self._open)
        try:
            try:
                self._enter(pool, exchange)
                answer = pool.send(exchange)
                try:
                    exchange.start(answer)
                    for chunk in answer.chunks:
                        exchange.feed(chunk)
                finally:
                    answer.close()
                return exchange.finish()
            finally:
                pool.queue.leave(exchange, refused=exchange.refused)
        except BaseException as error:
            pool.queue.leave(exchange)  # which may have been interrupted
            if isinstance(error, RpcError) or not isinstance(error, Exception):
                raise
            raise self._failure(exchange, error) from error

    async def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        """Send the request, and yield the responses as they come, or raise RpcError."""
        exchange = self._begin_stream(request, context)
        pool = self._pool.get(self._open)
        try:
            try:
                self._enter(pool, exchange)
                answer = pool.send(exchange)
                try:
                    exchange.start(answer)
                    for chunk in answer.chunks:
                        for message in exchange.messages(chunk):
                            yield message
                finally:
                    answer.close()
                for message in exchange.rest():
                    yield message
            finally:
                pool.queue.leave(exchange, refused=exchange.refused)
        except BaseException as error:
            pool.queue.leave(exchange)  # which may have been interrupted
            if isinstance(error, RpcError) or not isinstance(error, Exception):
                raise
            if exchange.broken is not None:
                raise exchange.broken from exchange.broken.__cause__  # the caller's own
            raise self._failure(exchange, error) from error

    def _enter(self, pool: _Pool, exchange: Exchange) -> None:
        """Wait for a turn."""
        if not pool.queue.enter(exchange, exchange.seconds_left()):
            raise exchange.out_of_time()
        self._check_open()

    stream_stream = unary_stream

    async def aclose(self) -> None:
        """Close the connections; calls under way end with an error. Does not suspend."""
        self.closed = True
        pool = self._pool.made
        if pool is not None:
            pool.queue.close()
            if pool.connections is not None:
                pool.connections.close()

    def _open(self) -> _Pool:
        queue = CallQueue(self._in_flight)
        if self._client is not None:
            return _Pool(partial(_sent_by, self._client), queue, None, set())
        connections = self._connections(ConnectionPool)
        return _Pool(connections.send, queue, connections, set())


def _sent_by(client: httpx.Client, exchange: Exchange) -> Answer:
    request = exchange.client_request(asynchronous=False)
    response = client.send(request, stream=True, follow_redirects=False)
    read = response.is_stream_consumed
    chunks = (response.content,) if read else response.iter_raw()
    return Answer(response.status_code, response.headers.raw, chunks, response.close, decoded=read)


class AsyncHttpTransport(_HttpTransport[httpx.AsyncClient]):
    """The async transport, for asyncio. Each event loop that uses it has its own connections."""

    def __init__(self, base_url: str, **settings: Any) -> None:
        super().__init__(base_url, **settings)
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}

    async def unary_unary(self, request: object, context: CallContext) -> object:
        """Send the request, and return the response or raise RpcError."""
        exchange = self._begin(request, context)
        pool = self._pool()
        try:
            async with pool.step(exchange.seconds_left()):
                await pool.queue.enter_async(exchange)
                try:
                    answer = await pool.send(exchange)
                    try:
                        exchange.start(answer)
                        async for chunk in answer.chunks:
                            exchange.feed(chunk)
                    finally:
                        await answer.close()
                    return exchange.finish()
                finally:
                    pool.queue.leave(exchange, refused=exchange.refused)
        except RpcError:
            raise
        except Exception as error:
            raise self._failure(exchange, error) from error

    async def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        """Send the request, and yield the responses as they come, or raise RpcError."""
        exchange = self._begin_stream(request, context)
        pool = self._pool()
        try:
            # Each step has a timeout of its own: none may be open while the caller has the word.
            async with pool.step(exchange.seconds_left()):
                await pool.queue.enter_async(exchange)
            try:
                async with pool.step(exchange.seconds_left()):
                    answer = await pool.send(exchange)
                try:
                    exchange.start(answer)
                    chunks = aiter(answer.chunks)
                    while True:
                        self._check_open()
                        async with pool.step(exchange.seconds_left()):
                            chunk = await anext(chunks, None)
                        if chunk is None:
                            break
                        for message in exchange.messages(chunk):
                            yield message
                finally:
                    await answer.close()
                for message in exchange.rest():
                    yield message
            finally:
                pool.queue.leave(exchange, refused=exchange.refused)
        except RpcError:
            raise
        except Exception as error:
            if exchange.broken is not None:
                raise exchange.broken from exchange.broken.__cause__  # the caller's own
            raise self._failure(exchange, error) from error

    stream_stream = unary_stream

    async def aclose(self) -> None:
        """Close the connections of the running event loop; calls under way in it end with an error."""
        self.closed = True
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            pool.end()
            if pool.connections is not None:
                await pool.connections.aclose()

    def _pool(self) -> _Pool:
        return of_running_loop(self._pools, self._open)

    def _open(self) -> _Pool:
        queue = CallQueue(self._in_flight)
        if self._client is not None:
            return _Pool(partial(_sent_by_async, self._client), queue, None, set())
        connections = self._connections(AsyncConnectionPool)
        return _Pool(connections.send, queue, connections, set())


async def _sent_by_async(client: httpx.AsyncClient, exchange: Exchange) -> Answer:
    request = exchange.client_request(asynchronous=True)
    response = await client.send(request, stream=True, follow_redirects=False)
    read = response.is_stream_consumed
    chunks = _only(response.content) if read else response.aiter_raw()
    return Answer(response.status_code, response.headers.raw, chunks, response.aclose, decoded=read)


async def _only(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


class IdleConnections:
    """Connections that wait for their next request; the one used last is the next one used.

    Each method returns connections to close: it does no I/O of its own.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.RLock()
        self._limit = limit
        self._idle: list[Any] = []

    def take(self) -> tuple[Any, list[Any]]:
        """A connection that is alive, or None; and those found dead."""
        dead: list[Any] = []
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if not connection.has_expired() and connection.is_available():
                    return connection, dead
                dead.append(connection)
        return None, dead

    def give(self, connection: Any) -> list[Any]:
        """Take back a connection after a response, or after a failure."""
        if not connection.is_available():
            return [] if connection.is_closed() else [connection]
        with self._lock:
            self._idle.append(connection)
            oldest = self._idle[0]
            if len(self._idle) > self._limit or (oldest is not connection and oldest.has_expired()):
                return [self._idle.pop(0)]
        return []

    def end(self) -> list[Any]:
        """Keep none from now on."""
        with self._lock:
            self._limit = 0
            idle, self._idle = self._idle, []
        return idle


class ConnectionPool:
    """Connections for threads. A request's timeouts are points in time on `time.monotonic`."""

    def __init__(
        self,
        *,
        verify: ssl.SSLContext,
        proxy: httpx.Proxy | None,
        max_idle: int,
        keepalive_expiry: float | None,
    ) -> None:
        self._backend = DeadlineBackend()
        self._maker = httpcore.ConnectionPool(
            ssl_context=verify,
            proxy=_proxy(proxy),
            keepalive_expiry=keepalive_expiry,
            network_backend=self._backend,
        )
        self._idle = IdleConnections(max_idle)

    def send(self, exchange: Exchange) -> Answer:
        """Send a request, and give its answer, which is to be closed."""
        sent = exchange.pool_request(asynchronous=False)
        connection, dead = self._idle.take()
        self._close(dead)
        if connection is None:
            connection = self._maker.create_connection(sent.url.origin)

        try:
            response = connection.handle_request(sent)
        except BaseException as error:
            self._let_go(connection, error)
            raise

        def close() -> None:
            try:
                response.close()
            except BaseException as error:
                self._let_go(connection, error)
                raise
            self._let_go(connection)

        return Answer(response.status, response.headers, response.stream, close)

    def close(self) -> None:
        self._close(self._idle.end())
        self._backend.shut()

    def _let_go(self, connection: Any, error: BaseException | None = None) -> None:
        """Take a connection back; what an interrupt left half done, such as a held lock, is closed."""
        if error is None or isinstance(error, Exception):
            self._close(self._idle.give(connection))
        else:
            connection.close()

    def _close(self, connections: list[Any]) -> None:
        for connection in connections:
            connection.close()


class AsyncConnectionPool:
    """Connections for asyncio. A call may be cancelled at any point.

    They are httpcore's, which is where users' tests answer in the place of a server (respx).
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext,
        proxy: httpx.Proxy | None,
        max_idle: int,
        keepalive_expiry: float | None,
    ) -> None:
        self._maker = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            proxy=_proxy(proxy),
            keepalive_expiry=keepalive_expiry,
            network_backend=AsyncioBackend(),
        )
        self._idle = IdleConnections(max_idle)

    async def send(self, exchange: Exchange) -> Answer:
        """Send a request, and give its answer, which is to be closed."""
        response, done = await self.open(exchange.pool_request(asynchronous=True))

        async def close() -> None:
            try:
                await response.aclose()
            finally:  # also where it is cancelled
                await done()

        return Answer(response.status, response.headers, response.stream, close)

    async def open(self, sent: httpcore.Request) -> tuple[httpcore.Response, Callable[[], Awaitable[None]]]:
        """An answer whose body is to be read and closed, and what gives its connection back after that."""
        connection, dead = self._idle.take()
        await self._close(dead)
        if connection is None:
            connection = self._maker.create_connection(sent.url.origin)

        async def done() -> None:
            await self._close(self._idle.give(connection))

        try:
            return await connection.handle_async_request(sent), done
        except BaseException:
            await done()
            raise

    async def aclose(self) -> None:
        await self._close(self._idle.end())

    async def _close(self, connections: list[Any]) -> None:
        for connection in connections:
            await connection.aclose()


def _proxy(proxy: httpx.Proxy | None) -> httpcore.Proxy | None:
    if proxy is None:
        return None
    return httpcore.Proxy(
        httpcore.URL(
            scheme=proxy.url.raw_scheme,
            host=proxy.url.raw_host,
            port=proxy.url.port,
            target=proxy.url.raw_path,
        ),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=proxy.ssl_context,
    )
