from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.callbacks.conftest import check, recorded

openai = pytest.importorskip("openai", reason="needs the extra [sdks]")
pytest.importorskip("pydantic_ai", reason="needs the extra [sdks]")
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from llm_cost_ops.callbacks.pydantic_ai import CostOpsModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
async def sdk(stub: Stub) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{stub.url}/v1", api_key="k", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_request_is_recorded(kind: Any, streamed: bool, sdk: Any, client: CostOpsClient) -> None:
    model = CostOpsModel(kind("gpt-4o", provider=OpenAIProvider(openai_client=sdk)), client, project_id="p-1")
    with client.attribute(user_id="u-1"):
        if streamed:
            async with Agent(model).run_stream("hi") as result:
                await result.get_output()
        else:
            await Agent(model).run("hi")
    check(client, (1000, 7), "pydantic_ai")
    [record] = recorded(client)
    assert (record.user_id, record.project_id) == ("u-1", "p-1")
    assert record.idempotency_key.startswith("openai:")


async def test_streams_that_break_off_and_failures(sdk: Any, client: CostOpsClient) -> None:
    provider = OpenAIProvider(openai_client=sdk)
    with pytest.raises(ModelHTTPError):
        await Agent(CostOpsModel(OpenAIChatModel("always-fails", provider=provider), client)).run("hi")
    check(client, None, "pydantic_ai")
    model = CostOpsModel(OpenAIChatModel("gpt-4o-stalls", provider=provider), client)
    # Old versions read on, until the stub gives up.
    with contextlib.suppress(Exception):
        async with Agent(model).run_stream("hi") as result:
            async for _ in result.stream_text(debounce_by=None):
                break
    check(client, "unknown", "pydantic_ai")


async def test_the_hook_and_the_model_count_a_call_once(sdk: Any, client: CostOpsClient) -> None:
    client.instrument(sdk, provider="openai")
    provider = OpenAIProvider(openai_client=sdk)
    await Agent(CostOpsModel(OpenAIChatModel("gpt-4o", provider=provider), client)).run("hi")
    assert len(recorded(client)) == 1
    assert client.flush().duplicates == 1
