"""What the matrix does not say of google-genai's client."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.instrumentation.genai import METHODS
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.unit.instrumentation.ways_google import ASK

genai = pytest.importorskip("google.genai", reason="needs the extra [sdks]")

# The SDK leaves connections of aiohttp and httpx to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


@pytest.fixture
def sdk(stub: Stub) -> Iterator[Any]:
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
