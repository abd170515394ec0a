from __future__ import annotations

import gc
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.callbacks.conftest import check, recorded

models = pytest.importorskip("llama_index.llms.openai", reason="its openai is older than that of [sdks]")
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import ChatMessage

from llm_cost_ops.callbacks.llama_index import CostOpsEventHandler

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHAT = [ChatMessage(role="user", content="hi")]
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(autouse=True)
def handler(client: CostOpsClient) -> Iterator[None]:
    handlers = get_dispatcher().event_handlers
    handlers.append(CostOpsEventHandler(client, project_id="p-1"))
    yield
    handlers.pop()
    # It leaves its clients to the garbage collector, whose warnings would come anywhere.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def chat(model: Any) -> None:
    model.chat(CHAT)


def complete(model: Any) -> None:
    model.complete("hi")


async def achat(model: Any) -> None:
    await model.achat(CHAT)


def stream(model: Any) -> None:
    list(model.stream_chat(CHAT, **USAGE))


async def astream(model: Any) -> None:
    async for _ in await model.astream_chat(CHAT, **USAGE):
        pass


def silent_stream(model: Any) -> None:
    list(model.stream_chat(CHAT))


def closed_early(model: Any) -> None:
    chunks = model.stream_chat(CHAT)
    next(chunks)
    chunks.close()


WAYS = {
    chat: (1000, 7), complete: (1000, 7), achat: (1000, 7), stream: (1000, 7), astream: (1000, 7),
    silent_stream: "unknown", closed_early: "unknown",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_openai(way: Callable[..., Any], stub: Stub, client: CostOpsClient) -> None:
    model = models.OpenAI(model="gpt-4o", api_base=f"{stub.url}/v1", api_key="k", max_retries=0)
    with client.attribute(user_id="u-1"):
        done = way(model)
        if inspect.isawaitable(done):
            await done
    check(client, WAYS[way], "llama_index")
    [record] = recorded(client)
    assert (record.user_id, record.project_id) == ("u-1", "p-1")


@pytest.mark.parametrize("way", [chat, silent_stream], ids=lambda way: way.__name__)
def test_responses(way: Callable[..., Any], stub: Stub, client: CostOpsClient) -> None:
    way(models.OpenAIResponses(model="gpt-4o", api_base=f"{stub.url}/v1", api_key="k", max_retries=0))
    check(client, (1000, 7), "llama_index")


def test_failed_calls_are_none(stub: Stub, client: CostOpsClient) -> None:
    model = models.OpenAI(model="gpt-4o-always-fails", api_base=f"{stub.url}/v1", api_key="k", max_retries=0)
    with pytest.raises(Exception):  # noqa: B017, PT011  # it has several of its own
        model.chat(CHAT)
    check(client, None, "llama_index")
