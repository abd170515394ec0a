"""asyncio's sockets for httpcore.

httpcore's own backend is anyio's, which loses a connection that is made just when the call is
cancelled: it stays open until it is collected. Deadlines of the async leaf are asyncio's, which
cancels whatever step takes too long, so here every step that is cancelled closes its connection.
The timeouts of single steps are left to those deadlines.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

__all__ = ["AsyncioBackend"]

# More than this is not read ahead.
MOST_UNREAD = 256 * 1024

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
        if len(self.unread) > MOST_UNREAD and not self._paused:
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
