"""What the matrix does not say of boto3's client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageQuality
from tests.sdk_stub import INPUT, OUTPUT, Stub
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.unit.instrumentation.ways_others import BEDROCK_MODEL, CONVERSE

boto3 = pytest.importorskip("boto3", reason="needs the extra [sdks]")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def sdk(stub: Stub) -> Any:
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=stub.url,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )


def test_the_key_is_the_id_of_the_request(sdk: Any, client: CostOpsClient) -> None:
    assert client.instrument(client.instrument(sdk)) is sdk
    sdk.converse(**CONVERSE)
    record = only_record(client, "usage")
    assert record.idempotency_key.startswith("aws:")
    assert (record.model_id, record.region) == (BEDROCK_MODEL, "us")


def test_a_client_can_be_let_go(sdk: Any, client: CostOpsClient) -> None:
    client.uninstrument(client.instrument(sdk))
    sdk.converse(**CONVERSE)
    assert records_of(client) == []


def test_the_hook_is_still_there(sdk: Any) -> None:
    """The client tells its service and takes handlers of events under ids."""
    assert sdk.meta.service_model.service_name == "bedrock-runtime"
    assert callable(sdk.meta.events.register)
    assert callable(sdk.meta.events.unregister)


class AioStream:
    """An event stream of aiobotocore: its events are awaited."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        for event in self._events:
            yield event

    def close(self) -> None:
        self.closed = True


METADATA = {"metadata": {"usage": {"inputTokens": INPUT, "outputTokens": OUTPUT}}}


def test_an_embedding_has_its_count_in_a_header(client: CostOpsClient) -> None:
    events = pytest.importorskip("botocore.hooks").HierarchicalEmitter()
    model = SimpleNamespace(service_name="bedrock-runtime")
    client.instrument(SimpleNamespace(meta=SimpleNamespace(service_model=model, events=events)))
    context: dict[str, Any] = {}
    headers = {"x-amzn-bedrock-input-token-count": "7"}
    parsed = {"body": object(), "ResponseMetadata": {"RequestId": "r-1", "HTTPHeaders": headers}}
    call = "bedrock-runtime.InvokeModel"
    params = {"modelId": "amazon.titan-embed-text-v2:0"}
    events.emit(f"provide-client-params.{call}", params=params, context=context)
    response = SimpleNamespace(status_code=200)
    events.emit(f"after-call.{call}", http_response=response, parsed=parsed, context=context)
    [record] = records_of(client)
    assert (record.input_tokens, record.output_tokens) == (7, 0)
    assert record.quality is not UsageQuality.UNKNOWN


async def read_to_the_end(stream: Any) -> None:
    assert [event async for event in stream] == [{"messageStart": {}}, METADATA]


async def close_after_the_first(stream: Any) -> None:
    assert await anext(aiter(stream)) == {"messageStart": {}}
    stream.close()


@pytest.mark.parametrize(
    ("read", "expected"), [(read_to_the_end, "usage"), (close_after_the_first, "unknown")]
)
async def test_a_stream_of_aiobotocore_is_awaited_as_before(
    client: CostOpsClient, read: Any, expected: str
) -> None:
    events = pytest.importorskip("botocore.hooks").HierarchicalEmitter()
    model = SimpleNamespace(service_name="bedrock-runtime")
    client.instrument(SimpleNamespace(meta=SimpleNamespace(service_model=model, events=events)))
    context: dict[str, Any] = {}
    parsed = {"stream": AioStream([{"messageStart": {}}, METADATA]), "ResponseMetadata": {"RequestId": "r-1"}}
    call = "bedrock-runtime.ConverseStream"
    events.emit(f"provide-client-params.{call}", params={"modelId": BEDROCK_MODEL}, context=context)
    response = SimpleNamespace(status_code=200)
    events.emit(f"after-call.{call}", http_response=response, parsed=parsed, context=context)
    await read(parsed["stream"])
    assert parsed["stream"].closed == (expected == "unknown")
    only_record(client, expected)
