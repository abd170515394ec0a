"""A response or a batch that still runs: what it comes to has the same id, and must not be lost."""

from __future__ import annotations

from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.normalizers import usage_from_response

DONE = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
BATCH = {
    "id": "batch_68a1c0ffee68a1c0ffee",
    "object": "batch",
    "model": "gpt-5",
    "request_counts": {"total": 9, "completed": 8, "failed": 1},
}
RESPONSE = {"id": "resp_68a1c0ffee68a1c0ffee", "object": "response", "model": "gpt-5", "output": []}


def recorded_while_it_runs(running: dict[str, Any], done: dict[str, Any], key: str) -> None:
    with CostOpsClient(base_url="sqlite://") as client:
        first = usage_from_response(running, organization_id="acme")
        assert first.idempotency_key == ""
        assert client.usage.submit(first).cost_status == "unpriced"
        last = usage_from_response(done, organization_id="acme")
        assert last.idempotency_key == key
        receipt = client.usage.submit(last)
        assert receipt.cost_status == "priced"
        assert receipt.estimated_cost > 0


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling", None])
@pytest.mark.parametrize("counts", [None, dict.fromkeys(DONE, 0)])
def test_a_batch(status: str | None, counts: dict[str, int] | None) -> None:
    running = {**BATCH, "status": status, "usage": counts}
    recorded_while_it_runs(running, {**BATCH, "status": "completed", "usage": DONE}, f"openai:{BATCH['id']}")


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled", "failed"])
def test_a_batch_that_has_ended_is_billed_for_what_it_did(status: str) -> None:
    record = usage_from_response({**BATCH, "status": status, "usage": DONE})
    assert (record.input_tokens, record.processing, record.request_count) == (1000, "batch", 8)
    assert (record.quality, record.idempotency_key) == ("unspecified", f"openai:{BATCH['id']}")


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_response_in_the_background(status: str) -> None:
    running = {**RESPONSE, "status": status, "usage": None}
    done = {**RESPONSE, "status": "completed", "usage": DONE}
    recorded_while_it_runs(running, done, f"openai:{RESPONSE['id']}")


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_an_interaction_in_the_background(status: str) -> None:
    counts = {"total_input_tokens": 1000, "total_output_tokens": 100, "total_tokens": 1100}
    running = {"id": "v1_68a1c0ffee68", "object": "interaction", "model": "gemini-2.5-pro", "status": status}
    done = {**running, "status": "completed", "usage": counts}
    recorded_while_it_runs(running, done, "google:v1_68a1c0ffee68")
