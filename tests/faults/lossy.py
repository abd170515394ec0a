"""What lies between a client and a server when things go wrong: for each request a fault, or none.

Both fronts forward what they read to the server itself, and then answer, or fail to. A front counts what it
did in `faults`, and keeps in `keys` the idempotency key of every request that reached it.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections import Counter
from typing import Any

import grpc
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.exceptions import ProtocolError

from llm_cost_ops._gen.methods import SUBMIT_USAGE
from tests.faulty_grpc_peers import DONE, HEAD, Http2, frame
from tests.faulty_peers import answer, reset

__all__ = ["DELAY", "LossyGrpc", "LossyHttp", "RefusingGrpc", "RefusingHttp"]

DELAY = 0.03

# Of 100 requests. "before": the server never sees it. "after": it has done what was asked.
CHANCES = {
    "none": 66,
    "reset before": 6,
    "reset after": 7,
    "answer dropped": 6,
    "answer cut": 4,
    "answer garbled": 2,
    "503": 3,
    "503 with a hint": 3,
    "delay": 3,
}
GRPC_CHANCES = CHANCES | {"none": 60, "stream refused": 3, "stream reset after": 3}


class _Lossy:
    """Draws the faults. One front serves many connections, each in a thread."""

    chances = CHANCES

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.faults: Counter[str] = Counter()
        self.keys: set[str] = set()

    def _draw(self, key: str) -> str:
        with self._lock:
            [fault] = self._random.choices(list(self.chances), list(self.chances.values()))
            self.faults[fault] += 1
            self.keys.add(key)
        return fault


class LossyHttp(_Lossy):
    """A behaviour of a FaultyPeer."""

    def __call__(self, connection: Any) -> None:
        there = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            while self._serve(connection, there):
                pass
        except http.client.HTTPException:
            reset(connection)  # the server was killed
        finally:
            there.close()

    def _serve(self, connection: Any, there: http.client.HTTPConnection) -> bool:
        """One request; False when the connection is over."""
        head, _, body = connection.read_request().partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        fault = self._draw({name.lower(): value for name, value in headers.items()}["idempotency-key"])
        if fault == "reset before":
            reset(connection)
            return False
        if fault.startswith("503"):
            hint = ("Retry-After-Ms: 5",) if "hint" in fault else ()
            connection.sendall(answer("503 Service Unavailable", b"", *hint))
            return True
        verb, path, _ = lines[0].split(" ")
        try:
            there.request(verb, path, body, headers)
            told = there.getresponse()
            text = told.read()
        except OSError:
            reset(connection)
            return False
        status = f"{told.status} {told.reason}"
        return self._answer(connection, fault, status, text, dict(told.getheaders()))

    def _answer(self, connection: Any, fault: str, status: str, text: bytes, headers: dict[str, str]) -> bool:
        if fault == "reset after":
            reset(connection)
            return False
        if fault == "answer dropped":
            return False
        if fault == "answer cut":
            connection.sendall(answer(status, text[:-9], length=len(text)))
            return False
        if fault == "answer garbled":
            connection.sendall(answer("201 Created", b"hello"))
            return True
        if fault == "delay":
            time.sleep(DELAY)
        kept = [f"{name}: {value}" for name, value in headers.items() if name.lower() in _KEPT]
        connection.sendall(answer(status, text, *kept))
        return True


_KEPT = {"content-type", "retry-after", "retry-after-ms", "x-request-id"}


class _Collecting(Http2):
    """Also keeps what the requests hold."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.bodies: dict[int, bytes] = {}

    def receive(self) -> list[object]:
        events = super().receive()
        for event in events:
            if isinstance(event, DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
        return events


class LossyGrpc(_Lossy):
    """A behaviour of a FaultyPeer. Resets of a connection hit every call on it."""

    chances = GRPC_CHANCES

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(port, seed)
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        options.append(("grpc.min_reconnect_backoff_ms", 50))
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)

    def close(self) -> None:
        self._channel.close()

    def __call__(self, connection: Any) -> None:
        peer = _Collecting(connection)
        while True:
            with contextlib.suppress(ProtocolError):  # the caller had no patience, and the stream is gone
                if not self._serve(peer, connection):
                    return

    def _serve(self, peer: _Collecting, connection: Any) -> bool:
        """One request; False when the connection is over."""
        stream = peer.read_request()
        request = peer.bodies.pop(stream)[5:]
        usage = SUBMIT_USAGE.request.decode(request).usage
        assert usage is not None
        fault = self._draw(usage.idempotency_key)
        if fault == "reset before":
            reset(connection)
            return False
        if fault == "stream refused":
            peer.http2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
            peer.flush()
            return True
        if fault.startswith("503"):
            hint = [("grpc-retry-pushback-ms", "5")] if "hint" in fault else []
            peer.send(stream, [*HEAD, ("grpc-status", "14"), *hint])
            return True
        try:
            path = peer.headers[stream][":path"]
            told = self._channel.unary_unary(path)(request, timeout=60)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                reset(connection)  # the server was killed
                return False
            peer.send(stream, [*HEAD, ("grpc-status", str(error.code().value[0]))])
            return True
        return self._answer(peer, stream, fault, told)

    def _answer(self, peer: _Collecting, stream: int, fault: str, told: bytes) -> bool:
        if fault == "reset after":
            reset(peer.socket)
            return False
        if fault == "stream reset after":
            peer.http2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
            peer.flush()
            return True
        if fault == "answer dropped":
            return False
        if fault == "answer cut":
            peer.send(stream, HEAD, frame(told[:-9], length=len(told)), DONE)
            return True
        if fault == "answer garbled":
            peer.send(stream, HEAD, frame(b"\xff\xff"), DONE)
            return True
        if fault == "delay":
            time.sleep(DELAY)
        peer.answer(stream, told)
        return True


class _Refusing(_Lossy):
    """Answers 503, without a hint, while `refusing`; else forwards."""

    refusing = False

    def _draw(self, key: str) -> str:
        fault = "503" if self.refusing else "none"
        with self._lock:
            self.faults[fault] += 1
        return fault


class RefusingHttp(_Refusing, LossyHttp):
    """Over HTTP: 503 without Retry-After."""


class RefusingGrpc(_Refusing, LossyGrpc):
    """Over gRPC: UNAVAILABLE without pushback."""
