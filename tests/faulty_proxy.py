"""A TCP proxy on loopback that breaks connections, for the tests of streams."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Self

from tests.waiting import MAX_WAIT

__all__ = ["FaultyProxy"]

UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
    b"Retry-After-Ms: 20\r\nConnection: close\r\n\r\n"
)


class FaultyProxy:
    """Carries bytes to `port`; each connection is reset once its budget of bytes is used up.

    `budgets` gives a pair for each connection: bytes to the server, and bytes back; when it ends,
    connections are left alone. While `refusing` is set every connection is told 503 instead.
    """

    def __init__(self, port: int, budgets: Iterable[tuple[int, int]] = ()) -> None:
        self._upstream = port
        self._budgets = iter(budgets)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.refusing = threading.Event()
        self.connections = self.resets = self.refused = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        if self.refusing.is_set():
            self.refused += 1
            with near, contextlib.suppress(OSError):
                near.recv(65536)
                near.sendall(UNAVAILABLE)
                near.shutdown(socket.SHUT_WR)
                while near.recv(65536):
                    pass
            return
        with self._lock:
            there, back = next(self._budgets, (1 << 60, 1 << 60))
        try:
            far = socket.create_connection(("127.0.0.1", self._upstream))
        except OSError:
            near.close()
            return
        backwards = threading.Thread(target=self._carry, args=(far, near, back), daemon=True)
        backwards.start()
        self._carry(near, far, there)
        backwards.join(MAX_WAIT)
        near.close()
        far.close()

    def _carry(self, source: socket.socket, target: socket.socket, budget: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(min(16384, max(1, budget))):
                target.sendall(data)
                budget -= len(data)
                if budget <= 0:
                    self.resets += 1
                    for end in (source, target):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        end.shutdown(socket.SHUT_RDWR)
                    return
            target.shutdown(socket.SHUT_WR)
