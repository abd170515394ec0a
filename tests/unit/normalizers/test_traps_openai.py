"""What OpenAI's counts mean: one regression test for every trap that is known."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llm_cost_ops.normalizers import usage_from_response
from tests.unit.normalizers.bodies import chat


def test_openai_chat_details_are_subsets():
    record = usage_from_response(
        chat(
            100,
            60,
            160,
            prompt_tokens_details={"cached_tokens": 40, "audio_tokens": 30, "image_tokens": 5},
            completion_tokens_details={"reasoning_tokens": 20, "audio_tokens": 25},
        )
    )
    assert (record.input_tokens, record.output_tokens, record.total_tokens) == (100, 60, 160)
    assert (record.cached_tokens, record.reasoning_tokens) == (40, 20)
    assert (record.modality.input_audio_tokens, record.modality.input_image_tokens) == (30, 5)
    assert record.modality.output_audio_tokens == 25
    assert (record.provider, record.model_id, record.operation) == ("openai", "gpt-5.4", "chat")
    assert record.timestamp == datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
    assert record.idempotency_key == "openai:chatcmpl-1"


def test_openai_batch_results_call_their_tier_default():
    line = {
        "id": "batch_req_1",
        "custom_id": "row-7",
        "response": {
            "status_code": 200,
            "request_id": "r",
            "body": {**chat(10, 5, 15), "service_tier": "default"},
        },
        "error": None,
    }
    record = usage_from_response(line)
    assert (record.processing, record.service_tier) == ("batch", "")
    assert (record.provider, record.input_tokens) == ("openai", 10)


@pytest.mark.parametrize(
    ("stated", "tier"),
    [("default", ""), ("auto", ""), ("flex", "flex"), ("priority", "priority"), (None, ""), ("FLEX", "flex")],
)
def test_the_served_tier_is_recorded(stated, tier):
    assert usage_from_response({**chat(1, 1), "service_tier": stated}).service_tier == tier


def test_openai_cache_writes_and_their_time_to_live():
    details = {"cached_tokens": 10, "cache_write_tokens": 60}
    plain = usage_from_response(chat(100, 1, prompt_tokens_details=details))
    assert (plain.cache_write_tokens, plain.cache_write_extended_tokens) == (60, 0)
    split = {"cache_write_tokens_details": {"ttl_30m_tokens": 20, "ttl_12h_tokens": 40}}
    response = {
        "object": "response",
        "model": "gpt-6.1-terra",
        "usage": {"input_tokens": 100, "output_tokens": 1, "input_tokens_details": {**details, **split}},
    }
    record = usage_from_response(response)
    assert (record.cached_tokens, record.cache_write_tokens, record.cache_write_extended_tokens) == (
        10,
        60,
        40,
    )
    flat = usage_from_response(chat(100, 1, prompt_tokens_details={"ttl_30m": 1, "ttl_12h": 2}))
    assert (flat.cache_write_tokens, flat.cache_write_extended_tokens) == (3, 2)


def test_openai_responses_count_tool_calls_from_the_output_items():
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1793534400.5,
        "status": "completed",
        "model": "gpt-5.4",
        "service_tier": "priority",
        "output": [
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "a"}},
            {"type": "web_search_call", "status": "completed", "action": {"type": "open_page", "url": "b"}},
            {"type": "web_search_call", "status": "completed", "action": {"type": "find_in_page"}},
            {"type": "file_search_call", "queries": ["a", "b"]},
            {"type": "code_interpreter_call", "container_id": "cntr_1"},
            {"type": "code_interpreter_call", "container_id": "cntr_1"},
            {"type": "code_interpreter_call", "container_id": "cntr_2"},
            {"type": "message", "content": []},
        ],
        "usage": {
            "input_tokens": 50,
            "input_tokens_details": {"cached_tokens": 20},
            "output_tokens": 9,
            "output_tokens_details": {"reasoning_tokens": 4},
            "total_tokens": 59,
        },
    }
    record = usage_from_response(response)
    assert record.meters == {"web_searches": 1, "file_searches": 1, "code_interpreter_sessions": 2}
    assert (record.cached_tokens, record.reasoning_tokens) == (20, 4)
    assert record.service_tier == "priority"
    assert record.idempotency_key == "openai:resp_1"
    assert record.timestamp == datetime(2026, 11, 1, 12, 0, 0, 500000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("completed", "unspecified"),
        ("incomplete", "unspecified"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    ],
)
def test_openai_responses_say_how_they_ended(status, outcome):
    record = usage_from_response({"object": "response", "model": "gpt-5", "status": status, "usage": None})
    assert (record.outcome, record.quality) == (outcome, "unknown")
