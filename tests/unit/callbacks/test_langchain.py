from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from tests.proxies import ANSWER
from tests.sdk_stub import Stub
from tests.unit.callbacks.conftest import check, recorded

pytest.importorskip("langchain_openai", reason="needs the extra [sdks]")
pytest.importorskip("langchain_anthropic", reason="needs the extra [sdks]")
from langchain_anthropic import ChatAnthropic
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_openai import ChatOpenAI

from llm_cost_ops.callbacks.langchain import CostOpsCallbackHandler, _Begun, _record
from llm_cost_ops.callbacks.records import require

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # LangChain leaves its clients to be closed by the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_an_old_version_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.callbacks.records.version", lambda _: "0.2.43.post1")
    with pytest.raises(ImportError, match=r"langchain-core 0\.3 or newer, and 0\.2\.43\.post1 is installed"):
        importlib.reload(sys.modules[CostOpsCallbackHandler.__module__])


def test_a_version_that_nothing_tells_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("llm_cost_ops.callbacks.records.version", version)
    require("langchain-core", "0.3")


def invoke(model: Any, config: Any) -> None:
    model.invoke("hi", config=config)


async def ainvoke(model: Any, config: Any) -> None:
    await model.ainvoke("hi", config=config)


def stream(model: Any, config: Any) -> None:
    assert len(list(model.stream("hi", config=config, stream_usage=True))) > 3


async def astream(model: Any, config: Any) -> None:
    async for _ in model.astream("hi", config=config, stream_usage=True):
        pass


def silent_stream(model: Any, config: Any) -> None:
    list(model.stream("hi", config=config))


def closed_early(model: Any, config: Any) -> None:
    chunks = model.stream("hi", config=config)
    next(chunks)
    chunks.close()


async def aclosed_early(model: Any, config: Any) -> None:
    chunks = model.astream("hi", config=config)
    await anext(chunks)
    await chunks.aclose()


def failing(model: Any, config: Any) -> None:
    model.model_name = "always-fails"
    with pytest.raises(Exception, match="500"):
        model.invoke("hi", config=config)


WAYS = {
    invoke: (1000, 7), ainvoke: (1000, 7), stream: (1000, 7), astream: (1000, 7),
    silent_stream: "unknown", closed_early: "unknown", aclosed_early: "unknown", failing: None,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_openai(way: Callable[..., Any], stub: Stub, client: CostOpsClient) -> None:
    model = ChatOpenAI(model="gpt-4o", base_url=f"{stub.url}/v1", api_key="k", max_retries=0)
    done = way(model, {"callbacks": [CostOpsCallbackHandler(client)]})
    if inspect.isawaitable(done):
        await done
    check(client, WAYS[way], "langchain")


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
@pytest.mark.parametrize("way", ["argument", "OPENAI_API_BASE", "OPENAI_BASE_URL"])
def test_who_serves_a_model_of_openais_api_is_told_by_its_url(
    client: CostOpsClient, monkeypatch: pytest.MonkeyPatch, way: str, path: str
) -> None:
    url = f"https://api.deepseek.com{path}"
    if way != "argument":
        monkeypatch.setenv(way, url)
    answer = {**ANSWER, "id": "chatcmpl-1", "model": "deepseek-chat"}
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer))) as sender:
        stated = {"base_url": url} if way == "argument" else {}
        model = ChatOpenAI(model="deepseek-chat", api_key="k", http_client=sender, **stated)
        model.invoke("hi", config={"callbacks": [CostOpsCallbackHandler(client)]})
    [record] = recorded(client)
    assert (record.provider, record.model_id, record.total_tokens) == ("deepseek", "deepseek-chat", 1007)


def test_responses_completions_and_anthropic(stub: Stub, client: CostOpsClient) -> None:
    config = {"callbacks": [CostOpsCallbackHandler(client)]}
    url = f"{stub.url}/v1"
    ChatOpenAI(model="gpt-4o", base_url=url, api_key="k", use_responses_api=True).invoke("hi", config=config)
    ChatAnthropic(model="claude-sonnet-4-5", base_url=stub.url, api_key="k").invoke("hi", config=config)
    records = recorded(client)
    assert sorted((r.provider, r.model_id, r.input_tokens, r.output_tokens) for r in records) == [
        ("anthropic", "claude-sonnet-4-5", 1000, 7),
        ("openai", "gpt-4o", 1000, 7),
    ]
    assert all(record.estimated_cost for record in records)
    assert {record.idempotency_key.partition("_")[0] for record in records} == {
        "openai:resp",
        "anthropic:msg",
    }


async def test_a_call_belongs_to_its_block(stub: Stub, client: CostOpsClient) -> None:
    model = ChatOpenAI(model="gpt-4o", base_url=f"{stub.url}/v1", api_key="k", max_retries=0)
    handler = CostOpsCallbackHandler(client, project_id="p-1")
    with client.attribute(user_id="u-1"):
        await model.ainvoke("hi", config={"callbacks": [handler]})
    [record] = recorded(client)
    assert (record.user_id, record.project_id) == ("u-1", "p-1")


def test_the_hook_and_the_handler_count_a_call_once(stub: Stub, client: CostOpsClient) -> None:
    model = ChatOpenAI(model="gpt-4o", base_url=f"{stub.url}/v1", api_key="k", max_retries=0)
    client.instrument(model, provider="openai")
    model.invoke("hi", config={"callbacks": [CostOpsCallbackHandler(client)]})
    assert len(recorded(client)) == 1
    assert client.flush().duplicates == 1


def test_what_the_cache_answers_is_no_call(stub: Stub, client: CostOpsClient) -> None:
    model = ChatOpenAI(
        model="gpt-4o", base_url=f"{stub.url}/v1", api_key="k", max_retries=0, cache=InMemoryCache()
    )
    for _ in range(2):
        model.invoke("hi", config={"callbacks": [CostOpsCallbackHandler(client)]})
    assert len(stub.requests) == 1
    assert len(recorded(client)) == 1
    assert client.flush().duplicates == 0


def test_details_are_read_in_all_their_names() -> None:
    usage = {
        "input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100,
        "input_token_details": {
            "flex_cache_read": 400, "flex": 600, "cache_creation": 0,
            "ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 20, "audio": 5,
        },
        "output_token_details": {"flex_reasoning": 50, "audio": 7},
    }  # fmt: skip
    message = AIMessage(content="x", usage_metadata=usage)
    result = LLMResult(generations=[[ChatGeneration(message=message)]])
    record = _record(result, _Begun("google_genai", "gemini-2.5-flash"), 5)
    assert (record.provider, record.model_id, record.service_tier) == ("google", "gemini-2.5-flash", "flex")
    assert (record.cached_tokens, record.cache_write_tokens, record.cache_write_extended_tokens) == (
        400,
        50,
        20,
    )
    assert (record.reasoning_tokens, record.modality.output_audio_tokens) == (50, 7)


def test_texts(stub: Stub, client: CostOpsClient) -> None:
    result = LLMResult(
        generations=[[]],
        llm_output={
            "token_usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
            "model_name": "gpt-3.5-turbo-instruct",
        },
    )
    handler = CostOpsCallbackHandler(client)
    handler.on_llm_start({}, ["x"], run_id=1, metadata={"ls_provider": "openai"})
    handler.on_llm_end(result, run_id=1)
    check(client, (5, 2), "langchain")
