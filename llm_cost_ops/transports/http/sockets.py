"""Sockets that keep deadlines.

httpx and httpcore bound single steps: one read, one connect to one address. A server that drips a
byte now and then stays under such a bound for ever. Here the value that travels as a step's
timeout is a point in time (on `time.monotonic`), and each step gets what is left until then.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any, cast

import httpcore

__all__ = ["AsyncioBackend", "DeadlineBackend"]


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


# More than this is not read ahead.
MAX_UNREAD = 256 * 1024

Address = tuple[socket.AddressFamily, Any]


async def _addresses(host: str, port: int) -> list[Address]:
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys((info[0], info[4]) for info in found))
    return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, (host, port))]


async def _connected(address: Address, local: str | None, options: Iterable[Any]) -> socket.socket:
    family, where = address
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if family != socket.AF_UNIX:
            # Head and body are two writes: the second may not wait until the first is acknowledged.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            made.setsockopt(*option)
        if local is not None:
            made.bind((local, 0))
        await asyncio.get_running_loop().sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """A network backend whose steps can be cancelled at any point."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        failure: Exception = OSError(f"{host} has no address")
        try:
            addresses = await _addresses(host, port)
            for remaining in range(len(addresses), 0, -1):
                # A dead address may not eat the time of those after it.
                share = None if until is None else (until - loop.time()) / remaining
                try:
                    async with asyncio.timeout(share):
                        made = await _connected(addresses[-remaining], local_address, socket_options or ())
                except OSError as error:  # also a TimeoutError
                    failure = error
                else:
                    return await _stream(made)
        except (OSError, UnicodeError) as error:
            failure = error
        if isinstance(failure, TimeoutError):
            raise httpcore.ConnectTimeout(str(failure)) from failure
        raise httpcore.ConnectError(str(failure)) from failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                made = await _connected((socket.AF_UNIX, path), None, socket_options or ())
            return await _stream(made)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _stream(connected: socket.socket) -> _Stream:
    try:
        transport, bytes_in = await asyncio.get_running_loop().create_connection(_Bytes, sock=connected)
    except BaseException:
        connected.close()
        raise
    return _Stream(transport, bytes_in)


class _Bytes(asyncio.Protocol):
    """What came and was not read yet, and whether more may be sent."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.unread = bytearray()
        self.ended = False
        self.failure: Exception | None = None
        self._paused = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.unread += data
        if len(self.unread) > MAX_UNREAD and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self.ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._full = False
        self.failure = exc
        self._wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    async def take(self, most: int) -> bytes:
        """Up to `most` bytes, none at the end."""
        while not self.unread and not self.ended:
            await self._change()
        if self.failure is not None and not self.unread:
            raise self.failure
        taken = bytes(self.unread[:most])
        del self.unread[:most]
        if self._paused and not self.unread:
            self._paused = False
            with contextlib.suppress(RuntimeError):  # it is closing
                self.transport.resume_reading()
        return taken

    async def room(self) -> None:
        """Wait until more may be sent."""
        while self._full:
            await self._change()

    async def _change(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, transport: Any, bytes_in: _Bytes) -> None:
        self._transport = transport
        self._bytes = bytes_in

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self._bytes.take(max_bytes)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if not self._transport.is_closing():
            self._transport.write(buffer)
            await self._bytes.room()
        if self._transport.is_closing():
            raise httpcore.WriteError(str(self._bytes.failure or "the connection was closed"))

    async def aclose(self) -> None:
        # Closing alone waits for a peer to take what is buffered, or to end TLS: for ever, perhaps.
        self._transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                self._transport, self._bytes, ssl_context, server_hostname=server_hostname
            )
        except BaseException as error:
            self._transport.abort()
            if isinstance(error, OSError | EOFError):
                raise httpcore.ConnectError(str(error)) from error
            raise
        self._bytes.transport = transport
        return _Stream(transport, self._bytes)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # between two requests: it says that the connection is over
            return bool(self._bytes.unread or self._bytes.ended)
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return cast("Any", self._transport.get_extra_info(names.get(info, info)))
