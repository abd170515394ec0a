"""NDJSON at the HTTP listener: bad lines, limits, errors after the head, clients that go away."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import pytest

from llm_cost_ops import AsyncCostOpsClient, ServerError
from llm_cost_ops._gen.messages import ExportUsageResponse, UsageRecord
from llm_cost_ops._gen.methods import EXPORT_USAGE
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.server.limits import AsgiLimits
from llm_cost_ops.service import open_service

RECORD = b'{"organization_id":"a","provider":"openai","model_id":"gpt-4o","input_tokens":5}\n'
NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    service = open_service("sqlite://")
    app = AsgiApp(service.handler, limits=AsgiLimits(max_message_bytes=500))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client
    await service.aclose()


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.content.splitlines()]


@pytest.mark.parametrize("zipped", [False, True])
async def test_bad_lines_are_problems_of_their_own(http: httpx.AsyncClient, zipped: bool) -> None:
    long = RECORD.replace(b"gpt-4o", b"x" * 600)
    body = RECORD + b"{broken\n\n" + long + b'{"usage": 1}\n' + b"[]\n" + RECORD.strip()
    headers = {**NDJSON, "content-encoding": "gzip"} if zipped else NDJSON
    sent = gzip.compress(body) if zipped else body
    [answer] = lines(await http.post("/api/v1/usage/stream", content=sent, headers=headers))
    assert (answer["durable"], answer["created"]) == (6, 2)
    assert [problem["index"] for problem in answer["problems"]] == [1, 2, 3, 4]
    assert "longer than 500 bytes" in answer["problems"][1]["error"]["message"]
    assert len(lines(await http.get("/api/v1/usage/export"))) == 2


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("usage", b'{"provider":"a","provider":"b"}', "provider"),
        ("usage", b'{"labels":{"a":"1","a":"2"}}', "labels.a"),
        ("usage/batch", b'{"records":[],"records":[]}', "records"),
        ("costs/estimate", b'{"input_tokens":1,"input_tokens":1}', "input_tokens"),
        ("pricing", b'{"rates":[{"price":"1","price":"2"}]}', "rates[0].price"),
    ],
)
async def test_a_key_may_come_once_in_a_body(
    http: httpx.AsyncClient, path: str, body: bytes, field: str
) -> None:
    answer = await http.post(f"/api/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    [violation] = answer.json()["error"]["details"]
    assert violation == {"field": field, "description": "is given more than once"}


async def test_a_key_that_comes_twice_harms_its_record_only(http: httpx.AsyncClient) -> None:
    twice = RECORD.replace(b'"a"', b'"b","organization_id":"c"')
    records = b",".join([RECORD, twice, RECORD])
    answer = (await http.post("/api/v1/usage/batch", content=b'{"records":[%s]}' % records)).json()["data"]
    assert (answer["created"], answer["invalid"]) == (2, 1)
    assert "records[1].organization_id is given more than once" in answer["results"][1]["error"]["message"]
    [answer] = lines(await http.post("/api/v1/usage/stream", content=RECORD + twice, headers=NDJSON))
    assert answer["created"] == 1
    assert "organization_id is given more than once" in answer["problems"][0]["error"]["message"]
    exported = lines(await http.get("/api/v1/usage/export"))
    assert [line["organization_id"] for line in exported] == ["a"] * 3


async def test_what_is_refused_before_the_head(http: httpx.AsyncClient) -> None:
    wrong = await http.post("/api/v1/usage/stream", content=b"x", headers={"content-type": "text/csv"})
    assert wrong.status_code == 415
    assert (await http.get("/api/v1/usage/export?order=up")).status_code == 400
    assert (await http.get("/api/v1/usage/export?nope=1")).status_code == 400
    late = await http.get("/api/v1/usage/export", headers={"grpc-timeout": "0m"})
    assert late.status_code == 504
    assert (await http.head("/api/v1/usage/export")).status_code == 200


def failing(records: int, error: Exception) -> AsgiApp:
    async def export(request: Any, context: CallContext) -> AsyncGenerator[ExportUsageResponse, None]:
        for _ in range(records):
            yield ExportUsageResponse(records=[UsageRecord(organization_id="a")])
        raise error

    return AsgiApp(ServiceHandler([(EXPORT_USAGE, export)]))


async def test_an_error_after_the_head_is_the_last_line_and_is_raised() -> None:
    error = RpcError(StatusCode.UNAVAILABLE, "the disk is full", retry_after=2.5, error_code="FULL")
    transport = httpx.ASGITransport(failing(2000, error))
    async with httpx.AsyncClient(transport=transport) as http:
        last = lines(await http.get("http://test/api/v1/usage/export"))[-1]["error"]
        assert (last["status"], last["code"], last["message"]) == (503, "FULL", "the disk is full")
        client = AsyncCostOpsClient(base_url="http://test", http_client=http)
        seen: list[UsageRecord] = []

        async def read() -> None:
            async for record in client.usage.export():
                seen.append(record)  # noqa: PERF401  # how far it came matters

        with pytest.raises(ServerError) as caught:
            await read()
        assert len(seen) == 2000
        assert (caught.value.status_code, caught.value.code, caught.value.retry_after) == (503, "FULL", 2.5)


async def test_a_bug_after_the_head_stays_inside() -> None:
    transport = httpx.ASGITransport(failing(2000, KeyError("secret")))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        response = await http.get("/api/v1/usage/export")
    assert lines(response)[-1]["error"]["message"] == "internal error"
    assert "secret" not in response.text


async def test_a_client_that_goes_away_ends_the_export() -> None:
    closed = asyncio.Event()

    async def export(request: Any, context: CallContext) -> AsyncGenerator[ExportUsageResponse, None]:
        try:
            while True:
                yield ExportUsageResponse(records=[UsageRecord(organization_id="a" * 100)])
                await asyncio.sleep(0)
        finally:
            closed.set()

    gone = asyncio.Event()
    first = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if first:
            return first.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            gone.set()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/v1/usage/export",
        "headers": [],
        "query_string": b"",
    }
    app = AsgiApp(ServiceHandler([(EXPORT_USAGE, export)]))
    async with asyncio.timeout(5):
        await app(scope, receive, send)
    assert closed.is_set()
