"""The hooks in mistralai and cohere."""

from __future__ import annotations

import gc
import json
from typing import Any

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import INPUT, OUTPUT
from tests.unit.instrumentation.matrix import only_record

# Neither SDK closes the HTTP clients that it makes by itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def check(*http_clients: Any) -> None:
    for http_client in http_clients:
        assert callable(http_client.send)
        assert callable(http_client.build_request)
    gc.collect()


def test_the_hook_is_still_there_in_mistralai() -> None:
    mistral = pytest.importorskip("mistralai.client", reason="needs the extra [sdks]")
    configuration = mistral.Mistral(api_key="k").sdk_configuration
    check(configuration.client, configuration.async_client)


def test_the_hook_is_still_there_in_cohere() -> None:
    cohere = pytest.importorskip("cohere", reason="needs the extra [sdks]")
    clients = (cohere.ClientV2("k"), cohere.AsyncClientV2("k"))
    check(*(each._client_wrapper.httpx_client.httpx_client for each in clients))


def test_a_stream_of_coheres_first_version(client: CostOpsClient) -> None:
    cohere = pytest.importorskip("cohere", reason="needs the extra [sdks]")
    counts = {"input_tokens": INPUT, "output_tokens": OUTPUT}
    meta = {"api_version": {"version": "1"}, "billed_units": counts, "tokens": counts}
    answer = {"response_id": "r", "generation_id": "g", "text": "hi", "meta": meta}
    events = [
        {"is_finished": False, "event_type": "stream-start", "generation_id": "g"},
        {"is_finished": False, "event_type": "text-generation", "text": "hi"},
        {"is_finished": True, "event_type": "stream-end", "finish_reason": "COMPLETE", "response": answer},
    ]
    content = "".join(json.dumps(event) + "\n" for event in events)
    headers = {"content-type": "application/stream+json"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=content, headers=headers))
    with httpx.Client(transport=transport) as http:
        sdk = client.instrument(cohere.Client("k", httpx_client=http))
        assert len(list(sdk.chat_stream(message="hi", model="command-r"))) == 3
    assert only_record(client, "usage").provider == "cohere"
