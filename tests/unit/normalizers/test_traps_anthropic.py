"""What Anthropic's counts mean: one regression test for every trap that is known."""

from __future__ import annotations

import pytest

from llm_cost_ops.normalizers import usage_from_response


def message(**usage):
    return {"id": "msg_01", "type": "message", "model": "claude-opus-5-5", "usage": usage}


def test_anthropic_totals_exclude_the_cache():
    record = usage_from_response(
        message(
            input_tokens=3,
            cache_read_input_tokens=180321,
            cache_creation_input_tokens=700,
            cache_creation={"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 500},
            output_tokens=12,
            output_tokens_details={"thinking_tokens": 7},
        )
    )
    assert (record.input_tokens, record.output_tokens) == (3 + 180321 + 700, 12)
    assert (record.cached_tokens, record.cache_write_tokens) == (180321, 700)
    assert (record.cache_write_extended_tokens, record.reasoning_tokens) == (500, 7)
    assert record.idempotency_key == "anthropic:msg_01"


def test_anthropic_what_sets_the_price():
    record = usage_from_response(
        message(input_tokens=1, output_tokens=1, service_tier="priority", speed="fast", inference_geo="us")
    )
    assert (record.service_tier, record.speed, record.region) == ("priority", "fast", "us")
    record = usage_from_response(
        message(
            input_tokens=1,
            output_tokens=1,
            service_tier="batch",
            speed="standard",
            inference_geo="not_available",
            server_tool_use={"web_search_requests": 3, "web_fetch_requests": 2},
        )
    )
    assert (record.service_tier, record.processing) == ("", "batch")
    assert (record.speed, record.region) == ("", "")
    assert record.meters == {"web_searches": 3}


def test_anthropic_compaction_is_in_no_top_level_count():
    iterations = [
        {
            "type": "compaction",
            "input_tokens": 1000,
            "output_tokens": 90,
            "cache_read_input_tokens": 500,
            "cache_creation_input_tokens": 20,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 20},
        },
        {"type": "message", "input_tokens": 30, "output_tokens": 7},
    ]
    record = usage_from_response(message(input_tokens=30, output_tokens=7, iterations=iterations))
    assert (record.input_tokens, record.output_tokens) == (30 + 1520, 97)
    assert (record.cached_tokens, record.cache_write_tokens, record.cache_write_extended_tokens) == (
        500,
        20,
        20,
    )


def test_anthropic_batches():
    line = {
        "custom_id": "a",
        "result": {"type": "succeeded", "message": message(input_tokens=4, output_tokens=2)},
    }
    record = usage_from_response(line)
    assert (record.processing, record.input_tokens, record.provider) == ("batch", 4, "anthropic")
    assert record.idempotency_key == "anthropic:msg_01"
    for kind, outcome in (("errored", "failed"), ("expired", "failed"), ("canceled", "cancelled")):
        record = usage_from_response({"custom_id": "b", "result": {"type": kind}}, model_id="claude-opus-5-5")
        # Not billed: zero is known to be right.
        assert (record.outcome, record.quality, record.input_tokens) == (outcome, "unspecified", 0)


@pytest.mark.parametrize(
    ("response_id", "provider"), [("msg_bdrk_1", "aws"), ("msg_vrtx_1", "google"), ("msg_1", "anthropic")]
)
def test_anthropic_messages_tell_who_served_them(response_id, provider):
    assert (
        usage_from_response({**message(input_tokens=1, output_tokens=1), "id": response_id}).provider
        == provider
    )
