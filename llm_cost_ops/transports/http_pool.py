"""httpx transports over httpcore's pools with sockets of our own.

httpcore's exceptions come out as they are: they have the names of httpx's.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpcore
import httpx

from llm_cost_ops.transports.http_sockets import ClosingBackend, DeadlineBackend

__all__ = ["AsyncPoolTransport", "PoolTransport"]


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


class PoolTransport(httpx.BaseTransport):
    """A pool for threads. A request's "connect", "read" and "write" timeouts are points in time on
    `time.monotonic`; its "pool" timeout is in seconds.
    """

    def __init__(self, *, verify: ssl.SSLContext, limits: httpx.Limits, proxy: httpx.Proxy | None) -> None:
        self._pool = httpcore.ConnectionPool(
            **_settings(verify, limits, proxy), network_backend=DeadlineBackend()
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return _response(self._pool.handle_request(_request(request)))

    def close(self) -> None:
        self._pool.close()


class AsyncPoolTransport(httpx.AsyncBaseTransport):
    """A pool for asyncio. All its timeouts are in seconds, and a call may be cancelled at any point."""

    def __init__(self, *, verify: ssl.SSLContext, limits: httpx.Limits, proxy: httpx.Proxy | None) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            **_settings(verify, limits, proxy), network_backend=ClosingBackend()
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return _response(await self._pool.handle_async_request(_request(request)))

    async def aclose(self) -> None:
        await self._pool.aclose()


def _settings(verify: ssl.SSLContext, limits: httpx.Limits, proxy: httpx.Proxy | None) -> dict[str, Any]:
    through = None
    if proxy is not None:
        through = httpcore.Proxy(
            _url(proxy.url), auth=proxy.raw_auth, headers=proxy.headers.raw, ssl_context=proxy.ssl_context
        )
    return {
        "ssl_context": verify,
        "proxy": through,
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
    }


def _request(request: httpx.Request) -> httpcore.Request:
    return httpcore.Request(
        request.method,
        _url(request.url),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _response(response: httpcore.Response) -> httpx.Response:
    return httpx.Response(
        response.status,
        headers=response.headers,
        stream=_Body(response.stream),
        extensions=response.extensions,
    )


def _url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
