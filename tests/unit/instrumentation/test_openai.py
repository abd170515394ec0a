"""What the matrix does not say of openai's clients."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.unit.instrumentation.ways_openai import CHAT, MESSAGES

openai = pytest.importorskip("openai", reason="needs the extra [sdks]")


def create(c: Any) -> None:
    assert c.chat.completions.create(**CHAT).usage.prompt_tokens == 1000


def stream(c: Any) -> None:
    chunks = list(c.chat.completions.create(**CHAT, stream=True))
    assert len(chunks) == 5
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def closed_early(c: Any) -> None:
    chunks = c.chat.completions.create(**CHAT, stream=True)
    next(chunks)
    chunks.close()


def test_streams_are_not_asked_of_an_unknown_host(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        stream(client.instrument(sdk))
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
        record = only_record(client, "usage")
    assert (record.project_id, record.user_id) == ("p", "inner")
    assert record.labels == {"a": "1", "b": "2"}


def test_keys_come_from_ids_only_where_they_are_unique(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        create(client.instrument(sdk))
        assert "chatcmpl" not in only_record(client, "usage").idempotency_key
        create(client.instrument(sdk, provider="openai"))
        keys = [record.idempotency_key for record in records_of(client)]
    assert sorted(key.startswith("openai:chatcmpl-") for key in keys) == [False, True]


def test_instrumenting_twice_records_once_and_can_be_undone(stub: Stub, client: CostOpsClient) -> None:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        send = sdk._client.send
        client.instrument(client.instrument(sdk))
        create(sdk)
        only_record(client, "usage")
        client.uninstrument(sdk)
        client.uninstrument(sdk)
        assert sdk._client.send == send
        create(sdk)
        only_record(client, "usage")


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


def test_a_silent_stream_is_told_once(
    stub: Stub, client: CostOpsClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_cost_ops.instrumentation.calls._silent", set())
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1") as sdk:
        client.instrument(sdk, provider="vllm", stream_usage=False)
        for _ in range(2):
            stream(sdk)
        client.flush()
    logged = [record.getMessage() for record in caplog.records if "without usage" in record.getMessage()]
    said = (
        "a stream of vllm ended without usage, and what it cost is not known: ask for it with "
        'stream_options={"include_usage": True}, or instrument(…, stream_usage=True)'
    )
    assert logged == [said]
