"""A peer that reads nothing keeps its own answers back, and nobody else's."""

from __future__ import annotations

import asyncio

import grpc
import h2.connection
import h2.settings

from llm_cost_ops._gen.messages import GetHealthResponse
from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.server.grpc import GrpcServer
from llm_cost_ops.server.limits import GrpcLimits
from tests.waiting import MAX_WAIT

CALLS = 4


def calls_without_a_window(count: int) -> bytes:
    """What a client sends that makes calls and takes no byte of an answer."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    for _ in range(count):
        stream = connection.get_next_available_stream_id()
        head = {":method": "POST", ":scheme": "http", ":path": GET_HEALTH.path, ":authority": "x"}
        connection.send_headers(
            stream, [*head.items(), ("te", "trailers"), ("content-type", "application/grpc")]
        )
        connection.send_data(stream, bytes(5), end_stream=True)
    return connection.data_to_send()


async def test_who_does_not_read_takes_no_call_from_others() -> None:
    answered = 0
    all_answered = asyncio.Event()

    async def health(request: object, context: object) -> GetHealthResponse:
        nonlocal answered
        answered += 1
        if answered == CALLS:
            all_answered.set()
        return GetHealthResponse()

    handler = ServiceHandler([(GET_HEALTH, health)])
    server = GrpcServer(handler, port=0, limits=GrpcLimits(max_concurrent_calls=CALLS))
    address = (await server.start()).removeprefix("grpc://")
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(MAX_WAIT):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(calls_without_a_window(CALLS))
        await all_answered.wait()
        async with grpc.aio.insecure_channel(address) as channel:
            for _ in range(2 * CALLS):
                await channel.unary_unary(GET_HEALTH.path)(b"")
        writer.close()
        await server.stop(1)
    assert answered == 3 * CALLS
