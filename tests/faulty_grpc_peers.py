"""Behaviours for `FaultyPeer` that speak HTTP/2, rightly or wrongly, for the tests of the gRPC transports."""

from __future__ import annotations

import time
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from tests.faulty_peers import Behaviour, bomb, never_reads, reset, resets_at_once

__all__ = ["ANSWER", "BEHAVIOURS", "GOOD", "Http2", "answering", "frame"]

HEAD = [(":status", "200"), ("content-type", "application/grpc")]
DONE = [("grpc-status", "0")]
GOOD = b'{"data": {"id": "n"}}'


def frame(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return bytes([flag]) + (len(message) if length is None else length).to_bytes(4, "big") + message


ANSWER = (HEAD, frame(GOOD), DONE)


class Http2:
    """The server's end of an HTTP/2 connection on a blocking socket."""

    def __init__(self, connection, **settings: int) -> None:
        self.socket = connection
        self.http2 = H2Connection(
            H2Configuration(client_side=False, header_encoding="latin-1", validate_outbound_headers=False)
        )
        self.http2.initiate_connection()
        if settings:
            self.http2.update_settings(
                {SettingCodes[name.upper()]: value for name, value in settings.items()}
            )
        self.seen: list[int] = []
        self.headers: dict[int, dict[str, str]] = {}
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.http2.data_to_send())

    def read_request(self) -> int:
        """The number of the next stream whose request is complete."""
        while not self.seen:
            self.receive()
        return self.seen.pop(0)

    def receive(self) -> list[object]:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the client went away")
        events = self.http2.receive_data(data)
        for event in events:
            if isinstance(event, RequestReceived):
                self.headers[event.stream_id] = dict(event.headers)
            elif isinstance(event, DataReceived):
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.seen.append(event.stream_id)
            elif isinstance(event, ConnectionTerminated):
                raise ConnectionError("the client closed the connection")
        self.flush()
        return events

    def send(self, stream: int, head=None, data: bytes | None = None, trailers=None) -> None:
        if head is not None:
            self.http2.send_headers(stream, head, end_stream=data is None and trailers is None)
        if data is not None:
            for at in range(0, len(data), 16384):
                self.http2.send_data(stream, data[at : at + 16384])
        if trailers is not None:
            self.http2.send_headers(stream, trailers, end_stream=True)
        self.flush()

    def answer(self, stream: int, message: bytes = GOOD) -> None:
        self.send(stream, HEAD, frame(message), DONE)

    def goaway(self, last: int, code: int = 0) -> None:
        """As servers do: h2 would close the connection for good."""
        self.socket.sendall(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def wait(self) -> None:
        """Until the client goes away."""
        while True:
            self.receive()


def answering(*answers: tuple[object, bytes | None, object]) -> Behaviour:
    """Answers requests with (head, data, trailers), one after another, the last one ever after."""
    left = list(answers)

    def behave(connection) -> None:
        peer = Http2(connection)
        while True:
            stream = peer.read_request()
            peer.send(stream, *(left.pop(0) if len(left) > 1 else left[0]))

    return behave


def after_request(then: Callable[[Http2, int], object]) -> Behaviour:
    def behave(connection) -> None:
        peer = Http2(connection)
        then(peer, peer.read_request())

    return behave


def told(head, data=None, trailers=None) -> Behaviour:
    return after_request(lambda peer, stream: (peer.send(stream, head, data, trailers), peer.wait()))


def silent(connection) -> None:
    while connection.recv(65536):
        pass


def drips_message(peer: Http2, stream: int) -> None:
    peer.send(stream, HEAD, frame(b"", length=100_000))
    while True:
        peer.send(stream, None, b" ")
        time.sleep(0.02)


def drips_pings(peer: Http2, _stream: int) -> None:
    while True:
        peer.http2.ping(b"12345678")
        peer.flush()
        time.sleep(0.02)


def resets(code: int) -> Behaviour:
    def then(peer: Http2, stream: int) -> None:
        while True:
            peer.http2.reset_stream(stream, code)
            peer.flush()
            stream = peer.read_request()

    return after_request(then)


def goes_away(last: int) -> Behaviour:
    def then(peer: Http2, _stream: int) -> None:
        peer.goaway(last)
        peer.wait()

    return after_request(then)


def endless(peer: Http2, stream: int) -> None:
    peer.send(stream, HEAD, frame(b"", length=1 << 31))
    while True:
        while peer.http2.local_flow_control_window(stream) < 16384:
            peer.receive()
        peer.send(stream, None, b" " * 16384)


def speaks_http1(connection) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    silent(connection)


def bad_headers(peer: Http2, stream: int) -> None:
    # An index that HPACK does not have.
    peer.socket.sendall(b"\x00\x00\x02\x01\x04" + stream.to_bytes(4, "big") + b"\xff\xff")
    peer.wait()


def flood_of_headers(peer: Http2, stream: int) -> None:
    peer.send(stream, [*HEAD, *((f"x-{n}", "a" * 1000) for n in range(200))])
    peer.wait()


GZIP = [*HEAD, ("grpc-encoding", "gzip")]

# What a client sees of it: "deadline" (the call's own), "network" (no answer), "untouched" (no answer,
# and the server did nothing), "garbled" (an answer that can't be understood).
BEHAVIOURS: dict[str, tuple[Behaviour, str]] = {
    "silent": (silent, "deadline"),
    "only_settings": (after_request(lambda peer, stream: peer.wait()), "deadline"),
    "only_headers": (told(HEAD, b""), "deadline"),
    "drips_message": (after_request(drips_message), "deadline"),
    "drips_pings": (after_request(drips_pings), "deadline"),
    "resets_at_once": (resets_at_once, "network"),
    "resets_after_request": (after_request(lambda peer, stream: reset(peer.socket)), "network"),
    "closes_after_request": (after_request(lambda peer, stream: None), "network"),
    "closes_in_message": (
        after_request(lambda peer, stream: peer.send(stream, HEAD, frame(b"{", length=99))),
        "network",
    ),
    "resets_stream": (resets(ErrorCodes.INTERNAL_ERROR), "network"),
    "resets_stream_with_unknown_code": (resets(0xABC), "network"),
    "refuses_stream": (resets(ErrorCodes.REFUSED_STREAM), "untouched"),
    "goes_away_before_it": (goes_away(0), "untouched"),
    "speaks_http1": (speaks_http1, "network"),
    "bad_headers": (after_request(bad_headers), "network"),
    "flood_of_headers": (after_request(flood_of_headers), "network"),
    "endless_message": (after_request(endless), "garbled"),
    "gzip_bomb": (told(GZIP, frame(bomb(), 1), DONE), "garbled"),
    "broken_gzip": (told(GZIP, frame(b"this is no gzip", 1), DONE), "garbled"),
    "unknown_compression": (told([*HEAD, ("grpc-encoding", "br")], frame(GOOD, 1), DONE), "garbled"),
    "bad_flag": (told(HEAD, frame(GOOD, 7), DONE), "garbled"),
    "short_frame": (told(HEAD, b"\x00\x00", DONE), "garbled"),
    "cut_message": (told(HEAD, frame(GOOD, length=500), DONE), "garbled"),
    "two_messages": (told(HEAD, frame(GOOD) * 2, DONE), "garbled"),
    "no_message": (told(HEAD, None, DONE), "garbled"),
    "not_a_message": (told(HEAD, frame(b"\xff\xff"), DONE), "garbled"),
    "no_status": (told(HEAD, frame(GOOD), [("x-other", "1")]), "garbled"),
    "odd_status": (told(HEAD, frame(GOOD), [("grpc-status", "OK")]), "garbled"),
    "other_content_type": (told([(":status", "200"), ("content-type", "text/html")], b"<html>"), "garbled"),
    "no_content_type": (told([(":status", "200")], frame(GOOD), DONE), "garbled"),
    "never_reads": (never_reads, "deadline"),
}
