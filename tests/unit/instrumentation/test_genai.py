from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.instrumentation.genai import METHODS
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of, run

genai = pytest.importorskip("google.genai", reason="needs the extra [sdks]")

# The SDK leaves connections of aiohttp and httpx to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)

ASK = {"model": "gemini-2.5-flash", "contents": "hi"}


def create(c: Any) -> None:
    assert c.models.generate_content(**ASK).usage_metadata.prompt_token_count == 1000


def stream(c: Any) -> None:
    assert len(list(c.models.generate_content_stream(**ASK))) == 6


def chat(c: Any) -> None:
    assert c.chats.create(model=ASK["model"]).send_message("hi").text == "hello"


def chat_stream(c: Any) -> None:
    assert len(list(c.chats.create(model=ASK["model"]).send_message_stream("hi"))) == 6


async def a_create(c: Any) -> None:
    assert (await c.aio.models.generate_content(**ASK)).usage_metadata.prompt_token_count == 1000


async def a_stream(c: Any) -> None:
    assert len([part async for part in await c.aio.models.generate_content_stream(**ASK)]) == 6


def closed_early(c: Any) -> None:
    parts = c.models.generate_content_stream(**ASK)
    next(parts)
    parts.close()


async def a_closed_early(c: Any) -> None:
    parts = await c.aio.models.generate_content_stream(**ASK)
    await anext(parts)
    await parts.aclose()
    # The SDK leaves the inner generator to the collector, and its end to the loop.
    del parts
    gc.collect()
    await asyncio.sleep(0.05)


@pytest.fixture
def sdk(stub: Stub) -> Iterator[Any]:
    yield genai.Client(api_key="k", vertexai=False, http_options={"base_url": stub.url})
    gc.collect()


@pytest.mark.parametrize("way", [create, stream, chat, chat_stream, a_create, a_stream])
async def test_each_way_to_call_is_recorded_once(way: Any, sdk: Any, client: CostOpsClient) -> None:
    assert client.instrument(sdk) is sdk
    await run(way, sdk)
    record = only_record(client, "measured")
    assert (record.provider, record.model_id) == ("google", "gemini-2.5-flash")
    assert record.idempotency_key.startswith("google:")


@pytest.mark.parametrize("way", [closed_early, a_closed_early])
async def test_what_is_closed_early_is_unknown(way: Any, sdk: Any, client: CostOpsClient) -> None:
    await run(way, client.instrument(sdk))
    assert only_record(client, "unknown").input_tokens == 1000


def test_errors_are_not_recorded_and_the_hook_goes(sdk: Any, client: CostOpsClient) -> None:
    client.instrument(client.instrument(sdk))
    with pytest.raises(genai.errors.APIError):
        sdk.models.count_tokens(**ASK)
    client.uninstrument(sdk)
    create(sdk)
    assert records_of(client) == []
    assert not set(METHODS) & set(vars(sdk._api_client))


def test_the_hook_is_still_there(sdk: Any) -> None:
    for name in METHODS:
        assert callable(getattr(sdk._api_client, name))
    assert sdk.aio._api_client is sdk.models._api_client is sdk._api_client
