"""Both gRPC transports against peers that misbehave. The time taken is printed (`-s`), hardly asserted."""

from __future__ import annotations

import ssl

import pytest

from llm_cost_ops.rpc.status import RESPONSE_TOO_LARGE, RpcError, StatusCode
from llm_cost_ops.transports.grpc.client import GrpcTransport
from tests.faulty_grpc_peers import ANSWER, BEHAVIOURS, DONE, GOOD, HEAD, Http2, answering, frame
from tests.faulty_peers import FaultyPeer
from tests.network import GRPC, PUT, TIMEOUT
from tests.tiny_service import GET_NOTE, GetNoteRequest, Note, PutNoteRequest
from tests.tunnels import self_signed
from tests.waiting import MAX_WAIT

call, url_of = GRPC.call, GRPC.url_of


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_misbehaving_peer_is_a_clear_error_in_time(colour, name):
    behave, kind = BEHAVIOURS[name]
    request = PutNoteRequest(note=Note(text="a" * (16 << 20))) if name == "never_reads" else PUT
    # A slow machine has more time, when none was left to send the request.
    for timeout in (TIMEOUT, 10 * TIMEOUT, MAX_WAIT) if kind == "deadline" else (MAX_WAIT,):
        with FaultyPeer(behave) as peer:
            error = call(colour, url_of(peer), request=request, timeout=timeout, max_response_bytes=1 << 20)
        assert isinstance(error, RpcError)
        if error.maybe_applied or name == "never_reads":
            break
    expected = {
        "deadline": (StatusCode.DEADLINE_EXCEEDED, "client", name != "never_reads"),
        "network": (StatusCode.UNAVAILABLE, "network", True),
        "untouched": (StatusCode.UNAVAILABLE, "network", False),
        "garbled": (StatusCode.INTERNAL, "server", True),
    }[kind]
    early = name in {"resets_at_once", "speaks_http1"}
    if early and not error.maybe_applied:
        expected = (*expected[:2], False)  # it came before the request left
    assert (error.code, error.origin, error.maybe_applied) == expected
    if kind != "untouched" and not early:
        assert peer.connections == 1


def test_an_answer_that_is_too_large_says_so(colour):
    with FaultyPeer(BEHAVIOURS["gzip_bomb"][0]) as peer:
        error = call(colour, url_of(peer), timeout=MAX_WAIT, max_response_bytes=1 << 20)
    assert error.error_code == RESPONSE_TOO_LARGE


@pytest.mark.parametrize("name", ["silent", "resets_after_request", "not_a_message"])
def test_a_read_has_never_been_applied(colour, name):
    with FaultyPeer(BEHAVIOURS[name][0]) as peer:
        error = call(colour, url_of(peer), GET_NOTE, GetNoteRequest(id="n"))
    assert error.maybe_applied is False


def test_a_socket_that_is_not_there_was_not_sent_to(colour):
    error = call(colour, "grpc:///no/such/socket", timeout=MAX_WAIT)
    assert (error.code, error.origin, error.maybe_applied) == (StatusCode.UNAVAILABLE, "network", False)


def test_frames_of_no_use_are_passed_by(colour):
    def behave(connection):
        peer = Http2(connection)
        stream = peer.read_request()
        peer.socket.sendall(b"\x00\x00\x04\x0a\x00\x00\x00\x00\x00\x00\x01ab")  # ALTSVC
        peer.socket.sendall(b"\x00\x00\x03\xfa\x00\x00\x00\x00\x00abc")  # of a type that is not known
        peer.http2.send_headers(stream, [(":status", "103"), ("link", "x")])
        peer.send(stream, HEAD, b"")
        peer.send(stream, None, b"")
        for at in range(len(frame(GOOD))):
            peer.send(stream, None, frame(GOOD)[at : at + 1])
        peer.send(stream, None, b"", DONE)
        peer.wait()

    with FaultyPeer(behave) as peer:
        assert call(colour, url_of(peer), timeout=MAX_WAIT).data.id == "n"


def test_an_answer_before_the_request_was_read_counts(colour):
    def behave(connection):
        peer = Http2(connection, initial_window_size=0)
        while not peer.headers:
            peer.receive()
        stream = next(iter(peer.headers))
        peer.send(stream, [*HEAD, ("grpc-status", "7"), ("grpc-message", "no%20entry")])
        peer.http2.reset_stream(stream, 0)
        peer.flush()
        peer.wait()

    with FaultyPeer(behave) as peer:
        error = call(
            colour, url_of(peer), timeout=MAX_WAIT, request=PutNoteRequest(note=Note(text="a" * 1_000_000))
        )
    assert (error.code, error.message, error.maybe_applied) == (
        StatusCode.PERMISSION_DENIED,
        "no entry",
        False,
    )


def test_a_request_that_had_no_room_to_leave_was_not_applied(colour):
    def behave(connection):
        peer = Http2(connection, initial_window_size=0)
        peer.wait()

    big = PutNoteRequest(note=Note(text="a" * 200_000))
    with FaultyPeer(behave) as peer:
        error = call(colour, url_of(peer), request=big)
    assert (error.code, error.maybe_applied) == (StatusCode.DEADLINE_EXCEEDED, False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://x:1",
        "grpc://",
        "grpc://x",
        "grpc://u:p@x:1",
        "grpc://x:1?a=1",
        "grpc://x:1/a",
        "grpcs:///a",
        "x:y:z",
        "grpc://x:99999",
    ],
)
def test_wrong_base_urls(url):
    with pytest.raises(ValueError, match="base_url"):
        GrpcTransport(url)


def test_a_dead_connection_is_found_by_pings(monkeypatch):
    from dataclasses import replace

    from llm_cost_ops.transports.grpc import connection as grpc_connection

    fast = replace(
        grpc_connection.KEEPALIVE,
        _keepalive_time=0.1,
        _keepalive_timeout=0.2,
        _http2_min_sent_ping_interval_without_data=0.05,
    )
    monkeypatch.setattr(grpc_connection, "KEEPALIVE", fast)
    with FaultyPeer(BEHAVIOURS["silent"][0]) as peer:
        error = call("async", url_of(peer), timeout=MAX_WAIT)
    assert (error.code, error.origin, error.maybe_applied) == (StatusCode.UNAVAILABLE, "network", True)


def test_certificates_are_verified(tmp_path, colour):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    context.set_alpn_protocols(["h2"])

    def serve(connection):
        with context.wrap_socket(connection._connection, server_side=True) as tls:
            answering(ANSWER)(tls)

    with FaultyPeer(serve) as peer:
        url = f"grpcs://localhost:{peer.port}"
        error = call(colour, url, timeout=MAX_WAIT)
        assert "certificate" in error.message.lower()
        assert error.maybe_applied is False
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        trusting.set_alpn_protocols(["h2"])
        assert call(colour, url, timeout=MAX_WAIT, tls=trusting).data.id == "n"
        context.set_alpn_protocols(["http/1.1"])
        trusting.set_alpn_protocols(["h2", "http/1.1"])
        assert "not HTTP/2" in call(colour, url, timeout=MAX_WAIT, tls=trusting).message


def test_a_proxy_tunnels(colour, monkeypatch):
    def proxy(connection):
        connection.sendall(
            b"HTTP/1.1 200 Connection established\r\n\r\n"
        ) if connection.read_request() else None
        answering(ANSWER)(connection)

    with FaultyPeer(proxy) as peer:
        url = f"http://user:p%40ss@127.0.0.1:{peer.port}"
        assert call(colour, "grpc://costs.example:50051", timeout=MAX_WAIT, proxy=url).data.id == "n"
        assert peer.requests[0].startswith(b"CONNECT costs.example:50051 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in peer.requests[0] + b"\r\n"
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{peer.port}")
        assert call(colour, "grpc://costs.example:50051", timeout=MAX_WAIT).data.id == "n"
        monkeypatch.setenv("no_proxy", "costs.example")
        assert isinstance(call(colour, "grpc://costs.example:50051"), RpcError)
    with FaultyPeer(lambda connection: connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")) as peer:
        error = call(
            colour, "grpc://costs.example:1", timeout=MAX_WAIT, proxy=f"http://127.0.0.1:{peer.port}"
        )
        assert "403" in error.message
        assert error.maybe_applied is False
