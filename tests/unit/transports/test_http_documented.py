"""The HTTP transports against a mocked server that keeps the documented shapes, in each of its variants."""

from __future__ import annotations

import asyncio
import gzip
import json
from decimal import Decimal

import httpx
import pytest
import respx
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    GetCostSummaryRequest,
    GetHealthRequest,
    GetPriceRequest,
    ListUsageRequest,
    SubmitUsageRequest,
    UsageRecord,
)
from llm_cost_ops._gen.methods import (
    BATCH_SUBMIT_USAGE,
    GET_COST_SUMMARY,
    GET_HEALTH,
    GET_PRICE,
    LIST_USAGE,
    SUBMIT_USAGE,
)
from llm_cost_ops.rpc.context import Metadata, drive
from llm_cost_ops.rpc.status import HTTP_STATUS, RpcError, StatusCode, Violation
from llm_cost_ops.transports.http.client import AsyncHttpTransport, HttpTransport
from llm_cost_ops.transports.http.errors import error_from_response, error_to_response
from llm_cost_ops.transports.net.headers import (
    decode_timeout,
    encode_timeout,
    from_headers,
    retry_after,
    to_headers,
)
from tests.tiny_service import context
from tests.waiting import MAX_WAIT

BASE = "https://costs.example/prefix"
RECORD = SubmitUsageRequest(
    usage=UsageRecord(
        organization_id="org-1", provider="openai", model_id="gpt-4o", input_tokens=3, output_tokens=4
    )
)
RECEIPT = {
    "usage_id": "u-1",
    "organization_id": "org-1",
    "estimated_cost": 0.0125,
    "currency": "USD",
    "processed_at": "2026-01-31T10:00:00Z",
}


@pytest.fixture(params=["sync", "async"])
def call(request):
    """Calls a method in one colour; the response and the context."""

    def run(method, message, ctx=None, **settings):
        if request.param == "sync":
            transport, ctx = HttpTransport(BASE, **settings), ctx or context(method, 5.0)
            try:
                return drive(transport.unary_unary(message, ctx)), ctx
            finally:
                drive(transport.aclose())

        async def main():
            transport, c = (
                AsyncHttpTransport(BASE, **settings),
                ctx or context(method, 5.0, asynchronous=True),
            )
            try:
                return await transport.unary_unary(message, c), c
            finally:
                await transport.aclose()

        return asyncio.run(main())

    return run


@pytest.fixture
def server():
    with respx.mock(assert_all_called=False) as router:
        yield router


def test_submit_sends_the_record_and_takes_the_receipt(call, server):
    route = server.post(f"{BASE}/api/v1/usage").respond(
        201, json={"data": RECEIPT}, headers={"X-Request-Id": "r-1"}
    )
    ctx = context(SUBMIT_USAGE, MAX_WAIT, key="key-1")
    ctx.metadata.add("authorization", "Bearer secret")
    ctx.metadata.add("x-trace-bin", b"\0\1")
    response, ctx = call(SUBMIT_USAGE, RECORD, ctx)
    assert response.data.estimated_cost == Decimal("0.0125")
    assert (ctx.response_status, ctx.request_id) == (201, "r-1")
    assert ctx.response_metadata.get("x-request-id") == "r-1"
    sent = route.calls.last.request
    assert json.loads(sent.content) == {
        "organization_id": "org-1", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 3,
        "output_tokens": 4,
    }  # fmt: skip
    assert sent.headers["authorization"] == "Bearer secret"
    assert sent.headers["idempotency-key"] == "key-1"
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["x-trace-bin"] == "AAE"
    assert 0 < decode_timeout(sent.headers["grpc-timeout"]) <= MAX_WAIT


@pytest.mark.parametrize("cost", ["0.0125", 0.0125, None])
@pytest.mark.parametrize("envelope", [True, False])
def test_money_and_envelopes_in_their_forms(call, server, cost, envelope):
    receipt = RECEIPT | {"estimated_cost": cost}
    server.post(f"{BASE}/api/v1/usage").respond(
        200, json={"data": receipt, "meta": {}} if envelope else receipt
    )
    response, _ = call(SUBMIT_USAGE, RECORD)
    assert response.data.estimated_cost == (None if cost is None else Decimal("0.0125"))
    assert response.data.usage_id == "u-1"


@pytest.mark.parametrize(
    "pagination",
    [
        {"page": 1, "page_size": 2, "total_items": 5, "total_pages": 3, "has_next": True, "has_prev": False},
        {"page": 1, "per_page": 2, "total": 5},
        {"page": 1, "limit": 2, "total_items": 5, "next_cursor": None},
        {"page": 1, "page_size": 2, "total": 5, "total_pages": 3},
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_pages_in_their_forms(call, server, pagination, beside):
    rows = [{"organization_id": "org-1", "model_id": "gpt-4o"}, {"model_id": "m", "new_field": 1}]
    page = pagination if beside else {"pagination": pagination}
    route = server.get(f"{BASE}/api/v1/usage/history").respond(json={"data": rows, **page})
    request = ListUsageRequest(
        organization_id=["org-1"], provider=["a", "b"], label={"team": "search"}, page_size=2
    )
    response, _ = call(LIST_USAGE, request)
    assert [row.model_id for row in response.data] == ["gpt-4o", "m"]
    assert response.pagination.has_next is True
    assert (response.pagination.page_size, response.pagination.total_items) == (2, 5)
    sent = route.calls.last.request.url
    assert sent.params.multi_items() == [
        ("organization_id", "org-1"), ("provider", "a"), ("provider", "b"), ("label[team]", "search"),
        ("page_size", "2"),
    ]  # fmt: skip


def test_costs_in_the_documented_shape(call, server):
    body = {
        "total_cost": "12.5", "currency": "USD", "total_tokens": 10, "total_requests": 2,
        "period_start": "2026-01-01T00:00:00Z", "period_end": "2026-02-01T00:00:00Z",
        "breakdown": [{"dimension": "provider", "value": "x", "cost": 12.5, "tokens": 10, "requests": 2}],
    }  # fmt: skip
    server.get(f"{BASE}/api/v1/costs").respond(json={"data": body})
    response, _ = call(
        GET_COST_SUMMARY, GetCostSummaryRequest(organization_id=["org-1"], group_by=["provider"])
    )
    assert response.data.total_cost == Decimal("12.5")
    assert response.data.breakdown[0].cost == Decimal("12.5")


def test_batches_health_and_ids(call, server):
    server.post(f"{BASE}/api/v1/usage/batch").respond(
        json={"data": {"results": [{"status": "created"}], "created": 1}}
    )
    response, _ = call(BATCH_SUBMIT_USAGE, BatchSubmitUsageRequest(records=[RECORD.usage]))
    assert (response.data.created, response.data.results[0].status) == (1, "created")
    health = {
        "status": "degraded",
        "version": "9",
        "uptime_seconds": 1.5,
        "components": [{"name": "db", "status": "unhealthy"}],
    }
    server.get(f"{BASE}/health").respond(json=health)
    response, _ = call(GET_HEALTH, GetHealthRequest())
    assert (response.status, response.components[0].status) == ("degraded", "unhealthy")
    route = server.get(url__startswith=f"{BASE}/api/v1/pricing/").respond(json={"data": {"id": "a/b"}})
    response, _ = call(GET_PRICE, GetPriceRequest(id="a/b"))
    assert response.data.id == "a/b"
    assert route.calls.last.request.url.raw_path == b"/prefix/api/v1/pricing/a%2Fb"


def test_compressed_answers(call, server):
    body = gzip.compress(json.dumps({"data": RECEIPT}).encode())
    server.post(f"{BASE}/api/v1/usage").respond(201, content=body, headers={"Content-Encoding": "gzip"})
    assert call(SUBMIT_USAGE, RECORD)[0].data.usage_id == "u-1"


DOCUMENTED = {
    "error": {"code": "invalid", "message": "no", "details": [{"field": "a", "description": "b"}]},
    "request_id": "r",
}


@pytest.mark.parametrize(
    ("body", "message", "violations"),
    [
        (json.dumps(DOCUMENTED), "no", [("a", "b")]),
        (
            '{"error": {"code": "x", "message": "no", "details": {"a": ["b", "c"]}}}',
            "no",
            [("a", "b"), ("a", "c")],
        ),
        ('{"message": "no", "errors": {"a": ["b"]}}', "no", [("a", "b")]),
        ('{"message": "no", "errors": [{"field": "a", "message": "b"}]}', "no", [("a", "b")]),
        ('{"message": "no", "errors": ["b"]}', "no", [("", "b")]),
        ('{"error": "no"}', "no", []),
        ('{"detail": "no"}', "no", []),
        ("<html>502</html>", "the server answered with HTTP 422", []),
        ("", "the server answered with HTTP 422", []),
        ("[1]", "the server answered with HTTP 422", []),
        ('{"error": null, "errors": 7}', "the server answered with HTTP 422", []),
    ],
)
def test_errors_in_their_forms(call, server, body, message, violations):
    server.post(f"{BASE}/api/v1/usage").respond(422, text=body, headers={"X-Request-Id": "r"})
    with pytest.raises(RpcError) as raised:
        call(SUBMIT_USAGE, RECORD)
    error = raised.value
    assert (error.code, error.http_status, error.origin) == (StatusCode.INVALID_ARGUMENT, 422, "server")
    assert (error.message, [tuple(v) for v in error.violations], error.request_id) == (
        message,
        violations,
        "r",
    )
    assert error.body == body.encode()


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, "", 7),
        ({"Retry-After": "0.5"}, "", 0.5),
        ({"retry-after-ms": "250", "Retry-After": "9"}, "", 0.25),
        ({}, '{"message": "slow down", "retry_after": 3, "limit": 100}', 3),
        ({}, '{"error": {"message": "slow down", "retry_after": 2.5}}', 2.5),
        ({"Retry-After": "soon"}, "", None),
        ({"Retry-After": "99999999999"}, "", 86400),
        ({"Retry-After": "-5"}, "", None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "", 0),
        ({}, "", None),
    ],
)
def test_retry_hints(call, server, headers, body, seconds):
    server.post(f"{BASE}/api/v1/usage").respond(
        429, text=body, headers={**headers, "X-RateLimit-Limit": "100"}
    )
    with pytest.raises(RpcError) as raised:
        call(SUBMIT_USAGE, RECORD)
    assert (raised.value.code, raised.value.retry_after) == (StatusCode.RESOURCE_EXHAUSTED, seconds)
    assert raised.value.metadata.get("x-ratelimit-limit") == "100"
    assert raised.value.maybe_applied is False


def test_every_status_is_an_error_with_a_code():
    for status in [*range(300, 600), 999]:
        error = error_from_response(status, Metadata(), b"", safe=False, now=0)
        assert error.code is not StatusCode.OK
        assert error.http_status == status
        assert error.maybe_applied is (status == 499 or (status >= 500 and status != 501))


def test_names_in_an_error_are_bounded():
    body = json.dumps({"error": {"code": "c" * 10_000}, "request_id": "r" * 10_000}).encode()
    error = error_from_response(429, Metadata(), body, safe=False, now=0)
    assert (error.error_code, error.request_id) == ("c" * 200, "r" * 200)


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_every_code_goes_to_http_and_comes_back(code):
    error = RpcError(code, "why", violations=[Violation("f", "d")], retry_after=1.2, error_code="")
    status, headers, body = error_to_response(error, "r-1")
    raw = [(name.encode(), value.encode()) for name, value in headers]
    back = error_from_response(status, from_headers(raw), body, safe=True, now=0)
    assert (back.code, back.message, back.violations, back.retry_after) == (
        code,
        "why",
        error.violations,
        1.2,
    )
    assert (back.error_code, back.request_id, back.http_status) == ("", "r-1", HTTP_STATUS[code])


@given(st.text(max_size=30), st.floats(0, 2e9))
def test_retry_after_takes_any_text(text, now):
    hint = retry_after(text, now)
    assert hint is None or 0 <= hint <= 86400


@given(st.floats(0, 1e11))
def test_timeouts_lose_little_and_never_grow(seconds):
    back = decode_timeout(encode_timeout(seconds))
    assert back <= seconds + 1e-9 * max(1, seconds)
    assert back >= min(seconds, 99_999_999 * 3600.0) * (1 - 1e-3) - 1e-6 or seconds < 1e-6


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=30)), max_size=80))
def test_any_headers_become_metadata_that_can_be_sent(headers):
    metadata = from_headers(headers)
    for name, value in to_headers(metadata):
        assert not set(name + value) & set("\r\n\0")
    raw = [(name.encode(), value.encode()) for name, value in to_headers(metadata)]
    assert from_headers(raw, strict=True) == metadata


def test_a_client_of_the_users_own_is_used_and_not_closed():
    seen = []

    def handle(request):
        seen.append(request)
        return httpx.Response(201, json={"data": RECEIPT})

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        transport = HttpTransport(BASE, http_client=client)
        assert drive(transport.unary_unary(RECORD, context(SUBMIT_USAGE, MAX_WAIT))).data.usage_id == "u-1"
        drive(transport.aclose())
        assert not client.is_closed
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("raised", "code", "applied"),
    [
        (httpx.ConnectError("x"), StatusCode.UNAVAILABLE, False),
        (httpx.ConnectTimeout("x"), StatusCode.DEADLINE_EXCEEDED, False),
        (httpx.PoolTimeout("x"), StatusCode.DEADLINE_EXCEEDED, False),
        (httpx.ReadTimeout("x"), StatusCode.DEADLINE_EXCEEDED, True),
        (httpx.WriteError("x"), StatusCode.UNAVAILABLE, True),
        (httpx.ReadError("x"), StatusCode.UNAVAILABLE, True),
        (httpx.RemoteProtocolError("x"), StatusCode.UNAVAILABLE, True),
        (httpx.ProxyError("x"), StatusCode.UNAVAILABLE, False),
        (httpx.UnsupportedProtocol("x"), StatusCode.UNAVAILABLE, False),
        (httpx.TooManyRedirects("x"), StatusCode.UNAVAILABLE, True),
        (httpx.InvalidURL("x"), StatusCode.UNAVAILABLE, True),
        (OSError("x"), StatusCode.UNAVAILABLE, True),
        (RuntimeError("x"), StatusCode.UNAVAILABLE, True),
    ],
)
def test_every_exception_of_the_library_is_mapped(call, server, raised, code, applied):
    server.post(f"{BASE}/api/v1/usage").mock(side_effect=raised)
    with pytest.raises(RpcError) as error:
        call(SUBMIT_USAGE, RECORD)
    assert (error.value.code, error.value.maybe_applied, error.value.origin) == (code, applied, "network")
    assert error.value.__cause__ is not None
