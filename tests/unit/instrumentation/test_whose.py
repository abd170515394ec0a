"""Whose calls are: what a block says is taken when the request is made, wherever the answer is read."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops import ClientConfig, CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of

CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": []}


def ask(stub: Stub, sdk: httpx.Client) -> None:
    sdk.post(f"{stub.url}/v1/chat/completions", json=CHAT)


def test_a_thread_has_the_block_of_the_context_that_it_runs_in(stub: Stub, client: CostOpsClient) -> None:
    with client.instrument(httpx.Client()) as sdk:
        with client.attribute(user_id="u", project_id="p", session_id="s", labels={"a": "1"}, tags=["t"]):
            context = contextvars.copy_context()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(context.run, ask, stub, sdk).result()
        bare = threading.Thread(target=ask, args=(stub, sdk))
        bare.start()
        bare.join()
    inside, outside = sorted(records_of(client), key=lambda record: record.user_id, reverse=True)
    assert (inside.user_id, inside.project_id, inside.session_id) == ("u", "p", "s")
    assert (inside.labels, inside.tags) == ({"a": "1"}, ["t"])
    assert (outside.user_id, outside.labels, outside.tags) == ("", {}, [])


async def test_tasks_and_threads_of_asyncio_have_their_blocks(stub: Stub, client: CostOpsClient) -> None:
    async with client.instrument(httpx.AsyncClient()) as sdk:
        with client.instrument(httpx.Client()) as blocking:

            async def one(number: int) -> None:
                with client.attribute(user_id=f"u-{number}"):
                    task = asyncio.create_task(sdk.post(f"{stub.url}/v1/chat/completions", json=CHAT))
                    await asyncio.to_thread(ask, stub, blocking)
                await task

            with client.attribute(labels={"outer": "yes"}):
                await asyncio.gather(*(one(number) for number in range(10)))
    found = sorted((record.user_id, record.labels["outer"]) for record in records_of(client))
    assert found == sorted([(f"u-{number}", "yes") for number in range(10)] * 2)


@pytest.mark.parametrize("broken_off", [False, True])
async def test_a_stream_is_whose_it_was_when_it_was_asked_for(
    broken_off: bool, stub: Stub, client: CostOpsClient
) -> None:
    """It is read in another task, inside another block."""
    async with client.instrument(httpx.AsyncClient(), stream_usage=True) as sdk:
        with client.attribute(user_id="asks"):
            request = sdk.build_request(
                "POST", f"{stub.url}/v1/chat/completions", json={**CHAT, "stream": True}
            )
            response = await sdk.send(request, stream=True)

        async def read() -> None:
            with client.attribute(user_id="reads", labels={"by": "reader"}):
                async for _ in response.aiter_bytes():
                    if broken_off:
                        break
                await response.aclose()

        await asyncio.create_task(read())
    record = only_record(client, "unknown" if broken_off else "usage")
    assert (record.user_id, record.labels) == ("asks", {})


NAMES = st.dictionaries(st.sampled_from(["project_id", "user_id", "session_id"]), st.sampled_from("abc"))


@settings(max_examples=25, deadline=None)
@given(st.lists(NAMES, max_size=3), NAMES, NAMES)
def test_the_innermost_block_wins_then_the_sdk_then_the_client(
    blocks: list[dict[str, str]], sdk_says: dict[str, str], later: dict[str, str]
) -> None:
    answer = {
        "id": "c",
        "model": "gpt-4o",
        "choices": [],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    url = "https://llm.example/v1/chat/completions"
    config = ClientConfig(base_url="sqlite://", organization_id="acme")
    with CostOpsClient(config=config) as client:
        sdk = client.instrument(httpx.Client(transport=transport), **sdk_says)

        def inside(rest: list[dict[str, str]]) -> None:
            if rest:
                with client.attribute(**rest[0]):
                    inside(rest[1:])
            else:
                sdk.post(url, json=CHAT)

        inside(blocks)
        with client.attribute(**later):
            client.flush(10)
        (record,) = client.usage.list(organization_id="acme")
    wanted: dict[str, str] = dict(sdk_says)
    for block in blocks:
        wanted.update(block)
    for name in ("project_id", "user_id", "session_id"):
        assert getattr(record, name) == wanted.get(name, "")


def test_opentelemetry_is_not_loaded_for_its_span() -> None:
    code = """
import sys, httpx, llm_cost_ops
from llm_cost_ops import ClientConfig, CostOpsClient
with CostOpsClient(config=ClientConfig(base_url="sqlite://", organization_id="a")) as client:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"usage": None}))
    client.instrument(httpx.Client(transport=transport)).post("https://api.openai.com/v1/responses", json={})
    assert client.flush(10).delivered == 1
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
