"""Sockets that keep deadlines.

httpx and httpcore bound single steps: one read, one connect to one address. A server that drips a
byte now and then stays under such a bound for ever. Here the value that travels as a step's
timeout is a point in time (on `time.monotonic`), and each step gets what is left until then.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar, cast

import httpcore

from llm_cost_ops.rpc.threads import started
from llm_cost_ops.transports.net.dial import NEXT_ADDRESS, connect, connect_any, is_address, look_up

__all__ = ["AsyncioBackend", "DeadlineBackend"]


PIECE = 64 * 1024
_MAX_HEAD = 32 * 1024

T = TypeVar("T")


def _is_head(buffer: bytes) -> bool:
    """Whether it is the head of a request whose body is there, and is written next.

    Both leave together then: one system call, and one read for the server. httpcore writes one after the
    other, and something after every head, if only that there is no more.
    """
    if not buffer.endswith(b"\r\n\r\n") or not buffer[: buffer.find(b"\r\n")].endswith(b" HTTP/1.1"):
        return False
    return b"\r\ncontent-length:" in buffer[:_MAX_HEAD].lower()


def _left(deadline: float | None, error: type[Exception]) -> float | None:
    if deadline is None:
        return None
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise error("the deadline passed")
    return seconds


class DeadlineBackend(httpcore.NetworkBackend):
    """A network backend whose timeouts are points in time. `shut` ends all that it does, from any thread."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()
        self._lock = threading.RLock()
        self._shut = False
        self._open: set[socket.socket] = set()
        self._waits: set[concurrent.futures.Future[Any]] = set()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to whichever address answers first, as `connect_any` does."""
        waiting = self._addresses(host, port, timeout)
        options = None if socket_options is None else list(socket_options)
        trying: set[concurrent.futures.Future[httpcore.NetworkStream]] = set()
        failed: BaseException = httpcore.ConnectError(f"{host} has no address")
        try:
            while waiting or trying:
                if waiting:
                    left = _left(timeout, httpcore.ConnectTimeout)
                    connect = partial(
                        self._backend.connect_tcp, waiting.pop(0), port, left, local_address, options
                    )
                    trying.add(self._elsewhere(connect, lambda stream: stream.close()))
                moment = NEXT_ADDRESS if waiting else None
                done, trying = concurrent.futures.wait(trying, moment, concurrent.futures.FIRST_COMPLETED)
                for one in done:
                    error = one.exception()
                    if error is None:
                        trying |= done - {one}
                        return DeadlineStream(one.result(), timeout, self)
                    failed = error
            raise failed
        finally:
            for one in trying:
                _drop(one)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        stream = self._backend.connect_unix_socket(path, left, socket_options)
        return DeadlineStream(stream, timeout, self)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def shut(self) -> None:
        """Break every connection, and every attempt at one: who waits there gets an error at once."""
        with self._lock:
            self._shut = True
            waits, sockets = list(self._waits), list(self._open)
        for wait in waits:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                wait.set_exception(httpcore.ConnectError("the client was closed"))
        for connected in sockets:
            # Not closed: its own thread does that. And not by SSLSocket's own shutdown, which forgets TLS.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def opened(self, connected: socket.socket) -> None:
        """Know of a socket."""
        with self._lock:
            self._open.add(connected)
            shut = self._shut
        if shut:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def gone(self, connected: socket.socket) -> None:
        """Know no longer of a socket."""
        with self._lock:
            self._open.discard(connected)

    def _addresses(self, host: str, port: int, deadline: float | None) -> list[str]:
        if is_address(host):
            return [host]

        def hosts() -> list[str]:
            return [str(address[0]) for _, address in look_up(host, port)]

        found = self._elsewhere(hosts)
        try:
            return found.result(_left(deadline, httpcore.ConnectTimeout))
        except concurrent.futures.TimeoutError:
            raise httpcore.ConnectTimeout(f"resolving {host} took too long") from None
        except OSError as error:
            raise httpcore.ConnectError(f"can't resolve {host}: {error}") from error
        finally:
            found.cancel()

    def _elsewhere(
        self, work: Callable[[], T], drop: Callable[[T], None] | None = None
    ) -> concurrent.futures.Future[T]:
        """Do in another thread what can't be interrupted; it is left behind there once it is cancelled.

        Where none can be started it is done here.
        """
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  # raised by who waits
                with contextlib.suppress(concurrent.futures.InvalidStateError):
                    done.set_exception(error)
                return
            try:
                done.set_result(result)
            except concurrent.futures.InvalidStateError:
                if drop is not None:
                    drop(result)

        with self._lock:
            if self._shut:
                raise httpcore.ConnectError("the client was closed")
            self._waits.add(done)
        done.add_done_callback(self._waited)
        try:
            if started(run, "llm-cost-ops-connect") is None:
                run()
        except BaseException:
            done.cancel()
            raise
        return done

    def _waited(self, done: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            self._waits.discard(done)


def _drop(connecting: concurrent.futures.Future[httpcore.NetworkStream]) -> None:
    """Close what connects, now or once it is connected."""
    if not connecting.cancel() and connecting.exception() is None:
        connecting.result().close()


class DeadlineStream(httpcore.NetworkStream):
    """A stream whose timeouts are points in time."""

    def __init__(
        self, stream: httpcore.NetworkStream, connect_by: float | None, backend: DeadlineBackend
    ) -> None:
        self._stream = stream
        # The handshake with a SOCKS proxy passes no timeout.
        self._connect_by = connect_by
        self._backend = backend
        self._head = b""
        self._socket: socket.socket = stream.get_extra_info("socket")
        backend.opened(self._socket)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._until(timeout), httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if _is_head(buffer):
            self._head += buffer
            return
        if self._head:
            buffer, self._head = self._head + buffer, b""
        until = self._until(timeout)
        for start in range(0, len(buffer), PIECE):
            self._stream.write(buffer[start : start + PIECE], _left(until, httpcore.WriteTimeout))

    def close(self) -> None:
        self._backend.gone(self._socket)
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = _left(self._until(timeout), httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self.close()
            raise
        # TLS takes the descriptor away from the socket before its handshake; a second one can be shut.
        self._backend.gone(self._socket)
        with self._socket.dup() as second:
            self._backend.opened(second)
            try:
                secured = self._stream.start_tls(ssl_context, server_hostname, left)
            finally:
                self._backend.gone(second)
        return DeadlineStream(secured, self._connect_by, self._backend)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _until(self, timeout: float | None) -> float | None:
        return self._connect_by if timeout is None else timeout


# More than this is not read ahead.
MAX_UNREAD = 256 * 1024


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """A network backend whose steps can be cancelled at any point."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                made = await connect_any(host, port, local=local_address, options=socket_options or ())
            return await _stream(made)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[object] | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                made = await connect((socket.AF_UNIX, path), options=socket_options or ())
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
        self._head = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self._bytes.take(max_bytes)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if _is_head(buffer):
            self._head += buffer
            return
        if self._head:
            buffer, self._head = self._head + buffer, b""
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
            async with asyncio.timeout(timeout):
                transport = await loop.start_tls(
                    self._transport, self._bytes, ssl_context, server_hostname=server_hostname
                )
        except BaseException as error:
            self._transport.abort()
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout(str(error)) from error
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
