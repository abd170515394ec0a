from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, run

MESSAGES = [{"role": "user", "content": "hi"}]


class Mistral:
    NAME, MODEL = "mistral", "mistral-large-latest"

    def __init__(self, stub: Stub) -> None:
        module = pytest.importorskip("mistralai.client", reason="needs the extra [sdks]")
        self.sdk = module.Mistral(api_key="k", server_url=f"{stub.url}/mistral")

    def create(self) -> None:
        assert self.sdk.chat.complete(model=self.MODEL, messages=MESSAGES).usage.prompt_tokens == 1000

    def stream(self) -> None:
        assert len(list(self.sdk.chat.stream(model=self.MODEL, messages=MESSAGES))) == 5

    def closed_early(self) -> None:
        with self.sdk.chat.stream(model=self.MODEL, messages=MESSAGES) as events:
            next(iter(events))

    async def a_create(self) -> None:
        answer = await self.sdk.chat.complete_async(model=self.MODEL, messages=MESSAGES)
        assert answer.usage.prompt_tokens == 1000

    async def a_stream(self) -> None:
        events = await self.sdk.chat.stream_async(model=self.MODEL, messages=MESSAGES)
        assert len([event async for event in events]) == 5


class Cohere:
    NAME, MODEL = "cohere", "command-a-03-2025"

    def __init__(self, stub: Stub) -> None:
        cohere = pytest.importorskip("cohere", reason="needs the extra [sdks]")
        self.sdk = cohere.ClientV2("k", base_url=stub.url)
        self.async_sdk = cohere.AsyncClientV2("k", base_url=stub.url)

    def create(self) -> None:
        assert self.sdk.chat(model=self.MODEL, messages=MESSAGES).usage.tokens.input_tokens == 1000

    def stream(self) -> None:
        assert len(list(self.sdk.chat_stream(model=self.MODEL, messages=MESSAGES))) == 7

    def closed_early(self) -> None:
        events = self.sdk.chat_stream(model=self.MODEL, messages=MESSAGES)
        next(events)
        events.close()

    async def a_create(self) -> None:
        answer = await self.async_sdk.chat(model=self.MODEL, messages=MESSAGES)
        assert answer.usage.tokens.input_tokens == 1000

    async def a_stream(self) -> None:
        events = self.async_sdk.chat_stream(model=self.MODEL, messages=MESSAGES)
        assert len([event async for event in events]) == 7


# Neither SDK closes the HTTP clients that it makes by itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(params=[Mistral, Cohere], ids=["mistral", "cohere"])
def ways(request: pytest.FixtureRequest, stub: Stub) -> Iterator[Any]:
    yield request.param(stub)
    gc.collect()


@pytest.mark.parametrize("way", ["create", "stream", "closed_early", "a_create", "a_stream"])
async def test_each_way_to_call_is_recorded_once(way: str, ways: Any, client: CostOpsClient) -> None:
    client.instrument(ways.sdk)
    if hasattr(ways, "async_sdk"):
        client.instrument(ways.async_sdk)
    await run(lambda _: getattr(ways, way)(), ways.sdk)
    record = only_record(client, "unknown" if way == "closed_early" else "measured")
    assert (record.provider, record.model_id) == (ways.NAME, ways.MODEL)


def test_the_hook_is_still_there(ways: Any) -> None:
    if ways.NAME == "mistral":
        configuration = ways.sdk.sdk_configuration
        found = [configuration.client, configuration.async_client]
    else:
        found = [sdk._client_wrapper.httpx_client.httpx_client for sdk in (ways.sdk, ways.async_sdk)]
    for http_client in found:
        assert callable(http_client.send)
        assert callable(http_client.build_request)
