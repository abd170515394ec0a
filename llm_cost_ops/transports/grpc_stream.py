"""One HTTP/2 stream of a call: it sends a request, reads an answer, and knows how it failed.

grpclib's own stream ends a call by cancelling its task. That leaves a mark on the task by which an
enclosing asyncio.timeout later takes its own expiry for somebody else's, so here every wait is
woken instead and looks for the failure.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from grpclib.protocol import Buffer, Connection, Stream
from h2.errors import ErrorCodes

__all__ = ["CallStream", "FrameWriter", "StreamFailedError"]


class StreamFailedError(Exception):
    """The stream ended without an answer.

    `processed` is False when the server told, or it is plain, that it did nothing with the request.
    `code` is HTTP/2's error code where the peer reset the stream.
    """

    def __init__(self, reason: str, *, processed: bool = True, code: int | None = None) -> None:
        super().__init__(reason)
        self.processed = processed
        self.code = code


class Inbox(Buffer):
    """What came and was not read yet. It gives the peer new room only when somebody wants more."""

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._acknowledge = acknowledge
        self._data = bytearray()
        self._unacknowledged = 0
        self._ended = False
        self._arrived = asyncio.Event()

    def add(self, data: bytes, ack_size: int) -> None:
        self._data += data
        self._unacknowledged += ack_size
        self._arrived.set()

    def eof(self) -> None:
        self._ended = True
        self._arrived.set()

    async def read(self, size: int) -> bytes:
        """`size` bytes, or fewer where the stream ends."""
        while len(self._data) < size and not self._ended:
            self._acknowledge(self.unacked_size())
            self._arrived.clear()
            await self._arrived.wait()
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def unacked_size(self) -> int:
        size, self._unacknowledged = self._unacknowledged, 0
        return size


class FrameWriter(Connection):
    """grpclib's connection; frames of one turn of the loop leave together."""

    _flushing = False

    def close(self) -> None:
        transport = getattr(self, "_transport", None)
        super().close()
        if transport is not None:
            # Closing alone waits for a peer to take what is buffered, or to end TLS: for ever, perhaps.
            transport.abort()
        self.write_ready.set()

    def flush(self) -> None:
        """Let frames leave at the end of this turn."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush_now)

    def flush_now(self) -> None:
        """Let frames leave at once."""
        self._flushing = False
        if not self.is_closing():
            super().flush()

    def ack(self, stream_id: int, size: int) -> None:
        if size and not self.is_closing():
            super().ack(stream_id, size)


class CallStream(Stream):
    """A stream of our connection; `failure` is set once it failed, `request_sent` once all left."""

    connection: FrameWriter
    failure: StreamFailedError | None = None
    request_sent = False
    deadline = math.inf
    _ended = False

    def init_stream(self, stream_id: int, connection: Connection) -> None:
        super().init_stream(stream_id, connection)
        self.buffer = Inbox(partial(connection.ack, stream_id))

    def fail(self, failure: StreamFailedError) -> None:
        """End the stream, and wake whoever waits for it. An answer that is complete stays one."""
        if self.failure is None and not self._ended:
            self.failure = failure
        self.__ended__()

    def __ended__(self) -> None:
        self._ended = True
        self.buffer.eof()
        self.window_updated.set()
        self.headers_received.set()
        self.trailers_received.set()

    def __terminated__(self, reason: str) -> None:
        self.fail(StreamFailedError(reason))

    @property
    def answered(self) -> bool:
        """Whether the peer has begun to answer."""
        return self.headers is not None

    async def send(self, data: bytes, *, end: bool) -> None:
        """Send a part of the request, the last one with `end`. Raises StreamFailedError."""
        assert self.id is not None
        http2, at = self._h2_connection, 0
        while True:
            if self._ended:
                raise self.failure or StreamFailedError("the answer came before the request was sent")
            room = min(http2.local_flow_control_window(self.id), http2.max_outbound_frame_size)
            if room <= 0 < len(data) or not self.connection.write_ready.is_set():
                self.connection.flush_now()
                self.window_updated.clear()
                await self.window_updated.wait()
                continue
            chunk = data[at : at + room]
            at += len(chunk)
            last = at >= len(data)
            # From here on the peer may have it all, whatever becomes of the connection.
            self.request_sent = self.request_sent or (last and end)
            http2.send_data(self.id, chunk, end_stream=last and end)
            self.connection.data_send_process()
            if last:
                self.connection.flush()
                return
            self.connection.flush_now()

    async def read_headers(self) -> list[tuple[bytes, bytes]]:
        """The head of the answer. Raises StreamFailedError."""
        await self.headers_received.wait()
        return self._told(self.headers)

    async def read_trailers(self) -> list[tuple[bytes, bytes]]:
        """What follows the answer. Raises StreamFailedError."""
        await self.trailers_received.wait()
        return self._told(self.trailers)

    async def read(self, size: int) -> bytes:
        """`size` bytes, fewer where the answer ends. Raises StreamFailedError where it was cut off."""
        data = await self.buffer.read(size)
        if len(data) < size and self.failure is not None:
            raise self.failure
        return data

    def abandon(self) -> None:
        """Tell the peer that nobody waits for the answer any more, unless it is complete."""
        if self.id is not None and self.failure is None and self.closable:
            self._h2_connection.reset_stream(self.id, error_code=ErrorCodes.CANCEL)
            self.connection.flush()

    def _told(self, headers: Any) -> list[tuple[bytes, bytes]]:
        if headers is None:
            raise self.failure or StreamFailedError("the stream ended without a status")
        found: list[tuple[bytes, bytes]] = headers
        return found
