from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.callbacks.conftest import check, recorded

agents = pytest.importorskip("agents", reason="its websockets is older than that of [sdks]")
openai = pytest.importorskip("openai")

from llm_cost_ops.callbacks.openai_agents import CostOpsTracingProcessor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MODELS = [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel]


@pytest.fixture(autouse=True)
def processor(client: CostOpsClient) -> Iterator[None]:
    agents.set_trace_processors([CostOpsTracingProcessor(client, project_id="p-1")])
    yield
    agents.set_trace_processors([])


@pytest.fixture
async def sdk(stub: Stub) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{stub.url}/v1", api_key="k", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_is_recorded(kind: Any, streamed: bool, sdk: Any, client: CostOpsClient) -> None:
    # Away from OpenAI itself, chat streams are not asked for their usage.
    settings = agents.ModelSettings(include_usage=True)
    agent = agents.Agent(name="x", model=kind("gpt-4o", sdk), model_settings=settings)
    with client.attribute(user_id="u-1"):
        if streamed:
            async for _ in agents.Runner.run_streamed(agent, "hi").stream_events():
                pass
        else:
            await agents.Runner.run(agent, "hi")
    check(client, (1000, 7), "openai_agents")
    [record] = recorded(client)
    assert (record.user_id, record.project_id) == ("u-1", "p-1")
    assert record.session_id.startswith("trace_")


@pytest.mark.parametrize("kind", MODELS)
async def test_failed_calls_are_none_and_cancelled_ones_unknown(
    kind: Any, sdk: Any, client: CostOpsClient
) -> None:
    with pytest.raises(openai.InternalServerError):
        await agents.Runner.run(agents.Agent(name="x", model=kind("always-fails", sdk)), "hi")
    check(client, None, "openai_agents")
    run = agents.Runner.run_streamed(agents.Agent(name="x", model=kind("gpt-4o-stalls", sdk)), "hi")
    async for event in run.stream_events():
        if event.type == "raw_response_event":
            run.cancel()
    [record] = recorded(client)
    assert record.quality.value == "unknown"


async def test_the_hook_and_the_processor_count_a_response_once(sdk: Any, client: CostOpsClient) -> None:
    client.instrument(sdk, provider="openai")
    agent = agents.Agent(name="x", model=agents.OpenAIResponsesModel("gpt-4o", sdk))
    await agents.Runner.run(agent, "hi")
    assert len(recorded(client)) == 1
    assert client.flush().duplicates == 1


def test_a_failed_response_whose_span_has_no_usage(client: CostOpsClient) -> None:
    """As in old versions: what a processor raises ends the run."""
    data = SimpleNamespace(type="response", response=None)
    span: Any = SimpleNamespace(span_data=data, error={"message": "no"})
    CostOpsTracingProcessor(client).on_span_end(span)
    check(client, None, "openai_agents")
