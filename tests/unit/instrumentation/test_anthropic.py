from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageQuality
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of, run

anthropic = pytest.importorskip("anthropic", reason="needs the extra [sdks]")

MODEL = "claude-stub"
ASKED: dict[str, Any] = {"max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
ASK = {"model": MODEL, **ASKED}


def create(c: Any) -> None:
    assert c.messages.create(**ASK).usage.input_tokens == 1000


def gzipped(c: Any) -> None:
    assert c.messages.create(model=f"{MODEL}-gzip", **ASKED).usage.input_tokens == 1000


def beta(c: Any) -> None:
    assert c.beta.messages.create(**ASK).usage.input_tokens == 1000


def stream(c: Any) -> None:
    assert len(list(c.messages.create(**ASK, stream=True))) == 17


def stream_helper(c: Any) -> None:
    with c.messages.stream(**ASK) as events:
        assert "".join(events.text_stream) == "hello" * 12
        assert events.get_final_message().usage.output_tokens == 7


def stream_gzipped(c: Any) -> None:
    assert len(list(c.messages.create(model=f"{MODEL}-gzip", **ASKED, stream=True))) == 17


def stream_streaming(c: Any) -> None:
    with c.messages.with_streaming_response.create(**ASK, stream=True) as answer:
        assert b"message_stop" in answer.read()


def raw(c: Any) -> None:
    answer = c.messages.with_raw_response.create(**ASK)
    assert answer.headers["x-stub"] == "yes"
    assert answer.parse().usage.output_tokens == 7


def streaming(c: Any) -> None:
    with c.messages.with_streaming_response.create(**ASK) as answer:
        assert answer.parse().usage.output_tokens == 7


def with_options(c: Any) -> None:
    c.with_options(timeout=5).messages.create(**ASK)


def post(c: Any) -> None:
    c.post("/v1/messages", body=ASK, cast_to=object)


def retried(c: Any) -> None:
    c.messages.create(model=f"{MODEL}-fails-once-{id(c)}", **ASKED)


def closed_early(c: Any) -> None:
    events = c.messages.create(**ASK, stream=True)
    next(events)
    events.close()


def dropped(c: Any) -> None:
    with pytest.raises(Exception, match=r"(?i)connection|closed|peer"):
        list(c.messages.create(model=f"{MODEL}-drops", **ASKED, stream=True))


async def a_create(c: Any) -> None:
    assert (await c.messages.create(**ASK)).usage.input_tokens == 1000


async def a_stream(c: Any) -> None:
    assert len([event async for event in await c.messages.create(**ASK, stream=True)]) == 17


async def a_stream_helper(c: Any) -> None:
    async with c.messages.stream(**ASK) as events:
        assert (await events.get_final_message()).usage.output_tokens == 7


async def a_raw(c: Any) -> None:
    assert (await c.messages.with_raw_response.create(**ASK)).headers["x-stub"] == "yes"


async def a_streaming(c: Any) -> None:
    async with c.messages.with_streaming_response.create(**ASK) as answer:
        await answer.parse()


async def a_with_options(c: Any) -> None:
    await c.with_options(timeout=5).messages.create(**ASK)


async def a_retried(c: Any) -> None:
    await c.messages.create(model=f"{MODEL}-fails-once-{id(c)}", **ASKED)


async def a_closed_early(c: Any) -> None:
    async with c.messages.stream(**ASK) as events:
        await anext(aiter(events))


async def a_cancelled(c: Any) -> None:
    events = await c.messages.create(model=f"{MODEL}-slow", **ASKED, stream=True)

    async def consume() -> None:
        async for _ in events:
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.12)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


SYNC = {
    "measured": [
        create, gzipped, beta, stream, stream_helper, stream_gzipped, stream_streaming, raw, streaming,
        with_options, post, retried,
    ],
    "unknown": [closed_early, dropped],
}  # fmt: skip
ASYNC = {
    "measured": [a_create, a_stream, a_stream_helper, a_raw, a_streaming, a_with_options, a_retried],
    "unknown": [a_closed_early, a_cancelled],
}


def _ways(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(way, want, id=way.__name__) for want, ways in table.items() for way in ways]


@pytest.mark.parametrize(("way", "expected"), _ways(SYNC))
def test_each_way_to_call_is_recorded_once(
    way: Any, expected: str, stub: Stub, client: CostOpsClient
) -> None:
    with anthropic.Anthropic(api_key="k", base_url=stub.url) as sdk:
        assert client.instrument(sdk) is sdk
        way(sdk)
        record = only_record(client, expected)
    assert record.provider == "anthropic"
    assert record.model_id.startswith(MODEL)


@pytest.mark.parametrize(("way", "expected"), _ways(ASYNC))
async def test_each_async_way_to_call_is_recorded_once(
    way: Any, expected: str, stub: Stub, client: CostOpsClient
) -> None:
    async with anthropic.AsyncAnthropic(api_key="k", base_url=stub.url) as sdk:
        client.instrument(sdk)
        await run(way, sdk)
        only_record(client, expected)


def test_a_stream_closed_early_keeps_what_was_seen(stub: Stub, client: CostOpsClient) -> None:
    with anthropic.Anthropic(api_key="k", base_url=stub.url) as sdk:
        closed_early(client.instrument(sdk, provider="anthropic"))
    record = only_record(client, "unknown")
    assert record.input_tokens == 1000
    assert record.idempotency_key.startswith("anthropic:msg_")


def test_errors_and_counting_are_not_recorded(stub: Stub, client: CostOpsClient) -> None:
    with anthropic.Anthropic(api_key="k", base_url=stub.url, max_retries=0) as sdk:
        client.instrument(sdk)
        with pytest.raises(anthropic.InternalServerError):
            sdk.messages.create(model="always-fails", **ASKED)
        with pytest.raises(anthropic.NotFoundError):
            sdk.messages.count_tokens(model=MODEL, messages=ASKED["messages"])
    assert records_of(client) == []


async def test_twenty_at_once(stub: Stub, client: CostOpsClient) -> None:
    async with anthropic.AsyncAnthropic(api_key="k", base_url=stub.url) as sdk:
        client.instrument(sdk)
        await asyncio.gather(*(a_stream(sdk) for _ in range(20)))
        records = records_of(client)
    assert [record.quality == UsageQuality.UNKNOWN for record in records] == [False] * 20


def test_the_hook_is_still_there() -> None:
    """The SDK sends with `send` of an httpx client in `_client`, and derived clients share it."""
    with anthropic.Anthropic(api_key="k") as sdk:
        assert callable(sdk._client.send)
        assert callable(sdk._client.build_request)
        assert sdk.with_options(timeout=1)._client is sdk._client
