"""What the transports of HTTP and gRPC owe alike, against peers that misbehave or that are shared."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time

import pytest

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import StatusCode
from tests.faulty_peers import FaultyPeer, full_backlog
from tests.network import GRPC, HTTP, PUT, TIMEOUT
from tests.ports import free_port
from tests.tiny_service import PUT_NOTE, context
from tests.waiting import MAX_WAIT, in_threads


@pytest.fixture(params=[HTTP, GRPC], ids=["http", "grpc"])
def network(request):
    return request.param


def test_refused_connection_was_not_applied(network, colour):
    error = network.call(colour, network.url(free_port()), timeout=MAX_WAIT)
    assert (error.code, error.origin, error.maybe_applied) == (StatusCode.UNAVAILABLE, "network", False)


def test_connect_without_an_answer_ends_at_the_deadline(network, colour):
    with full_backlog() as port:
        error = network.call(colour, network.url(port))
    assert (error.code, error.maybe_applied) == (StatusCode.DEADLINE_EXCEEDED, False)


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_name_resolution(network, colour, monkeypatch, how):
    released = threading.Event()

    def getaddrinfo(*_args, **_kwargs):
        if how == "fails":
            raise socket.gaierror(-2, "Name or service not known")
        released.wait(2 * MAX_WAIT)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    since = time.monotonic()
    url = network.url(8080, host="costs.example")
    error = network.call(colour, url, timeout=MAX_WAIT if how == "fails" else TIMEOUT)
    assert time.monotonic() - since < MAX_WAIT, (
        "nothing waits for the resolver, the end of asyncio.run included"
    )
    released.set()
    assert error.code is (StatusCode.UNAVAILABLE if how == "fails" else StatusCode.DEADLINE_EXCEEDED)
    assert error.maybe_applied is False


# A sync client of HTTP tries one address after the other, and gives each its part of the time.
@pytest.mark.parametrize(("network", "colour"), [(HTTP, "async"), (GRPC, "sync"), (GRPC, "async")])
def test_a_dead_address_does_not_eat_the_time_of_the_next(network, colour, monkeypatch):
    with full_backlog() as dead, FaultyPeer(network.good) as peer:
        infos = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (dead, peer.port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: infos)
        since = time.monotonic()
        url = network.url(8080, host="costs.example")
        assert network.call(colour, url, timeout=4 * MAX_WAIT).data.id == "n"
        assert time.monotonic() - since < MAX_WAIT, "half of the deadline, when one was tried after the other"
        assert peer.connections == 1


def test_silent_tls_ends_at_the_deadline(network, colour):
    with FaultyPeer(network.silent) as peer:
        error = network.call(colour, network.url(peer.port, tls="s"))
    gc.collect()
    assert (error.code, error.maybe_applied) == (StatusCode.DEADLINE_EXCEEDED, False)


def test_tls_to_a_server_that_speaks_none(network, colour):
    def plain(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with FaultyPeer(plain) as peer:
        error = network.call(colour, network.url(peer.port, tls="s"), timeout=MAX_WAIT)
    assert (error.code, error.origin, error.maybe_applied) == (StatusCode.UNAVAILABLE, "network", False)
    assert error.message.endswith(
        f"; if it speaks no TLS, its URL begins with {network.url(1).partition(':')[0]}://"
    )


@pytest.mark.parametrize(
    ("network", "sent", "advised"),
    [
        (HTTP, b"", "if it speaks TLS, its URL begins with https://"),
        (GRPC, b"", "if it speaks TLS, its URL begins with grpcs://"),
        # The SETTINGS of a gRPC server, and what an HTTP server says to those of a client.
        (
            HTTP,
            b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\xff\xff\r\n\r\n",
            "if it is a gRPC server, its URL begins with grpc://",
        ),
        (GRPC, b"HTTP/1.1 400 Bad Request\r\n\r\n", "if it is an HTTP server, its URL begins with http://"),
    ],
    ids=["http-to-tls", "grpc-to-tls", "http-to-grpc", "grpc-to-http"],
)
def test_another_protocol_is_advised_where_the_server_seems_to_speak_it(network, sent, advised, colour):
    def peer(connection):
        connection.recv(65536)
        connection.sendall(sent)

    with FaultyPeer(peer) as other:
        error = network.call(colour, network.url(other.port), timeout=MAX_WAIT)
    assert error.code is StatusCode.UNAVAILABLE
    assert error.message.endswith(f"; {advised}")


def test_a_deadline_that_has_passed_sends_nothing(network, colour):
    with FaultyPeer(network.good) as peer:
        error = network.call(colour, network.url_of(peer), timeout=0)
    assert (error.code, error.maybe_applied, peer.connections) == (StatusCode.DEADLINE_EXCEEDED, False, 0)


def test_without_a_deadline_a_call_waits(network, colour):
    with FaultyPeer(network.good) as peer:
        assert network.call(colour, network.url_of(peer), timeout=None).data.id == "n"


@pytest.mark.parametrize(
    ("network", "settings", "connections"),
    [(HTTP, {"max_connections": 8}, range(1, 9)), (GRPC, {"channels": 2}, [2])],
    ids=["http", "grpc"],
)
def test_many_threads_share_a_transport(network, settings, connections):
    with FaultyPeer(network.good) as peer:
        transport = network.sync(network.url_of(peer), **settings)
        results = []

        def run():
            results.extend(
                drive(transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT))).data.id for _ in range(20)
            )

        in_threads([run] * 12)
        drive(transport.aclose())
    assert results == ["n"] * 240
    assert peer.connections in connections


def test_two_event_loops_one_after_another_share_a_transport(network):
    with FaultyPeer(network.good) as peer:
        transport = network.asynchronous(network.url_of(peer))

        async def run():
            await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
            # Only this loop's connections: the transport goes on in the next.
            pool = transport._pools[asyncio.get_running_loop()]
            await getattr(pool, "connections", pool).aclose()

        asyncio.run(run())
        asyncio.run(run())
        gc.collect()
        assert len(transport._pools) == 1
    assert peer.connections == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_its_own_connections(network):
    with FaultyPeer(network.good) as peer:
        transport = network.sync(network.url_of(peer))
        drive(transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT)))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                drive(transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT)))
                drive(transport.aclose())
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        drive(transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT)))
        drive(transport.aclose())
    assert peer.connections == 2
    assert network is GRPC or len(peer.requests) == 3
