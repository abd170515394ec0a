"""Embeddings, audio, images and realtime: what is counted where."""

from __future__ import annotations

import pytest

from llm_cost_ops.normalizers import PayloadError, usage_from_response


def test_embeddings():
    response = {
        "object": "list",
        "data": [{"embedding": []}],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    record = usage_from_response(response)
    assert (record.provider, record.operation, record.input_tokens) == ("openai", "embeddings", 8)
    assert (record.output_tokens, record.idempotency_key) == (0, "")


def test_embeddings_of_providers_that_send_the_total_alone():
    response = {"object": "list", "data": [], "model": "voyage-4", "usage": {"total_tokens": 12}}
    assert usage_from_response(response, provider="voyageai").input_tokens == 12


@pytest.mark.parametrize(
    ("seconds", "ms"), [(61, 61000), (3.5, 3500), (8.470000267028809, 8470), ("127", 127000)]
)
def test_transcription_by_duration(seconds, ms):
    response = {"text": "hi", "usage": {"type": "duration", "seconds": seconds}}
    record = usage_from_response(response, provider="openai", model_id="whisper-1")
    assert (record.operation, record.meters) == ("transcription", {"audio_ms": ms})
    verbose = {"task": "transcribe", "text": "hi", "duration": seconds, "x_groq": {"id": "req_9"}}
    record = usage_from_response(verbose, provider="groq", model_id="whisper-large-v3")
    assert (record.idempotency_key, record.meters) == ("groq:req_9", {"audio_ms": ms})


def test_transcription_by_tokens():
    response = {
        "text": "hi",
        "usage": {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
            "output_tokens": 45,
            "total_tokens": 59,
        },
    }
    record = usage_from_response(response, provider="openai", model_id="gpt-4o-transcribe")
    assert (record.input_tokens, record.output_tokens) == (14, 45)
    assert record.modality.input_audio_tokens == 10


def test_speech_by_tokens_is_audio_and_by_characters_a_meter():
    done = {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115},
    }
    for response in (done, [{"type": "speech.audio.delta", "audio": "…"}, done]):
        record = usage_from_response(response, api="openai.speech", model_id="gpt-4o-mini-tts")
        assert (record.operation, record.modality.output_audio_tokens) == ("speech", 101)
    record = usage_from_response({"usage": {"characters": 4096}}, api="openai.speech", model_id="tts-1")
    assert (record.provider, record.meters) == ("openai", {"characters": 4096})


def test_images_by_tokens():
    response = {
        "created": 1793534400,
        "data": [{"b64_json": "…"}],
        "usage": {
            "input_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens": 4160,
            "total_tokens": 4210,
        },
    }
    record = usage_from_response(response, provider="openai", model_id="gpt-image-2")
    assert (record.operation, record.meters) == ("image", {})
    assert (record.modality.input_image_tokens, record.modality.output_image_tokens) == (40, 4160)
    response["usage"]["output_tokens_details"] = {"text_tokens": 160, "image_tokens": 4000}
    record = usage_from_response(response, provider="openai", model_id="gpt-image-2")
    assert record.modality.output_image_tokens == 4000


def test_images_without_usage_are_counted():
    response = {"created": 1793534400, "data": [{"url": "a"}, {"url": "b"}]}
    record = usage_from_response(response, provider="openai", model_id="dall-e-3")
    assert (record.meters, record.quality, record.operation) == ({"images": 2}, "unspecified", "image")


REALTIME = {
    "type": "response.done",
    "event_id": "event_1",
    "response": {
        "object": "realtime.response",
        "id": "resp_1",
        "status": "completed",
        "usage": {
            "total_tokens": 253,
            "input_tokens": 132,
            "output_tokens": 121,
            "input_token_details": {
                "text_tokens": 19,
                "audio_tokens": 100,
                "image_tokens": 13,
                "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 60, "image_tokens": 4},
            },
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
        },
    },
}


@pytest.mark.parametrize(
    "response", [REALTIME, REALTIME["response"], [{"type": "session.created"}, REALTIME]]
)
def test_realtime(response):
    record = usage_from_response(response, provider="openai", model_id="gpt-realtime-2")
    assert (record.operation, record.input_tokens, record.output_tokens) == ("realtime", 132, 121)
    assert record.cached_tokens == 64
    modality = record.modality
    assert (modality.input_audio_tokens, modality.cached_audio_tokens, modality.output_audio_tokens) == (
        100,
        60,
        91,
    )
    assert (modality.input_image_tokens, modality.cached_image_tokens) == (13, 4)
    assert record.idempotency_key == "openai:resp_1"


def test_realtime_details_are_subsets():
    usage = {"input_tokens": 10, "output_tokens": 1, "input_token_details": {"audio_tokens": 11}}
    with pytest.raises(PayloadError, match="less than the sum of its modalities"):
        usage_from_response({"usage": usage}, api="openai.realtime")
