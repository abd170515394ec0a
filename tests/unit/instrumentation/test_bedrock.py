"""What the matrix does not say of boto3's client."""

from __future__ import annotations

from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
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
