"""What the matrix does not say of google-genai's client."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.instrumentation.genai import METHODS
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import check, only_record, records_of
from tests.unit.instrumentation.ways_google import ASK

# The SDK leaves connections of aiohttp and httpx to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


@pytest.fixture
def sdk(stub: Stub) -> Iterator[Any]:
    genai = pytest.importorskip("google.genai", reason="needs the extra [sdks]")
    yield genai.Client(api_key="k", vertexai=False, http_options={"base_url": stub.url})
    gc.collect()


def test_the_key_is_the_id_of_the_answer(sdk: Any, client: CostOpsClient) -> None:
    client.instrument(sdk).models.generate_content(**ASK)
    assert only_record(client, "usage").idempotency_key.startswith("google:")


def test_a_stream_closed_early_keeps_what_was_seen(sdk: Any, client: CostOpsClient) -> None:
    parts = client.instrument(sdk).models.generate_content_stream(**ASK)
    next(parts)
    parts.close()
    assert only_record(client, "unknown").input_tokens == 1000


def test_the_hook_goes(sdk: Any, client: CostOpsClient) -> None:
    client.instrument(client.instrument(sdk))
    client.uninstrument(sdk)
    sdk.models.generate_content(**ASK)
    assert records_of(client) == []
    assert not set(METHODS) & set(vars(sdk._api_client))


def test_the_hook_is_still_there(sdk: Any) -> None:
    for name in METHODS:
        assert callable(getattr(sdk._api_client, name))
    assert sdk.aio._api_client is sdk.models._api_client is sdk._api_client


ANSWER = {
    "candidates": [{"index": 0, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 7, "totalTokenCount": 1007},
}


class OldApiClient:
    """As before 1.21: what passes are the objects that the texts are."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def request(self, http_method: str, path: str) -> Any:
        return self.answer

    def request_streamed(self, http_method: str, path: str) -> Iterator[Any]:
        yield self.answer

    async def async_request(self, http_method: str, path: str) -> Any:
        return self.answer

    async def async_request_streamed(self, http_method: str, path: str) -> AsyncIterator[Any]:
        async def parts() -> AsyncIterator[Any]:
            yield self.answer

        return parts()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(ANSWER, "usage"), ({}, "unknown"), (["odd"], "unknown"), ({"a": object()}, "unknown")],
)
async def test_whatever_a_version_passes_on_reaches_the_caller(
    client: CostOpsClient, answer: Any, expected: str
) -> None:
    sdk = SimpleNamespace(_api_client=OldApiClient(answer))
    client.instrument(sdk)
    path = "models/gemini-2.5-flash"
    assert sdk._api_client.request("post", f"{path}:generateContent") is answer
    assert await sdk._api_client.async_request("post", f"{path}:generateContent") is answer
    parts = sdk._api_client.request_streamed("post", f"{path}:streamGenerateContent")
    assert [each is answer for each in parts] == [True]
    later = await sdk._api_client.async_request_streamed("post", f"{path}:streamGenerateContent")
    assert [each is answer async for each in later] == [True]
    sdk._api_client.request("get", "batches/1")
    records = records_of(client)
    assert len(records) == 4
    for record in records:
        check(record, expected)
