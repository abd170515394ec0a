"""A success that can't be understood: the same error and the same retries over HTTP and gRPC."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from llm_cost_ops import APIError, ClientConfig, RetryConfig, ServerError
from llm_cost_ops._gen.messages import (
    BatchReceipt,
    BatchSubmitUsageResponse,
    GetCostSummaryResponse,
    ListUsageResponse,
    SubmitResult,
    SubmitStatus,
    SubmitUsageResponse,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, GET_COST_SUMMARY, LIST_USAGE, SUBMIT_USAGE
from llm_cost_ops.types import CostSummary, UsageReceipt, UsageRecord
from tests import faulty_grpc_peers as over_grpc
from tests import faulty_peers as over_http
from tests.conformance.clients import COLOURS, each, open_client
from tests.faulty_peers import FaultyPeer

QUICK = RetryConfig(initial_backoff=0.001, max_backoff=0.002)
CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}
GOOD = {
    "submit": (SUBMIT_USAGE.response, SubmitUsageResponse(data=UsageReceipt(usage_id="u-1"))),
    "read": (GET_COST_SUMMARY.response, GetCostSummaryResponse(data=CostSummary(currency="USD"))),
}
HTML = b"<html>Sign in to the network</html>"


def _http(body: bytes, *headers: str) -> bytes:
    return over_http.answer("200 OK", body, *headers)


HTTP: dict[str, bytes] = {
    "not a message": _http(b"hello"),
    "cut off": _http(b'{"data": {"usage_id": "u-'),
    "of another shape": _http(b'{"data": 5}'),
    "empty": _http(b""),
    "no content": over_http.answer("204 No Content", b""),
    "an empty object": _http(b"{}"),
    "no data": _http(b'{"data": null, "meta": {"request_id": "r"}}'),
    "empty data": _http(b'{"data": {}}'),
    "an error in a success": _http(b'{"error": {"code": "INTERNAL", "message": "no"}}'),
    "words of a gateway": _http(b'{"success": true, "message": "accepted"}'),
    "of another content type": _http(HTML, "Content-Type: text/html"),
    "broken compression": _http(b"no gzip", "Content-Encoding: gzip"),
    "cut compression": _http(gzip.compress(b'{"data": {}}')[:-6], "Content-Encoding: gzip"),
}
HEAD, DONE, frame = over_grpc.HEAD, over_grpc.DONE, over_grpc.frame
GZIP = [*HEAD, ("grpc-encoding", "gzip")]
GRPC: dict[str, tuple[Any, bytes | None, Any]] = {
    "not a message": (HEAD, frame(b"\xff\xff"), DONE),
    "cut off": (HEAD, frame(b"\x0a", length=9), DONE),
    "of another shape": (HEAD, frame(b"\x08\x05\x0b"), DONE),
    "empty": (HEAD, None, DONE),
    "no content": (HEAD, None, DONE),
    "an empty object": (HEAD, frame(b""), DONE),
    "no data": (HEAD, frame(b"\x12\x00"), DONE),
    "empty data": (HEAD, frame(b"\x0a\x00"), DONE),
    "an error in a success": (HEAD, frame(b"\x9a\x06\x02no"), DONE),
    "words of a gateway": (HEAD, frame(b"\x0a\x05\x9a\x06\x02ok"), DONE),
    "of another content type": ([(":status", "200"), ("content-type", "text/html")], HTML, None),
    "broken compression": (GZIP, frame(b"no gzip", 1), DONE),
    "cut compression": (GZIP, frame(gzip.compress(b"\x0a\x00")[:-6], 1), DONE),
}


def peer_of(transport: str, garbled: str, good: str, times: int) -> tuple[FaultyPeer, list[int]]:
    """Answers garbled so many times, and then well. The list counts the answers."""
    codec, message = GOOD[good]
    answers: list[int] = []

    def http(connection: Any) -> None:
        while True:
            connection.read_request()
            answers.append(1)
            well = over_http.answer("200 OK", codec.encode_json(message))
            connection.sendall(HTTP[garbled] if len(answers) <= times else well)

    def grpc(connection: Any) -> None:
        peer = over_grpc.Http2(connection)
        while True:
            stream = peer.read_request()
            answers.append(1)
            well = (HEAD, frame(codec.encode(message)), DONE)
            head, data, trailers = GRPC[garbled] if len(answers) <= times else well
            peer.send(stream, head, data, trailers)
            if data is not None and trailers is None:
                peer.http2.end_stream(stream)
                peer.flush()

    return FaultyPeer(http if transport == "http" else grpc), answers


async def call(client: Any, what: str, **options: Any) -> Any:
    if what == "submit":
        return await client.usage.submit(**CALL, **options)
    return await client.costs.get(**options)


@pytest.mark.parametrize("garbled", HTTP)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("what", GOOD)
async def test_a_garbled_success_is_tried_again(what: str, transport: str, colour: str, garbled: str) -> None:
    peer, answers = peer_of(transport, garbled, what, times=2)
    with peer:
        client = open_client(
            f"{transport}://127.0.0.1:{peer.port}", colour, config=ClientConfig(retry=QUICK, timeout=60)
        )
        told = await call(client, what)
        await client.close()
    assert (told.usage_id == "u-1") if what == "submit" else (told.currency == "USD")
    assert len(answers) == 3


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("what", GOOD)
async def test_a_success_that_stays_garbled_is_the_same_error(what: str, transport: str, colour: str) -> None:
    peer, answers = peer_of(transport, "not a message", what, times=99)
    with peer:
        client = open_client(
            f"{transport}://127.0.0.1:{peer.port}", colour, config=ClientConfig(retry=QUICK, timeout=60)
        )
        with pytest.raises(APIError, match="can't be understood") as caught:
            await call(client, what)
        assert len(answers) == 4
        with pytest.raises(APIError) as at_once:
            await call(client, what, retry=None)
        await client.close()
    error = caught.value
    assert type(error) is ServerError
    assert (error.status_code, error.code, error.attempts) == (500, "INTERNAL", 4)
    assert error.maybe_applied is (what == "submit"), "a write may have been done"
    assert (at_once.value.attempts, at_once.value.maybe_applied) == (1, what == "submit")


def always(transport: str, method: Any, message: Any, body: bytes | None = None) -> FaultyPeer:
    """Answers every call with one message; with other JSON over HTTP, where `body` is given."""

    def http(connection: Any) -> None:
        while True:
            connection.read_request()
            json = method.response.encode_json(message) if body is None else body
            connection.sendall(over_http.answer("200 OK", json))

    def grpc(connection: Any) -> None:
        peer = over_grpc.Http2(connection)
        while True:
            peer.send(peer.read_request(), HEAD, frame(method.response.encode(message)), DONE)

    return FaultyPeer(http if transport == "http" else grpc)


@pytest.mark.parametrize("told", [0, 1, 3])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_a_batch_has_a_result_for_each_record(transport: str, colour: str, told: int) -> None:
    results = [SubmitResult(status=SubmitStatus.CREATED, usage=UsageReceipt(usage_id="u"))] * told
    answer = BatchSubmitUsageResponse(data=BatchReceipt(results=results, created=2))
    with always(transport, BATCH_SUBMIT_USAGE, answer) as peer:
        client = open_client(f"{transport}://127.0.0.1:{peer.port}", colour)
        with pytest.raises(ServerError, match=f"{told} results for 2 records") as caught:
            await client.usage.submit_batch([UsageRecord(**CALL)] * 2, retry=None)
        await client.close()
    assert (caught.value.code, caught.value.maybe_applied) == ("INTERNAL", True)


@pytest.mark.parametrize("body", [b"{}", b'{"data": null}', b'{"error": "no"}', b'{"meta": {}}'])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_what_is_no_page_is_no_empty_list(transport: str, colour: str, body: bytes) -> None:
    with always(transport, LIST_USAGE, ListUsageResponse(), body) as peer:
        client = open_client(f"{transport}://127.0.0.1:{peer.port}", colour)
        with pytest.raises(ServerError, match=r"nothing of what ListUsage answers|expected array") as caught:
            await client.usage.list(retry=None)
        await client.close()
    assert caught.value.maybe_applied is False


@pytest.mark.parametrize("body", [b"[]", b'{"data": []}', b'{"data": [], "total": 0, "page": 1}'])
@pytest.mark.parametrize("colour", COLOURS)
async def test_a_page_of_nothing_is_an_answer(colour: str, body: bytes) -> None:
    with always("http", LIST_USAGE, None, body) as peer:
        client = open_client(f"http://127.0.0.1:{peer.port}", colour)
        assert (await client.usage.list(retry=None)).data == []
        await client.close()


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_cost_of_nothing_is_an_answer_where_it_is_stated(colour: str) -> None:
    with always("http", GET_COST_SUMMARY, None, b'{"data": {"total_cost": "0"}}') as peer:
        client = open_client(f"http://127.0.0.1:{peer.port}", colour)
        assert (await client.costs.get(retry=None)).total_cost == 0
        await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_an_export_has_no_empty_records(transport: str, colour: str) -> None:
    def http(connection: Any) -> None:
        connection.read_request()
        connection.sendall(_http(b"{}\n", "Content-Type: application/x-ndjson"))

    def grpc(connection: Any) -> None:
        peer = over_grpc.Http2(connection)
        peer.send(peer.read_request(), HEAD, frame(b""), DONE)

    with FaultyPeer(http if transport == "http" else grpc) as peer:
        client = open_client(f"{transport}://127.0.0.1:{peer.port}", colour)
        with pytest.raises(ServerError, match="nothing of what ExportUsage answers"):
            _ = [record async for record in each(client.usage.export(retry=None))]
        await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_a_stream_that_begins_garbled_is_tried_again(transport: str, colour: str) -> None:
    answers = 0

    def http(connection: Any) -> None:
        nonlocal answers
        while True:
            connection.read_request()
            answers += 1
            line = b"hello\n" if answers < 3 else b'{"id":"u-1"}\n'
            connection.sendall(_http(line, "Content-Type: application/x-ndjson"))

    def grpc(connection: Any) -> None:
        nonlocal answers
        peer = over_grpc.Http2(connection)
        while True:
            stream = peer.read_request()
            answers += 1
            message = b"\xff\xff" if answers < 3 else b"\x0a\x05\x0a\x03u-1"
            peer.send(stream, HEAD, frame(message), DONE)

    with FaultyPeer(http if transport == "http" else grpc) as peer:
        client = open_client(
            f"{transport}://127.0.0.1:{peer.port}", colour, config=ClientConfig(retry=QUICK, timeout=60)
        )
        assert len([record async for record in each(client.usage.export())]) == 1
        await client.close()
    assert answers == 3
