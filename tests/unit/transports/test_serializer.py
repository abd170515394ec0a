"""Bodies in a form of the user's own, over HTTP and gRPC, sync and async."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import msgspec
import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    ConfigurationError,
    ConflictError,
    CostOpsClient,
    CostOpsError,
    UsageRecord,
    ValidationError,
)
from llm_cost_ops.testing import ScriptedTransport
from tests.waiting import MAX_WAIT

CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}
RECEIPT = {"usage_id": "u-1", "estimated_cost": "0.0075", "new_field": [1, {"a": None}]}


class Msgpack:
    content_type = "application/msgpack"

    def encode(self, value: Any) -> bytes:
        return msgspec.msgpack.encode(value)

    def decode(self, data: bytes) -> Any:
        return msgspec.msgpack.decode(data)


pack = msgspec.msgpack.encode


def over_http(
    colour: str,
    answer: Callable[[httpx.Request], httpx.Response],
    call: Callable[[Any], Any],
    serializer: Any = None,
) -> Any:
    transport = httpx.MockTransport(answer)
    settings: dict[str, Any] = {
        "base_url": "https://costs.test",
        "api_key": "k",
        "serializer": serializer or Msgpack(),
    }
    if colour == "sync":
        with httpx.Client(transport=transport) as http, CostOpsClient(http_client=http, **settings) as client:
            return call(client)

    async def run() -> Any:
        async with (
            httpx.AsyncClient(transport=transport) as http,
            AsyncCostOpsClient(http_client=http, **settings) as client,
        ):
            return await call(client)

    return asyncio.run(run())


def packed(value: Any, status: int = 201, kind: str = "application/msgpack; v=1") -> httpx.Response:
    return httpx.Response(status, content=pack(value), headers={"content-type": kind})


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_http_bodies_are_in_the_serializers_form_both_ways(colour: str) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return packed({"data": RECEIPT})

    receipt = over_http(colour, answer, lambda client: client.usage.submit(**CALL, input_tokens=10**12))
    assert (receipt.usage_id, str(receipt.estimated_cost)) == ("u-1", "0.0075")
    assert bytes(receipt.unknown_.json["new_field"]) == b'[1,{"a":null}]', "what is not known stays"
    assert seen[0].headers["content-type"] == "application/msgpack"
    assert seen[0].headers["accept"] == "application/msgpack, application/json;q=0.5"
    told = msgspec.msgpack.decode(seen[0].content)
    assert told["input_tokens"] == 10**12
    assert told["organization_id"] == "acme"


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_server_may_answer_in_json_and_to_calls_without_a_body(colour: str) -> None:
    summary = {"data": {"total_cost": "1.5"}}
    answers = iter([httpx.Response(200, json=summary), packed(summary, 200)])
    for _ in range(2):
        told = over_http(colour, lambda _request: next(answers), lambda client: client.costs.get())
        assert str(told.total_cost) == "1.5"


def test_streams_over_http_stay_lines_of_json() -> None:
    kinds: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        kinds.append(request.headers["accept"])
        return httpx.Response(200, text='{"id":"u-1"}\n', headers={"content-type": "application/x-ndjson"})

    assert [r.id for r in over_http("sync", answer, lambda client: list(client.usage.export()))] == ["u-1"]
    assert kinds == ["application/x-ndjson, application/json"]


@pytest.mark.parametrize("kind", ["application/msgpack", "application/json"])
def test_errors_are_read_in_either_form(kind: str) -> None:
    body = {"error": {"code": "TAKEN", "message": "no"}, "request_id": "r-1"}
    content = pack(body) if kind.endswith("msgpack") else json.dumps(body).encode()
    refused = httpx.Response(409, content=content, headers={"content-type": kind})
    with pytest.raises(ConflictError) as caught:
        over_http("sync", lambda _request: refused, lambda client: client.usage.submit(**CALL))
    assert (caught.value.message, caught.value.code) == ("no", "TAKEN")
    assert caught.value.response == body


@pytest.mark.parametrize("content", [b"", b"\xc1", pack(5), pack({"data": 5}), b"{}"])
def test_an_answer_that_can_not_be_read_is_an_error_of_the_answer(content: bytes) -> None:
    garbled = httpx.Response(201, content=content, headers={"content-type": "application/msgpack"})
    with pytest.raises(CostOpsError) as caught:
        over_http("sync", lambda _request: garbled, lambda client: client.usage.submit(**CALL, retry=None))
    assert caught.value.maybe_applied
    refused = httpx.Response(409, content=content, headers={"content-type": "application/msgpack"})
    with pytest.raises(ConflictError):
        over_http("sync", lambda _request: refused, lambda client: client.usage.submit(**CALL))


@pytest.mark.parametrize("base_url", ["https://costs.test", "grpc://127.0.0.1:1"])
def test_what_encode_raises_is_the_callers_and_nothing_is_sent(base_url: str) -> None:
    class Broken(Msgpack):
        def encode(self, value: Any) -> bytes:
            raise KeyError("no key to sign with")

    class Text(Msgpack):
        def encode(self, value: Any) -> Any:
            return "text"

    with (
        CostOpsClient(base_url=base_url, api_key="k", serializer=Broken()) as client,
        pytest.raises(KeyError, match="sign"),
    ):
        client.usage.submit(**CALL)
    with (
        CostOpsClient(base_url=base_url, api_key="k", serializer=Text()) as client,
        pytest.raises(TypeError, match="must return bytes, not str"),
    ):
        client.usage.submit(**CALL)


class Gateway(grpc.GenericRpcHandler):
    """Speaks msgpack over gRPC."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def service(self, details: Any) -> Any:
        if details.method.endswith("/SubmitUsage"):
            return grpc.unary_unary_rpc_method_handler(self.submit, msgspec.msgpack.decode, pack)
        if details.method.endswith("/ExportUsage"):
            return grpc.unary_stream_rpc_method_handler(self.export, msgspec.msgpack.decode, pack)
        return grpc.stream_stream_rpc_method_handler(self.stream, msgspec.msgpack.decode, pack)

    def submit(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return {"data": RECEIPT} if request["usage"]["model_id"] == "gpt-4o" else 5

    def export(self, request: Any, context: Any) -> Iterator[Any]:
        yield from ({"records": [{"id": f"u-{number}"}]} for number in range(3))

    def stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        told = list(requests)
        self.requests += told
        yield {"durable": len(told), "created": len(told)}


@contextmanager
def gateway() -> Iterator[tuple[Gateway, str]]:
    handler = Gateway()
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield handler, f"grpc://127.0.0.1:{port}"
        finally:
            server.stop(None).wait(MAX_WAIT)


async def calls(client: Any) -> tuple[Any, list[str], CostOpsError]:
    async def either(result: Any) -> Any:
        return await result if hasattr(result, "__await__") else result

    receipt = await either(client.usage.submit(**CALL, input_tokens=7))
    exported = client.usage.export()
    ids = [r.id async for r in exported] if hasattr(exported, "__aiter__") else [r.id for r in exported]
    with pytest.raises(CostOpsError) as caught:
        await either(client.usage.submit(**{**CALL, "model_id": "other"}, retry=None))
    streamed = await either(client.usage.stream(UsageRecord(**CALL) for _ in range(2)))
    assert streamed.created == 2
    return receipt, ids, caught.value


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_grpc_messages_are_in_the_serializers_form_both_ways(colour: str) -> None:
    async def run(url: str) -> Any:
        kind: Any = CostOpsClient if colour == "sync" else AsyncCostOpsClient
        client = kind(base_url=url, api_key="k", serializer=Msgpack())
        try:
            return await calls(client)
        finally:
            closing = client.close()
            if closing is not None:
                await closing

    with gateway() as (handler, url):
        receipt, ids, garbled = asyncio.run(run(url))
    assert (receipt.usage_id, str(receipt.estimated_cost)) == ("u-1", "0.0075")
    assert handler.requests[0]["usage"]["input_tokens"] == 7
    assert handler.requests[0]["usage"]["organization_id"] == "acme"
    assert handler.requests[-1]["records"][0]["organization_id"] == "acme", "a stream's, too"
    assert ids == ["u-0", "u-1", "u-2"]
    assert garbled.maybe_applied


def test_the_embedded_engine_and_a_leaf_of_ones_own_take_none() -> None:
    with pytest.raises(ConfigurationError, match="the embedded engine serializes nothing") as caught:
        CostOpsClient(base_url="sqlite://", serializer=Msgpack())
    assert caught.value.parameter == "serializer"
    for parameter, value in (("serializer", Msgpack()), ("http_client", httpx.Client())):
        with pytest.raises(ConfigurationError, match="transport of your own") as caught:
            CostOpsClient(base_url="http://x", transport=ScriptedTransport(), **{parameter: value})
        assert caught.value.parameter == parameter


@pytest.mark.parametrize("kind", [None, "", "msgpack", "a/b\r\nx: y", "A/B", "a/b; c=d", 5])
def test_what_is_no_serializer_is_refused(kind: Any) -> None:
    wrong = Msgpack()
    wrong.content_type = kind
    for serializer in (wrong, object(), "json", type("Half", (), {"content_type": "a/b", "encode": print})()):
        with pytest.raises(ConfigurationError) as caught:
            CostOpsClient(base_url="http://x", api_key="k", serializer=serializer)
        assert caught.value.parameter == "serializer"


def test_rules_are_checked_before_anything_is_encoded() -> None:
    with pytest.raises(ValidationError):
        over_http("sync", lambda _request: packed({}), lambda client: client.usage.submit(provider="openai"))
