"""What is taken, what is ignored and what is refused, whatever the provider."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from types import SimpleNamespace
from typing import Any

import msgspec
import pydantic
import pytest

from llm_cost_ops.normalizers import APIS, PayloadError, usage_from_response

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
}
RESPONSE = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1793534400,
    "model": "gpt-5.4",
    "usage": USAGE,
}


class Details(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    audio_tokens: int | None = None


class Usage(pydantic.BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details | None = None


class Completion(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    id: str
    model: str
    usage: Usage | None = None


@dataclass
class DataCompletion:
    id: str
    object: str
    created: int
    model: str
    usage: dict[str, Any]


class StructCompletion(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    usage: dict[str, Any]


class Dumping:
    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        if name == self.name:
            return lambda: RESPONSE
        raise AttributeError(name)


class Mapped(Mapping):
    def __getitem__(self, key):
        return RESPONSE[key]

    def __iter__(self):
        return iter(RESPONSE)

    def __len__(self):
        return len(RESPONSE)


def namespaces(value):
    if isinstance(value, dict):
        return SimpleNamespace(**{key: namespaces(item) for key, item in value.items()})
    return value


@pytest.mark.parametrize(
    "response",
    [
        RESPONSE,
        Mapped(),
        Completion(**RESPONSE),
        {**RESPONSE, "usage": Usage(**USAGE)},
        DataCompletion(**RESPONSE),
        StructCompletion(**RESPONSE),
        Dumping("model_dump"),
        Dumping("to_dict"),
        namespaces(RESPONSE),
    ],
    ids=[
        "dict",
        "mapping",
        "pydantic",
        "mixed",
        "dataclass",
        "struct",
        "model_dump",
        "to_dict",
        "attributes",
    ],
)
def test_dicts_and_objects_of_any_sdk(response):
    before = copy.deepcopy(RESPONSE)
    record = usage_from_response(response)
    assert record == usage_from_response(RESPONSE)
    assert (record.input_tokens, record.cached_tokens, record.provider) == (10, 4, "openai")
    assert before == RESPONSE


def test_snake_case_of_the_gemini_sdk():
    usage = SimpleNamespace(
        prompt_token_count=9,
        candidates_token_count=3,
        thoughts_token_count=None,
        total_token_count=12,
        prompt_tokens_details=[SimpleNamespace(modality="AUDIO", token_count=5)],
        traffic_type="ON_DEMAND_FLEX",
    )
    response = SimpleNamespace(
        model_version="gemini-3.8-flash",
        response_id="r",
        create_time=datetime(2026, 11, 1),
        usage_metadata=usage,
    )
    record = usage_from_response(response)
    assert (record.input_tokens, record.output_tokens, record.modality.input_audio_tokens) == (9, 3, 5)
    assert (record.service_tier, record.idempotency_key) == ("flex", "google:r")
    assert record.timestamp == datetime(2026, 11, 1, tzinfo=UTC)


def test_what_an_sdk_did_not_get_is_absent():
    class NotGiven: ...

    usage = {
        **USAGE,
        "prompt_tokens_details": NotGiven(),
        "completion_tokens_details": {"audio_tokens": NotGiven()},
    }
    assert usage_from_response({**RESPONSE, "usage": usage}).cached_tokens == 0
    assert usage_from_response({**RESPONSE, "usage": NotGiven()}).quality == "unknown"


def test_unknown_fields_are_ignored():
    usage = {**USAGE, "quantum_tokens": -1, "prompt_tokens_details": {"cached_tokens": 4, "new": "x"}}
    assert usage_from_response({**RESPONSE, "usage": usage, "extra": object()}) == usage_from_response(
        RESPONSE
    )


@pytest.mark.parametrize("usage", [None, {}, {"new_style": {}}])
def test_missing_usage_is_unknown_not_zero(usage):
    record = usage_from_response({**RESPONSE, "usage": usage})
    assert (record.quality, record.total_tokens) == ("unknown", None)
    assert record.model_id == "gpt-5.4"


@pytest.mark.parametrize("api", APIS)
def test_missing_usage_in_every_api(api):
    record = usage_from_response({"model": "m"}, api=api, provider="p")
    assert (record.quality, record.meters) == ("unknown", {})


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"prompt_tokens": -1}, "usage.prompt_tokens", "cannot be negative, got -1"),
        ({"prompt_tokens": 1.5}, "usage.prompt_tokens", "cannot have a fraction, got 1.5"),
        ({"prompt_tokens": float("nan")}, "usage.prompt_tokens", "expected a count, got nan"),
        ({"prompt_tokens": float("inf")}, "usage.prompt_tokens", "expected a count, got inf"),
        ({"prompt_tokens": True}, "usage.prompt_tokens", "expected a count, got bool"),
        ({"prompt_tokens": "10"}, "usage.prompt_tokens", "expected a count, got str"),
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
                    "cacheWriteInputTokens": 1,
                    "cacheDetails": [{"ttl": "1h", "inputTokens": 2}],
                }
            },
            "usage.cacheWriteInputTokens",
        ),
        (
            {
                "usage": {"prompt_tokens": 9, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6},
                "model": "deepseek-flash",
            },
            "usage.prompt_tokens",
        ),
        (
            {
                "usage": {
                    "prompt_tokens": 9,
                    "prompt_cache_hit_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 3},
                },
                "model": "deepseek-flash",
            },
            "usage.prompt_cache_hit_tokens",
        ),
        ({"usage": {"billed_units": {"input_tokens": 1.5}}}, "usage.billed_units.input_tokens"),
        ({"usage": {"billed_units": {"input_tokens": 1.0}, "cached_tokens": 2}}, "usage.cached_tokens"),
        ({"usage_info": {"pages_processed": -3}}, "usage_info.pages_processed"),
        (
            {"gen_ai.usage.input_tokens": 3, "gen_ai.usage.cache_read.input_tokens": 4},
            "gen_ai.usage.cache_read.input_tokens",
        ),
        (
            {"object": "response", "usage": {"input_tokens": 3, "output_tokens": 1, "total_tokens": 5}},
            "usage.total_tokens",
        ),
        ({"text": "", "usage": {"type": "duration", "seconds": -1}}, "usage.seconds"),
        ({**RESPONSE, "created": 1e18}, "created"),
        ({**RESPONSE, "created": "yesterday"}, "created"),
        ({**RESPONSE, "created": True}, "created"),
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


def test_nothing_to_recognise():
    with pytest.raises(PayloadError, match="no known shape"):
        usage_from_response({"foo": 1})
    with pytest.raises(PayloadError, match="error response: quota exceeded") as caught:
        usage_from_response({"error": {"message": "quota exceeded", "code": 429}})
    assert caught.value.path == "error"
    for response in (None, 1, "text", b"bytes", object()):
        with pytest.raises(PayloadError, match="expected an object"):
            usage_from_response(response)
    with pytest.raises(ValueError, match=r"unknown api 'openai\.chta'"):
        usage_from_response(RESPONSE, api="openai.chta")


def test_a_provider_that_nothing_tells_stays_empty():
    assert usage_from_response({**RESPONSE, "model": "llama-3.3-70b"}).provider == ""
    assert usage_from_response({**RESPONSE, "model": "llama-3.3-70b"}, api="openai.chat").provider == "openai"
    assert (
        usage_from_response({**RESPONSE, "model": "llama-3.3-70b"}, provider="Together").provider
        == "together"
    )


def test_fields_win_over_the_response():
    record = usage_from_response(
        RESPONSE,
        organization_id="org-1",
        model_id="my-model",
        project_id="p",
        labels={"team": "a"},
        idempotency_key="mine",
        operation="text_completion",
        quality="estimated",
        timestamp=datetime(2026, 10, 5),
        reported_cost="0.5",
        processing="batch",
        output_tokens=7,
    )
    assert (record.organization_id, record.model_id, record.project_id) == ("org-1", "my-model", "p")
    assert (record.labels, record.idempotency_key, record.processing) == ({"team": "a"}, "mine", "batch")
    assert (record.operation, record.quality) == ("text_completion", "estimated")
    assert record.timestamp == datetime(2026, 10, 5, tzinfo=UTC)
    assert record.reported_cost == Decimal("0.5")
    assert (record.output_tokens, record.total_tokens) == (7, 17)
    with pytest.raises(TypeError, match="no field 'projekt_id'"):
        usage_from_response(RESPONSE, projekt_id="p")


def test_given_meters_are_added_to_those_of_the_response():
    usage = {"input_tokens": 1, "output_tokens": 1, "web_searches": 2}
    record = usage_from_response({"usage": usage}, provider="acme", meters={"characters": 5})
    assert record.meters == {"web_searches": 2, "characters": 5}


def test_usage_in_our_own_words():
    usage = {
        "input_tokens": 100,
        "output_tokens": 20,
        "cached_tokens": 50,
        "cache_write_tokens": 10,
        "cache_write_extended_tokens": 5,
        "reasoning_tokens": 4,
        "input_audio_tokens": 60,
        "cache_read_audio_tokens": 30,
        "audio_seconds": "3.5",
        "requests": 1,
        "meters": {"widgets": 2},
    }
    record = usage_from_response({"model": "m", "usage": usage}, provider="acme")
    assert (record.cached_tokens, record.cache_write_extended_tokens, record.reasoning_tokens) == (50, 5, 4)
    assert (record.modality.input_audio_tokens, record.modality.cached_audio_tokens) == (60, 30)
    assert record.meters == {"requests": 1, "audio_ms": 3500, "widgets": 2}


def test_keys_fit_whatever_the_id():
    record = usage_from_response({**RESPONSE, "id": "x" * 400})
    assert len(record.idempotency_key) <= 255
    assert record.idempotency_key != usage_from_response({**RESPONSE, "id": "x" * 401}).idempotency_key


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(PayloadError("usage.a", "is wrong")))
    assert (error.path, str(error)) == ("usage.a", "usage.a: is wrong")


def test_sums_that_no_field_can_hold():
    usage = {"input_tokens": 2**63 - 1, "cache_read_input_tokens": 1, "output_tokens": 0}
    with pytest.raises(PayloadError, match="together cannot exceed"):
        usage_from_response({"type": "message", "usage": usage})
    usage = {"input_tokens": 1, "audio_ms": 2**63 - 1, "audio_seconds": 1}
    with pytest.raises(PayloadError, match="audio_ms together"):
        usage_from_response({"usage": usage}, provider="acme")
