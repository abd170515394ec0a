"""What Every other provider's counts mean: one regression test for every trap that is known."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from llm_cost_ops.normalizers import PayloadError, usage_from_response
from tests.unit.normalizers.bodies import chat


def converse(**usage):
    return {
        "output": {"message": {"role": "assistant", "content": []}},
        "stopReason": "end_turn",
        "ResponseMetadata": {"RequestId": "req-1"},
        "usage": usage,
    }


def test_bedrock_excludes_the_cache_and_names_the_region_in_the_model():
    response = converse(
        inputTokens=1000,
        outputTokens=200,
        totalTokens=7200,
        cacheReadInputTokens=4000,
        cacheWriteInputTokens=2000,
        cacheDetails=[{"ttl": "1h", "inputTokens": 1500}, {"ttl": "5m", "inputTokens": 500}],
    )
    record = usage_from_response(response, model_id="eu.anthropic.claude-opus-5-v1:0")
    assert (record.input_tokens, record.cached_tokens, record.cache_write_tokens) == (7000, 4000, 2000)
    assert record.cache_write_extended_tokens == 1500
    assert (record.provider, record.region) == ("aws", "eu")
    assert record.idempotency_key == "aws:req-1"


@pytest.mark.parametrize(
    ("model", "region"),
    [
        ("us.anthropic.claude-opus-5-v1:0", "us"),
        ("us-gov.anthropic.claude-opus-5-v1:0", "us-gov"),
        ("global.anthropic.claude-opus-5-v1:0", ""),
        ("amazon.nova-lite-v1:0", ""),
        ("arn:aws:bedrock:us-east-1:1:inference-profile/apac.amazon.nova-lite-v1:0", "apac"),
    ],
)
def test_bedrock_regions(model, region):
    assert usage_from_response(converse(inputTokens=1, outputTokens=1), model_id=model).region == region


def test_bedrock_tier_and_latency():
    response = converse(inputTokens=1, outputTokens=1)
    response |= {"serviceTier": {"type": "priority"}, "performanceConfig": {"latency": "optimized"}}
    record = usage_from_response(response, model_id="amazon.nova-lite-v1:0")
    assert (record.service_tier, record.speed) == ("priority", "optimized")


def test_azure_is_told_by_its_content_filters():
    response = {**chat(1, 1, 2), "prompt_filter_results": []}
    assert usage_from_response(response).provider == "azure"
    response = {**chat(1, 1, 2), "choices": [{"content_filter_results": {}}]}
    assert usage_from_response(response).provider == "azure"


def test_cohere_bills_billed_units():
    usage = {
        "billed_units": {"input_tokens": 17.0, "output_tokens": 250.0},
        "tokens": {"input_tokens": 215.0, "output_tokens": 250.0},
        "cached_tokens": 64,
    }
    record = usage_from_response({"id": "c1", "usage": usage}, model_id="command-a-03-2025")
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (17, 250, 17)
    assert (type(record.input_tokens), record.provider) == (int, "cohere")


def test_cohere_units_other_than_tokens():
    rerank = {"id": "r", "results": [], "meta": {"billed_units": {"search_units": 1.0}}}
    record = usage_from_response(rerank, model_id="rerank-v4.0-pro")
    assert (record.meters, record.operation) == ({"search_units": 1}, "rerank")
    classify = {"id": "c", "meta": {"billed_units": {"classifications": 3.0}}}
    assert usage_from_response(classify, model_id="embed-v4.0").meters == {"classifications": 3}
    parse = {"id": "p", "meta": {"billed_units": {"pages": 4.0}}}
    assert usage_from_response(parse, model_id="parse").meters == {"pages": 4}
    embed = {
        "id": "e",
        "embeddings": {},
        "meta": {"billed_units": {"input_tokens": 5.0, "image_tokens": 100.0}},
    }
    record = usage_from_response(embed, model_id="embed-v4.0")
    assert (record.input_tokens, record.modality.input_image_tokens, record.operation) == (
        105,
        100,
        "embeddings",
    )


def test_mistral_audio_and_cached():
    response = {**chat(10, 5, 15), "model": "mistral-large-2512"}
    response["usage"]["prompt_tokens_details"] = {"cached_tokens": 4}
    record = usage_from_response(response)
    assert (record.provider, record.cached_tokens) == ("mistral", 4)
    # The tokens that audio becomes are in the total only: audio is billed by its length.
    voice = {
        "model": "voxtral-mini-2602",
        "text": "hello",
        "usage": {
            "prompt_audio_seconds": 203,
            "prompt_tokens": 4,
            "completion_tokens": 635,
            "total_tokens": 3264,
        },
    }
    record = usage_from_response(voice)
    assert (record.provider, record.operation) == ("mistral", "transcription")
    assert (record.input_tokens, record.output_tokens, record.meters) == (None, None, {"audio_ms": 203000})


def test_mistral_pages():
    response = {"model": "mistral-ocr-2512", "pages": [], "usage_info": {"pages_processed": 29}}
    assert usage_from_response(response).meters == {"pages": 29}
    annotated = usage_from_response({**response, "document_annotation": "{}"})
    assert (annotated.meters, annotated.operation) == ({"annotated_pages": 29}, "ocr")


@pytest.mark.parametrize(
    ("completion", "reasoning", "total", "output"),
    [
        (100, 1200, 2300, 1300),  # xAI's own: reasoning beside completion, and in the total
        (1300, 1200, 2300, 1300),  # a gateway folded reasoning in
        (100, 1200, None, 1300),
        (100, 0, 1100, 100),
    ],
)
def test_xai_reasoning_is_tested_against_the_total(completion, reasoning, total, output):
    response = chat(1000, completion, total, completion_tokens_details={"reasoning_tokens": reasoning})
    record = usage_from_response(response, provider="xai")
    assert (record.provider, record.output_tokens, record.reasoning_tokens) == ("x-ai", output, reasoning)


def test_xai_total_that_is_neither():
    response = chat(1000, 100, 1500, completion_tokens_details={"reasoning_tokens": 50})
    with pytest.raises(PayloadError, match="neither") as caught:
        usage_from_response(response, provider="x-ai")
    assert caught.value.path == "usage.total_tokens"


def test_xai_tools_and_stated_cost():
    response = {
        "object": "response",
        "id": "r",
        "model": "grok-4.20",
        "output": [{"type": "x_search_call"}],
        "usage": {
            "input_tokens": 9212,
            "output_tokens": 3417,
            "total_tokens": 12629,
            "cost_in_usd_ticks": 318319000,
            "server_side_tool_usage_details": {"web_search_calls": 1, "x_search_calls": 3},
        },
    }
    record = usage_from_response(response)
    assert record.meters == {"web_searches": 1, "social_searches": 3}
    assert (record.provider, record.reported_cost) == ("x-ai", Decimal("0.0318319"))


def test_deepseek_cache_hits():
    usage = {"prompt_cache_hit_tokens": 6400, "prompt_cache_miss_tokens": 3600}
    response = {**chat(10000, 2000, 12000, **usage), "model": "deepseek-flash"}
    record = usage_from_response(response)
    assert (record.provider, record.cached_tokens, record.input_tokens) == ("deepseek", 6400, 10000)


def test_groq_last_chunk():
    chunks = [
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "model": "openai/gpt-oss-120b",
            "created": 1793534400,
        },
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "model": "openai/gpt-oss-120b",
            "x_groq": {
                "id": "req_1",
                "usage": {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12},
            },
        },
    ]
    record = usage_from_response(chunks)
    assert (record.provider, record.input_tokens, record.output_tokens) == ("groq", 8, 4)


def test_perplexity_searches_citations_and_cost():
    response = {
        **chat(
            33,
            7163,
            7196,
            citation_tokens=20016,
            num_search_queries=21,
            reasoning_tokens=73997,
            cost={"input_tokens_cost": 0.0, "total_cost": 0.428},
        ),
        "model": "sonar-deep-research",
        "search_results": [],
    }
    record = usage_from_response(response)
    assert (record.provider, record.input_tokens) == ("perplexity", 33)
    assert (record.output_tokens, record.reasoning_tokens) == (7163 + 73997, 73997)
    assert record.meters == {"citation_tokens": 20016, "web_searches": 21}
    assert record.reported_cost == Decimal("0.428")


def test_perplexity_request_fee_pays_for_the_searches():
    response = {**chat(5, 6, 11, num_search_queries=2, search_context_size="low"), "model": "sonar-pro"}
    assert usage_from_response(response).meters == {"requests": 1}


def test_openrouter_cost_and_model_prefix():
    response = {**chat(10, 5, 15, cost=0.00014), "id": "gen-1", "model": "anthropic/claude-opus-5"}
    record = usage_from_response(response)
    assert (record.provider, record.model_id) == ("openrouter", "anthropic/claude-opus-5")
    assert record.reported_cost == Decimal("0.00014")
    details = {"upstream_inference_cost": 0.002}
    response["usage"] |= {"is_byok": True, "cost": 1e-07, "cost_details": details}
    assert usage_from_response(response).reported_cost == Decimal("0.0020001")


@pytest.mark.parametrize("spelling", ["cache_creation.input_tokens", "cache_write.input_tokens"])
def test_opentelemetry_both_cache_spellings(spelling):
    record = usage_from_response(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "aws.bedrock",
            "gen_ai.request.model": "claude-opus-5",
            "gen_ai.response.model": "claude-opus-5-20260501",
            "gen_ai.response.id": "msg_1",
            "gen_ai.conversation.id": "conv",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.output_tokens": 30,
            "gen_ai.usage.cache_read.input_tokens": 40,
            f"gen_ai.usage.{spelling}": 50,
            "gen_ai.usage.reasoning.output_tokens": 12,
        }
    )
    assert (record.provider, record.model_id) == ("aws", "claude-opus-5-20260501")
    assert (record.requested_model_id, record.session_id) == ("claude-opus-5", "conv")
    assert (record.input_tokens, record.cached_tokens, record.cache_write_tokens) == (100, 40, 50)
    assert record.reasoning_tokens == 12
    assert record.idempotency_key == "aws:msg_1"


def test_opentelemetry_spellings_are_not_added_up():
    attributes = {
        "gen_ai.system": "anthropic",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.usage.cache_creation.input_tokens": 50,
        "gen_ai.usage.cache_write.input_tokens": 50,
    }
    assert usage_from_response(attributes).cache_write_tokens == 50
    with pytest.raises(PayloadError) as caught:
        usage_from_response({**attributes, "gen_ai.usage.cache_write.input_tokens": 51})
    assert caught.value.path == "gen_ai.usage.cache_write.input_tokens"


def test_opentelemetry_span():
    span = {
        "name": "chat gpt-5.4",
        "context": {"trace_id": "0x" + "ab" * 16, "span_id": "0x" + "cd" * 8},
        "start_time": "2026-11-01T12:00:00.000000Z",
        "attributes": {
            "gen_ai.system": "openai",
            "gen_ai.usage.prompt_tokens": 3,
            "openai.response.service_tier": "flex",
        },
    }
    record = usage_from_response(span)
    assert (record.trace_id, record.span_id) == ("ab" * 16, "cd" * 8)
    assert (record.input_tokens, record.service_tier) == (3, "flex")
    assert record.timestamp == datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("stated", "address", "provider"),
    [
        ("openai", "api.cerebras.ai", "cerebras"),
        ("openai", "API.Together.xyz", "together"),
        ("openai", "eu.api.openai.com", "openai"),
        ("openai", "llm.internal.example", "openai"),
        ("openai", "mine.openai.azure.com", "azure"),
        # Who states more than the SDK is taken at his word.
        ("groq", "api.openai.com", "groq"),
    ],
)
def test_a_span_of_openais_sdk_is_of_whom_it_called(stated: str, address: str, provider: str):
    attributes = {
        "gen_ai.system": stated,
        "server.address": address,
        "gen_ai.request.model": "gpt-oss-120b",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 1,
    }
    assert usage_from_response(attributes).provider == provider
