"""What each provider's counts mean: one regression test for every trap that is known."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from llm_cost_ops.normalizers import PayloadError, usage_from_response


def chat(prompt, completion, total=None, **usage):
    total = {} if total is None else {"total_tokens": total}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1793534400,
        "model": "gpt-5.4",
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **total, **usage},
    }


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


def message(**usage):
    return {"id": "msg_01", "type": "message", "model": "claude-opus-5-5", "usage": usage}


def test_anthropic_totals_exclude_the_cache():
    record = usage_from_response(
        message(
            input_tokens=3,
            cache_read_input_tokens=180321,
            cache_creation_input_tokens=700,
            cache_creation={"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 500},
            output_tokens=12,
            output_tokens_details={"thinking_tokens": 7},
        )
    )
    assert (record.input_tokens, record.output_tokens) == (3 + 180321 + 700, 12)
    assert (record.cached_tokens, record.cache_write_tokens) == (180321, 700)
    assert (record.cache_write_extended_tokens, record.reasoning_tokens) == (500, 7)
    assert record.idempotency_key == "anthropic:msg_01"


def test_anthropic_what_sets_the_price():
    record = usage_from_response(
        message(input_tokens=1, output_tokens=1, service_tier="priority", speed="fast", inference_geo="us")
    )
    assert (record.service_tier, record.speed, record.region) == ("priority", "fast", "us")
    record = usage_from_response(
        message(
            input_tokens=1,
            output_tokens=1,
            service_tier="batch",
            speed="standard",
            inference_geo="not_available",
            server_tool_use={"web_search_requests": 3, "web_fetch_requests": 2},
        )
    )
    assert (record.service_tier, record.processing) == ("", "batch")
    assert (record.speed, record.region) == ("", "")
    assert record.meters == {"web_searches": 3}


def test_anthropic_compaction_is_in_no_top_level_count():
    iterations = [
        {
            "type": "compaction",
            "input_tokens": 1000,
            "output_tokens": 90,
            "cache_read_input_tokens": 500,
            "cache_creation_input_tokens": 20,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 20},
        },
        {"type": "message", "input_tokens": 30, "output_tokens": 7},
    ]
    record = usage_from_response(message(input_tokens=30, output_tokens=7, iterations=iterations))
    assert (record.input_tokens, record.output_tokens) == (30 + 1520, 97)
    assert (record.cached_tokens, record.cache_write_tokens, record.cache_write_extended_tokens) == (
        500,
        20,
        20,
    )


def test_anthropic_batches():
    line = {
        "custom_id": "a",
        "result": {"type": "succeeded", "message": message(input_tokens=4, output_tokens=2)},
    }
    record = usage_from_response(line)
    assert (record.processing, record.input_tokens, record.provider) == ("batch", 4, "anthropic")
    assert record.idempotency_key == "anthropic:msg_01"
    for kind, outcome in (("errored", "failed"), ("expired", "failed"), ("canceled", "cancelled")):
        record = usage_from_response({"custom_id": "b", "result": {"type": kind}}, model_id="claude-opus-5-5")
        # Not billed: zero is known to be right.
        assert (record.outcome, record.quality, record.input_tokens) == (outcome, "unspecified", 0)


@pytest.mark.parametrize(
    ("response_id", "provider"), [("msg_bdrk_1", "aws"), ("msg_vrtx_1", "google"), ("msg_1", "anthropic")]
)
def test_anthropic_messages_tell_who_served_them(response_id, provider):
    assert (
        usage_from_response({**message(input_tokens=1, output_tokens=1), "id": response_id}).provider
        == provider
    )


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
    assert (record.input_tokens, record.output_tokens, record.meters) == (4, 635, {"audio_ms": 203000})


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
