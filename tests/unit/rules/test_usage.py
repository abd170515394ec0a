from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from llm_cost_ops._gen.messages import ModalityTokens
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.rules.requests import check_usage, usage_error
from tests.unit.pricing.cards import NOON, make_usage, moment


def _broken(path: str = "", now: datetime | None = NOON, **fields: Any) -> list[Violation]:
    violations: list[Violation] = []
    check_usage(make_usage(**fields), path, violations, now=now)
    return violations


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input_tokens": 10, "cached_tokens": 4, "cache_write_tokens": 6, "cache_write_extended_tokens": 6},
        {"output_tokens": 10, "reasoning_tokens": 10, "total_tokens": 10},
        {"timestamp": None},
        {"timestamp": NOON + timedelta(minutes=5)},
        {"timestamp": datetime(2026, 5, 1)},
        {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "B7AD6B7169203331"},
        {"reported_currency": "EUR"},
        {"metadata": {"a": "x" * 16_000}},
        {"metadata": {"a": [None, 1.5, "null"]}},
        {"meters": {"audio_ms": 1, "search_units": 1, "tool.code/x": 0, "requests": 2}},
        {"input_tokens": 5, "modality": ModalityTokens(input_audio_tokens=5)},
    ],
)
def test_valid(fields: dict[str, Any]) -> None:
    assert _broken(**fields) == []


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"total_tokens": 1}, "total_tokens", "must be input_tokens + output_tokens (0); got 1"),
        (
            {"input_tokens": 3, "cached_tokens": 4},
            "cached_tokens",
            "must be at most input_tokens (3), of which it is a part; got 4",
        ),
        ({"cache_write_tokens": 4}, "cache_write_tokens", "at most input_tokens"),
        ({"input_tokens": 5, "cached_tokens": 3, "cache_write_tokens": 3}, "cache_write_tokens", "together"),
        ({"cache_write_extended_tokens": 1}, "cache_write_extended_tokens", "at most cache_write_tokens"),
        ({"reasoning_tokens": 1}, "reasoning_tokens", "at most output_tokens"),
        ({"modality": ModalityTokens(input_audio_tokens=1)}, "modality", "the input tokens must sum"),
        ({"modality": ModalityTokens(output_video_tokens=1)}, "modality", "the output tokens must sum"),
        (
            {"input_tokens": 9, "cached_tokens": 9, "modality": ModalityTokens(cached_image_tokens=1)},
            "modality.cached_image_tokens",
            "at most input_image_tokens (0)",
        ),
        (
            {
                "input_tokens": 9,
                "cached_tokens": 1,
                "modality": ModalityTokens(input_audio_tokens=2, cached_audio_tokens=2),
            },
            "modality",
            "the cached tokens must sum",
        ),
        (
            {"output_tokens": 9, "reasoning_tokens": 5, "modality": ModalityTokens(output_audio_tokens=5)},
            "modality",
            "at most output_tokens (9) together; got 10",
        ),
        ({"timestamp": NOON + timedelta(minutes=5, microseconds=1)}, "timestamp", "5 minutes in the future"),
        ({"timestamp": moment("9999-12-31T23:59:59Z")}, "timestamp", "5 minutes in the future"),
        ({"timestamp": moment("1999-12-31T23:59:59Z")}, "timestamp", "before the year 2000"),
        ({"timestamp": moment("9999-12-31T23:59:59-05:00")}, "timestamp", "after the year 9999"),
        ({"timestamp": moment("2000-01-01T00:00:00+05:00")}, "timestamp", "before the year 2000"),
        ({"timestamp": moment("0001-01-01T00:00:00Z")}, "timestamp", "before the year 2000"),
        ({"trace_id": "xyz"}, "trace_id", "32 hexadecimal"),
        ({"span_id": "0" * 15 + "\n"}, "span_id", "16 hexadecimal"),
        ({"reported_currency": "usd"}, "reported_currency", "ISO 4217"),
        ({"reported_currency": "XXX"}, "reported_currency", "ISO 4217"),
        ({"metadata": [1]}, "metadata", "a JSON object"),
        ({"metadata": {"a": object()}}, "metadata", "what JSON cannot"),
        ({"metadata": {"a": {1: "b"}}}, "metadata", "its names text"),
        ({"metadata": {"a": [None, float("nan")]}}, "metadata", "NaN"),
        ({"metadata": {"a": {"b": float("-inf")}}}, "metadata", "infinity"),
        ({"metadata": {"a": "x" * 16_400}}, "metadata", "16 KiB as JSON; got 16408 bytes"),
        ({"metadata": {str(key): 1 for key in range(65)}}, "metadata", "at most 64 keys; got 65"),
        ({"meters": {"": 1}}, "meters[]", "must be a letter"),
        ({"meters": {"a b": 1}}, "meters[a b]", "must be a letter"),
        ({"meters": {"output": 1}}, "meters[output]", "fields of their own"),
        ({"meters": {"total_tokens": 1}}, "meters[total_tokens]", "fields of their own"),
        ({"meters": {"pages": 1, "Pages": 1}}, "meters[Pages]", "the same meter as 'pages'"),
        (
            {"meters": {"audio_ms": 1, "audio_seconds": 1}},
            "meters[audio_seconds]",
            "same meter as 'audio_ms'",
        ),
    ],
)
def test_broken(fields: dict[str, Any], field: str, rule: str) -> None:
    [violation] = _broken(**fields)
    assert violation.field == field
    assert rule in violation.description


def test_all_broken_rules_are_named_at_once_under_their_path() -> None:
    before = Violation("x", "y")
    violations = [before]
    record = make_usage(cached_tokens=1, reasoning_tokens=1, total_tokens=5, span_id="?", meters={"?": 1})
    check_usage(record, "records[3]", violations, now=NOON)
    assert violations[0] is before
    assert [violation.field for violation in violations[1:]] == [
        "records[3].total_tokens",
        "records[3].cached_tokens",
        "records[3].reasoning_tokens",
        "records[3].meters[?]",
        "records[3].span_id",
    ]


def test_the_future_is_not_checked_without_a_clock() -> None:
    assert _broken(now=None, timestamp=NOON + timedelta(days=9999)) == []


def test_wrong_types_are_left_to_the_rules_of_single_fields() -> None:
    assert _broken(input_tokens="5", cached_tokens=1) == []
    assert _broken(timestamp="yesterday") == []


def test_an_error_always_has_a_reason() -> None:
    assert usage_error(make_usage(input_tokens=1.5)).violations[0].field == "usage"
    assert usage_error(make_usage(cached_tokens=1)).errors.keys() == {"cached_tokens"}
