"""Recorded answers of providers, and those that were once read wrongly, give the right usage.

`provider_responses.jsonl.gz` holds 900 answers without their texts, each with the values that are right
and, where it is settled, the cost; the costs are the catalog's concern. `provider_faults.json` holds
answers of kinds that were misread, each with the reason.
"""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import pytest

from llm_cost_ops import PayloadError, usage_from_response, usages_from_response
from tests.unit.normalizers.bodies import objects

GOLDEN = Path(__file__).parents[2] / "golden"
FAULTS = json.loads((GOLDEN / "provider_faults.json").read_text(encoding="utf-8"))
# This file holds the chunks of two calls, of which its line has the last.
TWO_CALLS = "cererebras-structured-output-tools.1.chunks.txt"
UUID = "7f3c2a9be4d04c6f8a1b2c3d4e5f6071"
# A search by web_search_preview with a model that does not reason costs more: a meter of its own.
RENAMED = {"web_search_previews": "web_searches"}
# What these answers are billed for beside their recorded meters is a line without a price.
BESIDE = {"image_generation_calls", "containers", "other_model_calls"}


class Events:
    """Can be iterated, and is no iterator."""

    def __init__(self, events):
        self._events = events

    def __iter__(self):
        return iter(self._events)


WRAPS = {"object": objects, "iterable": Events, None: lambda value: value}


def plain(record, name):
    value = getattr(record, name)
    if name == "modality":
        names = value.__struct_fields__ if value else ()
        return {n: c for n in names if type(c := getattr(value, n)) is int and c}
    if name == "meters":
        return {RENAMED.get(n, n): c for n, c in value.items() if c and n not in BESIDE}
    return value


def lines():
    with gzip.open(GOLDEN / "provider_responses.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_recorded_answers_state_their_usage():
    wrong, read = [], 0
    for line in lines():
        given = {key: line[key] for key in ("provider", "model_id") if line.get(key)}
        payload = line["events"] if "events" in line else line["body"]
        if line["source"].endswith(TWO_CALLS):
            with pytest.raises(PayloadError, match="more than one response"):
                usage_from_response(payload, **given)
            *_, record = usages_from_response(payload, **given)
        else:
            record = usage_from_response(payload, **given)
        got = {name: plain(record, name) for name in line["record"]}
        read += 1
        if got != line["record"]:
            wrong.append((line["source"], got, line["record"]))
    assert read == 900
    assert not wrong, wrong[:5]


def same(want, got):
    return (
        got in want
        if isinstance(want, list)
        else want == got or (isinstance(got, Decimal) and Decimal(want) == got)
    )


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case["kind"])
def test_faults_of_readers_stay_mended(case):
    payload = WRAPS[case["input"].get("wrap")](case["input"].get("payload") or case["input"].get("events"))
    given = case["input"].get("fields", {})
    alternatives = [{**case["want"], **other} for other in case.get("any", [{}])]
    if case["want"].get("raises") or any("raises" in other for other in alternatives):
        try:
            record = usage_from_response(payload, **given)
        except PayloadError:
            return
        alternatives = [other for other in alternatives if "raises" not in other]
        assert alternatives, "should have been refused"
    else:
        record = usage_from_response(payload, **given)
    for want in alternatives:
        names = set(want) - {"modality", "meters", "timestamp", "raises"}
        if all(same(want[name], getattr(record, name)) for name in names) and all(
            count == (plain(record, part) or {}).get(name)
            for part in ("modality", "meters")
            for name, count in want.get(part, {}).items()
        ):
            return
    pytest.fail(f"{case['why']} got {record}")


def test_null_counts_are_not_zero():
    record = usage_from_response(
        {"object": "chat.completion", "model": "m", "usage": {"prompt_tokens": None, "completion_tokens": 4}}
    )
    assert (record.input_tokens, record.output_tokens, record.quality) == (None, 4, "unknown")


def test_an_advisor_has_a_record_of_its_own():
    (case,) = [case for case in FAULTS if case["kind"] == "anthropic-advisor-iterations"]
    assert usage_from_response(case["input"]["payload"]).meters == {"other_model_calls": 1}
    first, advisor = usages_from_response(case["input"]["payload"])
    assert (first.model_id, first.input_tokens, first.output_tokens) == ("claude-sonnet-4-6", 1200, 110)
    assert (advisor.model_id, advisor.input_tokens, advisor.output_tokens) == ("claude-opus-4-7", 2500, 900)
    assert first.meters == advisor.meters == {}
    assert first.idempotency_key != advisor.idempotency_key


def test_turns_and_streams_have_a_record_each():
    turns = [
        {"serverContent": {}, "usageMetadata": {"promptTokenCount": n, "responseTokenCount": n}}
        for n in (5, 7)
    ]
    assert [r.input_tokens for r in usages_from_response(turns, provider="google")] == [5, 7]
    with pytest.raises(PayloadError):
        usage_from_response(turns, provider="google")


@pytest.mark.parametrize(
    ("provider", "response_id", "key"),
    [
        ("ollama", "chatcmpl-543", ""),
        ("vllm", "1", ""),
        ("", "chatcmpl-543", ""),
        ("openai", "chatcmpl-A", "openai:chatcmpl-A"),
        (
            "vllm",
            "chatcmpl-7f3c2a9be4d04c6f8a1b2c3d4e5f6071",
            "vllm:chatcmpl-7f3c2a9be4d04c6f8a1b2c3d4e5f6071",
        ),
    ],
)
def test_only_unique_ids_are_keys(provider, response_id, key):
    payload = {
        "id": response_id,
        "object": "chat.completion",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    assert usage_from_response(payload, provider=provider or None).idempotency_key == key
