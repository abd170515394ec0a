"""HTTP clients are wrapped without any SDK, as are their transports."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from decimal import Decimal
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

import llm_cost_ops
from llm_cost_ops import ClientConfig, ConfigurationError, CostOpsClient
from llm_cost_ops.instrumentation.providers import fetched_of
from llm_cost_ops.rules.providers import provider_at
from llm_cost_ops.types import UsageQuality
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.waiting import MAX_WAIT

CHAT = {"model": "gpt-4o", "messages": []}


def url(stub: Stub) -> str:
    return f"{stub.url}/v1/chat/completions"


def test_a_plain_http_client(stub: Stub, client: CostOpsClient) -> None:
    with client.instrument(httpx.Client()) as sdk:
        assert sdk.post(url(stub), json=CHAT).json()["usage"]["prompt_tokens"] == 1000
        sdk.get(stub.url)
    record = only_record(client, "usage")
    assert record.source == "instrument"
    assert record.latency_ms is not None


def ollama_answers(request: httpx.Request) -> httpx.Response:
    """As Ollama does: a stream is lines of JSON, of which the last has the counts."""
    part: dict[str, Any] = {"model": "llama3.2", "created_at": "2026-01-01T00:00:00.123456789Z"}
    counts = {"done": True, "prompt_eval_count": 1000, "eval_count": 7}
    if request.url.path == "/api/tags":
        return httpx.Response(200, json={"models": []})
    if request.url.path == "/api/embed":
        return httpx.Response(200, json={**part, "embeddings": [[0.5]], "prompt_eval_count": 1000})
    if not json.loads(request.content).get("stream"):
        return httpx.Response(200, json={**part, **counts})
    lines = [{**part, "done": False}, {**part, **counts}]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    kind = {"content-type": "application/x-ndjson"}
    return httpx.Response(200, headers=kind, stream=httpx.ByteStream(content))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed"])
def test_a_client_of_ollama(client: CostOpsClient, path: str, *, stream: bool) -> None:
    """Its SDK sends by httpx, from a client in `_client`."""
    http_client = httpx.Client(
        base_url="http://localhost:11434", transport=httpx.MockTransport(ollama_answers)
    )
    sdk = type("Client", (), {"__module__": "ollama._client", "_client": http_client})()
    client.instrument(sdk)
    http_client.get("/api/tags")
    with http_client.stream("POST", path, json={"model": "llama3.2", "stream": stream}) as response:
        assert sum(1 for _ in response.iter_lines()) == (2 if stream and path != "/api/embed" else 1)
    [record] = records_of(client)
    assert (record.provider, record.model_id) == ("ollama", "llama3.2")
    assert (record.quality is UsageQuality.UNKNOWN, record.input_tokens) == (False, 1000)
    assert record.output_tokens == (0 if path == "/api/embed" else 7)


def test_what_can_not_be_instrumented_is_named(client: CostOpsClient) -> None:
    with pytest.raises(TypeError, match=r"sdk_client: builtins\.dict has no HTTP client"):
        client.instrument({})
    with pytest.raises(TypeError, match=r"google has no HTTP client .* of google-genai 0\.8 or newer"):
        client.instrument(ModuleType("google"))
    old = type("Client", (), {"__module__": "cohere.client"})()
    with pytest.raises(TypeError, match=r"cohere\.client\.Client has .* of cohere 5\.9 or newer"):
        client.instrument(old)
    anyhow: Any = client
    with httpx.Client() as sdk:
        with pytest.raises(ConfigurationError, match="stream_usage must be True, False or 'auto', not 'yes'"):
            anyhow.instrument(sdk, stream_usage="yes")
        with pytest.raises(TypeError, match="team"):
            anyhow.instrument(sdk, team="x")
        client.uninstrument(sdk)
        client.uninstrument(object())


def test_another_wrapper_may_lie_above(stub: Stub, client: CostOpsClient) -> None:
    with client.instrument(httpx.Client()) as sdk:
        ours = sdk.send

        @functools.wraps(ours)
        def above(*args: Any, **kwargs: Any) -> Any:
            return ours(*args, **kwargs)

        vars(sdk)["send"] = above
        client.instrument(sdk)
        sdk.post(url(stub), json=CHAT)
        only_record(client, "usage")
        client.uninstrument(sdk)
        sdk.post(url(stub), json=CHAT)
        only_record(client, "usage")
        assert sdk.send is above


def test_an_answer_that_can_not_be_read_is_unknown(client: CostOpsClient) -> None:
    answers = iter([b"not JSON", b"[1]", b'{"usage": {"prompt_tokens": -1}}', b"{}"])
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=next(answers)))
    with client.instrument(httpx.Client(transport=transport)) as sdk:
        for _ in range(4):
            sdk.post("https://api.openai.com/v1/chat/completions", json=CHAT)
    records = records_of(client)
    assert [record.quality for record in records] == [UsageQuality.UNKNOWN] * 4
    assert {(record.provider, record.model_id) for record in records} == {("openai", "gpt-4o")}


def test_a_content_type_has_no_case(stub: Stub, client: CostOpsClient) -> None:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": []}
    usage = {"prompt_tokens": 1000, "completion_tokens": 7, "total_tokens": 1007}
    body = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({**chunk, "usage": usage}).encode()
    headers = {"content-type": "Text/Event-Stream"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body, headers=headers))
    with client.instrument(httpx.Client(transport=transport)) as sdk:
        sdk.post("https://api.openai.com/v1/chat/completions", json=CHAT)
    only_record(client, "usage")


def test_clients_that_share_their_http_client_are_told_of(
    stub: Stub, client: CostOpsClient, caplog: pytest.LogCaptureFixture
) -> None:
    with httpx.Client() as shared:
        first, second = SimpleNamespace(_client=shared), SimpleNamespace(_client=shared)
        for _ in range(2):
            client.instrument(first, user_id="u-1")
        # Of another one the same is said.
        client.instrument(SimpleNamespace(_client=shared), user_id="u-1")
        assert caplog.text == ""
        for _ in range(2):
            client.instrument(second, user_id="u-2")
        assert caplog.text.count("share an HTTP client") == 1
        client.uninstrument(first)
        client.instrument(second, user_id="u-2")
        assert caplog.text.count("share an HTTP client") == 1


class Copying:
    """A client whose copies send by HTTP clients of their own, as those of AnthropicBedrock do."""

    def __init__(self, http_client: httpx.Client | None = None) -> None:
        self._client = http_client or httpx.Client()

    def copy(self, *, http_client: httpx.Client | None = None) -> Copying:
        return Copying(http_client)

    with_options = copy


def test_what_copies_of_a_client_send_is_recorded(stub: Stub, client: CostOpsClient) -> None:
    with httpx.Client() as given, httpx.Client() as not_recorded:
        sdk = Copying()
        client.instrument(client.instrument(sdk, user_id="u-0"), user_id="u-1")
        copies = [sdk.copy(), sdk.with_options(), sdk.copy().with_options(), sdk.copy(http_client=given)]
        client.instrument(copies[0], user_id="u-2")
        # It is recorded as was said of itself.
        assert sdk.copy(http_client=copies[0]._client)._client is copies[0]._client
        for each in (sdk, *copies):
            each._client.post(url(stub), json=CHAT)
        client.uninstrument(sdk)
        assert not vars(sdk).keys() - {"_client"}
        sdk.copy(http_client=not_recorded)._client.post(url(stub), json=CHAT)
        assert sorted(str(record.user_id) for record in records_of(client)) == [*["u-1"] * 4, "u-2"]
        for each in (sdk, *copies):
            each._client.close()


def test_copies_of_a_copy_are_recorded_as_it_is_itself(stub: Stub, client: CostOpsClient) -> None:
    """It shares an HTTP client, as those of OpenAI do: as was said last of that, and not at all any more."""
    with httpx.Client() as shared, httpx.Client() as given, httpx.Client() as other:
        sdk = client.instrument(Copying(shared), user_id="u-1")
        copied = sdk.copy(http_client=shared)
        client.instrument(sdk, user_id="u-2")
        copied.copy(http_client=given)
        given.post(url(stub), json=CHAT)
        client.uninstrument(sdk)
        for each in (shared, other):
            copied.copy(http_client=each)
            each.post(url(stub), json=CHAT)
    assert [record.user_id for record in records_of(client)] == ["u-2"]


# What SDKs take, as they read JSON with Python's own parser.
TOLERATED = {
    "half of an emoji": b'"\\ud83d"',
    "not a number": b"NaN",
    "infinity": b"-Infinity",
}


@pytest.mark.parametrize("odd", TOLERATED.values(), ids=TOLERATED)
@pytest.mark.parametrize("form", ["whole", "stream", "byte order mark"])
def test_an_answer_that_sdks_can_read_is_recorded(client: CostOpsClient, odd: bytes, form: str) -> None:
    usage = b'"usage":{"input_tokens":1000,"output_tokens":7}'
    body = b'{"id":"resp_1","object":"response","status":"completed","model":"gpt-4o","text":%b,%b}' % (
        odd,
        usage,
    )
    kind = "application/json"
    if form == "stream":
        kind, body = "text/event-stream", b'data: {"type":"response.completed","response":%b}\n\n' % body
    elif form == "byte order mark":
        body = b"\xef\xbb\xbf" + body
    answer = httpx.MockTransport(lambda _: httpx.Response(200, content=body, headers={"content-type": kind}))
    with client.instrument(httpx.Client(transport=answer)) as sdk:
        assert sdk.post("https://api.openai.com/v1/responses", json={"model": "gpt-4o"}).content == body
    assert only_record(client, "usage").idempotency_key == "openai:resp_1"


@pytest.mark.parametrize(
    "odd",
    [
        *(b'"messages":[%b]' % odd for odd in TOLERATED.values()),
        b'"messages":' + b"[" * 10_000 + b"]" * 10_000,
        b'"messages":what is no JSON',
        b'"stream_options":{"x":1e999}',
        b'"stream_options":{"x":"\xff"}',
    ],
)
def test_a_stream_whose_request_can_not_be_changed_is_sent_as_it_is_and_recorded(
    client: CostOpsClient, odd: bytes
) -> None:
    asked = b'{"model":"gpt-4o","stream":true,%b}' % odd
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(200, content=b"data: [DONE]\n\n", headers={"content-type": "text/event-stream"})

    with client.instrument(httpx.Client(transport=httpx.MockTransport(answer))) as sdk:
        sdk.post("https://api.openai.com/v1/chat/completions", content=asked)
    assert seen == [asked]
    [record] = records_of(client)
    assert (record.provider, record.quality) == ("openai", UsageQuality.UNKNOWN)


def test_an_answer_with_texts_that_no_record_may_hold_is_recorded(client: CostOpsClient) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    bodies = [
        {"id": "chatcmpl-1", "model": "m" * 5000, "service_tier": "t" * 100},
        {"id": "chatcmpl-\x00", "model": "a\x00b"},
    ]
    answers = iter([{**body, "object": "chat.completion", "choices": [], "usage": usage} for body in bodies])
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=next(answers)))
    with client.instrument(httpx.Client(transport=transport)) as sdk:
        for _ in bodies:
            sdk.post("https://api.openai.com/v1/chat/completions", json=CHAT)
    records = records_of(client)
    assert {record.model_id for record in records} == {"m" * 255, "a\ufffdb"}
    assert [record.total_tokens for record in records] == [15, 15]


def test_a_client_that_is_closed_harms_no_call(stub: Stub) -> None:
    client = CostOpsClient(config=ClientConfig(base_url="sqlite://", organization_id="acme"))
    with client.instrument(httpx.Client()) as sdk:
        client.close()
        assert sdk.post(url(stub), json=CHAT).status_code == 200
    assert client.flush(0).dropped == 1


def test_what_aws_signed_is_not_changed(stub: Stub, client: CostOpsClient) -> None:
    asked = {**CHAT, "stream": True}
    with client.instrument(httpx.Client(), stream_usage=True) as sdk:
        sdk.post(url(stub), json=asked, headers={"x-amz-date": "20261127T120000Z"})
        sdk.post(url(stub), json=asked)
    assert ["stream_options" in body for _, body in stub.requests] == [False, True]


def test_exceptions_pass_as_they_are(client: CostOpsClient) -> None:
    failure = httpx.ConnectError("no way")

    def fail(_: httpx.Request) -> httpx.Response:
        raise failure

    with client.instrument(httpx.Client(transport=httpx.MockTransport(fail))) as sdk:
        with pytest.raises(httpx.ConnectError) as caught:
            sdk.post("https://api.openai.com/v1/responses", json=CHAT)
        assert caught.value is failure
    assert records_of(client) == []


async def test_an_async_client_with_a_sync_recorder(stub: Stub, client: CostOpsClient) -> None:
    async with client.instrument(httpx.AsyncClient()) as sdk:
        await asyncio.gather(*(sdk.post(url(stub), json=CHAT) for _ in range(5)))
    assert len(records_of(client)) == 5


def test_the_span_around_a_call_is_noted(stub: Stub, client: CostOpsClient) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra [dev]")
    with client.instrument(httpx.Client()) as sdk:
        with trace.TracerProvider().get_tracer("t").start_as_current_span("s") as span:
            sdk.post(url(stub), json=CHAT)
        context = span.get_span_context()
    record = only_record(client, "usage")
    assert (record.trace_id, record.span_id) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


def test_the_clients_own_calls_may_be_instrumented(stub: Stub, client: CostOpsClient) -> None:
    """A call to the cost service is none of a provider's."""
    with client.instrument(httpx.Client()) as sdk:
        sdk.post(f"{stub.url}/api/v1/usage", json={})
    assert records_of(client) == []


PROGRAM = """
import httpx, llm_cost_ops
sdk = llm_cost_ops.instrument(httpx.Client(), labels={"feature": "search"})
sdk.post("URL", json={"model": "gpt-4o", "messages": []})
"""


def test_two_lines_record_a_program(stub: Stub, tmp_path: Any) -> None:
    """What is left is sent when the program ends."""
    environment = {
        "LLM_COST_OPS_BASE_URL": f"sqlite:///{tmp_path}/costs.db",
        "LLM_COST_OPS_ORGANIZATION_ID": "acme",
        "PYTHONPATH": ":".join(sys.path),
    }
    code = PROGRAM.replace("URL", url(stub))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=2 * MAX_WAIT)
    with CostOpsClient(base_url=f"sqlite:///{tmp_path}/costs.db") as client:
        (record,) = client.usage.list(organization_id="acme")
    assert (record.input_tokens, record.labels) == (1000, {"feature": "search"})


def test_the_function_is_not_hidden_by_a_module() -> None:
    assert callable(llm_cost_ops.instrument)
    assert callable(llm_cost_ops.uninstrument)


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("us.api.openai.com", "openai"),
        ("api.eu.mistral.ai", "mistral"),
        ("x.openai.azure.com", "azure"),
        ("x.services.ai.azure.com", "azure"),
        ("us-east5-aiplatform.googleapis.com", "google"),
        ("aiplatform.eu.rep.googleapis.com", "google"),
        ("claude.googleapis.com", "anthropic"),
        ("api.moonshot.cn", "moonshotai"),
        ("api.fireworks.ai", "fireworks"),
        ("bedrock-runtime.us-east-1.amazonaws.com", "aws"),
        ("bedrock-mantle.us-east-1.api.aws", "aws"),
        ("aws-external-anthropic.us-east-1.api.aws", "anthropic"),
        ("127.0.0.1", ""),
        ("notapi.openai.com.example", ""),
    ],
)
def test_a_host_tells_who_serves_it(host: str, provider: str) -> None:
    assert provider_at(host) == provider


@pytest.mark.parametrize(
    ("host", "model", "price"),
    [
        ("api.cerebras.ai", "gpt-oss-120b", "0.35"),
        ("api.together.xyz", "openai/gpt-oss-120b", "0.15"),
        # It has no prices in the catalog: OpenAI's are not its.
        ("router.huggingface.co", "gpt-oss-120b", None),
    ],
)
def test_a_model_of_openai_that_others_serve_is_not_priced_as_openais(
    client: CostOpsClient, host: str, model: str, price: str | None
) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "model": model, "choices": [], "usage": usage}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    with client.instrument(httpx.Client(transport=transport)) as sdk:
        sdk.post(f"https://{host}/v1/chat/completions", json={**CHAT, "model": model})
    [record] = records_of(client)
    assert (record.provider, record.model_id) == (provider_at(host), model)
    assert record.estimated_cost == (None if price is None else Decimal(price))


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/v1/responses/resp_1", "openai.responses"),
        ("POST", "/openai/v1/responses/resp_1/cancel", "openai.responses"),
        ("GET", "/v1/responses/resp_1/cancel", ""),
        ("POST", "/v1/responses/resp_1", ""),
        ("GET", "/v1/responses/resp_1/input_items", ""),
        ("DELETE", "/v1/responses/resp_1", ""),
        ("GET", "/v1beta/interactions/i1", "google.interactions"),
        ("GET", "/v1/files/f1/content", "batch"),
        ("GET", "/v1/files/f1", ""),
        ("GET", "/v1/messages/batches/b1/results", "batch"),
        ("GET", "/v1/messages/batches/b1", ""),
        ("HEAD", "/v1/files/f1/content", ""),
    ],
)
def test_what_a_path_fetches(method: str, path: str, found: str) -> None:
    assert fetched_of(method, path) == found
