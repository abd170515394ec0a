"""grpc.health.v1 and reflection, asked by the clients that others wrote for them."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool

from llm_cost_ops._gen.methods import SUBMIT_USAGE
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.server.grpc import GrpcServer
from tests.waiting import MAX_WAIT

SERVICE = "llm_cost_ops.v1.UsageService"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING, UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"


def asking(service):
    return b"\x0a" + bytes([len(service)]) + service.encode() if service else b""


async def never(request, context):
    raise AssertionError


class Door:
    def __init__(self):
        self.healthy = True
        self.asked = 0

    async def before(self):
        await asyncio.sleep(0)

    async def ready(self):
        self.asked += 1
        await self.before()
        return self.healthy


@pytest.fixture
def listener():
    return Door()


@pytest.fixture
async def server(listener):
    server = GrpcServer(ServiceHandler([(SUBMIT_USAGE, never)]), port=0, ready=listener.ready)
    server.address = (await server.start()).removeprefix("grpc://")
    yield server
    await server.stop(0)


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.mark.parametrize("service", ["", SERVICE, "grpc.health.v1.Health"])
async def test_check(channel, listener, service):
    assert await channel.unary_unary(CHECK)(asking(service)) == SERVING
    listener.healthy = False
    await asyncio.sleep(0.25)
    assert await channel.unary_unary(CHECK)(asking(service)) == NOT_SERVING


async def test_check_of_what_is_not_there(channel):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(CHECK)(asking("no.Such"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(CHECK)(b"\x0a\xff")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_many_checks_ask_the_store_once(channel, listener, monkeypatch):
    monkeypatch.setattr("llm_cost_ops.server.grpc.FRESH", 1000)
    answers = await asyncio.gather(*(channel.unary_unary(CHECK)(b"") for _ in range(50)))
    assert set(answers) == {SERVING}
    assert listener.asked == 1


async def test_who_comes_while_the_store_is_asked_has_its_answer(channel, listener):
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slowly():
        asked.set()
        await answered.wait()

    listener.before = slowly
    first = asyncio.ensure_future(channel.unary_unary(CHECK)(b""))
    await asked.wait()
    others = [asyncio.ensure_future(channel.unary_unary(CHECK)(b"")) for _ in range(5)]
    await asyncio.wait([*others, first], timeout=0.1)
    answered.set()
    assert set(await asyncio.gather(first, *others)) == {SERVING}


async def test_watch_tells_changes_and_does_not_hold_up_a_server_that_stops(
    server, channel, listener, monkeypatch
):
    # As on a machine so busy that nothing happens in that time.
    monkeypatch.setattr("llm_cost_ops.server.grpc._SETTLING", 0.0)
    call = channel.unary_stream(WATCH)(asking(SERVICE))
    unknown = channel.unary_stream(WATCH)(asking("no.Such"))
    assert await call.read() == SERVING
    assert await unknown.read() == UNKNOWN
    listener.healthy = False
    assert await call.read() == NOT_SERVING
    listener.healthy = True
    assert await call.read() == SERVING
    async with asyncio.timeout(MAX_WAIT):
        stopping = asyncio.ensure_future(server.stop(1000))
        assert await call.read() == NOT_SERVING
        assert await call.read() == grpc.aio.EOF
        await stopping


def test_reflection_tells_the_whole_protocol_to_grpcio_s_own_client():
    """Against a server in a thread, since that client is sync."""
    # Its generated code refuses a grpcio that is older than itself.
    name, older = "grpc_reflection.v1alpha.proto_reflection_descriptor_database", (ImportError, RuntimeError)
    reflection = pytest.importorskip(name, exc_type=older)
    import threading

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(MAX_WAIT)

    async def made():
        server = GrpcServer(ServiceHandler([(SUBMIT_USAGE, never)]), port=0)
        return server, (await server.start()).removeprefix("grpc://")

    server, address = run(made())
    try:
        with grpc.insecure_channel(address) as channel:
            database = reflection.ProtoReflectionDescriptorDatabase(channel)
            names = {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}
            assert names <= set(database.get_services())
            pool = DescriptorPool(database)
            method = pool.FindServiceByName(SERVICE).FindMethodByName("SubmitUsage")
            assert (
                method.input_type.fields_by_name["usage"].message_type.full_name
                == "llm_cost_ops.v1.UsageRecord"
            )
            assert pool.FindMethodByName(f"{SERVICE}.SubmitUsage")
            assert pool.FindMessageTypeByName("llm_cost_ops.v1.CostGroup")
            assert pool.FindFileByName("llm_cost_ops/v1/usage.proto")
            with pytest.raises(KeyError):
                pool.FindMessageTypeByName("llm_cost_ops.v1.NoSuch")
        run(server.stop(5))
    finally:
        run(server.stop(0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_an_open_reflection_stream_does_not_hold_up_a_server_that_stops(server, channel):
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
    await call.write(b"\x3a\x00")
    assert SERVICE.encode() in await call.read()
    await call.write(b"\xff\xff\xff")
    assert b"ServerReflectionRequest" in await call.read()
    await call.write(b"\x32\x01a")
    assert b"not looked up" in await call.read()
    async with asyncio.timeout(MAX_WAIT):
        await server.stop(1000)
