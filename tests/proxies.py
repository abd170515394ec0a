"""A recording proxy on loopback in a thread of its own, and a provider that says what reached it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llm_cost_ops import CostOpsClient
from llm_cost_ops.proxy import asgi_app
from llm_cost_ops.server.app import HttpServer
from tests.served import serving
from tests.waiting import MAX_WAIT

CHAT = {"model": "gpt-4o", "messages": []}
PATH = "/openai/v1/chat/completions"
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 7, "total_tokens": 1007},
}
CHUNK = {**ANSWER, "object": "chat.completion.chunk", "usage": None}


def event(payload: Any) -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def broken_stream(handler: Any) -> None:
    """An answer of a provider that breaks off after its first event."""
    handler.stream()
    handler.part(event(CHUNK))
    handler.close_connection = True


def stalled_stream(handler: Any) -> None:
    """One that stops after its first event, until the connection is closed."""
    handler.stream()
    handler.part(event(CHUNK))
    handler.wait_until_closed()


@contextmanager
def running_proxy(upstreams: dict[str, str], client: CostOpsClient, **settings: Any) -> Iterator[str]:
    """The proxy's address, while it serves."""
    started: Future[str] = Future()
    stop: list[Callable[[], Any]] = []

    async def main() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(stopped.set))
        server = HttpServer(asgi_app(upstreams, client, **{"require_keys": False, **settings}), port=0)
        try:
            started.set_result(await server.start())
        except BaseException as error:
            started.set_exception(error)
            raise
        await stopped.wait()
        await server.stop(2)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        yield started.result(MAX_WAIT)
    finally:
        stop[0]()
        thread.join(MAX_WAIT)
        assert not thread.is_alive()


class Provider(ThreadingHTTPServer):
    """Answers what `answer` says; without it, an answer of a chat. What reached it is in `seen`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[Seen] = []
        self.answer: Callable[[_Handler], None] | None = None
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A caller that goes away is no news."""


class Seen:
    def __init__(self, handler: _Handler, body: bytes) -> None:
        self.method = handler.command
        self.path = handler.path
        self.headers = [(name.lower(), value) for name, value in handler.headers.items()]
        self.size = len(body)
        self.digest = hashlib.sha256(body).hexdigest()
        self.body = body if len(body) < 100_000 else b""

    def header(self, name: str) -> str | None:
        found = [value for each, value in self.headers if each == name]
        assert len(found) <= 1, (name, found)
        return found[0] if found else None


def running_provider() -> AbstractContextManager[Provider]:
    return serving(Provider())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Provider

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _any(self) -> None:
        body = self._body()
        self.server.seen.append(Seen(self, body))
        if self.server.answer is not None:
            self.server.answer(self)
        else:
            self.whole(json.dumps(ANSWER).encode())

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._any
        raise AttributeError(name)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def head(self, status: int = 200, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def whole(self, body: bytes, status: int = 200, *headers: tuple[str, str]) -> None:
        if all(name != "content-type" for name, _ in headers):
            headers = (("content-type", "application/json"), *headers)
        self.head(status, ("content-length", str(len(body))), *headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def stream(self, *headers: tuple[str, str]) -> None:
        """Begin a stream of events; `part` sends them, `part(b"")` ends it."""
        self.head(200, ("content-type", "text/event-stream"), ("transfer-encoding", "chunked"), *headers)

    def part(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def wait_until_closed(self, seconds: float = MAX_WAIT) -> None:
        """Wait until the other side has closed the connection."""
        self.connection.settimeout(seconds)
        with contextlib.suppress(ConnectionError):
            if self.connection.recv(1) != b"":
                return
        self.close_connection = True
        self.server.closed.set()
