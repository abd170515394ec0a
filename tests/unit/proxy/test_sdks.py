"""The SDKs of OpenAI and Anthropic, pointed at the proxy: each way to call is recorded once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageRecord
from tests.proxies import running_proxy
from tests.sdk_stub import Stub, running_stub
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.waiting import until

openai = pytest.importorskip("openai", reason="needs the extra [sdks]")
anthropic = pytest.importorskip("anthropic", reason="needs the extra [sdks]")

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "gpt-4o", "messages": MESSAGES}
USAGE = {"stream_options": {"include_usage": True}}
CLAUDE = {"model": "claude-opus-4-6", "max_tokens": 9, "messages": MESSAGES}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server


@pytest.fixture
def proxy(stub: Stub, client: CostOpsClient) -> Iterator[str]:
    with running_proxy({"openai": stub.url, "anthropic": stub.url}, client) as url:
        yield url


def count(chunks: int) -> Callable[[Any], None]:
    def check(stream: Any) -> None:
        assert len(list(stream)) == chunks

    return check


def tokens(answer: Any) -> None:
    usage = answer.usage
    assert getattr(usage, "prompt_tokens", None) or usage.input_tokens == 1000


def only(client: CostOpsClient, expected: str) -> UsageRecord:
    """The one record, which may come a bit later: a caller that has all events may not wait for the end."""
    until(lambda: records_of(client))
    return only_record(client, expected)


WAYS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], None]]] = {
    "create": (lambda c: c.chat.completions.create(**CHAT), tokens),
    "gzip": (lambda c: c.chat.completions.create(model="gpt-4o-gzip", messages=MESSAGES), tokens),
    "stream": (lambda c: c.chat.completions.create(**CHAT, stream=True), count(5)),
    "stream asking": (lambda c: c.chat.completions.create(**CHAT, **USAGE, stream=True), count(6)),
    "stream gzip": (
        lambda c: c.chat.completions.create(model="gpt-4o-gzip", messages=MESSAGES, stream=True, **USAGE),
        count(6),
    ),
    "options refused": (
        lambda c: c.chat.completions.create(model="gpt-4o-refuses-options", messages=MESSAGES, stream=True),
        count(5),
    ),
    "retried": (
        lambda c: c.chat.completions.create(model=f"gpt-4o-fails-once-{id(c)}", messages=MESSAGES),
        tokens,
    ),
    "responses": (lambda c: c.responses.create(model="gpt-4o", input="hi"), tokens),
    "responses stream": (lambda c: c.responses.create(model="gpt-4o", input="hi", stream=True), count(13)),
    "embeddings": (lambda c: c.embeddings.create(model="text-embedding-3-small", input="hi"), tokens),
    "images": (lambda c: c.images.generate(model="gpt-image-1", prompt="hi"), tokens),
    "transcription": (
        lambda c: c.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.mp3", b"x" * 99)),
        tokens,
    ),
}
EXPECTED = {"options refused": "unknown", "embeddings": "input"}


@pytest.mark.parametrize("way", WAYS)
def test_openai(proxy: str, client: CostOpsClient, way: str) -> None:
    call, check = WAYS[way]
    with openai.OpenAI(api_key="sk-1", base_url=f"{proxy}/openai/v1") as sdk:
        check(call(sdk))
    only(client, EXPECTED.get(way, "measured"))


@pytest.mark.parametrize("way", WAYS)
async def test_openai_async(proxy: str, client: CostOpsClient, way: str) -> None:
    call, check = WAYS[way]
    async with openai.AsyncOpenAI(api_key="sk-1", base_url=f"{proxy}/openai/v1") as sdk:
        answer = call(sdk)
        answer = await answer if inspect.isawaitable(answer) else answer
        check([chunk async for chunk in answer] if hasattr(answer, "__aiter__") else answer)
    only(client, EXPECTED.get(way, "measured"))


@pytest.mark.parametrize("model", ["gpt-4o-always-fails", "gpt-4o-bad-request"])
def test_errors_are_the_providers_and_are_not_recorded(proxy: str, client: CostOpsClient, model: str) -> None:
    with (
        openai.OpenAI(api_key="sk-1", base_url=f"{proxy}/openai/v1", max_retries=1) as sdk,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    assert caught.value.status_code == (500 if "fails" in model else 400)
    assert caught.value.body["message"] in ("no", "this is bad")
    assert records_of(client) == []


def test_a_refusal_is_an_error_that_sdks_read(proxy: str, client: CostOpsClient) -> None:
    headers = {"x-lco-oops": "1"}
    with (
        openai.OpenAI(api_key="sk-1", base_url=f"{proxy}/openai/v1", default_headers=headers) as sdk,
        pytest.raises(openai.BadRequestError, match="x-lco-oops is no header of this proxy"),
    ):
        sdk.chat.completions.create(**CHAT)
    with (
        anthropic.Anthropic(api_key="sk-2", base_url=f"{proxy}/anthropic", default_headers=headers) as sdk,
        pytest.raises(anthropic.BadRequestError, match="x-lco-oops is no header of this proxy"),
    ):
        sdk.messages.create(**CLAUDE)
    assert records_of(client) == []


def test_a_stream_that_is_closed_early_is_of_unknown_usage(proxy: str, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="sk-1", base_url=f"{proxy}/openai/v1") as sdk:
        stream = sdk.chat.completions.create(model="gpt-4o-stalls", messages=MESSAGES, stream=True)
        next(iter(stream))
        stream.close()
    assert only(client, "unknown").model_id == "gpt-4o-stalls"


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-opus-4-6-gzip"])
@pytest.mark.parametrize("streamed", [False, True])
def test_anthropic(proxy: str, client: CostOpsClient, model: str, *, streamed: bool) -> None:
    with anthropic.Anthropic(api_key="sk-2", base_url=f"{proxy}/anthropic") as sdk:
        asked = {**CLAUDE, "model": model}
        if streamed:
            with sdk.messages.stream(**asked) as stream:
                assert stream.get_final_message().usage.output_tokens == 7
        else:
            assert sdk.messages.create(**asked).usage.input_tokens == 1000
    assert only(client, "measured").provider == "anthropic"


async def test_anthropic_async(proxy: str, client: CostOpsClient) -> None:
    async with anthropic.AsyncAnthropic(api_key="sk-2", base_url=f"{proxy}/anthropic") as sdk:
        async with sdk.messages.stream(**CLAUDE) as stream:
            message = await stream.get_final_message()
        assert message.usage.output_tokens == 7
    only_record(client, "measured")


@pytest.mark.parametrize("sse", [False, True])
def test_gemini_by_its_paths(stub: Stub, client: CostOpsClient, *, sse: bool) -> None:
    import httpx

    verb = "streamGenerateContent?alt=sse" if sse else "generateContent"
    with running_proxy({"google": stub.url}, client) as url:
        given = httpx.post(f"{url}/google/v1beta/models/gemini-2.5-flash:{verb}", json={"contents": []})
    assert given.status_code == 200
    record = only_record(client, "measured")
    assert (record.provider, record.model_id) == ("google", "gemini-2.5-flash")
    assert record.idempotency_key.startswith("google:0")
