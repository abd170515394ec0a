"""One HTTP/2 connection of gRPC calls.

grpclib closes every stream when the server says GOAWAY, and loses calls that the server would still
have answered. By RFC 9113 the streams up to the last one named go on, the others were not touched,
and only new ones need another connection. So it is here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, Buffer, Connection, EventsProcessor, H2Protocol, Stream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, RemoteSettingsChanged, RequestReceived, StreamReset
from h2.exceptions import NoAvailableStreamIDError, ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Encoder, NeverIndexedHeaderTuple

from llm_cost_ops.rpc.fifo import Fifo, TaskTurn
from llm_cost_ops.transports.net.advice import SILENT

__all__ = ["CallConnection", "CallStream", "FrameWriter", "HeadEncoder", "StreamFailedError"]


WINDOW = 4 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024

# Of answers that were read, or will not be, the peer is told after so many bytes.
MAX_UNACKNOWLEDGED = WINDOW // 8

# A ping after so many seconds of silence while a call is open, and an answer to it within so many.
# No more than two in a row: servers hang up on clients that ping for longer.
KEEPALIVE = Configuration(
    _keepalive_time=20.0,
    _keepalive_timeout=10.0,
    _keepalive_permit_without_calls=False,
    _http2_max_pings_without_data=2,
    _http2_min_sent_ping_interval_without_data=15.0,
    http2_connection_window_size=WINDOW,
    http2_stream_window_size=WINDOW,
).__for_client__()

# A connection that has been idle for longer may be gone without a sign: a gateway forgot it.
MAX_IDLE = 240.0

# The type of the frame that a server begins with, and where in the frame it stands.
_SETTINGS = b"\x04"
_TYPE_AT = 3

_H2 = H2Configuration(
    client_side=True,
    header_encoding=None,
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)


class _Http2(H2Connection):
    """h2 takes a GOAWAY for the end of the whole connection, and would refuse the frames after it."""

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.encoder = HeadEncoder()

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class _Events(EventsProcessor):
    """Events of h2 for streams of ours; what a client has no use for is passed by."""

    def __init__(self, owner: CallConnection, connection: FrameWriter) -> None:
        super().__init__(owner, connection)
        self._owner = owner
        self.reason = ""
        """Why the connection was closed, once it is."""

    @property
    def calls(self) -> dict[int, CallStream]:
        return cast("dict[int, CallStream]", self.streams)

    def process(self, event: Event) -> None:
        act = getattr(self, "processors", {}).get(event.__class__)
        if act is not None:
            act(event)

    def close(self, reason: str = "the connection was lost") -> None:
        self.reason = self.reason or reason
        self.connection.close()
        self.handler.close()
        for stream in list(self.calls.values()):
            stream.fail(StreamFailedError(reason))
        self.__dict__.pop("processors", None)

    def process_request_received(self, event: RequestReceived) -> None:
        """Only a client opens streams (RFC 9113, section 8.4: none was asked to push)."""
        raise ProtocolError(f"stream {event.stream_id} was opened by the server")

    def process_remote_settings_changed(self, event: RemoteSettingsChanged) -> None:
        super().process_remote_settings_changed(event)
        self._owner.admit()

    def process_stream_reset(self, event: StreamReset) -> None:
        stream = self.calls.get(event.stream_id)
        if stream is None:
            return
        code = int(event.error_code or 0)
        name = ErrorCodes(code).name if code in ErrorCodes.__members__.values() else str(code)
        refused = event.remote_reset and code == ErrorCodes.REFUSED_STREAM
        reason = f"the peer reset the stream ({name})" if event.remote_reset else "the peer broke HTTP/2"
        stream.fail(StreamFailedError(reason, processed=not refused, code=code))

    def process_connection_terminated(self, event: ConnectionTerminated) -> None:
        last = event.last_stream_id or 0
        self._owner.drain()
        for number, stream in list(self.calls.items()):
            if number > last:
                stream.fail(StreamFailedError("the server is going away", processed=False))


class CallConnection(H2Protocol, AbstractHandler):
    """The protocol of a connection. Calls `enter`, `open` a stream, and `leave` when they are done.

    `usable` is False once the server said that it goes away, or the connection is closed; calls on
    it go on to their end, and with the last one it closes itself. `on_lost` is told when it is gone.
    """

    connection: FrameWriter
    processor: _Events
    takes_json: bool | None = None
    """Whether the server takes JSON, as its answers tell. It is False for good once JSON was refused: what is
    behind a proxy may be servers of both kinds.
    """

    def __init__(self, on_lost: Callable[[CallConnection], None]) -> None:
        super().__init__(self, KEEPALIVE, _H2)
        self._on_lost = on_lost
        self._draining = False
        self._opening = b""
        self._read = 0
        self._in_flight = 0
        self._waiting = Fifo[TaskTurn]()
        self._idle_since = time.monotonic()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.http2 = _Http2(config=_H2)
        self.http2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
            },
        )
        self.http2.initiate_connection()
        self.http2.increment_flow_control_window(WINDOW - 65535)
        self.connection = FrameWriter(self.http2, cast("asyncio.Transport", transport), config=KEEPALIVE)
        self.connection.flush_now()
        self.connection.initialize()
        self.processor = _Events(self, self.connection)

    def data_received(self, data: bytes) -> None:
        if self.connection.is_closing():
            return
        if len(self._opening) <= _TYPE_AT:
            self._opening += data[: _TYPE_AT + 1 - len(self._opening)]
            if self._opening[_TYPE_AT:] not in {_SETTINGS, b""}:
                # h2 would wait for all of what it takes for a large frame.
                self.processor.close("the peer does not speak HTTP/2")
                return
        try:
            for event in self.connection.feed(data):
                self.processor.process(event)
        except Exception as error:  # noqa: BLE001  # h2's errors, and what bytes of a peer make it trip over
            self.processor.close(f"the peer broke HTTP/2: {error}")
        self.connection.flush_now()

    def resume_writing(self) -> None:
        super().resume_writing()
        for stream in self.processor.calls.values():
            stream.window_updated.set()
        self.admit()

    def connection_lost(self, exc: BaseException | None) -> None:
        lost = "the connection was lost" if self._opening else SILENT
        self.processor.close(lost + (f": {exc}" if exc is not None else ""))
        self.gone.set()
        self._on_lost(self)

    @property
    def usable(self) -> bool:
        """Whether new calls may use it."""
        return not self._draining and not self.connection.is_closing()

    @property
    def stale(self) -> bool:
        """Whether it has been idle for so long that nobody can tell whether it still works."""
        return self._in_flight == 0 and time.monotonic() - self._idle_since > MAX_IDLE

    @property
    def load(self) -> int:
        """How many calls use it or wait for it."""
        return self._in_flight + len(self._waiting)

    def enter_now(self) -> bool:
        """Enter, if the server takes one more stream, the socket takes its headers, and nobody waits."""
        if self._waiting or not self._has_room():
            return False
        self._in_flight += 1
        return True

    async def enter(self) -> None:
        """Wait until `enter_now` is possible, first come, first served."""
        if self.enter_now():
            return
        turn = TaskTurn()
        self._waiting.join(turn)
        try:
            await turn.wait()
        except asyncio.CancelledError:
            if self._waiting.withdraw(turn):
                self.leave()
            raise

    def leave(self) -> None:
        """Let the next call in."""
        self._in_flight -= 1
        self._idle_since = time.monotonic()
        self.admit()
        if self._draining and not self._in_flight:
            self.processor.close("the server went away")

    def admit(self) -> None:
        """Let in who waits, up to the server's limit."""
        while self._waiting and self._has_room():
            self._in_flight += self._waiting.grant_next()

    def learn(self, takes_json: bool | None) -> None:
        """Take in what an answer told of JSON, if anything."""
        if takes_json is not None and self.takes_json is not False:
            self.takes_json = takes_json

    def _has_room(self) -> bool:
        most = self.http2.remote_settings.max_concurrent_streams
        return self._in_flight < most and self.connection.write_ready.is_set()

    def open(self, headers: list[tuple[bytes, bytes]], deadline: float = math.inf) -> CallStream:
        """A stream whose request has begun; it fails once `deadline` passed, a time of time.monotonic().

        Its headers leave with what is sent next. Raises StreamFailedError.
        """
        if not self.usable:
            raise StreamFailedError(self.processor.reason or "the connection is closing", processed=False)
        stream = CallStream(self.connection, self.http2, self.connection._transport)  # noqa: SLF001  # as grpclib's
        try:
            number = self.http2.get_next_available_stream_id()
        except NoAvailableStreamIDError as error:
            self.drain()
            raise StreamFailedError("the connection has no more streams", processed=False) from error
        self.http2.send_headers(number, headers)
        stream.init_stream(number, self.connection)
        stream.deadline = deadline
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        self.processor.streams[number] = stream
        self.connection.headers_send_process()
        return stream

    def release(self, stream: CallStream) -> None:
        """Forget a stream; what it did not read makes room for others."""
        stream.abandon()
        if stream.id is not None and self.processor.streams.pop(stream.id, None) is not None:
            self._read += stream.buffer.unacked_size()
            if self._read >= MAX_UNACKNOWLEDGED:
                self.connection.ack(stream.id, self._read)
                self._read = 0

    def drain(self) -> None:
        """Take no more calls; close with the last one."""
        self._draining = True
        self._refuse("the server is going away")
        if not self._in_flight:
            self.processor.close("the server went away")

    def shut(self) -> None:
        """Close at once."""
        self._draining = True
        if not self.connection.is_closing():
            self.http2.close_connection()
            self.connection.flush_now()
        self.processor.close("the client was closed")

    def accept(self, stream: object, headers: object, release_stream: object) -> None:
        """Nothing: a server starts no streams."""

    def cancel(self, stream: object) -> None:
        """Nothing: the stream knows."""

    def close(self) -> None:
        """Nobody waits for a closed connection."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._refuse("the connection was lost")

    def _refuse(self, reason: str) -> None:
        for turn in self._waiting.take_all():
            turn.fail(StreamFailedError(reason, processed=False))

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, deadline - time.monotonic()), self._ring)

    def _ring(self) -> None:
        """End the calls that are out of time. One timer is enough for all."""
        now = time.monotonic()
        self._alarm, self._alarm_at = None, math.inf
        for stream in list(self.processor.calls.values()):
            if stream.deadline <= now:
                stream.abandon()
                stream.fail(StreamFailedError("the deadline passed"))
            elif stream.deadline < self._alarm_at:
                self._set_alarm(stream.deadline)


_MAX_BLOCKS = 64


class HeadEncoder(Encoder):
    """hpack's encoder. Headers that its table holds all are encoded once, until the table changes.

    Headers that are never indexed differ with each call, and come last. None is packed by Huffman's code,
    which takes longer than the bytes that it saves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[tuple[Any, ...], bytes] = {}

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        """A block of headers, which are tuples of bytes."""
        passing = [header for header in headers if header.__class__ is NeverIndexedHeaderTuple]
        lasting = tuple(headers[: len(headers) - len(passing)])
        block = None if self.header_table.resized else self._blocks.get(lasting)
        if block is None:
            block = super().encode(lasting, huffman=False)
            if len(block) != len(lasting) or len(self._blocks) >= _MAX_BLOCKS:
                self._blocks.clear()
            if len(block) == len(lasting):  # a byte for each: the table held them, and is as it was
                self._blocks[lasting] = block
        return block + b"".join([self.add(header, sensitive=True) for header in passing])


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
        if transport is not None:
            # Closing alone waits for a peer to take what is buffered, or to end TLS: for ever, perhaps. It
            # comes after: Python 3.11.2 can't abort TLS that was lost and then closed.
            transport.abort()
        super().close()
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
        return self._pairs(self.headers)

    async def read_trailers(self) -> list[tuple[bytes, bytes]]:
        """What follows the answer. Raises StreamFailedError."""
        await self.trailers_received.wait()
        return self._pairs(self.trailers)

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

    def _pairs(self, headers: Any) -> list[tuple[bytes, bytes]]:
        if headers is None:
            raise self.failure or StreamFailedError("the stream ended without a status")
        found: list[tuple[bytes, bytes]] = headers
        return found
