"""Both HTTP transports against peers that misbehave. The time taken is printed (`-s`), hardly asserted."""

from __future__ import annotations

import asyncio
import gc
import ssl
import threading
import time
from pathlib import Path

import pytest

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RESPONSE_TOO_LARGE, RpcError, StatusCode
from llm_cost_ops.transports.http.client import AsyncHttpTransport, HttpTransport
from tests.faulty_peers import BEHAVIOURS, FaultyPeer, answer, answering, never_reads, silent
from tests.network import HTTP, PUT, TIMEOUT
from tests.tiny_service import (
    GET_NOTE,
    PUT_NOTE,
    GetNoteRequest,
    Note,
    PutNoteRequest,
    PutNoteResponse,
    context,
)
from tests.tunnels import self_signed
from tests.waiting import MAX_WAIT, until, until_async

GOOD = answer("200 OK", b'{"data": {"id": "n"}}')
call = HTTP.call


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_misbehaving_peer_is_a_clear_error_in_time(colour, name):
    behave, kind = BEHAVIOURS[name]
    # A slow machine has more time, when none was left to send the request.
    for timeout in (TIMEOUT, 10 * TIMEOUT, MAX_WAIT) if kind == "deadline" else (MAX_WAIT,):
        with FaultyPeer(behave) as peer:
            error = call(colour, peer.url, timeout=timeout, max_response_bytes=1 << 20)
        assert isinstance(error, RpcError)
        if error.maybe_applied:
            break
    assert peer.connections == 1
    expected = {
        "deadline": (StatusCode.DEADLINE_EXCEEDED, "client", True, None),
        "network": (StatusCode.UNAVAILABLE, "network", True, None),
        "garbled": (StatusCode.INTERNAL, "server", True, None),
        "refused": (StatusCode.UNKNOWN, "server", False, 307),
    }[kind]
    if name == "resets_at_once" and not error.maybe_applied:
        expected = (*expected[:2], False, None)  # it came before the connect was done
    assert (error.code, error.origin, error.maybe_applied, error.http_status) == expected


def test_an_answer_that_is_too_large_says_so(colour):
    large = b'{"data": {"id": "n"}}' + b" " * 4096
    for limit, code in ((4096, RESPONSE_TOO_LARGE), (8192, None)):
        with FaultyPeer(answering(answer("200 OK", large))) as peer:
            found = call(colour, peer.url, timeout=MAX_WAIT, max_response_bytes=limit)
        assert getattr(found, "error_code", None) == code


@pytest.mark.parametrize("name", ["silent", "resets_after_request", "not_json"])
def test_a_read_has_never_been_applied(colour, name):
    with FaultyPeer(BEHAVIOURS[name][0]) as peer:
        error = call(colour, peer.url, GET_NOTE, GetNoteRequest(id="n"))
    assert error.maybe_applied is False


def test_a_peer_that_never_reads_stops_the_write(colour):
    big = PutNoteRequest(note=Note(text="a" * (16 << 20)))
    for timeout in (TIMEOUT, 10 * TIMEOUT, MAX_WAIT):
        with FaultyPeer(never_reads) as peer:
            error = call(colour, peer.url, request=big, timeout=timeout)
        assert error.code is StatusCode.DEADLINE_EXCEEDED
        if error.maybe_applied:
            break
    assert error.maybe_applied is True


def test_json_under_another_content_type_is_taken(colour):
    good = answer("200 OK", b'{"data": {"id": "n"}}', "Content-Type: text/plain")
    with FaultyPeer(answering(good)) as peer:
        assert call(colour, peer.url, timeout=MAX_WAIT) == PutNoteResponse(data=Note(id="n"))


def test_a_server_that_closed_an_idle_connection_costs_no_call(colour):
    def once(connection):
        connection.read_request()
        connection.sendall(GOOD)

    with FaultyPeer(once) as peer:
        if colour == "sync":
            transport = HttpTransport(peer.url)
            for _ in range(3):
                drive(transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT)))
                until(lambda: not peer.open)
            drive(transport.aclose())
        else:

            async def run():
                transport = AsyncHttpTransport(peer.url)
                for _ in range(3):
                    await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
                    await until_async(lambda: not peer.open)
                await transport.aclose()

            asyncio.run(run())
    assert peer.connections == 3


def test_waiting_in_the_queue_ends_at_the_deadline_and_was_not_applied():
    with FaultyPeer(silent) as peer:
        transport = HttpTransport(peer.url, max_connections=1)

        def occupy():
            with pytest.raises(RpcError):
                drive(transport.unary_unary(PUT, context(PUT_NOTE)))

        first = threading.Thread(target=occupy)
        first.start()
        until(lambda: peer.requests)
        with pytest.raises(RpcError) as raised:
            drive(transport.unary_unary(PUT, context(PUT_NOTE, 0.2)))
        peer.hang_up()
        first.join()
        drive(transport.aclose())
    assert (raised.value.code, raised.value.maybe_applied) == (StatusCode.DEADLINE_EXCEEDED, False)
    assert peer.connections == 1


async def test_cancelled_calls_leave_no_permit_behind():
    with FaultyPeer(silent) as peer:
        transport = AsyncHttpTransport(peer.url, max_connections=4)
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
        assert (len(pool.queue._inside), len(pool.queue._waiting)) == (0, 0)
        await transport.aclose()


# A peer that speaks no TLS is the same to https whatever it answers, unless it says nothing.
@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        *(("http", name) for name in ("silent", "drips_body", "truncates", "gzip_bomb", "redirects")),
        ("https", "silent"),
        ("https", "truncates"),
    ],
)
async def test_no_descriptor_is_left_open(scheme, name):
    def opened():
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    with FaultyPeer(BEHAVIOURS[name][0]) as peer:
        url = peer.url.replace("http", scheme)
        transport, sync_leaf = AsyncHttpTransport(url), HttpTransport(url)
        await asyncio.to_thread(time.sleep, 0)
        before = opened()
        for _ in range(5):
            call = transport.unary_unary(PUT, context(PUT_NOTE, 0.05, asynchronous=True))
            await asyncio.gather(call, return_exceptions=True)
            with pytest.raises(RpcError):
                drive(sync_leaf.unary_unary(PUT, context(PUT_NOTE, 0.05)))
        await transport.aclose()
        drive(sync_leaf.aclose())
        peer.hang_up()
        await until_async(lambda: opened() <= before)


def test_a_closed_leaf_says_so():
    transport = HttpTransport("http://127.0.0.1:1")
    drive(transport.aclose())
    drive(transport.aclose())
    with pytest.raises(RpcError, match="closed"):
        drive(transport.unary_unary(PUT, context(PUT_NOTE)))


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "http://u:p@x", "http://x?a=1", "http://x#y", "x:y:z"]
)
def test_wrong_base_urls(url):
    with pytest.raises(ValueError, match="base_url"):
        HttpTransport(url)


def test_verification_off_warns():
    with pytest.warns(UserWarning, match="not verified"):
        HttpTransport("https://costs.example", verify=False)


def test_certificates_are_verified(tmp_path, colour):
    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.load_cert_chain(*self_signed(tmp_path))
    with FaultyPeer(answering(GOOD), certificate) as peer:
        error = call(colour, peer.url, timeout=MAX_WAIT)
        assert "certificate" in error.message
        assert error.maybe_applied is False
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        assert call(colour, peer.url, timeout=MAX_WAIT, verify=trusting).data.id == "n"
