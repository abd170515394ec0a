"""What the matrix does not say of anthropic's clients."""

from __future__ import annotations

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record
from tests.unit.instrumentation.ways_anthropic import ASKED, MODEL

anthropic = pytest.importorskip("anthropic", reason="needs the extra [sdks]")


def test_a_stream_closed_early_keeps_what_was_seen(stub: Stub, client: CostOpsClient) -> None:
    with anthropic.Anthropic(api_key="k", base_url=stub.url) as sdk:
        client.instrument(sdk, provider="anthropic")
        events = sdk.messages.create(model=MODEL, **ASKED, stream=True)
        next(events)
        events.close()
    record = only_record(client, "unknown")
    assert record.input_tokens == 1000
    assert record.idempotency_key.startswith("anthropic:msg_")


@pytest.mark.parametrize("kind", ["application-inference-profile", "provisioned-model"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_of_bedrock_whose_name_says_nothing_of_it_is_recorded(
    stub: Stub, client: CostOpsClient, kind: str, *, stream: bool
) -> None:
    model = f"arn:aws:bedrock:us-east-1:123456789012:{kind}/abcdefgh"
    keys = {"aws_access_key": "a", "aws_secret_key": "b", "aws_region": "us-east-1"}
    with anthropic.AnthropicBedrock(base_url=stub.url, **keys) as sdk:
        client.instrument(sdk)
        answer = sdk.messages.create(**{**ASKED, "model": model}, stream=stream)
        if stream:
            list(answer)
    assert only_record(client, "usage").model_id == model


def test_the_hook_is_still_there() -> None:
    """The SDK sends with `send` of an httpx client in `_client`, and derived clients share it."""
    with anthropic.Anthropic(api_key="k") as sdk:
        assert callable(sdk._client.send)
        assert callable(sdk._client.build_request)
        assert sdk.with_options(timeout=1)._client is sdk._client
