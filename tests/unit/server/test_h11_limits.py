"""What of HTTP/1.1 the listener takes, without sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.server.app import HttpServer
from llm_cost_ops.server.h11_limits import LimitedProtocol, StrictConnection
from llm_cost_ops.server.limits import ConnectionLimits
from tests.waiting import MAX_WAIT, until_async

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
names = st.sampled_from([b"X-A", b"Accept", b"Content-Length", b"content-length"])
values = st.sampled_from([b"0", b"a b", b"a\tb", b"1, 1"])
ends = st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\n\r\n"])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def is_strict(head: bytes) -> bool:
    """Whether RFC 9112 leaves one reading of lines and one length: the oracle, written another way."""
    lines = head.split(b"\r\n\r\n")[0].split(b"\r\n")
    if any(b"\r" in line or b"\n" in line or line[:1] in (b" ", b"\t") for line in lines):
        return False
    lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
    return len(lengths) <= 1 and not any(b"," in line for line in lengths)


@given(st.lists(st.tuples(names, values, ends), max_size=4), st.integers(1, 200))
def test_a_head_with_two_readings_is_refused_however_it_comes(
    fields: list[tuple[bytes, bytes, bytes]], step: int
) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"%s: %s%s" % each for each in fields) + b"\r\n"
    connection = StrictConnection(32768)
    refused = False
    event = None
    for at in range(0, len(head), step):
        connection.receive_data(head[at : at + step])
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            refused = True
            break
        if event is not h11.NEED_DATA:
            break
    if not is_strict(head):
        assert refused
    elif not refused:
        # h11 has rules of its own, such as for what a length may be.
        assert type(event) is h11.Request or b"\r\n\r\n" not in head


def feed(connection: StrictConnection, data: bytes) -> int:
    """How many bytes of body come out."""
    connection.receive_data(data)
    found = 0
    while (event := connection.next_event()) is not h11.NEED_DATA:
        found += len(event.data) if isinstance(event, h11.Data) else 0
    return found


def test_a_body_has_so_many_chunks_as_its_bytes_and_its_seconds_allow() -> None:
    clock = Clock()
    connection = StrictConnection(32768, clock)
    feed(connection, CHUNKED)
    assert feed(connection, b"1\r\na\r\n" * 64) == 64
    assert feed(connection, b"100\r\n" + b"a" * 256 + b"\r\n") == 256
    clock.now = 2.0
    assert feed(connection, b"1\r\na\r\n" * 999) == 999
    with pytest.raises(h11.RemoteProtocolError, match="too small"):
        feed(connection, b"1\r\na\r\n" * 6)


def test_a_stream_of_a_record_now_and_then_goes_on() -> None:
    clock = Clock()
    connection = StrictConnection(32768, clock)
    feed(connection, CHUNKED)
    for second in range(2000):
        clock.now = float(second)
        assert feed(connection, b"64\r\n" + b"a" * 100 + b"\r\n") == 100


def test_each_body_of_a_connection_is_counted_from_nothing() -> None:
    connection = StrictConnection(32768, Clock())
    for _ in range(3):
        connection.receive_data(CHUNKED + b"1\r\na\r\n" * 60 + b"0\r\n\r\n")
        while type(connection.next_event()) is not h11.EndOfMessage:
            pass
        connection.send(h11.Response(status_code=204, headers=[]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()


def answered(connection: h11.Connection, verb: bytes, headers: list[tuple[str, str]], parts: list[bytes]):
    """What is written for an answer, write by write, as uvicorn asks for it."""
    connection.receive_data(b"%s / HTTP/1.1\r\nHost: x\r\n\r\n" % verb)
    while type(connection.next_event()) is not h11.EndOfMessage:
        pass
    events = [h11.Response(status_code=200, headers=headers, reason=b"OK")]
    events += [h11.Data(data=b"" if verb == b"HEAD" else part) for part in parts]
    return [connection.send(event) for event in (*events, h11.EndOfMessage())]


@given(
    st.sampled_from([b"GET", b"HEAD"]), st.lists(st.binary(max_size=9), min_size=1, max_size=3), st.booleans()
)
def test_an_answer_is_what_h11_writes(verb: bytes, parts: list[bytes], sized: bool) -> None:
    headers = [("x-a", "b"), *([("content-length", str(len(b"".join(parts))))] if sized else [])]
    plain = answered(h11.Connection(h11.SERVER), verb, headers, parts)
    ours = answered(StrictConnection(32768, on_wait=lambda: None), verb, headers, parts)
    assert b"".join(ours) == b"".join(plain)
    if sized:  # the head and what comes first of the body are one write
        assert ours[:2] == [b"", plain[0] + plain[1]]
    else:
        assert ours == plain


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        await send({"type": f"{(await receive())['type']}.complete"})


async def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    server = HttpServer(app, port=0)
    address = (await server.start()).removeprefix("http://")
    host, _, port = address.partition(":")
    async with asyncio.timeout(MAX_WAIT):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"content-length: 2\r\n" in await reader.readuntil(b"\r\n\r\n")
        go_on.set()
        assert await reader.readexactly(2) == b"ok"
    writer.close()
    await server.stop(MAX_WAIT)


@pytest.mark.parametrize("sent", [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_nothing_is_left_of_a_connection_that_was_reset(sent: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def connections() -> int:
        gc.collect()
        return sum(isinstance(each, LimitedProtocol) for each in gc.get_objects())

    hour = ConnectionLimits(header_timeout=3600, idle_timeout=3600, linger_timeout=3600)
    server = HttpServer(app, port=0, limits=hour)
    host, _, port = (await server.start()).removeprefix("http://").partition(":")
    before = connections()
    async with asyncio.timeout(MAX_WAIT):
        reader, writer = await asyncio.open_connection(host, int(port))
        await until_async(lambda: connections() > before)
        writer.write(sent)
        if sent.endswith(b"\r\n\r\n"):
            assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        connected = writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        await until_async(lambda: connections() == before)
    await server.stop(MAX_WAIT)
