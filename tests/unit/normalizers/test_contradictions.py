"""What is refused, whatever the provider: payloads that contradict themselves, and bad money."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest

from llm_cost_ops.normalizers import PayloadError, usage_from_response
from tests.unit.normalizers.bodies import RESPONSE, USAGE


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"prompt_tokens": -1}, "usage.prompt_tokens", "cannot be negative, got -1"),
        ({"prompt_tokens": 1.5}, "usage.prompt_tokens", "cannot have a fraction, got 1.5"),
        ({"prompt_tokens": float("nan")}, "usage.prompt_tokens", "expected a count, got nan"),
        ({"prompt_tokens": float("inf")}, "usage.prompt_tokens", "expected a count, got inf"),
        ({"prompt_tokens": True}, "usage.prompt_tokens", "expected a count, got bool"),
        ({"prompt_tokens": "ten"}, "usage.prompt_tokens", "expected a count, got str"),
        ({"prompt_tokens": 2**63}, "usage.prompt_tokens", "cannot exceed"),
        ({"total_tokens": 16}, "usage.total_tokens", "is 16, but prompt_tokens + completion_tokens is 15"),
        (
            {"prompt_tokens_details": {"cached_tokens": 11}},
            "usage.prompt_tokens_details.cached_tokens",
            "is 11, more than usage.prompt_tokens (10), its total",
        ),
        (
            {"prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5}},
            "usage.prompt_tokens_details.cached_tokens",
            "cache reads (6) and cache writes (5) together exceed usage.prompt_tokens (10)",
        ),
        (
            {"completion_tokens_details": {"reasoning_tokens": 6}},
            "usage.completion_tokens_details.reasoning_tokens",
            "is 6, more than usage.completion_tokens (5), its total",
        ),
        (
            {"prompt_tokens_details": {"audio_tokens": 11}},
            "usage.prompt_tokens",
            "is 10, less than the sum of its modalities (11)",
        ),
        (
            {"completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 3}},
            "usage.completion_tokens",
            "is 5, less than reasoning and modalities together (6)",
        ),
        (
            {"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1, "ttl_12h": 2}},
            "usage.prompt_tokens_details.cache_write_tokens",
            "is 1, but ttl_30m + ttl_12h is 2",
        ),
        ({"prompt_tokens_details": 4}, "usage.prompt_tokens_details", "expected an object, got int"),
    ],
)
def test_contradictions_say_how(change, path, says):
    with pytest.raises(PayloadError) as caught:
        usage_from_response({**RESPONSE, "usage": {**USAGE, **change}})
    assert caught.value.path == path
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("response", "path"),
    [
        (
            {
                "type": "message",
                "usage": {
                    "output_tokens": 0,
                    "input_tokens": 1,
                    "cache_creation_input_tokens": 5,
                    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 3},
                },
            },
            "usage.cache_creation_input_tokens",
        ),
        (
            {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 8}},
            "usageMetadata.totalTokenCount",
        ),
        (
            {
                "usageMetadata": {
                    "promptTokenCount": 5,
                    "toolUsePromptTokenCount": 9,
                    "cachedContentTokenCount": 6,
                }
            },
            "usageMetadata.cachedContentTokenCount",
        ),
        ({"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 3}}, "usage.totalTokens"),
        (
            {
                "usage": {
                    "inputTokens": 1,
                    "outputTokens": 0,
                    "cacheWriteInputTokens": 1,
                    "cacheDetails": [{"ttl": "1h", "inputTokens": 2}],
                }
            },
            "usage.cacheWriteInputTokens",
        ),
        (
            {
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 0,
                    "prompt_cache_hit_tokens": 4,
                    "prompt_cache_miss_tokens": 6,
                },
                "model": "deepseek-flash",
            },
            "usage.prompt_tokens",
        ),
        (
            {
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 0,
                    "prompt_cache_hit_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 3},
                },
                "model": "deepseek-flash",
            },
            "usage.prompt_cache_hit_tokens",
        ),
        ({"usage": {"billed_units": {"input_tokens": 1.5}}}, "usage.billed_units.input_tokens"),
        (
            {"usage": {"billed_units": {"input_tokens": 1.0, "output_tokens": 0}, "cached_tokens": 2}},
            "usage.cached_tokens",
        ),
        ({"usage_info": {"pages_processed": -3}}, "usage_info.pages_processed"),
        (
            {
                "gen_ai.usage.input_tokens": 3,
                "gen_ai.usage.output_tokens": 0,
                "gen_ai.usage.cache_read.input_tokens": 4,
            },
            "gen_ai.usage.cache_read.input_tokens",
        ),
        (
            {"object": "response", "usage": {"input_tokens": 3, "output_tokens": 1, "total_tokens": 5}},
            "usage.total_tokens",
        ),
        ({"text": "", "usage": {"type": "duration", "seconds": -1}}, "usage.seconds"),
    ],
)
def test_contradictions_of_every_kind(response, path):
    with pytest.raises(PayloadError) as caught:
        usage_from_response(response)
    assert caught.value.path == path


@pytest.mark.parametrize("cost", ["1e999999999", "NaN", "-1", -0.5, float("nan"), 10**18, [], True])
def test_bad_money(cost):
    usage = {**USAGE, "cost": cost}
    with pytest.raises(PayloadError) as caught:
        usage_from_response({**RESPONSE, "usage": usage}, provider="openrouter")
    assert caught.value.path == "usage.cost"


@pytest.mark.parametrize(
    ("cost", "amount"),
    [(0.1, "0.1"), (1e-30, "0"), ("0.015", "0.015"), (0, "0"), (123456789012345678, "123456789012345678")],
)
def test_money_is_exact_and_needs_no_decimal_context(cost, amount):
    with localcontext(prec=2):
        record = usage_from_response({**RESPONSE, "usage": {**USAGE, "cost": cost}}, provider="openrouter")
    assert record.reported_cost == Decimal(amount)
