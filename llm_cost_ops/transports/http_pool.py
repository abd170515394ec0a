"""Connections that keep deadlines, and the queue in front of them.

httpx and httpcore bound single steps: one read, one connect to one address. A server that drips a
byte now and then stays under such a bound for ever. Here the value that travels as a step's
timeout is a point in time (on `time.monotonic`), and each step gets what is left until then.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx

__all__ = ["CallQueue", "DeadlineTransport"]

PIECE = 64 * 1024


def _left(deadline: float | None, error: type[Exception]) -> float | None:
    if deadline is None:
        return None
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise error("the deadline passed")
    return seconds


def _resolve(host: str, port: int, deadline: float | None) -> list[str]:
    """The addresses of a host. A resolver can't be interrupted: it is left behind in its thread."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found: concurrent.futures.Future[list[str]] = concurrent.futures.Future()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except (OSError, UnicodeError) as error:
            found.set_exception(error)

    if deadline is None:
        look_up()
    else:
        threading.Thread(target=look_up, daemon=True, name="llm-cost-ops-resolver").start()
    try:
        return found.result(_left(deadline, httpcore.ConnectTimeout))
    except concurrent.futures.TimeoutError:
        raise httpcore.ConnectTimeout(f"resolving {host} took too long") from None
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"can't resolve {host}: {error}") from error


class DeadlineBackend(httpcore.NetworkBackend):
    """A network backend whose timeouts are points in time."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port, timeout)
        for remaining in range(len(addresses), 0, -1):
            left = _left(timeout, httpcore.ConnectTimeout)
            try:
                # A dead address may not eat the time of those after it.
                stream = self._backend.connect_tcp(
                    addresses[-remaining],
                    port,
                    None if left is None else left / remaining,
                    local_address,
                    socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if remaining == 1:
                    raise
            else:
                return DeadlineStream(stream, timeout)
        raise httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return DeadlineStream(self._backend.connect_unix_socket(path, left, socket_options), timeout)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class DeadlineStream(httpcore.NetworkStream):
    """A stream whose timeouts are points in time."""

    def __init__(self, stream: httpcore.NetworkStream, connect_by: float | None) -> None:
        self._stream = stream
        # The handshake with a SOCKS proxy passes no timeout.
        self._connect_by = connect_by

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._until(timeout), httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        until = self._until(timeout)
        for start in range(0, len(buffer), PIECE):
            self._stream.write(buffer[start : start + PIECE], _left(until, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = _left(self._until(timeout), httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self.close()
            raise
        return DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left), self._connect_by)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _until(self, timeout: float | None) -> float | None:
        return self._connect_by if timeout is None else timeout


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()


class DeadlineTransport(httpx.BaseTransport):
    """An httpx transport over an httpcore pool with that backend.

    A request's "connect", "read" and "write" timeouts are points in time, its "pool" timeout is in
    seconds. httpcore's exceptions come out as they are: they have the names of httpx's.
    """

    def __init__(self, *, verify: ssl.SSLContext, limits: httpx.Limits, proxy: httpx.Proxy | None) -> None:
        through = None
        if proxy is not None:
            through = httpcore.Proxy(
                _url(proxy.url), auth=proxy.raw_auth, headers=proxy.headers.raw, ssl_context=proxy.ssl_context
            )
        self._pool = httpcore.ConnectionPool(
            ssl_context=verify,
            proxy=through,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=DeadlineBackend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._pool.handle_request(
            httpcore.Request(
                request.method,
                _url(request.url),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


def _url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


class _ThreadWaiter:
    def __init__(self) -> None:
        self.granted = False
        self._turn = threading.Lock()
        self._turn.acquire()

    def grant(self) -> bool:
        self.granted = True
        self._turn.release()
        return True

    def wait(self, seconds: float | None) -> None:
        self._turn.acquire(timeout=-1 if seconds is None else max(0.0, seconds))


class _TaskWaiter:
    def __init__(self) -> None:
        self.granted = False
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def grant(self) -> bool:
        if self.turn.done():
            return False
        self.granted = True
        self.turn.set_result(None)
        return True


class CallQueue:
    """At most `limit` calls in flight; the others wait their turn, first come, first served."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._free = limit
        self._waiting: deque[_ThreadWaiter | _TaskWaiter] = deque()

    def enter(self, seconds: float | None) -> bool:
        """Wait for a turn by blocking the thread; False when `seconds` pass first."""
        waiter = _ThreadWaiter()
        if self._joined(waiter):
            waiter.wait(seconds)
            return self._done(waiter)
        return True

    async def enter_async(self) -> None:
        """Wait for a turn in asyncio. A wait that is cancelled leaves the queue."""
        waiter = _TaskWaiter()
        if self._joined(waiter):
            try:
                await waiter.turn
            except asyncio.CancelledError:
                if self._done(waiter):
                    self.leave()
                raise

    def leave(self) -> None:
        """Give the turn to who waits longest."""
        with self._lock:
            while self._waiting:
                if self._waiting.popleft().grant():
                    return
            self._free += 1

    def _joined(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        with self._lock:
            if self._free:
                self._free -= 1
                return False
            self._waiting.append(waiter)
            return True

    def _done(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        with self._lock:
            if not waiter.granted and waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.granted
