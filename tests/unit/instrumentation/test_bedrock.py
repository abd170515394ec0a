from __future__ import annotations

import json
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of

boto3 = pytest.importorskip("boto3", reason="needs the extra [sdks]")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
CONVERSE: dict[str, Any] = {"modelId": MODEL, "messages": [{"role": "user", "content": [{"text": "hi"}]}]}
INVOKE = {"modelId": MODEL, "body": json.dumps({"max_tokens": 1})}


def converse(c: Any) -> None:
    assert c.converse(**CONVERSE)["usage"]["inputTokens"] == 1000


def converse_stream(c: Any) -> None:
    events = list(c.converse_stream(**CONVERSE)["stream"])
    assert [next(iter(event)) for event in events] == ["contentBlockDelta"] * 4 + ["metadata"]


def invoke(c: Any) -> None:
    assert b"hello" in c.invoke_model(**INVOKE)["body"].read()


def invoke_stream(c: Any) -> None:
    assert len(list(c.invoke_model_with_response_stream(**INVOKE)["body"])) == 5


def closed_early(c: Any) -> None:
    stream = c.converse_stream(**CONVERSE)["stream"]
    next(iter(stream))
    stream.close()


def never_read(c: Any) -> None:
    c.converse_stream(**CONVERSE)


@pytest.fixture
def sdk(stub: Stub) -> Any:
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=stub.url,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (converse, "measured"),
        (converse_stream, "measured"),
        (invoke, "measured"),
        (invoke_stream, "measured"),
        (closed_early, "unknown"),
        (never_read, "unknown"),
    ],
)
def test_each_way_to_call_is_recorded_once(way: Any, expected: str, sdk: Any, client: CostOpsClient) -> None:
    assert client.instrument(client.instrument(sdk)) is sdk
    way(sdk)
    record = only_record(client, expected)
    assert record.provider == "aws"
    assert record.model_id == MODEL
    assert record.region == "us"
    assert record.idempotency_key.startswith("aws:")


def test_a_client_can_be_let_go(sdk: Any, client: CostOpsClient) -> None:
    client.uninstrument(client.instrument(sdk))
    converse(sdk)
    assert records_of(client) == []
