"""Which connections are kept, and which are closed."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import httpcore
import pytest

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.fifo import CallQueue
from llm_cost_ops.transports.http.client import AsyncHttpTransport, HttpTransport, IdleConnections
from tests.faulty_peers import FaultyPeer, answer, answering
from tests.tiny_service import GET_NOTE, PUT_NOTE, GetNoteRequest, Note, PutNoteRequest, context
from tests.waiting import MAX_WAIT, until

GOOD = answer("200 OK", b'{"data": {"id": "n"}}')


class Connection:
    def __init__(self, *, available=True, expired=False, closed=False):
        self.available, self.expired, self.closed = available, expired, closed

    def is_available(self):
        return self.available

    def has_expired(self):
        return self.expired

    def is_closed(self):
        return self.closed


def test_the_last_used_is_used_next():
    idle, first, second = IdleConnections(2), Connection(), Connection()
    assert idle.give(first) == idle.give(second) == []
    assert idle.take() == (second, [])
    assert idle.take() == (first, [])
    assert idle.take() == (None, [])


def test_no_more_than_the_limit_are_kept_and_the_oldest_goes():
    idle, connections = IdleConnections(2), [Connection() for _ in range(3)]
    assert [idle.give(connection) for connection in connections] == [[], [], [connections[0]]]
    assert IdleConnections(0).give(connections[0]) == [connections[0]]


def test_dead_ones_are_closed_and_broken_ones_not_kept():
    idle, dead, broken = IdleConnections(5), Connection(), Connection(available=False)
    idle.give(dead)
    dead.expired = True
    fresh = Connection()
    assert idle.give(fresh) == [dead]
    fresh.expired = True
    assert idle.take() == (None, [fresh])
    assert idle.give(broken) == [broken]
    assert idle.give(Connection(available=False, closed=True)) == []


def test_after_the_end_none_is_kept():
    idle, busy, waiting = IdleConnections(5), Connection(), Connection()
    idle.give(waiting)
    assert idle.end() == [waiting]
    assert idle.give(busy) == [busy]


@pytest.mark.parametrize(
    ("kept", "expiry", "connections"), [(1, 1000.0, 1), (0, 1000.0, 3), (1, 0.05, 3), (1, None, 1)]
)
def test_settings_reach_the_connections(kept, expiry, connections):
    with FaultyPeer(answering(GOOD)) as peer:
        transport = HttpTransport(peer.url, max_keepalive_connections=kept, keepalive_expiry=expiry)
        for _ in range(3):
            drive(transport.unary_unary(GetNoteRequest(id="n"), context(GET_NOTE, MAX_WAIT)))
            time.sleep(0.06)
        drive(transport.aclose())
    assert peer.connections == connections


async def written_for(colour, url, monkeypatch):
    """What is written to the socket for one request with a body, piece by piece."""
    written = []
    if colour == "sync":
        kind, pieces = HttpTransport, httpcore._backends.sync.SyncStream
    else:
        kind, pieces = AsyncHttpTransport, asyncio.selector_events._SelectorSocketTransport
    write = pieces.write

    def spied(self, data, *arguments, **options):
        written.append(bytes(data))
        return write(self, data, *arguments, **options)

    monkeypatch.setattr(pieces, "write", spied)
    transport = kind(url)
    call = transport.unary_unary(
        PutNoteRequest(note=Note(id="n", text="x" * 100)),
        context(PUT_NOTE, MAX_WAIT, asynchronous=colour == "async"),
    )
    assert (drive(call) if colour == "sync" else await call).data.id == "n"
    drive(transport.aclose()) if colour == "sync" else await transport.aclose()
    return [each for each in written if each]


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_request_and_its_body_leave_together(colour, monkeypatch):
    with FaultyPeer(answering(GOOD)) as peer:
        [whole] = await written_for(colour, peer.url, monkeypatch)
    assert whole.startswith(b"POST ")
    assert whole.endswith(b"}")
    assert b"x" * 100 in whole


def test_proxies_are_used(monkeypatch):
    with FaultyPeer(answering(GOOD)) as proxy:
        transport = HttpTransport("http://costs.example/x", proxy=proxy.url)
        assert (
            drive(transport.unary_unary(GetNoteRequest(id="n"), context(GET_NOTE, MAX_WAIT))).data.id == "n"
        )
        drive(transport.aclose())
        monkeypatch.setenv("http_proxy", proxy.url)
        transport = HttpTransport("http://costs.example/x")
        assert (
            drive(transport.unary_unary(GetNoteRequest(id="n"), context(GET_NOTE, MAX_WAIT))).data.id == "n"
        )
        drive(transport.aclose())
        monkeypatch.setenv("no_proxy", "costs.example")
        assert HttpTransport("http://costs.example/x")._proxy is None
    assert [request.split(b" ")[1] for request in proxy.requests] == [
        b"http://costs.example/x/api/v1/notes/n"
    ] * 2


def test_turns_are_first_come_first_served():
    queue, order = CallQueue(1), []
    assert queue.enter("first", 0)
    assert not queue.enter("late", 0.01)

    def wait(name):
        assert queue.enter(name, MAX_WAIT)
        order.append(name)
        queue.leave(name)

    threads = []
    for name in "abcde":
        thread = threading.Thread(target=wait, args=(name,))
        thread.start()
        threads.append(thread)
        until(lambda: len(queue._waiting) == len(threads))
    queue.leave("first")
    for thread in threads:
        thread.join(MAX_WAIT)
    assert "".join(order) == "abcde"
    assert queue.enter("last", 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_loops_that_were_closed_are_let_go_with_their_connections():
    loops = []
    with FaultyPeer(answering(GOOD)) as peer:
        transport = AsyncHttpTransport(peer.url)

        async def run():
            loops.append(weakref.ref(asyncio.get_running_loop()))
            call = context(GET_NOTE, MAX_WAIT, asynchronous=True)
            await transport.unary_unary(GetNoteRequest(id="n"), call)

        for _ in range(5):
            asyncio.run(run())
        gc.collect()
        assert [loop() is not None for loop in loops] == [False] * 4 + [True]
        transport._pools.clear()
        gc.collect()
        assert [loop() for loop in loops] == [None] * 5
    assert peer.connections == 5
