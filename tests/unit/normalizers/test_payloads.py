"""What is taken, and what is ignored, whatever the provider."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pydantic
import pytest

from llm_cost_ops.normalizers import APIS, PayloadError, usage_from_response
from tests.unit.normalizers.bodies import RESPONSE, USAGE, objects


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
        objects(RESPONSE),
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


def test_one_tag_may_be_given_as_text() -> None:
    record = usage_from_response({"usage": {"input_tokens": 1}}, provider="acme", model_id="m", tags="a")
    assert record.tags == ["a"]
    again = usage_from_response(
        {"usage": {"input_tokens": 1}}, provider="acme", model_id="m", tags=("a", "b")
    )
    assert again.tags == ["a", "b"]
