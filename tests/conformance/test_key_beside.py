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


def test_a_batch_has_its_key_in_it_or_beside_it(server_urls: dict[str, str], organization: str) -> None:
    """A gateway may drop a header that it does not know, and the batch counts once all the same."""
    url = f"{server_urls['http']}/api/v1/usage/batch"
    own = record(organization)
    own.idempotency_key = "own"
    records = [record(organization).to_dict(), own.to_dict(), record(organization).to_dict()]

    def statuses(body: dict[str, object], headers: dict[str, str]) -> list[str]:
        answer = httpx.post(url, json={"records": records, **body}, headers=headers)
        return [result["status"] for result in answer.raise_for_status().json()["data"]["results"]]

    assert statuses({"idempotency_key": "b"}, {}) == ["created"] * 3
    assert statuses({}, {"idempotency-key": "b"}) == ["duplicate"] * 3
    assert statuses({"idempotency_key": "b"}, {"idempotency-key": "other"}) == ["duplicate"] * 3
    listed = httpx.get(
        f"{server_urls['http']}/api/v1/usage/history", params={"organization_id": organization}
    )
    assert {each["idempotency_key"] for each in listed.json()["data"]} == {"b:0", "own", "b:2"}


@pytest.mark.parametrize("beside", [False, True])
def test_a_batch_whose_key_is_too_long(server_urls: dict[str, str], organization: str, beside: bool) -> None:
    key = "k" * 251
    body = {"records": [record(organization).to_dict()]} | ({} if beside else {"idempotency_key": key})
    headers = {"idempotency-key": key} if beside else {}
    answer = httpx.post(f"{server_urls['http']}/api/v1/usage/batch", json=body, headers=headers)
    assert answer.status_code == 400
    [found] = answer.json()["error"]["details"]
    assert found["field"] == "idempotency_key"
    assert "at most 250 characters, not 251" in found["description"]
