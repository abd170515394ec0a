"""uvicorn's HTTP/1.1 protocol with the time limits that it lacks, and none of h11's leniency.

h11 also takes what RFC 9112 lets a server refuse. Where a proxy in front reads such bytes in another way, one
request hides inside another one; no client that is in use sends them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm_cost_ops.server.limits import ConnectionLimits

__all__ = ["limited_protocol"]


_FREE_CHUNKS = 64
_BYTES_PER_CHUNK = 256
_CHUNKS_PER_SECOND = 500

_LENGTH = b"\r\ncontent-length:"
_CODING = b"\r\ntransfer-encoding:"


class StrictConnection(h11.Connection):
    """The server's side of a connection on which a request can be read in one way only.

    A chunked body may have 64 chunks, one more for each 256 bytes, and 500 more for each second: each chunk
    costs about 13 µs of the event loop, and may hold a single byte. A stream that sends a record now and then
    has a chunk for each.

    `on_wait` is called when the head of an answer begins to wait for its body, which it does at most until
    `take_head`; without it none does.
    """

    def __init__(
        self,
        max_header_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        on_wait: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self._on_wait = on_wait
        self._head = b""
        self._clock = clock
        self._chunks = self._bytes = 0
        self._began = 0.0

    def send(self, event: Any) -> Any:
        """The bytes of an event; those of a head that says how long the body is wait for what comes next.

        Apps send both at once, which is one write then, and wakes the client up once.
        """
        data = super().send(event)
        if self._on_wait is not None and type(event) is h11.Response and _LENGTH in data.lower():
            self._head = data
            self._on_wait()
            return b""
        head = self.take_head()
        return head + data if head and data is not None else data

    def take_head(self) -> bytes:
        """The head that waits, if there is one. It is to be written now."""
        head, self._head = self._head, b""
        return head

    def next_event(self) -> Any:
        """The next event; RemoteProtocolError for what is lax, as for what is wrong."""
        if self.their_state is h11.IDLE:
            _check_head(self.trailing_data[0])
        event = super().next_event()
        if type(event) is h11.Request:
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("the version of HTTP is neither 1.0 nor 1.1")
            self._chunks = self._bytes = 0
            self._began = self._clock()
        elif type(event) is h11.Data:
            self._bytes += len(event.data)
            if event.chunk_start:
                self._chunks += 1
                self._check_chunks()
        return event

    def _check_chunks(self) -> None:
        allowed = _FREE_CHUNKS + self._bytes // _BYTES_PER_CHUNK
        if self._chunks <= allowed:
            return
        if self._chunks > allowed + _CHUNKS_PER_SECOND * (self._clock() - self._began):
            raise h11.RemoteProtocolError("the chunks of the body are too small")


def _check_head(received: bytes) -> None:
    """Refuse a request's line and headers as soon as something in them has two readings."""
    end = received.find(b"\r\n\r\n")
    head = received if end < 0 else received[: end + 2]
    lines = head.count(b"\r\n")
    # The last byte may be the first of two.
    if not head.count(b"\n") == head.count(b"\r", 0, -1) == lines or b"\n " in head or b"\n\t" in head:
        raise h11.RemoteProtocolError("a line does not end in CR LF, or goes on in the next one")
    if end < 0:
        return
    names = head.lower()
    _, *lengths = names.split(_LENGTH)
    if len(lengths) > 1 or any(b"," in length.partition(b"\r")[0] for length in lengths):
        raise h11.RemoteProtocolError("Content-Length is given more than once")
    if lengths and _CODING in names:
        raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding are given")


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol, with `limits`."""

    limits: ConnectionLimits
    conn: StrictConnection
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = StrictConnection(self.limits.max_header_bytes, on_wait=self._write_head_soon)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _write_head_soon(self) -> None:
        self.loop.call_soon(self._write_head)

    def _write_head(self) -> None:
        """Write a head whose body was not sent in the same round of the loop."""
        head = self.conn.take_head()
        if head:
            self.transport.write(head)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The body was wrong, and the app may be answering: nothing of it may follow.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        # uvicorn leaves this one to run out where a connection was reset, and with it all of the connection.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()

    def _watch(self) -> None:
        state = self.conn.their_state
        limit = 0.0
        if state is h11.IDLE and (self.cycle is None or self.timeout_keep_alive_task is None):
            limit = self.limits.header_timeout
        elif state is h11.SEND_BODY and self.cycle is not None and self.cycle.response_complete:
            limit = self.limits.linger_timeout
        if not limit and self._reading is not None:
            self._reading.cancel()
            self._reading = None
        elif limit and self._reading is None:
            # Not set anew by each byte: it is a limit for the whole.
            self._reading = self.loop.call_later(limit, self.transport.close)


def limited_protocol(limits: ConnectionLimits) -> type[H11Protocol]:
    """A protocol class for uvicorn that keeps the limits."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
