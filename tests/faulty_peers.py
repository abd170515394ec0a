"""Peers on loopback that misbehave on the socket, for the tests of every network transport.

A behaviour is a function of a connected socket. `FaultyPeer` runs one in a thread per connection.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from tests.waiting import MAX_WAIT, until

__all__ = ["BEHAVIOURS", "FaultyPeer", "answer", "answering", "full_backlog"]

Behaviour = Callable[[Any], None]


# For so many seconds a peer whose behaviour ended waits for the client to end, too.
_LINGERS = 2.0


class FaultyPeer:
    """A server with one behaviour. `connections` counts them, `open` holds those that it has not ended;
    `requests` holds what was read.
    """

    def __init__(self, behave: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self._behave = behave
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" if self._tls is None else f"https://localhost:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(MAX_WAIT)

    def hang_up(self) -> None:
        """End the connections that are open, and wait until they are."""
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        until(lambda: not self.open)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self.open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                served = self._tls.wrap_socket(connection, server_side=True) if self._tls else connection
                with served:
                    self._behave(_Recording(served, self.requests))
                    _finish(served)
        finally:
            self.open.discard(connection)


def _finish(connection: socket.socket) -> None:
    """End what is sent, and read what still comes: a socket closed before that resets what was sent."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(_LINGERS)
    while connection.recv(65536):
        pass


class _Recording:
    def __init__(self, connection: socket.socket, requests: list[bytes]) -> None:
        self._connection = connection
        self._requests = requests

    def read_request(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.split(b":")[1]):
                    body += self._more()
        self._requests.append(head + b"\r\n\r\n" + body)
        return self._requests[-1]

    def _more(self) -> bytes:
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionError("the client went away")
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def answer(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An HTTP response; `length` lies about the body's."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    if not any(line.lower().startswith("content-type") for line in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answering(*responses: bytes) -> Behaviour:
    """Answers requests on a connection, one response after another, the last one ever after."""
    left = list(responses)

    def behave(connection) -> None:
        while True:
            connection.read_request()
            connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return behave


def silent(connection) -> None:
    connection.read_request()
    while connection.recv(65536):
        pass


def never_reads(connection) -> None:
    poller = select.poll()
    poller.register(connection, 0)  # only the end of the connection
    poller.poll(30_000)


def drip(connection, data: Iterator[int] | bytes) -> None:
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def drips_headers(connection) -> None:
    connection.read_request()
    drip(connection, answer("200 OK", b'{"data": {}}', *(f"X-{n}: {'a' * 50}" for n in range(100))))


def drips_body(connection) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK", length=100_000))
    drip(connection, b" " * 100_000)


def drips_interim(connection) -> None:
    connection.read_request()
    while True:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(0.02)


def reset(connection) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def resets_at_once(connection) -> None:
    reset(connection)


def resets_after_request(connection) -> None:
    connection.read_request()
    reset(connection)


def closes_after_request(connection) -> None:
    connection.read_request()


def half_closes(connection) -> None:
    connection.read_request()
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass


def truncates(connection) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK", b'{"data": {"id"', length=500))


def resets_in_body(connection) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK", b'{"data": {"id"', length=500))
    time.sleep(0.05)
    reset(connection)


def speaks_no_http(connection) -> None:
    connection.read_request()
    connection.sendall(b"220 smtp.example ESMTP\r\n" * 10)


def endless_headers(connection) -> None:
    connection.read_request()
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-Filler: " + b"a" * 4000 + b"\r\n")


def endless_body(connection) -> None:
    connection.read_request()
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def gzip_bomb(connection) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK", bomb(), "Content-Encoding: gzip"))
    time.sleep(0.2)


@functools.cache
def bomb() -> bytes:
    """64 MiB of spaces, compressed to 64 KiB."""
    return gzip.compress(b" " * (64 << 20), 9)


def broken_gzip(connection) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK", b"this is no gzip", "Content-Encoding: gzip"))


def not_json(connection) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK", b"<html>Welcome</html>", "Content-Type: text/html"))


def empty_body(connection) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK"))


def bad_lengths(connection) -> None:
    connection.read_request()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{}     ")


def redirects(connection) -> None:
    connection.read_request()
    connection.sendall(answer("307 Temporary Redirect", b"", "Location: http://127.0.0.1:9/elsewhere"))


# What a client sees of it: "deadline" (the call's own), "network" (no answer), "garbled" (an
# answer that can't be understood), "refused" (an answer that is no success).
BEHAVIOURS: dict[str, tuple[Behaviour, str]] = {
    "silent": (silent, "deadline"),
    "drips_headers": (drips_headers, "deadline"),
    "drips_body": (drips_body, "deadline"),
    "drips_interim": (drips_interim, "deadline"),
    "half_closes": (half_closes, "network"),
    "resets_at_once": (resets_at_once, "network"),
    "resets_after_request": (resets_after_request, "network"),
    "closes_after_request": (closes_after_request, "network"),
    "resets_in_body": (resets_in_body, "network"),
    "truncates": (truncates, "network"),
    "speaks_no_http": (speaks_no_http, "network"),
    "endless_headers": (endless_headers, "network"),
    "bad_lengths": (bad_lengths, "network"),
    "endless_body": (endless_body, "garbled"),
    "gzip_bomb": (gzip_bomb, "garbled"),
    "broken_gzip": (broken_gzip, "garbled"),
    "not_json": (not_json, "garbled"),
    "empty_body": (empty_body, "garbled"),
    "redirects": (redirects, "refused"),
}


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose backlog is full: a connect gets no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
