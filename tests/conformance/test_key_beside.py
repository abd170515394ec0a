"""An idempotency key beside a request, in REST and gRPC: the same rules as for one in a record."""

from __future__ import annotations

import grpc
import httpx
import pytest

from llm_cost_ops._gen.codecs import SUBMIT_USAGE_REQUEST, SUBMIT_USAGE_RESPONSE
from llm_cost_ops._gen.messages import SubmitUsageRequest
from llm_cost_ops._gen.methods import SUBMIT_USAGE
from llm_cost_ops.types import UsageRecord

TOO_LONG = "k" * 256


def record(organization: str) -> UsageRecord:
    return UsageRecord(organization_id=organization, provider="openai", model_id="gpt-4o", output_tokens=1)


def test_over_http(server_urls: dict[str, str], organization: str) -> None:
    url = f"{server_urls['http']}/api/v1/usage"
    body = record(organization).to_json()
    ids = [
        httpx.post(url, content=body, headers={"idempotency-key": "k"}).json()["data"]["usage_id"]
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    answer = httpx.post(url, content=body, headers={"idempotency-key": TOO_LONG})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == [
        {"field": "idempotency_key", "description": "must have at most 255 characters, not 256"}
    ]


def test_over_grpc(server_urls: dict[str, str], organization: str) -> None:
    target = server_urls["grpc"].removeprefix("grpc://")
    message = SUBMIT_USAGE_REQUEST.encode(SubmitUsageRequest(usage=record(organization)))
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(SUBMIT_USAGE.path, lambda data: data, SUBMIT_USAGE_RESPONSE.decode)
        receipts = [call(message, metadata=[("idempotency-key", "k")]).data for _ in range(2)]
        assert [receipt.duplicate for receipt in receipts] == [False, True]
        with pytest.raises(grpc.RpcError) as caught:
            call(message, metadata=[("idempotency-key", TOO_LONG)])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "idempotency_key must have at most 255 characters, not 256"
