"""The bytes of a gRPC connection: hpack reads the headers that it sends, and it survives any that it gets."""

from __future__ import annotations

import asyncio

from h2.config import H2Configuration
from h2.connection import H2Connection
from hpack import Decoder, NeverIndexedHeaderTuple
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_cost_ops.transports.grpc.connection import MAX_UNACKNOWLEDGED, CallConnection, HeadEncoder

NAMES = st.text("abcxyz-", min_size=1, max_size=20).map(str.encode)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200).map(str.encode)
PAIRS = st.tuples(NAMES, VALUES)
REQUEST = [(b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/a/b"), (b":authority", b"x")]


def passing(pairs):
    return [NeverIndexedHeaderTuple(*pair) for pair in pairs]


@given(st.lists(st.lists(PAIRS, max_size=6), min_size=1, max_size=4), st.data())
def test_headers_arrive_as_they_were_sent(sets, data):
    encoder, decoder = HeadEncoder(), Decoder(1 << 20)
    for _ in range(12):
        lasting, own = data.draw(st.sampled_from(sets)), data.draw(st.lists(PAIRS, max_size=3))
        if data.draw(st.integers(0, 5)) == 0:
            size = data.draw(st.integers(0, 4096))
            decoder.max_allowed_table_size = size
            encoder.header_table_size = size
        assert decoder.decode(encoder.encode([*lasting, *passing(own)]), raw=True) == [*lasting, *own]


def test_what_comes_again_is_a_byte_each_and_what_differs_is_never_kept():
    encoder, decoder = HeadEncoder(), Decoder()
    sizes = []
    for number in range(200):
        block = encoder.encode([*REQUEST, *passing([(b"key", b"%036d" % number)])])
        sizes.append(len(block))
        assert isinstance(decoder.decode(block)[-1], NeverIndexedHeaderTuple)
    assert sizes[1:] == [4 + 1 + 4 + 1 + 36] * 199
    assert len(decoder.header_table.dynamic_entries) == 2
    for number in range(1000):  # each call has other metadata, as with tracing
        headers = [*REQUEST, (b"traceparent", b"%d" % (number % 300))]
        assert decoder.decode(encoder.encode(headers), raw=True) == headers
    assert len(encoder._blocks) <= 64


class Socket(asyncio.Transport):
    """It takes what is written, until it is aborted."""

    def __init__(self):
        super().__init__()
        self.closed = False
        self.written = b""

    def write(self, data):
        assert not self.closed
        self.written += data

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    abort = close


def connected():
    connection, socket = CallConnection(lambda _: None), Socket()
    connection.connection_made(socket)
    return connection, socket


async def called(connection):
    assert connection.enter_now()
    stream = connection.open(REQUEST)
    await stream.send(b"request", end=True)
    await asyncio.sleep(0)
    return stream


def end(connection, stream):
    connection.release(stream)
    connection.leave()


def answer(server, stream, message):
    server.send_headers(
        stream.id, [(":status", "200"), ("content-type", "application/grpc"), ("x-id", "a" * 40)]
    )
    server.ping(bytes(8))
    for at in range(0, len(message), 16384):
        server.send_data(stream.id, message[at : at + 16384])
    server.send_headers(stream.id, [("grpc-status", "0"), ("grpc-message", "fine")], end_stream=True)
    return server.data_to_send()


def serving():
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    return server


async def recorded():
    """What a server sends with a good answer to the first call."""
    server, (connection, socket) = serving(), connected()
    stream = await called(connection)
    server.receive_data(socket.written)
    connection.processor.close()
    return answer(server, stream, b"\0\0\0\0\x05hello")


ANSWER = asyncio.run(recorded())
CHANGES = st.lists(st.tuples(st.integers(0, len(ANSWER) - 1), st.integers(0, 255)), max_size=4)


@settings(max_examples=300)
@example([], len(ANSWER), len(ANSWER))
@example([], len(ANSWER), 1)
@example([], len(ANSWER), 4)
@example([(68, 2)], len(ANSWER), 1).via("a stream that the server opens")
@given(CHANGES, st.integers(0, len(ANSWER)), st.integers(1, len(ANSWER)))
def test_a_garbled_answer_ends_its_call_or_lets_it_wait(changes, length, cut):
    data = bytearray(ANSWER)
    for at, value in changes:
        data[at] = value
    data = data[:length]

    async def run():
        connection, _ = connected()
        stream = await called(connection)
        reading = asyncio.ensure_future(stream.read_trailers())
        for at in range(0, len(data), cut):
            await asyncio.sleep(0)
            connection.data_received(bytes(data[at : at + cut]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not changes and length == len(ANSWER):
            assert await reading == [(b"grpc-status", b"0"), (b"grpc-message", b"fine")]
            assert await stream.read(100) == b"\0\0\0\0\x05hello"
        connection.connection_lost(None)
        await asyncio.wait([reading])
        reading.exception()
        assert stream.failure is not None or stream.headers is not None
        end(connection, stream)
        assert (connection.load, connection.processor.streams) == (0, {})

    asyncio.run(run())


async def test_a_peer_that_does_not_begin_with_settings_is_left_however_its_bytes_are_cut():
    for cut in (1, 2, 3, 4):
        connection, socket = connected()
        data = b"HTTP"
        for at in range(0, len(data), cut):
            connection.data_received(data[at : at + cut])
        assert socket.closed, cut
        assert not connection.usable


async def test_calls_of_one_turn_leave_together():
    connection, socket = connected()
    writes = []
    socket.write = writes.append
    for _ in range(3):
        assert connection.enter_now()
        await connection.open(REQUEST).send(b"request", end=True)
    assert writes == []
    await asyncio.sleep(0)
    assert len(writes) == 1
    connection.processor.close()


async def test_answers_that_were_read_or_given_up_make_room_for_others():
    server, (connection, socket) = serving(), connected()
    message = bytes(100_000)
    for number in range(60):  # several windows of a connection
        stream = await called(connection)
        server.receive_data(socket.written)
        socket.written = b""
        connection.data_received(answer(server, stream, message))
        if number % 2:
            assert await stream.read(len(message)) == message
        end(connection, stream)
        await asyncio.sleep(0)
    assert 60 * len(message) > 10 * MAX_UNACKNOWLEDGED
    connection.processor.close()
