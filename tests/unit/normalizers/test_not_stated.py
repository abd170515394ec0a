"""A count that is not stated is never a silent 0, and shapes without recorded answers are read too."""

from __future__ import annotations

import pytest

from llm_cost_ops import usage_from_response, usages_from_response


def read(payload, **given):
    record = usage_from_response(payload, **given)
    return record.input_tokens, record.output_tokens, record.quality


@pytest.mark.parametrize(
    ("usage", "want"),
    [
        ({"input_tokens": 3, "output_tokens": None}, (3, None, "unknown")),
        ({"input_tokens": None, "output_tokens": 3}, (None, 3, "unknown")),
        ({"input_tokens": None, "output_tokens": None}, (None, None, "unknown")),
        ({"input_tokens": 3, "output_tokens": None, "total_tokens": 5}, (3, 2, "unspecified")),
        ({"input_tokens": 3, "total_tokens": 5}, (3, 2, "unspecified")),
        ({"total_tokens": 5}, (None, None, "unknown")),
        # Left out beside a stated one, in this project's own words: 0, as in a record.
        ({"input_tokens": 3}, (3, 0, "unspecified")),
        ({"pages": 2}, (None, None, "unspecified")),
        ({"input_tokens": None, "output_tokens": None, "pages": 2}, (None, None, "unspecified")),
        ({"pages": 0}, (None, None, "unknown")),
    ],
)
def test_generic_counts(usage, want):
    assert read({"model": "m", "usage": usage}, api="generic", provider="p") == want


@pytest.mark.parametrize(
    ("attributes", "want"),
    [
        ({"gen_ai.usage.input_tokens": 3}, (3, None, "unknown")),
        ({"gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": None}, (3, None, "unknown")),
        ({"gen_ai.usage.input_tokens": 3, "gen_ai.usage.total_tokens": 5}, (3, 2, "unspecified")),
        ({"gen_ai.usage.input_tokens": 3, "gen_ai.operation.name": "embeddings"}, (3, 0, "unspecified")),
        ({"gen_ai.usage.output_tokens": 3}, (None, 3, "unknown")),
    ],
)
def test_opentelemetry_counts(attributes, want):
    assert read({"gen_ai.request.model": "m", **attributes}) == want


@pytest.mark.parametrize(
    ("mark", "want"),
    [
        ({"amazon-bedrock-guardrailAction": "INTERVENED"}, (30, 0, "unspecified")),
        ({"stopReason": "guardrail_intervened"}, (30, 0, "unspecified")),
        ({"amazon-bedrock-guardrailAction": "NONE"}, (30, None, "unknown")),
        ({}, (30, None, "unknown")),
    ],
)
def test_a_guardrail_that_intervenes_leaves_the_model_no_output(mark, want):
    payload = {"output": {}, "stopReason": "end_turn", "usage": {"inputTokens": 30}, **mark}
    assert read(payload, provider="aws", model_id="amazon.nova-lite-v1:0") == want


@pytest.mark.parametrize("name", [str.lower, str.title, str])
def test_bedrock_headers(name):
    headers = {
        name("x-amzn-bedrock-input-token-count"): "12",
        name("x-amzn-bedrock-output-token-count"): "5",
    }
    answer = {"ResponseMetadata": {"RequestId": "r1", "HTTPHeaders": headers}, "body": object()}
    record = usage_from_response(answer, model_id="eu.anthropic.claude-sonnet-4-5-20250929-v1:0")
    assert (record.input_tokens, record.output_tokens, record.total_tokens) == (12, 5, 17)
    assert (record.provider, record.region, record.idempotency_key) == ("aws", "eu", "aws:r1")
    assert read(headers, provider="aws", api="bedrock.invoke", model_id="m") == (12, 5, "unspecified")


def test_bedrock_headers_of_embeddings_and_without_counts():
    answer = {
        "ResponseMetadata": {"HTTPHeaders": {"x-amzn-bedrock-input-token-count": "12"}},
        "body": object(),
    }
    assert read(answer, model_id="cohere.embed-english-v3") == (12, 0, "unspecified")
    assert read(answer, model_id="amazon.nova-lite-v1:0") == (12, None, "unknown")
    assert read({"ResponseMetadata": {"HTTPHeaders": {}}, "body": object()}) == (None, None, "unknown")


def test_bedrock_streams_of_bytes():
    events = [
        {"chunk": {"bytes": b'{"generation":"x","generation_token_count":1,"prompt_token_count":9}'}},
        {
            "chunk": {
                "bytes": b'{"generation":"","amazon-bedrock-invocationMetrics":'
                b'{"inputTokenCount":9,"outputTokenCount":4}}'
            }
        },
    ]
    record = usage_from_response(iter(events), model_id="meta.llama3-8b-instruct-v1:0")
    assert (record.provider, record.input_tokens) == ("aws", 9)
    claude = [
        {
            "chunk": {
                "bytes": b'{"type":"message_start","message":{"id":"m","model":"claude-sonnet-4-5",'
                b'"usage":{"input_tokens":9,"output_tokens":1}}}'
            }
        },
        {"chunk": {"bytes": b'{"type":"message_delta","usage":{"output_tokens":4}}'}},
    ]
    assert read(claude, provider="aws") == (9, 4, "unspecified")


VERCEL = {
    "v4": {"promptTokens": 12, "completionTokens": 5, "totalTokens": 17},
    "v5": {
        "inputTokens": 12,
        "outputTokens": 5,
        "totalTokens": 17,
        "reasoningTokens": 2,
        "cachedInputTokens": 8,
    },
    "v6": {
        "inputTokens": 12,
        "inputTokenDetails": {"noCacheTokens": 3, "cacheReadTokens": 8, "cacheWriteTokens": 1},
        "outputTokens": 5,
        "outputTokenDetails": {"textTokens": 3, "reasoningTokens": 2},
        "totalTokens": 17,
    },
    "provider": {
        "inputTokens": {"total": 12, "noCache": 3, "cacheRead": 8, "cacheWrite": 1},
        "outputTokens": {"total": 5, "text": 3, "reasoning": 2},
    },
}
VERCEL_DETAILS = {"v4": (0, 0, 0), "v5": (8, 0, 2), "v6": (8, 1, 2), "provider": (8, 1, 2)}


@pytest.mark.parametrize("version", VERCEL)
def test_vercel(version):
    record = usage_from_response({"usage": VERCEL[version]}, provider="anthropic", model_id="m")
    assert (record.input_tokens, record.output_tokens, record.quality) == (12, 5, "unspecified")
    assert (record.cached_tokens, record.cache_write_tokens, record.reasoning_tokens) == VERCEL_DETAILS[
        version
    ]


def test_vercel_counts_that_are_null_are_not_stated():
    # Version 4 puts NaN where a provider stated nothing; JSON makes null of it.
    usage = {"promptTokens": 12, "completionTokens": None, "totalTokens": None}
    assert read({"usage": usage}, provider="openai", model_id="m") == (12, None, "unknown")


def interaction(model, *steps):
    return {
        "object": "interaction",
        "id": "i1",
        "model": model,
        "steps": [{"type": "google_search_call", "arguments": {"queries": queries}} for queries in steps],
        "usage": {"total_input_tokens": 5, "total_output_tokens": 2, "total_tokens": 7},
    }


@pytest.mark.parametrize(
    ("model", "steps", "searches"),
    [
        ("gemini-3-pro-preview", (["a", "b"], ["c"]), 3),
        ("gemini-3-pro-preview", (None,), 1),
        ("models/gemini-2.5-flash", (["a", "b"], ["c"]), 1),
        ("gemini-3-pro-preview", (), 0),
    ],
)
def test_searches_of_interactions(model, steps, searches):
    record = usage_from_response(interaction(model, *steps))
    assert record.meters.get("web_searches", 0) == searches
    assert (record.input_tokens, record.output_tokens) == (5, 2)


def test_modalities_that_exceed_the_charge_of_a_gateway_are_cut():
    payload = {
        "id": "gen-1",
        "object": "chat.completion",
        "model": "google/gemini-2.5-flash",
        "provider": "Google",
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "cost": 0.01,
            "prompt_tokens_details": {"audio_tokens": 11, "cached_tokens": 12},
            "completion_tokens_details": {"reasoning_tokens": 6},
        },
    }
    record = usage_from_response(payload)
    assert (record.input_tokens, record.output_tokens, record.quality) == (10, 5, "estimated")
    assert (record.cached_tokens, record.reasoning_tokens, record.modality) == (10, 5, None)


def compound(*models):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": "groq/compound",
        "usage": usage,
        "usage_breakdown": {"models": [{"model": model, "usage": usage} for model in models]},
    }


def test_groq_compound_systems_are_billed_by_their_models():
    one = usage_from_response(compound("llama-3.3-70b-versatile"), provider="groq")
    assert (one.requested_model_id, one.model_id) == ("groq/compound", "llama-3.3-70b-versatile")
    payload = compound("llama-3.3-70b-versatile", "openai/gpt-oss-120b")
    assert usage_from_response(payload, provider="groq").meters == {"other_model_calls": 2}
    records = usages_from_response(payload, provider="groq", user_id="u")
    assert [record.model_id for record in records] == ["llama-3.3-70b-versatile", "openai/gpt-oss-120b"]
    assert [record.input_tokens for record in records] == [10, 10]
    assert {(record.provider, record.user_id, len(record.meters)) for record in records} == {("groq", "u", 0)}
    assert len({record.idempotency_key for record in records}) == 2


@pytest.mark.parametrize(
    ("given", "model", "want"),
    [
        ({"provider": "portkey"}, "@openai/gpt-4o", ("portkey", "@openai/gpt-4o", "gpt-4o")),
        ({}, "@vertexai/gemini-2.5-flash", ("google", "@vertexai/gemini-2.5-flash", "gemini-2.5-flash")),
        ({}, "@our-own/llama", ("", "@our-own/llama", "llama")),
        ({"model_id": "@openai/gpt-4o"}, "x", ("openai", "@openai/gpt-4o", "gpt-4o")),
        ({"provider": "cloudflare"}, "@cf/meta/llama-3-8b", ("cloudflare", "", "@cf/meta/llama-3-8b")),
        ({"provider": "p"}, "@/", ("p", "", "@/")),
    ],
)
def test_the_prefix_of_a_portkey_integration_is_not_the_models(given, model, want):
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    record = usage_from_response({"object": "chat.completion", "model": model, "usage": usage}, **given)
    assert (record.provider, record.requested_model_id, record.model_id) == want
