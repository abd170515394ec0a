"""The async HTTP transport, cut off at any moment of connects, requests and answers, keeps no connection."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import warnings

import httpcore
import pytest

from llm_cost_ops import AsyncCostOpsClient, CostOpsError
from llm_cost_ops.transports.http.sockets import AsyncioBackend
from tests.faulty_peers import FaultyPeer, answer, reset

GOOD = answer("201 Created", b'{"data": {"usage_id": "u"}}')


@pytest.mark.parametrize("fault", ["none", "closed", "reset"])
def test_deadlines_at_any_moment_leave_no_connection(fault: str) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201  # to repeat it
    draw = random.Random(seed)

    def behave(connection) -> None:
        while True:
            connection.read_request()
            if fault != "none" and draw.random() < 0.2:
                if fault == "reset":
                    reset(connection)
                return
            connection.sendall(GOOD)

    async def run(url: str) -> int:
        late = 0
        left = iter(range(400))

        async def call() -> None:
            nonlocal late
            for _ in left:
                timeout = draw.uniform(0.0005, 0.012)
                try:
                    await client.usage.submit(
                        organization_id="o", provider="p", model_id="m", timeout=timeout, retry=None
                    )
                except CostOpsError as error:
                    late += isinstance(error, TimeoutError)

        async with AsyncCostOpsClient(base_url=url, api_key="k") as client:
            await asyncio.gather(*(call() for _ in range(8)))
        await asyncio.sleep(0.05)
        return late

    with FaultyPeer(behave) as peer, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        late = asyncio.run(run(peer.url))
        gc.collect()
    assert late > 20, "too few deadlines passed to show anything"
    assert [str(one.message) for one in seen] == []


async def test_what_the_peer_sends_ahead_is_bounded_and_kept_in_order() -> None:
    sent = bytes(range(256)) * 8192  # 2 MiB

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        stream = await AsyncioBackend().connect_tcp("127.0.0.1", port)
        await asyncio.sleep(0.1)
        assert len(stream._bytes.unread) < 1 << 20
        got = b""
        while data := await stream.read(50_000):
            got += data
        assert got == sent
        assert stream.get_extra_info("is_readable")
        await stream.aclose()


async def test_the_next_address_is_tried() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        stream = await AsyncioBackend().connect_tcp("localhost", port, timeout=60)  # perhaps ::1 first
        connected = stream.get_extra_info("socket")
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await stream.aclose()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(httpcore.ConnectError):
        await AsyncioBackend().connect_tcp("127.0.0.1", port)
    with pytest.raises(httpcore.ConnectError):
        await AsyncioBackend().connect_unix_socket("/no/such/socket")
