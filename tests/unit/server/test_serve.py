"""The server on real sockets: its limits, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.server.limits import AsgiLimits, ConnectionLimits
from llm_cost_ops.transports.http.client import AsyncHttpTransport, HttpTransport
from tests.served import served
from tests.tiny_service import PUT_NOTE, Note, PutNoteRequest, context
from tests.unit.server.note_servicer import running
from tests.waiting import MAX_WAIT, until

LIMITS = ConnectionLimits(header_timeout=0.4, idle_timeout=1.0, linger_timeout=0.4, write_timeout=0.5)
APP_LIMITS = AsgiLimits(body_timeout=0.4, max_body_bytes=100_000)
# Of a server whose answers are looked at: a slow machine may take a while to send what is asked.
PATIENT = replace(LIMITS, header_timeout=MAX_WAIT)
APP_PATIENT = replace(APP_LIMITS, body_timeout=MAX_WAIT)
GET = b"GET /api/v1/notes/n HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/v1/notes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server():
    with running(LIMITS, APP_LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def patient_server():
    with running(PATIENT, APP_PATIENT) as server:
        yield server


def talk(port, data, *, then=(), every=0.0):
    """Send bytes, and then more of them every so often, and read until the server closes.

    What came, whether it closed before all was sent, and the seconds that it took.
    """
    started, received, left = time.monotonic(), b"", iter(then)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(every or MAX_WAIT)
            while True:
                try:
                    chunk = connection.recv(65536)
                except TimeoutError:
                    if (more := next(left, None)) is None:
                        break
                    connection.sendall(more)
                    continue
                if not chunk:
                    return received, True, time.monotonic() - started
                received += chunk
        except ConnectionError:
            return received, True, time.monotonic() - started
    return received, False, time.monotonic() - started


def statuses(received):
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", [400]),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", [400]),
        (POST + b"Content-Length: +2\r\n\r\n{}", [400]),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", [400]),
        (POST + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\n{}", [400]),
        (POST + b"Content-Length: 2, 2\r\n\r\n{}", [400]),
        (GET + b"X-A: b\r\n c\r\n\r\n", [400]),
        (GET + b"X-A: b\r\n\tc\r\n", [400]),
        (GET.replace(b"Host: x\r\n", b" Host: x\r\n") + b"\r\n", [400]),
        (GET.replace(b"Host: x\r\n", b"Host: x\n") + b"\r\n", [400]),
        (GET + b"X-A: b\r\n\n", [400]),
        (GET.replace(b"\r\n", b"\n"), [400]),
        (GET + b"X-A: b\rc\r\n\r\n", [400]),
        (GET.replace(b"HTTP/1.1", b"HTTP/9.9") + b"\r\n", [400]),
        (GET.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n", [400]),
        (GET.replace(b"HTTP/1.1", b"HTTP/0.9") + b"\r\n", [400]),
        (GET + b"\r\n" + GET + b"X-A: b\r\n c\r\n\r\n" + GET + b"\r\n", [200, 400]),
        (POST + b"Content-Length: 200000\r\n\r\n{}", [413]),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"ffff\r\n" + b" " * 65535 + b"\r\n") * 2, [413]),
        (GET + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n", [400]),
        (GET + b"".join(b"X-%d: a\r\n" % n for n in range(10_000)) + b"\r\n", [431]),
        (GET + b"X-A : b\r\n\r\n", [400]),
        (GET + b"X-A: a\0b\r\n\r\n", [400]),
        (b"GET /api/v1/notes/n HTTP/1.1\r\n\r\n", [400]),
        (b"GARBAGE\r\n\r\n", [400]),
        (b"\x16\x03\x01\x02\x00\x01\x00", [400]),
        (GET + b"\r\n" + GET + b"\r\n" + GET + b"Connection: close\r\n\r\n", [200, 200, 200]),
        (GET + b"\r\n", [200]),
    ],
    ids=[
        "two lengths", "lengths that differ", "signed length", "unknown coding", "equal lengths",
        "lengths in a list", "folded line", "folded line begun", "folded first line", "bare LF",
        "bare LF at the end",
        "bare LFs", "bare CR", "HTTP/9.9", "HTTP/2.0", "HTTP/0.9", "folded line behind",
        "large length",
        "large chunks",
        "large header", "many headers", "space in a name", "NUL in a value", "no host", "no HTTP", "TLS",
        "pipeline", "idle",
    ],
)  # fmt: skip
def test_a_connection_is_answered_and_closed(patient_server, data, expected):
    received, closed, taken = talk(patient_server.port, data)
    print(f"{taken:.2f} s, {statuses(received)}")  # noqa: T201  # the figure is what it is about
    assert closed
    if len(data) < 200_000 or received:  # a reset may overtake the answer to what was not read
        # A head that is too large is refused by its size where it came whole, else before its end.
        assert statuses(received) == expected or (expected == [431] and statuses(received) == [400])


@pytest.mark.parametrize("data", [GET, b""], ids=["headers that stop", "nothing"])
def test_a_head_that_does_not_come_is_not_waited_for(server, data):
    received, closed, _ = talk(server.port, data)
    assert (received, closed) == (b"", True)


def test_a_body_that_stops_is_not_waited_for():
    with running(PATIENT, APP_LIMITS) as server:
        received, closed, _ = talk(server.port, POST + b"Content-Length: 10\r\n\r\n{")
    assert (statuses(received), closed) == ([408], True)


@pytest.mark.parametrize(
    ("data", "then"),
    [
        (GET, b"X-Slow: a\r\n"),
        (POST + b"Content-Length: 50000\r\n\r\n{", b" "),
        (POST + b"Content-Length: 200000\r\n\r\n", b" "),
    ],
    ids=["headers", "body", "body after its answer"],
)
def test_a_drip_does_not_keep_a_connection(server, data, then):
    # A slow machine sends less in a second, and is cut off after fewer of these.
    _, closed, _ = talk(server.port, data, then=[then] * 90, every=0.05)
    assert closed


def cut_off(connection, data, seconds):
    """Whether the server ends a connection on which one sends and never reads."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            connection.sendall(data)
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_a_client_that_does_not_read_is_cut_off(server):
    names = "&".join("provider=" + "a" * 100 for _ in range(180))
    request = f"GET /api/v1/notes?{names} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(0.2)
        assert cut_off(connection, request * 10, MAX_WAIT)


@pytest.mark.parametrize("key", ["one", "two"])
def test_both_leaves_call_it(patient_server, key):
    request = PutNoteRequest(note=Note(id=key, text="é"), owner="a,b")
    transport = HttpTransport(patient_server.address)
    ctx = context(PUT_NOTE, MAX_WAIT, key=key)
    assert drive(transport.unary_unary(request, ctx)).data == request.note
    assert ctx.request_id == patient_server.servicer.calls[-1][1].request_id
    drive(transport.aclose())

    async def run():
        transport = AsyncHttpTransport(patient_server.address)
        answers = await asyncio.gather(
            *(
                transport.unary_unary(request, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
                for _ in range(20)
            )
        )
        await transport.aclose()
        return answers

    assert {answer.data.id for answer in asyncio.run(run())} == {key}
    assert patient_server.servicer.calls[-1][0] == request


def refused(address):
    """Whether nobody accepts there any more."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) != 0


def slow_call(server):
    """A call under way in a thread: where its answer will be, and the thread."""
    answers = []

    def call():
        answers.append(httpx.post(f"{server.address}/api/v1/notes", json={"text": "wait"}, timeout=MAX_WAIT))

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: server.servicer.calls)
    return answers, thread


def test_calls_in_flight_finish_and_readiness_goes_first():
    # A request takes a hundredth of the delay.
    with running(drain_delay=2.0, grace=MAX_WAIT) as server, httpx.Client(timeout=MAX_WAIT) as client:
        answers, thread = slow_call(server)
        server.stop()
        until(lambda: server.servicer.draining)
        assert client.get(f"{server.address}/api/v1/notes/n").status_code == 503
        until(lambda: refused(server.address))
        assert not answers
        server.servicer.go_on.set()
        thread.join(MAX_WAIT)
    assert [answer.status_code for answer in answers] == [201]
    assert (server.servicer.finished, server.closed) == (1, 1)


def test_a_call_that_takes_too_long_to_finish_is_cut_off():
    with running(grace=1.0) as server:
        answers, thread = slow_call(server)
    thread.join(MAX_WAIT)
    assert [answer.status_code for answer in answers] == [503]
    assert (server.servicer.finished, server.closed) == (0, 1)


def test_a_unix_socket_is_its_users_own(tmp_path):
    path = str(tmp_path / "costs.sock")
    with running(uds=path) as server:
        assert server.address == f"unix:{path}"
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
            assert client.get("http://x/api/v1/notes/n").status_code == 200
            transport = HttpTransport("http://x", http_client=client)
            assert (
                drive(
                    transport.unary_unary(PutNoteRequest(note=Note(id="u")), context(PUT_NOTE, MAX_WAIT))
                ).data.id
                == "u"
            )
    assert not Path(path).exists()


def test_a_socket_left_behind_is_taken_over(tmp_path):
    path = str(tmp_path / "costs.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with running(uds=path) as server:
        assert server.address == f"unix:{path}"


PROGRAM = """
import asyncio
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.server.app import HttpServer, serve
from tests.unit.server.note_servicer import NoteServicer

async def close():
    print("closed", flush=True)

asyncio.run(serve(
    [HttpServer(AsgiApp(NoteServicer().handler()), port=0)],
    close=close, announce=lambda line: print(line, flush=True), drain_delay=0,
))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_in_order(number):
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip().removeprefix("listening on ")
        assert httpx.get(f"{address}/api/v1/notes/n").status_code == 200
        process.send_signal(number)
        assert process.stdout.readline() == "closed\n"
        assert process.wait(MAX_WAIT) == 0


def test_a_taken_port_is_an_error(server):
    from llm_cost_ops.rpc.handler import ServiceHandler
    from llm_cost_ops.server.app import HttpServer
    from llm_cost_ops.server.http import AsgiApp

    async def run():
        with pytest.raises(OSError, match="in use"):
            await HttpServer(AsgiApp(ServiceHandler([])), port=server.port).start()

    asyncio.run(run())


@contextlib.contextmanager
def served_with_files(folder, soft, hard):
    """A server that begins with these limits of open files, and its address."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    options = ["--db", str(folder / "ledger.db"), "--http", "127.0.0.1:0"]
    with served(*options, preexec_fn=limit) as server:
        yield server, server.urls[0]


def idle_connections(url, count):
    with contextlib.ExitStack() as opened:
        address = (httpx.URL(url).host, httpx.URL(url).port)
        for _ in range(count):
            opened.enter_context(socket.create_connection(address))
        return opened.pop_all()


def test_a_server_out_of_files_says_so_once_and_goes_on_by_itself(tmp_path):
    with served_with_files(tmp_path, 64, 64) as (server, url):
        with idle_connections(url, 100):
            said = server.wait_for("connections are not taken until others end: Too many open files")
            time.sleep(1.5)  # asyncio tries again after a second
        assert httpx.get(f"{url}/health", timeout=MAX_WAIT).status_code == 200
        assert server.text.count(said[0]) == 1
        assert "Traceback" not in server.text


def test_a_server_may_have_as_many_files_as_its_hard_limit_lets_it(tmp_path):
    with served_with_files(tmp_path, 64, 1024) as (server, url), idle_connections(url, 100):
        assert httpx.get(f"{url}/health", timeout=MAX_WAIT).status_code == 200
        assert "not taken" not in server.text
