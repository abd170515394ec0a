"""A client that is closed while calls are under way: they end, and say why."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any

import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    ClientClosedError,
    ClientConfig,
    ConnectionPoolConfig,
    CostOpsClient,
)
from tests import faulty_grpc_peers as over_grpc
from tests.conformance.clients import COLOURS
from tests.faulty_peers import FaultyPeer, answer
from tests.waiting import MAX_WAIT, until

CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}
NETWORK = ("http", "grpc")
# Seconds: a call that the close did not end would end at its deadline of 1000.
WITHIN = MAX_WAIT


REACHED = threading.Event()
"""Set when a peer has received something."""


BEGUN: list[Any] = []
"""The calls that have begun."""


class Begun:
    """Notes calls."""

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        BEGUN.append(context)
        return await continuation(request, context)

    async def intercept_unary_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        BEGUN.append(context)
        async with aclosing(continuation(request, context)) as messages:
            async for message in messages:
                yield message


def _silent(connection: Any) -> None:
    while connection.recv(65536):
        REACHED.set()


def wait_until_under_way(name: str) -> None:
    """Until a call has reached the peer; the other one, and one that connects, gets a moment for it."""
    until(lambda: len(BEGUN) == 2)
    if name != "connecting":
        assert REACHED.wait(MAX_WAIT)
    time.sleep(0.5)


def _http_stream(connection: Any) -> None:
    connection.read_request()
    head = answer("200 OK", b"", "Content-Type: application/x-ndjson")
    connection.sendall(head.replace(b"Content-Length: 0\r\n", b"Content-Length: 9999\r\n"))
    connection.sendall(b'{"id":"u-1"}\n')
    REACHED.set()
    _silent(connection)


def _grpc_stream(connection: Any) -> None:
    peer = over_grpc.Http2(connection)
    stream = peer.read_request()
    peer.send(stream, over_grpc.HEAD, over_grpc.frame(b"\x0a\x05\x0a\x03u-1"), None)
    REACHED.set()
    _silent(connection)


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose connects are never accepted: the SYN of one more stays without an answer."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextmanager
def scene(transport: str, name: str) -> Iterator[str]:
    if name == "connecting":
        with full_backlog() as port:
            yield f"{transport}://127.0.0.1:{port}"
        return
    stream = _http_stream if transport == "http" else _grpc_stream
    scheme = transport + ("s" if name == "handshake" else "")
    with FaultyPeer(stream if name == "stream" else _silent) as peer:
        yield f"{scheme}://127.0.0.1:{peer.port}"


def run_call(client: Any, name: str) -> Any:
    if name == "stream":
        return client.usage.export()
    return client.usage.submit(**CALL)


def closed_in_threads(url: str, config: ClientConfig, name: str) -> list[tuple[BaseException, float]]:
    """What two calls in threads ended with, and when, in seconds after the close."""
    client = CostOpsClient(base_url=url, config=config, interceptors=[Begun()])
    ended: list[tuple[BaseException, float]] = []

    def call() -> None:
        try:
            result = run_call(client, name)
            if name == "stream":
                for _ in result:
                    pass
        except BaseException as error:  # noqa: BLE001  # looked at by the test
            ended.append((error, time.monotonic()))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until_under_way(name)
    closing = time.monotonic()
    client.close()
    for thread in threads:
        thread.join(MAX_WAIT)
    return [(error, at - closing) for error, at in ended]


async def closed_in_tasks(url: str, config: ClientConfig, name: str) -> list[tuple[BaseException, float]]:
    client = AsyncCostOpsClient(base_url=url, config=config, interceptors=[Begun()])
    ended: list[tuple[BaseException, float]] = []

    async def call() -> None:
        try:
            result = run_call(client, name)
            if inspect.isawaitable(result):
                await result
            else:
                async for _ in result:
                    pass
        except BaseException as error:  # noqa: BLE001  # looked at by the test
            ended.append((error, time.monotonic()))

    tasks = [asyncio.create_task(call()) for _ in range(2)]
    await asyncio.to_thread(wait_until_under_way, name)
    closing = time.monotonic()
    await client.close()
    await asyncio.wait(tasks, timeout=MAX_WAIT)
    return [(error, at - closing) for error, at in ended]


@pytest.mark.parametrize("name", ["answer", "stream", "queue", "connecting", "handshake"])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("transport", NETWORK)
async def test_calls_under_way_end_at_once(transport: str, colour: str, name: str) -> None:
    pool = ConnectionPoolConfig(max_in_flight=1 if name == "queue" else 100)
    REACHED.clear()
    BEGUN.clear()
    config = ClientConfig(timeout=1000, connection_pool=pool, verify_ssl=True)
    with scene(transport, name) as url:
        if colour == "sync":
            ended = await asyncio.to_thread(closed_in_threads, url, config, name)
        else:
            ended = await closed_in_tasks(url, config, name)
    assert len(ended) == 2
    assert {type(error) for error, _ in ended} == {ClientClosedError}, ended
    assert max(seconds for _, seconds in ended) < WITHIN
    applied = sorted(vars(error)["maybe_applied"] for error, _ in ended)
    if name in {"stream", "connecting", "handshake"}:
        assert applied == [False, False], "a read, or never sent"
    else:
        assert applied == [name != "queue", True], "what the server had may be done"


@pytest.mark.parametrize("transport", NETWORK)
def test_a_close_between_the_start_of_a_call_and_its_connection(transport: str) -> None:
    """Encoding the first request loads its codec: what is opened after that would belong to nobody."""
    with FaultyPeer(_silent) as peer:
        client = CostOpsClient(base_url=f"{transport}://127.0.0.1:{peer.port}", timeout=1000)
        inner: Any = client._channel.core.transport
        begin = inner._begin

        def closing_meanwhile(*arguments: Any) -> Any:
            exchange = begin(*arguments)
            client.close()
            return exchange

        inner._begin = closing_meanwhile
        started = time.monotonic()
        with pytest.raises(ClientClosedError) as caught:
            client.usage.submit(**CALL)
        assert time.monotonic() - started < WITHIN
    assert caught.value.maybe_applied is False
