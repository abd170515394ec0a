"""What rows of gateways tell is counted as it is billed."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.unit.imports.files import read
from tests.unit.imports.test_gateways import GENERATION, LITELLM

XAI = {"web_search_calls": 2, "x_search_calls": 1}


@pytest.mark.parametrize(
    ("provider", "model", "usage", "meters"),
    [
        ("gemini", "gemini/gemini-2.5-flash", {}, {"web_searches": 1}),
        ("gemini", "gemini/gemini-3-pro", {}, {"web_searches": 2}),
        (
            "xai",
            "xai/grok-4.3",
            {"server_side_tool_usage_details": XAI},
            {"web_searches": 2, "social_searches": 1},
        ),
        (
            "xai",
            "xai/grok-4.3",
            {"server_side_tool_usage_details": XAI, "cost_in_usd_ticks": 5},
            {"web_searches": 2, "social_searches": 1},
        ),
    ],
)
def test_searches_of_litellm(
    provider: str, model: str, usage: dict[str, Any], meters: dict[str, int]
) -> None:
    counts = {"prompt_tokens_details": {"web_search_requests": 2}, **usage}
    row = {**LITELLM, "custom_llm_provider": provider, "model": model, "metadata": {"usage_object": counts}}
    assert read([row])[0].meters == meters


@pytest.mark.parametrize(
    ("fee", "upstream", "cost"),
    [(0, None, None), (0.001, None, None), (0, 0.002, "0.002"), (None, 0.002, "0.002")],
)
def test_a_fee_is_no_cost_without_the_upstream(
    fee: float | None, upstream: float | None, cost: str | None
) -> None:
    own = {"is_byok": True, "total_cost": fee, "upstream_inference_cost": upstream}
    [record] = read([{**GENERATION, **own}])
    assert record.reported_cost == (None if cost is None else Decimal(cost))
