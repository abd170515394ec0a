"""Pools of connections to one origin, as httpx transports.

httpcore makes the connections and speaks HTTP; keeping them is done here, because its own pool
looks at every connection for every request, counts busy connections against the limit on idle
ones, and under asyncio costs more than the request itself. httpcore's exceptions come out as they
are: they have the names of httpx's.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpcore
import httpx

from llm_cost_ops.transports.http_asyncio import AsyncioBackend
from llm_cost_ops.transports.http_sockets import DeadlineBackend

__all__ = ["AsyncPoolTransport", "PoolTransport"]


class IdleConnections:
    """Connections that wait for their next request; the one used last is the next one used.

    Each method returns connections to close: it does no I/O of its own.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
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


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any, done: Callable[[], None]) -> None:
        self._stream = stream
        self._done = done

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        try:
            if hasattr(self._stream, "close"):
                self._stream.close()
        finally:
            self._done()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, stream: Any, done: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._done = done

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        try:
            if hasattr(self._stream, "aclose"):
                await self._stream.aclose()
        finally:  # also where it is cancelled
            await self._done()


class PoolTransport(httpx.BaseTransport):
    """A pool for threads. A request's timeouts are points in time on `time.monotonic`."""

    def __init__(
        self,
        *,
        verify: ssl.SSLContext,
        proxy: httpx.Proxy | None,
        max_idle: int,
        keepalive_expiry: float | None,
    ) -> None:
        self._maker = httpcore.ConnectionPool(
            ssl_context=verify,
            proxy=_proxy(proxy),
            keepalive_expiry=keepalive_expiry,
            network_backend=DeadlineBackend(),
        )
        self._idle = IdleConnections(max_idle)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        sent = _request(request)
        connection, dead = self._idle.take()
        self._close(dead)
        if connection is None:
            connection = self._maker.create_connection(sent.url.origin)

        def done() -> None:
            self._close(self._idle.give(connection))

        try:
            response = connection.handle_request(sent)
        except BaseException:
            done()
            raise
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response.stream, done))

    def close(self) -> None:
        self._close(self._idle.end())

    def _close(self, connections: list[Any]) -> None:
        for connection in connections:
            connection.close()


class AsyncPoolTransport(httpx.AsyncBaseTransport):
    """A pool for asyncio. A call may be cancelled at any point."""

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

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        sent = _request(request)
        connection, dead = self._idle.take()
        await self._close(dead)
        if connection is None:
            connection = self._maker.create_connection(sent.url.origin)

        async def done() -> None:
            await self._close(self._idle.give(connection))

        try:
            response = await connection.handle_async_request(sent)
        except BaseException:
            await done()
            raise
        stream = _AsyncBody(response.stream, done)
        return httpx.Response(response.status, headers=response.headers, stream=stream)

    async def aclose(self) -> None:
        await self._close(self._idle.end())

    async def _close(self, connections: list[Any]) -> None:
        for connection in connections:
            await connection.aclose()


def _proxy(proxy: httpx.Proxy | None) -> httpcore.Proxy | None:
    if proxy is None:
        return None
    return httpcore.Proxy(
        _url(proxy.url), auth=proxy.raw_auth, headers=proxy.headers.raw, ssl_context=proxy.ssl_context
    )


def _request(request: httpx.Request) -> httpcore.Request:
    return httpcore.Request(
        request.method,
        _url(request.url),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
