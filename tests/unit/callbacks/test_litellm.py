from __future__ import annotations

import asyncio
import base64
import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageRecord
from tests.sdk_stub import Stub
from tests.unit.callbacks.conftest import MESSAGES, check, recorded
from tests.waiting import until

# Else importing it fetches a file of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

litellm = pytest.importorskip("litellm", reason="needs the extra [sdks]")

USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module", autouse=True)
def cleared() -> Iterator[None]:
    """LiteLLM keeps its clients and leaves event loops open: let go of them, without their warnings."""
    before = {id(each) for each in event_loops()}
    yield
    litellm.in_memory_llm_clients_cache.flush_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in event_loops():
            if id(each) not in before and not each.is_running():
                each.close()
        gc.collect()


def event_loops() -> list[asyncio.AbstractEventLoop]:
    return [each for each in gc.get_objects() if isinstance(each, asyncio.AbstractEventLoop)]


@pytest.fixture(autouse=True)
def logger(client: CostOpsClient) -> Iterator[None]:
    from llm_cost_ops.callbacks.litellm import CostOpsLogger

    litellm.callbacks = [CostOpsLogger(client, project_id="p-1")]
    litellm.suppress_debug_info = True
    yield
    litellm.callbacks = []
    for kind in ("input", "success", "failure"):
        getattr(litellm, f"{kind}_callback").clear()
        getattr(litellm, f"_async_{kind}_callback").clear()


def options(stub: Stub, **more: Any) -> dict[str, Any]:
    url = {"api_base": f"{stub.url}/v1", "api_key": "k", "max_retries": 0}
    return {"model": "openai/gpt-4o", "messages": MESSAGES, **url, **more}


def come(client: CostOpsClient, count: int) -> list[UsageRecord]:
    """LiteLLM calls back from a thread or a task of its own."""
    until(lambda: len(recorded(client)) >= count)
    return recorded(client)


def completion(stub: Stub) -> None:
    litellm.completion(**options(stub))


def stream(stub: Stub) -> None:
    list(litellm.completion(**options(stub), stream=True, **USAGE))


def embedding(stub: Stub) -> None:
    litellm.embedding(
        model="openai/text-embedding-3-small", input=["hi"], api_base=f"{stub.url}/v1", api_key="k"
    )


def responses(stub: Stub) -> None:
    litellm.responses(model="openai/gpt-4o", input="hi", api_base=f"{stub.url}/v1", api_key="k")


SYNC = {completion: (1000, 7), stream: (1000, 7), embedding: (1000, 0), responses: (1000, 7)}


@pytest.mark.parametrize("way", SYNC, ids=lambda way: way.__name__)
def test_sync(way: Callable[[Stub], None], stub: Stub, client: CostOpsClient) -> None:
    with client.attribute(user_id="u-1"):
        way(stub)
    [record] = come(client, 1)
    check(client, SYNC[way], "litellm")
    assert (record.user_id, record.project_id) == ("u-1", "p-1")
    assert bool(record.idempotency_key.startswith("openai:")) == (way is not embedding)


@pytest.mark.parametrize("streamed", [False, True])
async def test_async(streamed: bool, stub: Stub, client: CostOpsClient) -> None:
    with client.attribute(user_id="u-1"):
        answer = await litellm.acompletion(**options(stub, stream=streamed, **(USAGE if streamed else {})))
        if streamed:
            async for _ in answer:
                pass
    await asyncio.to_thread(come, client, 1)
    check(client, (1000, 7), "litellm")
    assert recorded(client)[0].user_id == "u-1"


def test_what_litellm_counts_by_itself_is_estimated(stub: Stub, client: CostOpsClient) -> None:
    list(litellm.completion(**options(stub), stream=True))
    [record] = come(client, 1)
    assert record.quality.value == "estimated"


def test_anthropic(stub: Stub, client: CostOpsClient) -> None:
    litellm.completion(**options(stub, model="anthropic/claude-sonnet-4-5", api_base=stub.url))
    come(client, 1)
    check(client, (1000, 7), "litellm", "anthropic")


def test_failed_calls_are_none(stub: Stub, client: CostOpsClient) -> None:
    with pytest.raises(litellm.InternalServerError):
        litellm.completion(**options(stub, model="openai/always-fails"))
    time.sleep(0.3)
    check(client, None, "litellm")


def test_a_response_has_the_provider_s_id() -> None:
    from llm_cost_ops.callbacks.litellm import _original_id

    packed = b"litellm:custom_llm_provider:openai;model_id:None;response_id:resp_1"
    assert _original_id(f"resp_{base64.b64encode(packed).decode()}") == "resp_1"
    assert _original_id("resp_0123456789") == "resp_0123456789"
    assert _original_id(None) == ""
