"""POST /v1/traces: what becomes of spans, in both encodings, and whose they are."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.imports.spans import Span, calls_of
from llm_cost_ops.ledger import open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.server import AsgiLimits, asgi_app, otlp
from llm_cost_ops.service.access.keys import create_key
from llm_cost_ops.wire import DecodeError
from tests.tiny_service import PUT_NOTE

PROTOBUF = "application/x-protobuf"
TRACE = "5b8efff798038103d269b633813fc60c"
CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.response.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 500,
}
ID = "chatcmpl-DbPQ3v1kTzq7Lh2nWcX0yRf8"
STARTED = 1_773_144_000 * 10**9


def key_values(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
    return [
        {"key": key, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}
        for key, value in attributes.items()
    ]


def span(number: int, attributes: dict[str, Any], *, parent: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": f"{number:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "startTimeUnixNano": str(STARTED),
        "endTimeUnixNano": str(STARTED + 2_500_000_000),
        "attributes": key_values(attributes),
        **more,
    }


def request(*spans: dict[str, Any], resource: dict[str, Any] | None = None) -> dict[str, Any]:
    attributes = key_values(resource or {})
    return {
        "resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [{"spans": list(spans)}]}]
    }


def to_json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def to_protobuf(body: dict[str, Any]) -> bytes:
    """The request as Google's protobuf writes it."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    from google.protobuf.json_format import ParseDict

    encoded = json.loads(json.dumps(body))
    for each in encoded["resourceSpans"]:
        for scope in each["scopeSpans"]:
            for one in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    one[name] = base64.b64encode(bytes.fromhex(one[name])).decode()
    data: bytes = ParseDict(encoded, service.ExportTraceServiceRequest()).SerializeToString()
    return data


def answered(response: httpx.Response) -> tuple[int, str]:
    """The rejected spans and the message of a response."""
    assert response.status_code == 200, response.content
    if response.headers["content-type"] == "application/json":
        partial = response.json().get("partialSuccess", {})
        return int(partial.get("rejectedSpans", 0)), partial.get("errorMessage", "")
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    partial = service.ExportTraceServiceResponse.FromString(response.content).partial_success
    return partial.rejected_spans, partial.error_message


_opened: list[Traces] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Whatever a test opened is closed after it."""
    yield
    while _opened:
        traces = _opened.pop()
        await traces.client.aclose()
        await traces.ledger.aclose()


class Traces:
    """An app with a ledger in memory, and what it holds."""

    def __init__(self, **options: Any) -> None:
        self.ledger = open_ledger("sqlite://")
        self.app = asgi_app(self.ledger, **{"require_keys": False, **options})
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")
        _opened.append(self)

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        if isinstance(body, bytes):
            kind, content = PROTOBUF, body
        else:
            kind, content = "application/json", json.dumps(body).encode()
        sent = {"content-type": kind, "x-lco-organization": "acme"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            "/v1/traces", content=content, headers={k: v for k, v in sent.items() if v}
        )

    async def records(self, **headers: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (
            await self.client.get("/api/v1/usage/history", headers=headers)
        ).json()["data"]
        return found

    async def key(self, *organizations: str, role: str = "writer") -> str:
        runtime = AsyncRuntime()
        context = CallContext(PUT_NOTE, runtime, Metadata(), runtime.monotonic() + 5)
        _, key = await create_key(self.ledger.keys, context, organizations=organizations, role=role)
        return f"Bearer {key}"


@pytest.mark.parametrize("encoded", ["json", "protobuf"])
@pytest.mark.parametrize("compressed", [False, True])
async def test_a_call_becomes_a_record(encoded: str, compressed: bool) -> None:
    traces = Traces()
    more = {"gen_ai.usage.cache_read.input_tokens": 400, "session.id": "s-1", "enduser.id": "u-1"}
    body = request(
        span(1, {"gen_ai.operation.name": "invoke_agent", **{k: v for k, v in CALL.items() if "usage" in k}}),
        span(2, {**CALL, **more}, parent=1),
        span(3, {"http.request.method": "GET"}, parent=1),
        resource={"service.name": "shop", "llm_cost_ops.project_id": "p-1"},
    )
    content = json.dumps(body).encode() if encoded == "json" else to_protobuf(body)
    kind = "application/json" if encoded == "json" else PROTOBUF
    headers = {"content_type": kind}
    if compressed:
        content, headers["content_encoding"] = gzip.compress(content), "gzip"
    for _ in range(2):
        response = await traces.post(content, **headers)
        assert answered(response) == (0, "")
        assert response.headers["content-type"] == kind
    [record] = await traces.records()
    assert (record["input_tokens"], record["output_tokens"], record["cached_tokens"]) == (1000, 500, 400)
    assert (record["provider"], record["model_id"], record["estimated_cost"]) == ("openai", "gpt-4o", "0.007")
    assert (record["trace_id"], record["span_id"]) == (TRACE, f"{2:016x}")
    assert (record["organization_id"], record["project_id"]) == ("acme", "p-1")
    assert (record["user_id"], record["session_id"], record["labels"]) == ("u-1", "s-1", {"service": "shop"})
    assert (record["latency_ms"], record["timestamp"]) == (2500, "2026-03-10T12:00:00Z")


async def test_of_spans_in_each_other_the_inner_call_counts() -> None:
    traces = Traces()
    unknown = {name: value for name, value in CALL.items() if "usage" not in name}
    body = request(
        span(1, CALL),
        span(2, CALL, parent=1),
        # The framework knows the counts, the SDK below it does not.
        span(3, CALL),
        span(4, unknown, parent=3),
        # A chat with a call for embeddings within: another call.
        span(5, CALL),
        span(6, {**CALL, "gen_ai.operation.name": "embeddings"}, parent=5),
    )
    assert answered(await traces.post(body)) == (0, "")
    assert sorted(int(record["span_id"]) for record in await traces.records()) == [2, 3, 5, 6]


async def test_what_failed_is_not_recorded_and_what_states_no_usage_is_unknown() -> None:
    traces = Traces()
    unknown = {name: value for name, value in CALL.items() if "usage" not in name}
    failed = {"status": {"code": 2}}
    body = request(span(1, unknown, **failed), span(2, unknown), span(3, CALL, **failed))
    for content in (body, to_protobuf(body)):
        assert answered(await traces.post(content)) == (0, "")
    found = {int(record["span_id"]): record for record in await traces.records()}
    assert sorted(found) == [2, 3]
    assert (found[2]["quality"], found[2].get("estimated_cost")) == ("unknown", None)
    assert found[3]["estimated_cost"] == "0.0075"


async def test_counts_that_contradict_each_other_are_unknown() -> None:
    traces = Traces()
    bad = [{"gen_ai.usage.total_tokens": 7}, {"gen_ai.usage.input_tokens": "many"}]
    body = request(*(span(number, {**CALL, **more}) for number, more in enumerate(bad, 1)))
    assert answered(await traces.post(body)) == (0, "")
    assert [record["quality"] for record in await traces.records()] == ["unknown", "unknown"]


async def test_whose_the_spans_are() -> None:
    traces = Traces(require_keys=True)
    assert (await traces.post(request(span(1, CALL)))).status_code == 401
    reader = await traces.key("acme", role="reader")
    assert (await traces.post(request(span(1, CALL)), authorization=reader)).status_code == 403
    one, two = await traces.key("acme"), await traces.key("acme", "other")
    # The key's only organization; then what is named, by the header and by the resource.
    assert answered(await traces.post(request(span(1, CALL)), authorization=one, x_lco_organization="")) == (
        0,
        "",
    )
    response = await traces.post(request(span(2, CALL)), authorization=two, x_lco_organization="")
    assert response.status_code == 400
    assert "x-lco-organization" in response.json()["message"]
    other = {"llm_cost_ops.organization_id": "other"}
    for key, rejected in ((one, 1), (two, 0)):
        count, message = answered(
            await traces.post(request(span(3, CALL), resource=other), authorization=key)
        )
        assert count == rejected
        assert ("organization_id is not one that this API key may use (1 spans)" in message) == bool(rejected)
    found = await traces.records(authorization=two)
    assert sorted((int(r["span_id"]), r["organization_id"]) for r in found) == [(1, "acme"), (3, "other")]


async def test_other_counts_under_a_key_are_told() -> None:
    traces = Traces()
    await traces.post(request(span(1, CALL)))
    changed = request(span(1, {**CALL, "gen_ai.usage.output_tokens": 501}), span(2, CALL))
    for content in (changed, to_protobuf(changed)):
        count, message = answered(await traces.post(content))
        assert count == 1
        assert "idempotency" in message
    assert len(await traces.records()) == 2


async def test_a_span_from_the_future_may_come_again() -> None:
    traces = Traces()
    later = str((int(time.time()) + 3600) * 10**9)
    response = await traces.post(request(span(1, CALL, startTimeUnixNano=later)))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0


async def test_a_span_from_the_future_keeps_back_none_of_the_others() -> None:
    traces = Traces()
    later = str((int(time.time()) + 3600) * 10**9)
    calls = [span(number, CALL) for number in range(2, 1500)]
    body = request(span(1, CALL, startTimeUnixNano=later), *calls)
    for _ in range(2):
        assert (await traces.post(body)).status_code == 503
    costs = (await traces.client.get("/api/v1/costs")).json()
    assert costs["data"]["total_requests"] == len(calls)


async def test_a_call_whose_counts_can_not_be_read_keeps_its_time_and_its_key() -> None:
    traces = Traces()
    wrong = {"gen_ai.usage.input_tokens": -5, "gen_ai.response.id": ID, "gen_ai.system": "gcp.gemini"}
    attributes = {**CALL, **wrong, "gen_ai.provider.name": "openai"}
    foreign = {name: value for name, value in {**CALL, **wrong}.items() if "provider" not in name}
    assert answered(await traces.post(request(span(1, attributes), span(2, foreign)))) == (0, "")
    records = sorted(await traces.records(), key=lambda record: str(record["provider"]))
    assert [record["provider"] for record in records] == ["google", "openai"]
    for record in records:
        assert record["timestamp"].startswith("2026-03-10T12:00:00"), record
        assert (record["quality"], record["latency_ms"]) == ("unknown", 2500)
    assert records[1]["idempotency_key"] == f"openai:{ID}"


def test_a_text_that_was_cut_within_an_emoji_costs_no_span() -> None:
    body = to_json(request(*(span(number, {**CALL, "gen_ai.completion": "cut \ud83d"}) for number in (1, 2))))
    assert b"\\ud83d" in body
    assert [found.attributes["gen_ai.usage.input_tokens"] for found in otlp.json_spans(body)] == [1000, 1000]
    with pytest.raises(DecodeError, match="is not OTLP in JSON: JSON is malformed"):
        list(otlp.json_spans(body[:-20]))


@pytest.mark.parametrize("number", ["--5", "9" * 5000, "\u00b2", ""])
async def test_a_number_in_json_that_is_none_harms_only_its_own_call(number: str) -> None:
    traces = Traces()
    body = request(span(1, CALL), span(2, CALL))
    for pair in body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"]:
        if pair["key"] == "gen_ai.usage.input_tokens":
            pair["value"] = {"intValue": number}
    assert answered(await traces.post(body)) == (0, "")
    found = {record.get("quality"): record.get("total_tokens") for record in await traces.records()}
    assert len(found) == 2
    assert 1500 in found.values()


@pytest.mark.parametrize("name", ["gen_ai.usage.output_tokens", "llm.token_count.prompt"])
async def test_a_count_in_protobuf_that_is_not_finite_harms_only_its_own_call(name: str) -> None:
    traces = Traces()
    body = to_protobuf(
        request(
            span(1, {**(CALL if name in CALL else {}), "llm.model_name": "m", name: 1e300}), span(2, CALL)
        )
    )
    for infinite in (float("inf"), float("nan")):
        content = body.replace(struct.pack("<d", 1e300), struct.pack("<d", infinite))
        assert content != body
        assert answered(await traces.post(content)) == (0, "")
    assert len(await traces.records()) == 2


async def test_texts_that_no_record_may_hold_lose_no_call() -> None:
    traces = Traces()
    texts = {
        "gen_ai.response.model": "m" * 5000,
        "gen_ai.request.model": "a\x00b",
        "user.id": "u\x07",
        "gen_ai.conversation.id": "s" * 300,
        "gen_ai.response.id": "chatcmpl-\x00",
    }
    resource = {"service.name": "shop\x1b[0m"}
    for _ in range(2):
        assert answered(await traces.post(request(span(1, {**CALL, **texts}), resource=resource))) == (0, "")
    [record] = await traces.records()
    assert (record["model_id"], record["requested_model_id"]) == ("m" * 255, "a\ufffdb")
    assert (record["user_id"], record["session_id"]) == ("u\ufffd", "s" * 255)
    assert record["labels"] == {"service": "shop\ufffd[0m"}
    assert record["total_tokens"] == 1500


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"[]", "application/json", 400),
        (b'{"resourceSpans": 5}', "application/json", 400),
        (b'{"resourceSpans": [{"scopeSpans": 5}]}', "application/json", 400),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": 5, "x": "gen_ai.x"}]}]}]}',
            "application/json",
            400,
        ),
        (b"\xff", "application/json", 400),
        (b"\x0a\xff", PROTOBUF, 400),
        (b"\x0a\x05\x12", PROTOBUF, 400),
        (b"{}", "application/json", 200),
        (b"", PROTOBUF, 200),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"x" * 3000, PROTOBUF, 413),
    ],
)
async def test_bodies_that_can_not_be(content: bytes, kind: str, status: int) -> None:
    traces = Traces(limits=AsgiLimits(max_body_bytes=2000, max_message_bytes=1000))
    response = await traces.post(content, content_type=kind)
    assert response.status_code == status
    if status == 200:
        return
    assert await traces.records() == []
    if kind == PROTOBUF:
        assert response.headers["content-type"] == PROTOBUF
        status_pb2 = pytest.importorskip("google.rpc.status_pb2")
        said = status_pb2.Status.FromString(response.content)
        assert (said.code, bool(said.message)) == (3, True)
    else:
        assert response.json()["code"] == 3


async def test_only_posts() -> None:
    traces = Traces()
    response = await traces.client.get("/v1/traces")
    assert (response.status_code, response.headers["allow"]) == (405, "OPTIONS, POST")
    assert (await traces.client.options("/v1/traces")).status_code == 204


def test_many_parts_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MAX_OBJECTS", 10)
    monkeypatch.setattr(otlp, "MAX_FIELDS", 30)
    few, many = request(span(1, dict(list(CALL.items())[:2]))), request(*(span(n, CALL) for n in range(3)))
    for read, encode in ((otlp.json_spans, to_json), (otlp.protobuf_spans, to_protobuf)):
        assert len(list(read(encode(few)))) == 1
        with pytest.raises(DecodeError, match="spans and attributes"):
            list(read(encode(many)))


NAMES = st.sampled_from(
    [
        "gen_ai.x",
        "gen_ai.usage.input_tokens",
        "llm.model_name",
        "user.id",
        "session.id",
        "llm_cost_ops.project_id",
    ]
)
VALUES = (
    st.text(max_size=8)
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)
ATTRIBUTES = st.dictionaries(NAMES, VALUES, max_size=5).map(lambda found: {"gen_ai.system": "x", **found})
SPANS = st.builds(
    lambda number, attributes, parent, failed: span(
        number, attributes, parent=parent, status={"code": 2 if failed else 0}
    ),
    st.integers(1, 2**63),
    ATTRIBUTES,
    st.integers(0, 2**63),
    st.booleans(),
)


@given(st.lists(SPANS, max_size=4), st.dictionaries(st.just("service.name"), VALUES, max_size=1))
def test_both_encodings_say_the_same(spans: list[dict[str, Any]], resource: dict[str, Any]) -> None:
    body = request(*spans, resource=resource)
    from_json = list(otlp.json_spans(json.dumps(body).encode()))
    from_protobuf = list(otlp.protobuf_spans(to_protobuf(body)))
    assert from_json == [each._replace(start=str(each.start), end=str(each.end)) for each in from_protobuf]
    assert [each.attributes for each in from_protobuf] == [
        {pair["key"]: _plain(pair["value"]) for pair in each["attributes"]} for each in spans
    ]


def _plain(value: dict[str, Any]) -> Any:
    [(kind, inner)] = value.items()
    return int(inner) if kind == "intValue" else inner


@given(st.binary(max_size=60), st.integers(0, 400))
def test_no_bytes_raise_anything_else(data: bytes, cut: int) -> None:
    good = to_protobuf(request(span(1, CALL)))
    for broken in (data, good[:cut], good[:cut] + data, good[:cut] + data + good[cut:]):
        try:
            assert all(isinstance(each, Span) for each in calls_of(otlp.protobuf_spans(broken)))
        except DecodeError:
            pass


def test_a_float_is_read_as_it_is() -> None:
    body = to_protobuf(request(span(1, {"gen_ai.usage.input_tokens": 5.0})))
    [found] = otlp.protobuf_spans(body)
    assert struct.pack("<d", 5.0) in body
    assert found.attributes == {"gen_ai.usage.input_tokens": 5.0}
