from __future__ import annotations

import asyncio
import gc
import io
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of, run

openai = pytest.importorskip("openai", reason="needs the extra [sdks]")
pydantic = pytest.importorskip("pydantic", reason="needs the extra [sdks]")

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "gpt-4o", "messages": MESSAGES}
USAGE = {"stream_options": {"include_usage": True}}


Value: Any = pydantic.create_model("Value", value=int)


def create(c: Any) -> None:
    assert c.chat.completions.create(**CHAT).usage.prompt_tokens == 1000


def parse(c: Any) -> None:
    answer = c.chat.completions.parse(**CHAT, response_format=Value)
    assert answer.choices[0].message.parsed.value == 1


def gzipped(c: Any) -> None:
    c.chat.completions.create(model="gpt-4o-gzip", messages=MESSAGES)


def stream(c: Any) -> None:
    chunks = list(c.chat.completions.create(**CHAT, stream=True))
    assert len(chunks) == 5
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def stream_asking(c: Any) -> None:
    chunks = list(c.chat.completions.create(**CHAT, stream=True, **USAGE))
    assert [len(chunk.choices) for chunk in chunks] == [1, 1, 1, 1, 1, 0]
    assert chunks[-1].usage.prompt_tokens == 1000


def stream_declining(c: Any) -> None:
    options = {"include_usage": False, "include_obfuscation": False}
    assert len(list(c.chat.completions.create(**CHAT, stream=True, stream_options=options))) == 5


def stream_gzipped(c: Any) -> None:
    list(c.chat.completions.create(model="gpt-4o-gzip", messages=MESSAGES, stream=True))


def stream_helper(c: Any) -> None:
    with c.chat.completions.stream(**CHAT) as events:
        for _ in events:
            pass
        assert events.get_final_completion().choices[0].message.content == "onetwothreefour"


def stream_raw(c: Any) -> None:
    answer = c.chat.completions.with_raw_response.create(**CHAT, stream=True)
    assert answer.headers["x-stub"] == "yes"
    assert len(list(answer.parse())) == 5


def stream_streaming(c: Any) -> None:
    with c.chat.completions.with_streaming_response.create(**CHAT, stream=True) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert len(lines) == 6


def stream_by_bytes(c: Any) -> None:
    with c.chat.completions.with_streaming_response.create(**CHAT, stream=True) as answer:
        assert b"".join(answer.http_response.iter_raw()).count(b"data: ") == 6


def stream_refusing_options(c: Any) -> None:
    asked = {"model": "gpt-4o-refuses-options", "messages": MESSAGES}
    assert len(list(c.chat.completions.create(**asked, stream=True))) == 5


def raw(c: Any) -> None:
    answer = c.chat.completions.with_raw_response.create(**CHAT)
    assert answer.headers["x-stub"] == "yes"
    assert answer.parse().usage.total_tokens == 1007


def streaming(c: Any) -> None:
    with c.chat.completions.with_streaming_response.create(**CHAT) as answer:
        assert answer.parse().usage.total_tokens == 1007


def streaming_gzipped(c: Any) -> None:
    asked = {"model": "gpt-4o-gzip", "messages": MESSAGES}
    with c.chat.completions.with_streaming_response.create(**asked) as answer:
        assert b"".join(answer.http_response.iter_raw())[:2] == b"\x1f\x8b"


def with_options(c: Any) -> None:
    c.with_options(timeout=5).chat.completions.create(**CHAT)


def post(c: Any) -> None:
    c.post("/chat/completions", body=CHAT, cast_to=object)


def retried(c: Any) -> None:
    c.chat.completions.create(model=f"gpt-4o-fails-once-{id(c)}", messages=MESSAGES)


def responses(c: Any) -> None:
    assert c.responses.create(model="gpt-4o", input="hi").usage.input_tokens == 1000


def responses_parse(c: Any) -> None:
    assert c.responses.parse(model="gpt-4o", input="hi", text_format=Value).output_parsed.value == 1


def responses_stream(c: Any) -> None:
    assert len(list(c.responses.create(model="gpt-4o", input="hi", stream=True))) == 13


def responses_helper(c: Any) -> None:
    with c.responses.stream(model="gpt-4o", input="hi") as events:
        assert events.get_final_response().usage.output_tokens == 7


def embeddings(c: Any) -> None:
    assert len(c.embeddings.create(model="text-embedding-3-small", input="hi").data[0].embedding) == 2


def images(c: Any) -> None:
    assert c.images.generate(model="gpt-image-1", prompt="a cat").data


def transcription(c: Any) -> None:
    file = ("a.wav", io.BytesIO(b"\x00" * 40_000))
    assert c.audio.transcriptions.create(model="gpt-4o-transcribe", file=file).text == "hello"


def speech(c: Any) -> None:
    answer = c.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hello")
    assert len(answer.content) == 100


def unasked(c: Any) -> None:
    assert len(list(c.chat.completions.create(**CHAT, stream=True))) == 5


def closed_early(c: Any) -> None:
    chunks = c.chat.completions.create(**CHAT, stream=True)
    next(chunks)
    chunks.close()


def abandoned(c: Any) -> None:
    chunks = c.chat.completions.create(**CHAT, stream=True)
    next(chunks)
    del chunks
    gc.collect()


def never_begun(c: Any) -> None:
    c.chat.completions.create(**CHAT, stream=True)
    gc.collect()


def dropped(c: Any) -> None:
    asked = {"model": "gpt-4o-drops", "messages": MESSAGES}
    with pytest.raises(Exception, match=r"(?i)connection|closed|peer"):
        list(c.chat.completions.create(**asked, stream=True))


def responses_closed(c: Any) -> None:
    events = c.responses.create(model="gpt-4o", input="hi", stream=True)
    next(events)
    events.close()


async def a_create(c: Any) -> None:
    assert (await c.chat.completions.create(**CHAT)).usage.prompt_tokens == 1000


async def a_parse(c: Any) -> None:
    answer = await c.chat.completions.parse(**CHAT, response_format=Value)
    assert answer.choices[0].message.parsed.value == 1


async def a_stream(c: Any) -> None:
    chunks = [chunk async for chunk in await c.chat.completions.create(**CHAT, stream=True)]
    assert len(chunks) == 5
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def a_stream_asking(c: Any) -> None:
    chunks = [chunk async for chunk in await c.chat.completions.create(**CHAT, stream=True, **USAGE)]
    assert len(chunks) == 6


async def a_stream_helper(c: Any) -> None:
    async with c.chat.completions.stream(**CHAT) as events:
        async for _ in events:
            pass


async def a_stream_refusing_options(c: Any) -> None:
    asked = {"model": "gpt-4o-refuses-options", "messages": MESSAGES}
    assert len([chunk async for chunk in await c.chat.completions.create(**asked, stream=True)]) == 5


async def a_raw(c: Any) -> None:
    answer = await c.chat.completions.with_raw_response.create(**CHAT)
    assert answer.parse().usage.total_tokens == 1007


async def a_streaming(c: Any) -> None:
    async with c.chat.completions.with_streaming_response.create(**CHAT) as answer:
        assert (await answer.parse()).usage.total_tokens == 1007


async def a_with_options(c: Any) -> None:
    await c.with_options(timeout=5).chat.completions.create(**CHAT)


async def a_post(c: Any) -> None:
    await c.post("/chat/completions", body=CHAT, cast_to=object)


async def a_retried(c: Any) -> None:
    await c.chat.completions.create(model=f"gpt-4o-fails-once-{id(c)}", messages=MESSAGES)


async def a_responses(c: Any) -> None:
    await c.responses.create(model="gpt-4o", input="hi")


async def a_responses_stream(c: Any) -> None:
    events = [e async for e in await c.responses.create(model="gpt-4o", input="hi", stream=True)]
    assert len(events) == 13


async def a_embeddings(c: Any) -> None:
    await c.embeddings.create(model="text-embedding-3-small", input="hi")


async def a_transcription(c: Any) -> None:
    file = ("a.wav", io.BytesIO(b"\x00" * 40_000))
    await c.audio.transcriptions.create(model="gpt-4o-transcribe", file=file)


async def a_closed_early(c: Any) -> None:
    chunks = await c.chat.completions.create(**CHAT, stream=True)
    await anext(chunks)
    await chunks.close()


async def a_cancelled(c: Any) -> None:
    chunks = await c.chat.completions.create(model="gpt-4o-slow", messages=MESSAGES, stream=True)

    async def consume() -> None:
        async for _ in chunks:
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.08)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


SYNC = {
    "measured": [
        create, parse, gzipped, stream, stream_asking, stream_declining, stream_gzipped, stream_helper,
        stream_raw, stream_streaming, stream_by_bytes, raw, streaming, streaming_gzipped, with_options, post,
        retried, responses, responses_parse, responses_stream, responses_helper, images, transcription,
    ],
    "input": [embeddings],
    "unknown": [
        stream_refusing_options, speech, closed_early, abandoned, never_begun, dropped, responses_closed,
    ],
}  # fmt: skip
ASYNC = {
    "measured": [
        a_create, a_parse, a_stream, a_stream_asking, a_stream_helper, a_raw, a_streaming, a_with_options,
        a_post, a_retried, a_responses, a_responses_stream, a_transcription,
    ],
    "input": [a_embeddings],
    "unknown": [a_stream_refusing_options, a_closed_early, a_cancelled],
}  # fmt: skip


def _ways(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(way, want, id=way.__name__) for want, ways in table.items() for way in ways]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("way", "expected"), _ways(SYNC))
def test_each_way_to_call_is_recorded_once(
    way: Any, expected: str, stub: Stub, client: CostOpsClient
) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        assert client.instrument(sdk, stream_usage=True) is sdk
        way(sdk)
        record = only_record(client, expected)
    assert record.provider == "openai"
    assert record.model_id.startswith(("gpt-", "text-embedding-"))


@pytest.mark.parametrize(("way", "expected"), _ways(ASYNC))
async def test_each_async_way_to_call_is_recorded_once(
    way: Any, expected: str, stub: Stub, client: CostOpsClient
) -> None:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        client.instrument(sdk, stream_usage=True)
        await run(way, sdk)
        only_record(client, expected)


def test_streams_are_not_asked_of_an_unknown_host(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        unasked(client.instrument(sdk))
        only_record(client, "unknown")
    assert "stream_options" not in stub.requests[0][1]


def test_errors_are_not_recorded(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1", max_retries=0) as sdk:
        client.instrument(sdk, stream_usage=True)
        with pytest.raises(openai.InternalServerError):
            sdk.chat.completions.create(model="always-fails", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="this is bad"):
            sdk.chat.completions.create(model="bad-request", messages=MESSAGES, stream=True)
    assert records_of(client) == []
    assert len(stub.requests) == 2


def test_a_host_that_refused_is_not_asked_again(stub: Stub, client: CostOpsClient) -> None:
    import httpx2

    to_stub = httpx2.HTTPTransport(proxy=None)

    class ToStub(httpx2.BaseTransport):
        def handle_request(self, request: Any) -> Any:
            request.url = httpx2.URL(f"{stub.url}/v1/chat/completions")
            return to_stub.handle_request(request)

    asked = {"model": "gpt-4o-refuses-options", "messages": MESSAGES}
    with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=ToStub())) as sdk:
        client.instrument(sdk)
        for _ in range(2):
            assert len(list(sdk.chat.completions.create(**asked, stream=True))) == 5
    assert ["stream_options" in body for _, body in stub.requests] == [True, False, False]
    records = records_of(client)
    assert [record.idempotency_key[:16] for record in records] == ["openai:chatcmpl-"] * 2


async def test_twenty_at_once(stub: Stub, client: CostOpsClient) -> None:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        client.instrument(sdk, stream_usage=True)

        async def one(number: int) -> None:
            with client.attribute(user_id=f"u-{number}"):
                chunks = await sdk.chat.completions.create(**CHAT, stream=True)
            assert len([chunk async for chunk in chunks]) == 5

        await asyncio.gather(*(one(number) for number in range(20)))
        records = records_of(client)
    assert {record.user_id for record in records} == {f"u-{number}" for number in range(20)}
    assert {record.input_tokens for record in records} == {1000}


def test_whose_a_call_is(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        client.instrument(sdk, project_id="p", user_id="outer", labels={"a": "1"}, stream_usage=True)
        with client.attribute(user_id="inner", labels={"b": "2"}):
            chunks = sdk.chat.completions.create(**CHAT, stream=True)
        list(chunks)
        record = only_record(client, "measured")
    assert (record.project_id, record.user_id) == ("p", "inner")
    assert record.labels == {"a": "1", "b": "2"}


def test_keys_come_from_ids_only_where_they_are_unique(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        create(client.instrument(sdk))
        assert "chatcmpl" not in only_record(client, "measured").idempotency_key
        create(client.instrument(sdk, provider="openai"))
        keys = [record.idempotency_key for record in records_of(client)]
    assert sorted(key.startswith("openai:chatcmpl-") for key in keys) == [False, True]


def test_instrumenting_twice_records_once_and_can_be_undone(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        send = sdk._client.send
        client.instrument(client.instrument(sdk))
        create(sdk)
        only_record(client, "measured")
        client.uninstrument(sdk)
        client.uninstrument(sdk)
        assert sdk._client.send == send
        create(sdk)
        only_record(client, "measured")


def test_the_caller_sees_its_own_request(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        client.instrument(sdk, stream_usage=True)
        with sdk.chat.completions.with_streaming_response.create(**CHAT, stream=True) as answer:
            answer.read()
            assert b"stream_options" not in answer.http_request.content
    assert stub.requests[0][1]["stream_options"] == {"include_usage": True}


def test_the_hook_is_still_there() -> None:
    """The SDK sends with `send` of an httpx client in `_client`, and derived clients share it."""
    with openai.OpenAI(api_key="k") as sdk:
        assert callable(sdk._client.send)
        assert callable(sdk._client.build_request)
        assert sdk.with_options(timeout=1)._client is sdk._client


def test_a_broken_recorder_harms_no_call(
    stub: Stub, client: CostOpsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("boom")

    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        client.instrument(sdk, stream_usage=True)
        monkeypatch.setattr(client._recording, "observe", broken)
        create(sdk)
        stream(sdk)
        closed_early(sdk)
