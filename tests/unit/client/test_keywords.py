"""A keyword that a method does not have is told with the one that may be meant."""

from __future__ import annotations

from typing import Any

import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig

CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}


@pytest.mark.parametrize(
    ("method", "wrong", "meant"),
    [
        ("usage.submit", "model", "model_id"),
        ("usage.submit", "prompt_tokens", "input_tokens"),
        ("usage.submit", "output_tokns", "output_tokens"),
        ("usage.submit", "xyzzy", ""),
        ("costs.get", "start", "start_date"),
        ("costs.get", "by", "group_by"),
        ("costs.estimate", "user", "user_id"),
        ("usage.list", "organisation_id", "organization_id"),
        ("with_raw_response.usage.submit", "model", "model_id"),
    ],
)
def test_a_wrong_keyword_names_the_right_one(method: str, wrong: str, meant: str) -> None:
    said = rf"\(\) got an unexpected keyword argument '{wrong}'" + (
        f": did you mean {meant}\\?" if meant else ""
    )
    given: dict[str, Any] = {wrong: "x"}
    for client in (CostOpsClient(base_url="sqlite://"), AsyncCostOpsClient(base_url="sqlite://")):
        called: Any = client
        for name in method.split("."):
            called = getattr(called, name)
        with pytest.raises(TypeError, match=f"{said}$"):
            # A coroutine has to be sent something before it runs.
            called(**given).send(None)


def test_a_record_with_a_wrong_keyword_is_rejected_with_the_right_one() -> None:
    errors: list[Exception] = []
    config = ClientConfig(
        base_url="sqlite://", recorder=RecorderConfig(on_error=lambda _, error: errors.append(error))
    )
    fields: dict[str, Any] = {**CALL, "input": 5}
    with CostOpsClient(config=config) as client:
        client.usage.record(**fields)
        assert client.flush().rejected_count == 1
    assert "did you mean input_tokens?" in str(errors[0])
