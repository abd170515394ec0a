"""The connections of both gRPC transports: shared, going away, cancelled, forked, forgotten."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time

import pytest
from h2.events import StreamReset

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.transports.grpc.client import AsyncGrpcTransport, GrpcTransport
from tests.faulty_grpc_peers import ANSWER, BEHAVIOURS, Http2, answering
from tests.faulty_peers import FaultyPeer
from tests.network import GRPC, PUT
from tests.tiny_service import PUT_NOTE, Note, PutNoteRequest, context
from tests.waiting import MAX_WAIT, until, until_async

call, url_of = GRPC.call, GRPC.url_of


@pytest.mark.parametrize("refusal", ["goaway", "refused"])
def test_what_the_server_did_not_touch_is_sent_again(colour, refusal):
    served = []

    def behave(connection):
        peer = Http2(connection)
        first = not served
        stream = peer.read_request()
        served.append(stream)
        if not first:
            peer.answer(stream)
        elif refusal == "goaway":
            peer.goaway(0)
        else:
            peer.http2.reset_stream(stream, 7)
            peer.flush()
            peer.answer(peer.read_request())
        peer.wait()

    with FaultyPeer(behave) as peer:
        assert call(colour, url_of(peer), timeout=MAX_WAIT).data.id == "n"
        assert peer.connections == (2 if refusal == "goaway" else 1)


async def test_streams_before_a_goaway_go_on_and_new_calls_take_another_connection():
    release = threading.Event()

    def behave(connection):
        peer = Http2(connection)
        stream = peer.read_request()
        if stream == 1 and not release.is_set():
            peer.goaway((1 << 31) - 1)
            peer.goaway(stream, 0)
            release.wait(MAX_WAIT)
        peer.answer(stream)
        peer.wait()

    with FaultyPeer(behave) as peer:
        transport = AsyncGrpcTransport(url_of(peer))
        old = asyncio.ensure_future(
            transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
        )
        await until_async(lambda: transport._pools)
        pool = transport._pools[asyncio.get_running_loop()]
        await until_async(lambda: pool._open and not next(iter(pool._open)).usable)
        release.set()
        # The first one is answered on the connection that goes away.
        assert (
            await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
        ).data.id == "n"
        assert (await old).data.id == "n"
        assert peer.connections == 2
        await until_async(lambda: len(pool._open) == 1)
        await transport.aclose()


async def test_calls_wait_for_the_streams_that_the_server_allows():
    open_at_once = []

    def behave(connection):
        peer = Http2(connection, max_concurrent_streams=2)
        while True:
            stream = peer.read_request()
            open_at_once.append(1 + len(peer.seen))
            time.sleep(0.005)
            peer.answer(stream)

    with FaultyPeer(behave) as peer:
        transport = AsyncGrpcTransport(url_of(peer))
        await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
        calls = [
            transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True)) for _ in range(30)
        ]
        assert {response.data.id for response in await asyncio.gather(*calls)} == {"n"}
        assert max(open_at_once) <= 2
        assert peer.connections == 1
        await transport.aclose()


async def test_calls_wait_while_the_peer_does_not_read():
    done = threading.Event()

    def behave(connection):
        peer = Http2(connection, initial_window_size=1 << 30)
        peer.http2.increment_flow_control_window(1 << 30)
        peer.flush()
        done.wait(MAX_WAIT)

    large = PutNoteRequest(note=Note(text="a" * (32 << 20)))
    with FaultyPeer(behave) as peer:
        transport = AsyncGrpcTransport(url_of(peer))
        first = asyncio.ensure_future(transport.unary_unary(large, context(PUT_NOTE, asynchronous=True)))
        await until_async(lambda: transport._pools)
        pool = transport._pools[asyncio.get_running_loop()]
        await until_async(lambda: pool._open and not next(iter(pool._open)).connection.write_ready.is_set())
        [connection] = pool._open
        socket_transport = connection.connection._transport
        assert not connection.connection.write_ready.is_set()
        kept = socket_transport.get_write_buffer_size()
        assert kept < 1 << 20
        calls = [transport.unary_unary(PUT, context(PUT_NOTE, 0.2, asynchronous=True)) for _ in range(50)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert (error.code, error.maybe_applied) == (StatusCode.DEADLINE_EXCEEDED, False)
        assert socket_transport.get_write_buffer_size() <= kept
        assert connection.load == 1
        first.cancel()
        await asyncio.wait([first])
        assert connection.load == 0
        done.set()
        await transport.aclose()


async def test_waiting_for_a_stream_ends_at_the_deadline_and_was_not_applied():
    received = []

    def behave(connection):
        peer = Http2(connection, max_concurrent_streams=1)
        received.append(peer.read_request())
        peer.wait()

    with FaultyPeer(behave) as peer:
        transport = AsyncGrpcTransport(url_of(peer))
        first = asyncio.ensure_future(transport.unary_unary(PUT, context(PUT_NOTE, asynchronous=True)))
        await until_async(lambda: received)
        [connection] = transport._pools[asyncio.get_running_loop()]._open
        await until_async(lambda: connection.http2.remote_settings.max_concurrent_streams == 1)
        with pytest.raises(RpcError) as raised:
            await transport.unary_unary(PUT, context(PUT_NOTE, 0.2, asynchronous=True))
        assert (raised.value.code, raised.value.maybe_applied) == (StatusCode.DEADLINE_EXCEEDED, False)
        first.cancel()
        await asyncio.wait([first])
        await transport.aclose()


async def test_cancelled_calls_leave_nothing_behind():
    with FaultyPeer(BEHAVIOURS["only_settings"][0]) as peer:
        transport = AsyncGrpcTransport(url_of(peer))
        for delay in (0, 0.001, 0.01, 0.05):
            calls = [
                asyncio.ensure_future(transport.unary_unary(PUT, context(PUT_NOTE, asynchronous=True)))
                for _ in range(9)
            ]
            await asyncio.sleep(delay)
            for task in calls:
                task.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
        pool = transport._pools[asyncio.get_running_loop()]
        for connection in pool._open:
            await until_async(lambda at=connection: (at.load, len(at.processor.streams)) == (0, 0))
        await transport.aclose()
        assert len(asyncio.all_tasks()) == 1


async def test_each_call_has_its_own_deadline_on_a_shared_connection():
    cancelled = []

    def behave(connection):
        peer = Http2(connection)
        while True:
            events = peer.receive()
            cancelled.extend(event.stream_id for event in events if isinstance(event, StreamReset))

    with FaultyPeer(behave) as peer:
        transport = AsyncGrpcTransport(url_of(peer))
        over = []

        async def run(seconds):
            with pytest.raises(RpcError) as raised:
                await transport.unary_unary(PUT, context(PUT_NOTE, seconds, asynchronous=True))
            assert raised.value.code is StatusCode.DEADLINE_EXCEEDED
            over.append(seconds)

        # One that goes on: the deadlines of others are not its own.
        longest = asyncio.ensure_future(run(1000))
        await asyncio.gather(*map(run, (0.6, 0.2, 0.8, 0.2, 0.4)))
        assert sorted(over) == [0.2, 0.2, 0.4, 0.6, 0.8]
        await until_async(lambda: len(cancelled) == 5)
        assert not longest.done()
        longest.cancel()
        await asyncio.wait([longest])
        await until_async(lambda: sorted(cancelled) == [1, 3, 5, 7, 9, 11])
        [connection] = transport._pools[asyncio.get_running_loop()]._open
        assert (connection.load, len(connection.processor.streams)) == (0, 0)
        await transport.aclose()


async def test_frames_leave_at_once():
    with FaultyPeer(answering(ANSWER)) as peer:
        transport = AsyncGrpcTransport(url_of(peer))
        await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
        [connection] = transport._pools[asyncio.get_running_loop()]._open
        connected = connection.connection._transport.get_extra_info("socket")
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await transport.aclose()


async def test_an_enclosing_timeout_still_works_after_a_failed_call():
    with FaultyPeer(BEHAVIOURS["resets_after_request"][0]) as peer:
        transport = AsyncGrpcTransport(url_of(peer))

        async def enclosing():
            async with asyncio.timeout(MAX_WAIT) as enclosed:
                with pytest.raises(RpcError):
                    await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
                assert asyncio.current_task().cancelling() == 0
                enclosed.reschedule(asyncio.get_running_loop().time() + 0.05)
                await asyncio.sleep(MAX_WAIT)

        with pytest.raises(TimeoutError):
            await enclosing()
        await transport.aclose()


def test_a_closed_leaf_says_so_and_leaves_no_thread():
    before = threading.active_count()
    transport = GrpcTransport("grpc://127.0.0.1:1")
    with pytest.raises(RpcError):
        drive(transport.unary_unary(PUT, context(PUT_NOTE, 1.0)))
    assert threading.active_count() == before + 1
    drive(transport.aclose())
    drive(transport.aclose())
    assert threading.active_count() == before
    with pytest.raises(RpcError, match="closed"):
        drive(transport.unary_unary(PUT, context(PUT_NOTE)))


def test_closing_while_calls_are_in_flight_ends_them():
    with FaultyPeer(BEHAVIOURS["only_settings"][0]) as peer:
        transport = GrpcTransport(url_of(peer))
        errors = []

        def run():
            with pytest.raises(RpcError) as raised:
                drive(transport.unary_unary(PUT, context(PUT_NOTE)))
            errors.append(raised.value.code)

        threads = [threading.Thread(target=run) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: transport._crossings.made)
        pool = transport._crossings.made.pool
        until(lambda: sum(connection.load for connection in list(pool._open)) == 5)
        drive(transport.aclose())
        for thread in threads:
            thread.join(MAX_WAIT)
    assert set(errors) <= {StatusCode.UNAVAILABLE, StatusCode.FAILED_PRECONDITION}
    assert len(errors) == 5


def test_an_interpreter_that_forgets_to_close_ends_at_once_and_quietly():
    with FaultyPeer(answering(ANSWER)) as peer:
        # In this mode asyncio warns of what takes a tenth of a second, which a slow machine does.
        code = f"""
import logging, sys; sys.path.insert(0, ".")
logging.getLogger("asyncio").setLevel(logging.ERROR)
from llm_cost_ops.transports.grpc.client import GrpcTransport
from llm_cost_ops.rpc.context import drive
from tests.tiny_service import *
transport = GrpcTransport("grpc://127.0.0.1:{peer.port}")
print(drive(transport.unary_unary(PutNoteRequest(note=Note(id="n")), context(PUT_NOTE, 60.0))).data.id)
"""
        command = [sys.executable, "-W", "error", "-X", "dev", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "n\n", "")
