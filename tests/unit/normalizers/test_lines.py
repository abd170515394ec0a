"""Lines of JSONL files: records, responses and envelopes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from llm_cost_ops.normalizers import PayloadError, record_from_line, usage_from_response

RESPONSE = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1793534400,
    "model": "gpt-5.4",
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
EXAMPLES = Path(__file__).parents[3] / "examples/data/responses.jsonl"


def test_a_bare_response():
    assert record_from_line(RESPONSE) == usage_from_response(RESPONSE)


def test_an_envelope():
    record = record_from_line(
        {
            "response": RESPONSE,
            "provider": "azure_openai",
            "api": "openai.chat",
            "organization_id": "acme",
            "project_id": "p",
            "labels": {"team": "a"},
            "timestamp": "2026-11-02T00:00:00Z",
            "operation": "text_completion",
            "reported_cost": "0.5",
            "meters": {"requests": 1},
        }
    )
    assert (record.provider, record.organization_id, record.project_id) == ("azure", "acme", "p")
    assert (record.labels, record.operation, record.meters) == (
        {"team": "a"},
        "text_completion",
        {"requests": 1},
    )
    assert record.timestamp == datetime(2026, 11, 2, tzinfo=UTC)
    assert record.reported_cost == Decimal("0.5")
    assert record.input_tokens == 10


def test_an_envelope_around_a_stream_and_a_batch_line():
    chunk = {**RESPONSE, "object": "chat.completion.chunk"}
    record = record_from_line({"response": [chunk], "organization_id": "acme"})
    assert (record.input_tokens, record.organization_id) == (10, "acme")
    line = {"custom_id": "a", "response": {"status_code": 200, "body": RESPONSE}}
    assert record_from_line(line).processing == "batch"
    assert record_from_line({"response": line, "user_id": "u"}).processing == "batch"


def test_a_usage_record_as_rest_has_it():
    record = record_from_line(
        {
            "organization_id": "acme",
            "provider": "openai",
            "model_id": "gpt-5.4",
            "input_tokens": 10,
            "output_tokens": 5,
            "timestamp": "2026-11-01T12:00:00Z",
            "meters": {"web_searches": 1},
            "modality": {"input_audio_tokens": 3},
        }
    )
    assert (record.model_id, record.input_tokens, record.meters) == ("gpt-5.4", 10, {"web_searches": 1})
    assert record.modality.input_audio_tokens == 3
    assert record.timestamp == datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ([], ""),
        ("text", ""),
        (None, ""),
        ({}, ""),
        ({"foo": 1}, ""),
        ({"response": RESPONSE, "projekt_id": "p"}, "projekt_id"),
        ({"response": RESPONSE, "provider": 1}, "provider"),
        ({"response": RESPONSE, "labels": {"team": 1}}, "labels[...]"),
        ({"response": RESPONSE, "timestamp": "yesterday"}, "timestamp"),
        ({"response": 1}, ""),
        ({"model_id": "m", "input_tokens": "many"}, "input_tokens"),
        ({"model_id": "m", "input_tokens": 1.5}, "input_tokens"),
    ],
)
def test_bad_lines_say_where(line, path):
    with pytest.raises(PayloadError) as caught:
        record_from_line(line)
    assert caught.value.path == path


def test_a_bad_api_in_a_line():
    with pytest.raises(ValueError, match="unknown api"):
        record_from_line({"response": RESPONSE, "api": "openai.chta"})


def test_the_examples_are_all_read_and_each_is_one_call():
    records = [record_from_line(json.loads(line)) for line in EXAMPLES.read_text().splitlines()]
    assert len(records) == len({record.idempotency_key for record in records}) == 120
    assert {record.provider for record in records} == {"openai", "anthropic", "google"}
    assert all(record.timestamp and record.organization_id and record.model_id for record in records)
    assert all(record.quality == "unspecified" and record.input_tokens for record in records)
    for detail in ("cached_tokens", "cache_write_extended_tokens", "reasoning_tokens", "modality", "meters"):
        assert any(getattr(record, detail) for record in records), detail


def test_the_text_of_an_ollama_answer_is_no_envelope():
    line = {
        "model": "llama3.2",
        "created_at": "2026-11-02T00:00:00Z",
        "response": "The sky is blue.",
        "done": True,
        "prompt_eval_count": 26,
        "eval_count": 9,
    }
    record = record_from_line(line)
    assert (record.provider, record.model_id) == ("ollama", "llama3.2")
    assert (record.input_tokens, record.output_tokens) == (26, 9)
    assert usage_from_response(line) == record
    with pytest.raises(PayloadError):
        record_from_line({"response": "text", "done": True})
