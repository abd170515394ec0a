"""The gRPC server, asked by grpcio's own client with raw bytes, and by our transport."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest

from llm_cost_ops._gen.messages import (
    BatchReceipt,
    BatchSubmitUsageRequest,
    BatchSubmitUsageResponse,
    RecordError,
    SubmitResult,
    UsageReceipt,
    UsageRecord,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE
from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.server.grpc import GrpcServer
from llm_cost_ops.server.limits import GrpcLimits
from llm_cost_ops.transports.grpc.client import AsyncGrpcTransport
from llm_cost_ops.transports.grpc.status import read_status
from tests.tiny_service import (
    GET_NOTE,
    PUT_NOTE,
    GetNoteRequest,
    Note,
    PutNoteRequest,
    PutNoteResponse,
    context,
)
from tests.waiting import MAX_WAIT, until_async

PUT = PutNoteRequest(note=Note(id="n"))
PATH = PUT_NOTE.path


class Notes:
    """A servicer that does what the note's text says."""

    def __init__(self):
        self.contexts = []
        self.cancelled = 0
        self.done = 0
        self.go_on = asyncio.Event()

    async def put_note(self, request, call):
        self.contexts.append(call)
        act, _, value = request.note.text.partition(":")
        if act == "raise":
            raise RpcError(
                StatusCode(int(value)),
                "né",
                violations=[Violation("note.id", "is bad")],
                retry_after=2.5,
                error_code="MINE",
            )
        if act == "break":
            raise ValueError("a secret")
        if act in {"sleep", "wait"}:
            try:
                await (self.go_on.wait() if act == "wait" else asyncio.sleep(float(value)))
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        call.response_metadata = Metadata([("x-told", "1"), ("x-raw-bin", b"\x00")])
        self.done += 1
        return PutNoteResponse(data=Note(id=request.note.id, text="a" * int(value) if act == "big" else ""))

    async def get_note(self, request, call):
        return PutNoteResponse(data=Note(id=request.id))

    async def batch_submit(self, request, call):
        return BatchSubmitUsageResponse(
            data=BatchReceipt(results=[_result(each) for each in request.records])
        )


def _result(record):
    if record.unknown_:
        return SubmitResult(error=RecordError(message=record.unknown_.error))
    return SubmitResult(usage=UsageReceipt(usage_id=str(record.input_tokens)))


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
async def start(notes):
    """Starts a server with settings; gives (server, its address)."""
    servers = []

    async def start(**settings):
        methods = (PUT_NOTE, GET_NOTE, BATCH_SUBMIT_USAGE)
        bodies = (notes.put_note, notes.get_note, notes.batch_submit)
        handler = ServiceHandler(zip(methods, bodies, strict=True))
        server = GrpcServer(handler, **{"port": 0, **settings})
        servers.append(server)
        return server, (await server.start()).removeprefix("grpc://")

    yield start
    for server in servers:
        await server.stop(0)


@pytest.fixture
async def channel(start):
    _, address = await start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


def note(text="", id="n"):
    return PUT_NOTE.request.encode(PutNoteRequest(note=Note(id=id, text=text)))


async def failed(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    error = raised.value
    trailers = dict(list(error.trailing_metadata()))
    details = read_status(trailers.get("grpc-status-details-bin", b""))
    return error, trailers, details


async def test_an_answer_with_its_metadata(channel, notes):
    call = channel.unary_unary(PATH)(
        note(),
        metadata=[("x-request-id", "r-1"), ("idempotency-key", "k"), ("x-b-bin", b"\xff"), ("x-a", "1")],
        timeout=50,
    )
    assert PUT_NOTE.response.decode(await call).data.id == "n"
    assert set(await call.trailing_metadata()) == {
        ("x-told", "1"),
        ("x-raw-bin", b"\x00"),
        ("x-request-id", "r-1"),
        ("llm-cost-ops-codecs", "json"),
    }
    [seen] = notes.contexts
    assert (seen.idempotency_key, seen.request_id, seen.metadata.get("x-a")) == ("k", "r-1", "1")
    assert seen.metadata.get_all("x-b-bin") == [b"\xff"]
    # grpcio rounds what it sends up, by up to a tenth of a second; the server's own limit is 60.
    assert seen.deadline - seen.runtime.monotonic() < 55, "sooner than the server's own limit"
    assert not [name for name, _ in seen.metadata if name.startswith("grpc-")]


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
async def test_every_status_with_its_details(channel, code):
    error, trailers, details = await failed(channel.unary_unary(PATH)(note(f"raise:{int(code)}")))
    assert error.code().value[0] == code
    assert error.details() == "né"
    assert details.violations == [Violation("note.id", "is bad")]
    assert (details.retry_after, details.error_code) == (2.5, "MINE")
    assert details.request_id == trailers["x-request-id"] != ""


async def test_what_a_servicer_did_not_mean_tells_nothing(channel, caplog):
    error, trailers, _ = await failed(channel.unary_unary(PATH)(note("break")))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "secret" not in repr(error.trailing_metadata())
    assert trailers["x-request-id"] in caplog.text


@pytest.mark.parametrize("data", [b"\xff", b"{", b'{"note": {"count": "x"}}'])
async def test_bytes_that_are_no_request(channel, data):
    error, _, details = await failed(channel.unary_unary(PATH)(data))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details.violations
    if b"count" in data:
        assert details.violations[0].field == "note.count"


IN_JSON = ("llm-cost-ops-codec", "json")


async def test_json_is_answered_with_json(channel):
    call = channel.unary_unary(BATCH_SUBMIT_USAGE.path)
    record = {"organization_id": "o", "input_tokens": 5, "modality": {"input_audio_tokens": 2}}
    body = json.dumps({"records": [record, {"output_tokens": "x"}]}).encode()
    answer = BATCH_SUBMIT_USAGE.response
    good, bad = answer.decode_json(await call(body, metadata=[IN_JSON])).data.results
    assert good.usage.usage_id == "5"
    assert "expected" in bad.error.message
    # Without the metadata it is protobuf, and so is what does not begin as JSON.
    request = BatchSubmitUsageRequest(records=[UsageRecord(organization_id="o", input_tokens=6)])
    data = BATCH_SUBMIT_USAGE.request.encode(request)
    assert answer.decode(await call(data)).data.results[0].usage.usage_id == "6"
    assert answer.decode_json(await call(data, metadata=[IN_JSON])).data.results[0].usage.usage_id == "6"
    error, trailers, _ = await failed(call(body))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailers["llm-cost-ops-codecs"] == "json"


@pytest.mark.parametrize("body", [b"{", b'{"records": 5}', b'{"records": [], "records": []}'])
async def test_json_that_is_no_request(channel, body):
    error, trailers, details = await failed(
        channel.unary_unary(BATCH_SUBMIT_USAGE.path)(body, metadata=[IN_JSON])
    )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details.violations
    assert trailers["llm-cost-ops-codecs"] == "json"


async def test_a_codec_that_the_server_does_not_have(channel):
    error, _, _ = await failed(channel.unary_unary(PATH)(note(), metadata=[("llm-cost-ops-codec", "xml")]))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == "llm-cost-ops-codec must be json or proto, not 'xml'"
    assert await channel.unary_unary(PATH)(note(), metadata=[("llm-cost-ops-codec", "proto")])


async def test_what_is_no_metadata(channel):
    many = [(f"x-{n}", "1") for n in range(70)]
    error, _, _ = await failed(channel.unary_unary(PATH)(note(), metadata=many))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_method_that_is_not_there(channel):
    error, _, _ = await failed(channel.unary_unary("/tiny.v1.NoteService/Burn")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_client_s_deadline_cancels_the_servicer(channel, notes):
    call = channel.unary_unary(PATH)
    await call(note())  # the connection is open, so the deadline is for the call alone
    error, _, _ = await failed(call(note("sleep:600"), timeout=0.5))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_async(lambda: notes.cancelled)
    assert (notes.cancelled, notes.done) == (1, 1)


async def test_a_client_that_cancels(channel, notes):
    call = channel.unary_unary(PATH)(note("sleep:600"))
    await until_async(lambda: notes.contexts)
    call.cancel()
    await until_async(lambda: notes.cancelled)
    assert (notes.cancelled, notes.done) == (1, 0)


async def test_the_server_s_own_limit_of_time(start):
    _, address = await start(limits=GrpcLimits(call_timeout=0.2))
    async with grpc.aio.insecure_channel(address) as channel:
        error, _, _ = await failed(channel.unary_unary(PATH)(note("sleep:600"), timeout=MAX_WAIT))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert read_status(dict(list(error.trailing_metadata()))["grpc-status-details-bin"]).request_id


async def test_sizes(start):
    _, address = await start(limits=GrpcLimits(max_receive_bytes=100_000))
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(PATH)
        assert await call(note("a" * 90_000))
        error, _, details = await failed(call(note("a" * 110_000)))
        assert (error.code(), details.error_code) == (grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_TOO_LARGE")
        error, _, _ = await failed(call(note("a" * 300_000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error, _, _ = await failed(call(note("a" * 50_000_000), compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_gzip_both_ways(start):
    _, address = await start()
    async with grpc.aio.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
        assert len(await channel.unary_unary(PATH)(note("big:100000"))) > 100_000
    transport = AsyncGrpcTransport(f"grpc://{address}")
    pool = transport._open()
    connection = await pool._channels[0].get()
    await connection.enter()
    headers = transport._begin(PUT, context(PUT_NOTE, MAX_WAIT)).headers()
    for accept, flag, size in [("gzip", 1, 100_000), ("identity", 0, 100_000), ("gzip", 0, 10)]:
        stream = connection.open([(b"grpc-accept-encoding", accept), (b"grpc-encoding", b"gzip"), *headers])
        packed = gzip.compress(note(f"big:{size}"))
        await stream.send(b"\x01" + len(packed).to_bytes(4, "big") + packed, end=True)
        head = dict(await stream.read_headers())
        prefix = await stream.read(5)
        assert prefix[0] == flag
        assert not flag or head[b"grpc-encoding"] == b"gzip"
        body = await stream.read(int.from_bytes(prefix[1:], "big"))
        assert len(PUT_NOTE.response.decode(gzip.decompress(body) if flag else body).data.text) == size
        connection.release(stream)
    connection.leave()
    await pool.aclose()


async def test_too_many_calls_at_once_are_refused(start, notes):
    _, address = await start(limits=GrpcLimits(max_concurrent_calls=2))
    async with grpc.aio.insecure_channel(address) as channel:
        calls = [asyncio.ensure_future(channel.unary_unary(PATH)(note("wait"))) for _ in range(5)]
        await until_async(lambda: sum(call.done() for call in calls) == 3)
        notes.go_on.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert [error.code() for error in refused] == [grpc.StatusCode.UNAVAILABLE] * 3
    for error in refused:
        details = read_status(dict(list(error.trailing_metadata()))["grpc-status-details-bin"])
        assert details.error_code == "OVERLOADED"
        assert 0.5 <= details.retry_after <= 1


async def test_stopping_lets_calls_finish_and_takes_no_more(start, notes):
    server, address = await start()
    transport = AsyncGrpcTransport(f"grpc://{address}")
    slow = PutNoteRequest(note=Note(id="n", text="wait"))
    call = asyncio.ensure_future(transport.unary_unary(slow, context(PUT_NOTE, MAX_WAIT, asynchronous=True)))
    await until_async(lambda: notes.contexts)
    stopping = asyncio.ensure_future(server.stop(1000))
    [connection] = transport._pools[asyncio.get_running_loop()]._open
    await until_async(lambda: not connection.usable)
    with pytest.raises(RpcError) as raised:
        await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))
    assert (raised.value.code, raised.value.maybe_applied) == (StatusCode.UNAVAILABLE, False)
    assert not call.done()
    notes.go_on.set()
    assert (await call).data.id == "n"
    async with asyncio.timeout(MAX_WAIT):
        await stopping
    await transport.aclose()


async def test_stopping_with_calls_that_do_not_finish(start, notes):
    server, address = await start()
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(PATH)(note("sleep:600"))
        await until_async(lambda: notes.contexts)
        async with asyncio.timeout(MAX_WAIT):
            await server.stop(0.3)
        await failed(call)
    await until_async(lambda: notes.cancelled)


async def test_unix_sockets(start, tmp_path):
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    server, address = await start(uds=path)
    assert address == f"unix:{path}"
    assert stat.S_IMODE((await asyncio.to_thread(Path(path).stat)).st_mode) == 0o600
    transport = AsyncGrpcTransport(f"grpc://{path}")
    assert (await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))).data.id == "n"
    with pytest.raises(OSError, match=r"in use|s\.sock"):
        await start(uds=path)
    assert (await transport.unary_unary(PUT, context(PUT_NOTE, MAX_WAIT, asynchronous=True))).data.id == "n"
    await transport.aclose()
    await server.stop(1)
    assert not await asyncio.to_thread(Path(path).exists)


async def test_a_port_that_is_taken(start):
    _, address = await start()
    with pytest.raises(OSError, match="listen"):
        await start(port=int(address.rpartition(":")[2]))


async def test_two_addresses_and_ipv6(start):
    _, address = await start(host="::1")
    transport = AsyncGrpcTransport(f"grpc://{address}")
    assert (
        await transport.unary_unary(GetNoteRequest(id="x"), context(GET_NOTE, MAX_WAIT, asynchronous=True))
    ).data.id == "x"
    await transport.aclose()
