"""What Gemini and Vertex's counts mean: one regression test for every trap that is known."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llm_cost_ops.normalizers import usage_from_response
from tests.unit.normalizers.bodies import chat


def gemini(**usage):
    return {"modelVersion": "gemini-3.8-flash", "responseId": "r1", "usageMetadata": usage}


def test_gemini_leaves_thoughts_and_tool_prompts_out():
    record = usage_from_response(
        gemini(
            promptTokenCount=100,
            cachedContentTokenCount=60,
            toolUsePromptTokenCount=5000,
            candidatesTokenCount=300,
            thoughtsTokenCount=50,
            totalTokenCount=5450,
            trafficType="ON_DEMAND_PRIORITY",
        )
    )
    assert (record.input_tokens, record.output_tokens) == (5100, 350)
    assert (record.cached_tokens, record.reasoning_tokens) == (60, 50)
    assert (record.service_tier, record.provider) == ("priority", "google")
    assert record.idempotency_key == "google:r1"


@pytest.mark.parametrize(
    ("traffic", "tier"),
    [
        ("ON_DEMAND", ""),
        ("TRAFFIC_TYPE_UNSPECIFIED", ""),
        ("ON_DEMAND_FLEX", "flex"),
        ("PROVISIONED_THROUGHPUT", "provisioned_throughput"),
    ],
)
def test_vertex_traffic_is_the_tier(traffic, tier):
    assert usage_from_response(gemini(promptTokenCount=1, trafficType=traffic)).service_tier == tier


def test_gemini_lists_by_modality():
    record = usage_from_response(
        {
            **gemini(
                promptTokenCount=2058,
                promptTokensDetails=[
                    {"modality": "TEXT", "tokenCount": 50},
                    {"modality": "AUDIO", "tokenCount": 1000},
                    {"modality": "IMAGE", "tokenCount": 258},
                    {"modality": "DOCUMENT", "tokenCount": 500},
                    {"modality": "VIDEO", "tokenCount": 250},
                ],
                toolUsePromptTokenCount=30,
                toolUsePromptTokensDetails=[{"modality": "IMAGE", "tokenCount": 10}],
                cachedContentTokenCount=600,
                cacheTokensDetails=[{"modality": "AUDIO", "tokenCount": 400}, {"modality": "TEXT"}],
                candidatesTokenCount=1310,
                candidatesTokensDetails=[{"modality": "IMAGE", "tokenCount": 1290}],
                totalTokenCount=3398,
            ),
            "createTime": "2026-11-01T12:00:00.123456Z",
        }
    )
    modality = record.modality
    assert (modality.input_audio_tokens, modality.input_image_tokens, modality.input_video_tokens) == (
        1000,
        768,
        250,
    )
    assert (modality.cached_audio_tokens, modality.output_image_tokens) == (400, 1290)
    assert record.timestamp == datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(("model", "searches"), [("gemini-3.8-flash", 2), ("gemini-2.5-pro", 1)])
def test_gemini_grounding_is_counted_as_it_is_billed(model, searches):
    response = gemini(promptTokenCount=1, candidatesTokenCount=1, totalTokenCount=2)
    response["modelVersion"] = model
    response["candidates"] = [
        {"groundingMetadata": {"webSearchQueries": ["a", "b"]}},
        {"groundingMetadata": {}},
    ]
    assert usage_from_response(response).meters == {"web_searches": searches}


def test_gemini_batch_lines():
    line = {"key": "row-1", "response": gemini(promptTokenCount=4, candidatesTokenCount=1, totalTokenCount=5)}
    record = usage_from_response(line)
    assert (record.processing, record.input_tokens) == ("batch", 4)


def test_gemini_thoughts_on_the_compatible_endpoint_show_in_the_total_only():
    record = usage_from_response(chat(12, 29, 853), provider="google")
    assert (record.input_tokens, record.output_tokens, record.reasoning_tokens) == (12, 841, 812)
