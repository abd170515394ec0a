"""A servicer for the tiny messages, and a server of it in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.server.app import HttpServer, serve
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.server.limits import AsgiLimits, ConnectionLimits
from tests.tiny_service import (
    COPY_NOTE,
    FIND_NOTES,
    GET_NOTE,
    PUT_NOTE,
    FindNotesResponse,
    Note,
    PutNoteResponse,
)
from tests.waiting import MAX_WAIT, until_async


class NoteServicer:
    """Remembers contexts and requests. The text of a note says what is to happen."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []
        self.finished = 0
        self.draining = False
        self.go_on = threading.Event()

    async def put(self, request, context):
        self.calls.append((request, context))
        note = request.note
        if note.text == "bug":
            raise KeyError("a secret of the server")
        if note.text == "invalid":
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                "no",
                violations=[Violation("text", "is wrong"), Violation("id", "too")],
            )
        if note.text == "busy":
            context.response_metadata = Metadata({"x-ratelimit-limit": "5"})
            raise RpcError(StatusCode.RESOURCE_EXHAUSTED, "busy", retry_after=0.2)
        if note.text == "wait":
            await until_async(self.go_on.is_set)
        if note.text == "duplicate":
            context.response_status = 200
        self.finished += 1
        return PutNoteResponse(data=note, meta={"request_id": context.request_id})

    async def find(self, request, context):
        self.calls.append((request, context))
        return FindNotesResponse(data=[Note(id=name) for name in request.provider])

    async def get(self, request, context):
        self.calls.append((request, context))
        if self.draining:
            raise RpcError(StatusCode.UNAVAILABLE, "draining")
        return PutNoteResponse(data=Note(id=request.id))

    async def copy(self, request, context):
        return PutNoteResponse(data=Note(id=request.id, text=request.text))

    def handler(self) -> ServiceHandler:
        return ServiceHandler(
            [(PUT_NOTE, self.put), (FIND_NOTES, self.find), (GET_NOTE, self.get), (COPY_NOTE, self.copy)]
        )


class Running:
    """A server that runs: its address, its servicer, and how to stop it."""

    def __init__(self) -> None:
        self.servicer = NoteServicer()
        self.address = ""
        self.closed = 0
        self.ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopped: asyncio.Event | None = None

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)

    def drain(self) -> None:
        self.servicer.draining = True

    async def close(self) -> None:
        self.closed += 1

    async def main(self, limits, app_limits, uds, delay, grace):
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        app = AsgiApp(self.servicer.handler(), limits=app_limits)
        server = HttpServer(app, port=0, uds=uds, limits=limits)

        def announce(line):
            self.address = line.removeprefix("listening on ")
            self.ready.set()

        await serve(
            [server],
            on_drain=self.drain,
            close=self.close,
            announce=announce,
            drain_delay=delay,
            grace=grace,
            stopped=self.stopped,
        )


@contextlib.contextmanager
def running(
    limits: ConnectionLimits | None = None,
    app_limits: AsgiLimits | None = None,
    *,
    uds: str | None = None,
    drain_delay: float = 0.0,
    grace: float = 5.0,
) -> Iterator[Running]:
    """Serve notes on loopback until the block ends."""
    server = Running()
    thread = threading.Thread(
        target=lambda: asyncio.run(server.main(limits, app_limits, uds, drain_delay, grace)), daemon=True
    )
    thread.start()
    assert server.ready.wait(MAX_WAIT)
    try:
        yield server
    finally:
        with contextlib.suppress(RuntimeError):
            server.stop()
        thread.join(MAX_WAIT)
        assert not thread.is_alive()
