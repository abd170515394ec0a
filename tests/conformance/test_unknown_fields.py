"""A field that a record does not have is refused by name on every way in, unless the caller keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from llm_cost_ops import ClientConfig, CostOpsClient, UsageRecord, ValidationError
from llm_cost_ops._gen.codecs import CREATE_PRICE_REQUEST, USAGE_RECORD
from llm_cost_ops._gen.methods import SUBMIT_USAGE
from tests.conformance.clients import TRANSPORTS, running_server

CALL = {"organization_id": "o", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}
MISSPELT = {**CALL, "output_tokns": 500}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("unknown")
    with running_server(folder, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0") as found:
        yield {**found, "inprocess": f"sqlite:///{folder / 'embedded.db'}"}


def record(fields: dict[str, Any]) -> UsageRecord:
    return USAGE_RECORD.decode_json(json.dumps(fields).encode())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_record_with_a_misspelt_count_is_refused_by_name(urls: dict[str, str], transport: str) -> None:
    with CostOpsClient(base_url=urls[transport]) as client:
        with pytest.raises(ValidationError) as caught:
            client.usage.submit(record(MISSPELT))
        assert [violation.field for violation in caught.value.violations] == ["output_tokns"]
        assert "did you mean output_tokens?" in str(caught.value)
        results = client.usage.submit_batch([record(CALL), record(MISSPELT), record(CALL)]).results
        assert [result.usage is not None for result in results] == [True, False, True]
        assert results[1].error is not None
        assert results[1].error.violations[0].field == "records[1].output_tokns"
        progress = client.usage.stream([record(CALL), record(MISSPELT), record(CALL)])
        assert [problem.index for problem in progress.problems] == [1]
        nested = record({**CALL, "modality": {"input_audio": 5}})
        with pytest.raises(ValidationError, match=r"modality\.input_audio .*did you mean input_audio_tokens"):
            client.usage.submit(nested)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_may_keep_what_a_newer_service_knows(urls: dict[str, str], transport: str) -> None:
    config = ClientConfig(base_url=urls[transport], unknown_fields="keep")
    with CostOpsClient(config=config) as client:
        if transport == "grpc":
            # A protobuf message can't carry a field by its name: to send it without would lose it.
            with pytest.raises(ValidationError, match="newer_count"):
                client.usage.submit(record({**CALL, "newer_count": 5}))
            return
        receipt = client.usage.submit(record({**CALL, "organization_id": "keeps", "newer_count": 5}))
        assert receipt.estimated_cost is not None
        [found] = client.usage.get_history(organization_id="keeps").data
        assert found.unknown_
        assert bytes(found.unknown_.json["newer_count"]) == b"5"
        assert not client.usage.submit_batch([record({**CALL, "newer_count": 6})]).invalid
        progress = client.usage.stream([record({**CALL, "newer_count": 7})])
        assert not progress.problems


def test_a_field_of_a_newer_client_is_kept_whatever_the_codec_of_grpc(urls: dict[str, str]) -> None:
    """A client of ours may write JSON for protobuf, whose newer fields an older server keeps."""
    body = json.dumps({"usage": {**CALL, "newer_count": 5}}).encode()
    in_json = ("llm-cost-ops-codec", "json")
    with grpc.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
        submit = channel.unary_unary(SUBMIT_USAGE.path)
        assert SUBMIT_USAGE.response.decode_json(submit(body, metadata=[in_json])).data
        refuse = ("llm-cost-ops-unknown-fields", "refuse")
        with pytest.raises(grpc.RpcError, match="newer_count"):
            submit(body, metadata=[in_json, refuse])


def test_rest_bodies_lines_and_prices(urls: dict[str, str]) -> None:
    with httpx.Client(base_url=urls["http"]) as http:

        def said(path: str, body: Any) -> tuple[int, str]:
            answer = http.post(f"/api/v1/{path}", json=body)
            return answer.status_code, answer.text

        status, text = said("usage", MISSPELT)
        assert (status, "output_tokns" in text, "output_tokens" in text) == (400, True, True)
        assert said("usage?unknown=keep", MISSPELT)[0] == 201
        assert said("usage?unknown=refuse", MISSPELT)[0] == 400
        assert said("usage?unknown=maybe", CALL)[0] == 400
        assert said("usage?unknown=keep&unknown=keep", CALL)[0] == 400
        status, text = said("usage/batch", {"records": [CALL, MISSPELT]})
        assert status == 200
        counts = json.loads(text)["data"]
        assert (counts["created"], counts["invalid"]) == (1, 1)
        assert json.loads(http.post("/api/v1/usage/batch?unknown=keep", json={"records": [MISSPELT]}).text)[
            "data"
        ]["created"]
        status, text = said("usage/batch", {"records": [CALL], "organisation": 1})
        assert (status, "organisation" in text) == (400, True)
        lines = "".join(json.dumps(line) + "\n" for line in (CALL, MISSPELT, CALL))
        kind = {"content-type": "application/x-ndjson"}
        answer = http.post("/api/v1/usage/stream", content=lines, headers=kind)
        last = json.loads(answer.text.splitlines()[-1])
        assert (last["durable"], last["created"]) == (3, 2)
        assert "did you mean output_tokens?" in answer.text
        kept = http.post("/api/v1/usage/stream?unknown=keep", content=lines, headers=kind)
        assert json.loads(kept.text.splitlines()[-1])["created"] == 3
        price = {"provider": "p", "model_id": "m", "input_price_per_1k": "1", "output_price_1k": "2"}
        status, text = said("pricing", price)
        assert (status, "did you mean output_price_per_1k?" in text) == (400, True)
        # A filter that is not known would widen what is asked for.
        assert http.get("/api/v1/costs?unknown=keep").status_code == 400


@pytest.mark.parametrize("keep", ["", "?unknown=keep"])
def test_what_is_not_known_and_no_text_is_refused_by_name(urls: dict[str, str], keep: str) -> None:
    good = json.dumps(CALL).encode()
    bad = good[:-1] + b', "new": "\xff"}'
    lines = {"content-type": "application/x-ndjson"}
    with httpx.Client(base_url=urls["http"], headers={"content-type": "application/json"}) as http:
        for path in ("usage", "costs/estimate", "pricing", "privacy/erase", "retention/apply"):
            answer = http.post(f"/api/v1/{path}{keep}", content=b'{"new": "\xff"}')
            assert (answer.status_code, "new is not valid UTF-8" in answer.text) == (400, True), path
        batch = http.post(f"/api/v1/usage/batch{keep}", content=b'{"records": [%s, %s]}' % (bad, good))
        assert "records[0].new is not valid UTF-8" in batch.text
        assert (batch.json()["data"]["created"], batch.json()["data"]["invalid"]) == (1, 1)
        stream = http.post(f"/api/v1/usage/stream{keep}", content=bad + b"\n" + good + b"\n", headers=lines)
        assert "new is not valid UTF-8" in stream.text
        last = json.loads(stream.text.splitlines()[-1])
        assert (last["durable"], last["created"]) == (2, 1)


def test_a_rate_of_a_new_price_is_looked_into(urls: dict[str, str]) -> None:
    body = {"provider": "p", "model_id": "m", "rates": [{"meter": "INPUT", "price": "1", "minimun": "2"}]}
    request = CREATE_PRICE_REQUEST.decode_json(json.dumps(body).encode())
    with (
        CostOpsClient(base_url=urls["inprocess"]) as client,
        pytest.raises(ValidationError, match=r"rates\[0\]\.minimun"),
    ):
        client.pricing.create(provider="p", model_id="m", rates=request.rates)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("inputTokens", "input_tokens"),
        ("prompt_tokens", "input_tokens"),
        ("completion_tokens", "output_tokens"),
        ("cachedInputTokens", "cached_tokens"),
        ("model", "model_id"),
        ("organisation_id", "organization_id"),
        ("zzz", ""),
    ],
)
def test_the_nearest_field(tmp_path: Path, name: str, meant: str) -> None:
    with (
        CostOpsClient(base_url=f"sqlite:///{tmp_path / 'c.db'}") as client,
        pytest.raises(ValidationError) as caught,
    ):
        client.usage.submit(record({**CALL, name: 1}))
    [violation] = caught.value.violations
    assert violation.field == name
    wanted = f": did you mean {meant}?" if meant else "is not a known field"
    assert violation.description.endswith(wanted)


@pytest.mark.parametrize(
    ("path", "change", "rule"),
    [
        ("/api/v1/usage", {"operation": "chta"}, "not 'chta': did you mean 'chat'?"),
        ("/api/v1/usage", {"quality": "estimatd"}, "did you mean 'estimated'?"),
        ("/api/v1/pricing", {"tier_mode": "graduatd"}, "did you mean 'graduated'?"),
        ("/api/v1/pricing", {"tier_mode": "99"}, "must be one of whole_request, graduated"),
    ],
)
def test_a_mistyped_value_is_refused_in_json_too(
    urls: dict[str, str], path: str, change: dict[str, str], rule: str
) -> None:
    """How a count or a price is meant decides the cost: an unknown word is never taken for the default."""
    body = {"input_price_per_1k": "1"} if path.endswith("pricing") else {}
    fields = CALL if path.endswith("usage") else {"provider": "p", "model_id": "m"}
    answer = httpx.post(urls["http"] + path, json={**fields, **body, **change})
    assert answer.status_code == 400
    [detail] = answer.json()["error"]["details"]
    assert detail["field"] == next(iter(change))
    assert rule in detail["description"]


def test_a_mistyped_filter_of_prices_is_refused_in_a_query_too(urls: dict[str, str]) -> None:
    answer = httpx.get(urls["http"] + "/api/v1/pricing?origin=catalogue")
    assert answer.status_code == 400
    assert "did you mean 'catalog'?" in answer.text
