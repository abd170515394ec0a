"""Sockets that keep deadlines.

httpx and httpcore bound single steps: one read, one connect to one address. A server that drips a
byte now and then stays under such a bound for ever. Here the value that travels as a step's
timeout is a point in time (on `time.monotonic`), and each step gets what is left until then.
"""

from __future__ import annotations

import concurrent.futures
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore

__all__ = ["DeadlineBackend"]

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
