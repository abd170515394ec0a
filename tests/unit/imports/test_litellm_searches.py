"""Searches that a row of LiteLLM tells are counted as the model bills them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.imports.files import read
from tests.unit.imports.test_gateways import LITELLM

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
def test_searches(provider: str, model: str, usage: dict[str, Any], meters: dict[str, int]) -> None:
    counts = {"prompt_tokens_details": {"web_search_requests": 2}, **usage}
    row = {**LITELLM, "custom_llm_provider": provider, "model": model, "metadata": {"usage_object": counts}}
    assert read([row])[0].meters == meters
