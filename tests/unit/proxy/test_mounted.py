"""The proxy as an ASGI app, by itself and below a prefix of another one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import MutableMapping
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.proxy import asgi_app
from tests.proxies import CHUNK, Provider, event
from tests.unit.instrumentation.matrix import records_of

Message = MutableMapping[str, Any]


class Caller:
    """Calls an app, and notes how many records there were when each part of the body was sent."""

    def __init__(self, client: CostOpsClient) -> None:
        self.client = client
        self.status = 0
        self.parts: list[tuple[bytes, int]] = []

    async def call(self, app: Any, path: str, body: Any, *, root: str = "") -> None:
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": root,
            "query_string": b"", "headers": [(b"Content-Type", b"application/json")],
        }  # fmt: skip
        sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> Message:
            if sent:
                return sent.pop()
            await asyncio.Event().wait()
            raise AssertionError

        await app(scope, receive, self._send)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.parts.append((message["body"], self.client.flush(0).recorded))


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_is_recorded_before_the_last_part_goes_out(
    provider: Provider, client: CostOpsClient, *, streamed: bool
) -> None:
    app = asgi_app({"openai": provider.url}, client, require_keys=False)
    caller = Caller(client)

    def answer(handler: Any) -> None:
        handler.stream()
        handler.part(event(CHUNK))
        handler.part(event(b"[DONE]"))
        handler.part(b"")

    if streamed:
        provider.answer = answer
    await caller.call(app, "/openai/v1/chat/completions", {"model": "gpt-4o"})
    assert caller.status == 200
    parts = [part for part in caller.parts if part[0]]
    assert parts[-1][1] == 1
    assert len(parts) == (2 if streamed else 1)
    if streamed:
        assert parts[0][1] == 0
    await app.aclose()
    await app.aclose()


async def test_below_a_prefix(provider: Provider, client: CostOpsClient) -> None:
    app = asgi_app({"openai": provider.url}, client, require_keys=False)
    caller = Caller(client)
    await caller.call(app, "/llm/openai/v1/chat/completions", {"model": "gpt-4o"}, root="/llm")
    await app.aclose()
    assert (caller.status, provider.seen[0].path) == (200, "/v1/chat/completions")
    assert len(await asyncio.to_thread(records_of, client)) == 1


async def test_a_call_that_is_left_at_the_end_is_ended_and_recorded(
    provider: Provider, client: CostOpsClient
) -> None:
    begun = threading.Event()

    def answer(handler: Any) -> None:
        begun.set()
        handler.wait_until_closed()

    provider.answer = answer
    app = asgi_app({"openai": provider.url}, client, require_keys=False)
    call = asyncio.create_task(Caller(client).call(app, "/openai/v1/chat/completions", {"model": "gpt-4o"}))
    assert await asyncio.to_thread(begun.wait, 5)
    await app.aclose()
    assert call.cancelled()
    (record,) = await asyncio.to_thread(records_of, client)
    assert (record.model_id, record.quality.value) == ("gpt-4o", "unknown")
    assert await asyncio.to_thread(provider.closed.wait, 5)


async def test_readiness_says_that_no_more_calls_are_to_come(
    provider: Provider, client: CostOpsClient
) -> None:
    app = asgi_app({"openai": provider.url}, client, require_keys=False)
    for status in (200, 503):
        caller = Caller(client)
        await caller.call(app, "/ready", {})
        assert caller.status == status
        app.drain()
    await app.aclose()


async def test_a_websocket_is_closed_before_it_is_accepted(provider: Provider, client: CostOpsClient) -> None:
    app = asgi_app({"openai": provider.url}, client, require_keys=False)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/openai/v1/realtime", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close"}]
