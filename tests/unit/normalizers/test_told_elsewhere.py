"""What is billed, or sets the price, but stands elsewhere than the counts: it must not be lost in silence."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.normalizers import usage_from_response, usages_from_response
from tests.unit.normalizers.bodies import chat

NOVA, CLAUDE = "us.amazon.nova-pro-v1:0", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
COUNTS = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
SVG = {
    "model": "gpt-5",
    "input_tokens": 500,
    "output_tokens": 300,
    "reasoning_tokens": 50,
    "total_tokens": 800,
}


def gpt(model="gpt-5.4", *, message=None, **more):
    body = {**chat(1000, 100, 1100), "model": model, **more}
    return {**body, "choices": [{"index": 0, "message": message or {}, "finish_reason": "stop"}]}


def responses(**more):
    usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100, **more.pop("usage", {})}
    return {"id": "resp_1", "object": "response", "model": "gpt-5", "output": [], "usage": usage, **more}


def claude(**usage):
    usage = {"input_tokens": 1000, "output_tokens": 100, **usage}
    return {"id": "msg_1", "type": "message", "model": "claude-opus-4-6", "usage": usage}


def gemini(model="gemini-2.5-flash", **grounding):
    return {
        "candidates": [{"finishReason": "STOP", "groundingMetadata": grounding}],
        "modelVersion": model,
        "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100},
    }


def invoke(body=b"", headers=(), **more):
    counts = {"x-amzn-bedrock-input-token-count": "1000", "x-amzn-bedrock-output-token-count": "100"}
    metadata = {"RequestId": "r-1", "HTTPHeaders": {**counts, **dict(headers)}}
    return {"ResponseMetadata": metadata, "body": body, "contentType": "application/json", **more}


def conversation(*outputs, **usage):
    return {
        "object": "conversation.response",
        "conversation_id": "conv_1",
        "outputs": [*outputs, {"type": "message.output", "model": "mistral-medium-2505"}],
        "usage": {**COUNTS, **usage},
    }


# (what it is, the answer, fields, what the record must say)
READ = [
    (
        "hits of DeepSeek at another host",
        chat(1000, 100, 1100, prompt_cache_hit_tokens=600),
        {"provider": "acme"},
        {"cached_tokens": 600},
    ),
    (
        "cached tokens of a run of an assistant",
        {**chat(1000, 100, 1100, prompt_token_details={"cached_tokens": 600}), "object": "thread.run"},
        {"provider": "openai"},
        {"cached_tokens": 600},
    ),
    (
        "cached tokens of DashScope, whose output is no list",
        responses(usage={"prompt_tokens_details": {"cached_tokens": 600}}, output={"text": "x"}),
        {"provider": "alibaba"},
        {"cached_tokens": 600},
    ),
    (
        "searches of Claude through LiteLLM",
        chat(1000, 100, 1100, server_tool_use={"web_search_requests": 2}),
        {"provider": "anthropic"},
        {"meters": {"web_searches": 2}},
    ),
    (
        "searches of Gemini through LiteLLM",
        chat(
            1000,
            100,
            1100,
            prompt_tokens_details={"web_search_requests": 1, "google_maps_grounding_requests": 1},
        ),
        {"provider": "google"},
        {"meters": {"web_searches": 1, "map_searches": 1}},
    ),
    (
        "speed and geography of Claude through LiteLLM",
        chat(1000, 100, 1100, inference_geo="US", speed="fast"),
        {"provider": "anthropic"},
        {"region": "us", "speed": "fast"},
    ),
    (
        "cache writes by their time to live through LiteLLM",
        chat(
            1000,
            100,
            1100,
            prompt_tokens_details={
                "cache_creation_token_details": {
                    "ephemeral_30m_input_tokens": 40,
                    "ephemeral_12h_input_tokens": 60,
                }
            },
        ),
        {"provider": "openai"},
        {"cache_write_tokens": 100, "cache_write_extended_tokens": 60},
    ),
    (
        "the cost that OpenRouter states of a message",
        claude(cost=0.25),
        {"provider": "openrouter"},
        {"reported_cost": Decimal("0.25")},
    ),
    (
        "the cost that OpenRouter states of an embedding",
        {
            "object": "list",
            "data": [],
            "model": "m",
            "usage": {"prompt_tokens": 5, "total_tokens": 5, "cost": 0.25},
        },
        {"provider": "openrouter"},
        {"reported_cost": Decimal("0.25")},
    ),
    (
        "the cost that any gateway states",
        chat(1000, 100, 1100, cost="0.25"),
        {"provider": "requesty"},
        {"reported_cost": Decimal("0.25")},
    ),
    (
        "a cost that is no number",
        chat(1000, 100, 1100, cost="free"),
        {"provider": "requesty"},
        {"reported_cost": None},
    ),
    (
        "ticks of an image by xAI, which has no tokens",
        {
            "created": 1793534400,
            "data": [{}],
            "model": "grok-imagine-image",
            "usage": {"cost_in_usd_ticks": 200_000_000},
        },
        {"provider": "xai"},
        {"reported_cost": Decimal("0.02")},
    ),
    (
        "sources of xAI's Live Search",
        chat(1000, 100, 1100, num_sources_used=4),
        {},
        {"provider": "x-ai", "meters": {"search_sources": 4}},
    ),
    (
        "a tool of xAI that is not known, and two that are free",
        responses(
            usage={
                "server_side_tool_usage_details": {
                    "mcp_calls": 1,
                    "view_image_calls": 1,
                    "browse_page_calls": 2,
                }
            }
        ),
        {"provider": "xai"},
        {"meters": {"browse_page_calls": 2}},
    ),
    (
        "tools that Groq ran",
        gpt(
            "openai/gpt-oss-120b",
            message={"executed_tools": [{"type": "search"}, {"type": "python"}, {"type": "new"}]},
            x_groq={"id": "req_1"},
        ),
        {},
        {"provider": "groq", "meters": {"web_searches": 1, "code_executions": 1, "tool_calls": 1}},
    ),
    (
        "the same of a stream, each told when it starts and with its result",
        [
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "model": "openai/gpt-oss-120b",
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
                "x_groq": {"id": "req_1", "usage": COUNTS if reason else None},
            }
            for delta, reason in [
                ({"executed_tools": [{"index": 0, "type": "search"}]}, None),
                ({"executed_tools": [{"index": 0, "type": "search", "output": "x"}]}, None),
                ({"executed_tools": [{"index": 1, "type": "search"}]}, None),
                ({}, "stop"),
            ]
        ],
        {},
        {"provider": "groq", "input_tokens": 1000, "meters": {"web_searches": 2}},
    ),
    (
        "places of Google Maps",
        gemini(groundingChunks=[{"maps": {"uri": "x"}}, {"maps": {"uri": "y"}}]),
        {},
        {"meters": {"map_searches": 1}},
    ),
    (
        "the same as an object of the SDK has it",
        {
            "candidates": [
                {"grounding_metadata": {"grounding_chunks": [SimpleNamespace(maps={"uri": "x"})]}}
            ],
            "model_version": "gemini-2.5-flash",
            "usage_metadata": {"prompt_token_count": 1, "candidates_token_count": 1},
        },
        {},
        {"meters": {"map_searches": 1}},
    ),
    (
        "searches for images",
        gemini("gemini-3-pro-image", webSearchQueries=["a"], imageSearchQueries=["b", "c"]),
        {},
        {"meters": {"web_searches": 1, "image_searches": 2}},
    ),
    (
        "places cited from a web page or a file are no map",
        gemini(groundingChunks=[{"web": {"uri": "x"}}, {"retrievedContext": {"uri": "y"}, "maps": None}]),
        {},
        {"meters": {}},
    ),
    (
        "Vertex AI's tier of an answer in OpenAI's shape",
        {
            **chat(
                1000,
                100,
                1200,
                extra_properties={"google": {"traffic_type": "ON_DEMAND_PRIORITY"}},
            ),
            "model": "google/gemini-2.5-flash",
        },
        {},
        {
            "provider": "google",
            "model_id": "gemini-2.5-flash",
            "service_tier": "priority",
            "reasoning_tokens": 100,
        },
    ),
    (
        "the same of a response, whose model is another's",
        responses(
            usage={"num_sources_used": 0, "extra_properties": {"google": {"traffic_type": "ON_DEMAND_FLEX"}}},
            model="xai/grok-4.1-fast-reasoning",
        ),
        {},
        {"provider": "google", "service_tier": "flex", "model_id": "xai/grok-4.1-fast-reasoning"},
    ),
    (
        "tier and latency of InvokeModel",
        invoke(serviceTier="flex", performanceConfigLatency="optimized"),
        {"model_id": NOVA},
        {"service_tier": "flex", "speed": "optimized"},
    ),
    (
        "the cache in the headers of InvokeModel",
        invoke(
            headers={
                "x-amzn-bedrock-cache-read-input-token-count": "300",
                "x-amzn-bedrock-cache-write-input-token-count": "50",
            }
        ),
        {"model_id": CLAUDE},
        {"input_tokens": 1350, "cached_tokens": 300, "cache_write_tokens": 50},
    ),
    (
        "the cache in the metrics of a stream of InvokeModel",
        [
            {
                "amazon-bedrock-invocationMetrics": {
                    "inputTokenCount": 1000,
                    "outputTokenCount": 100,
                    "cacheReadInputTokenCount": 300,
                }
            }
        ],
        {"model_id": NOVA},
        {"input_tokens": 1300, "cached_tokens": 300},
    ),
    (
        "the cache in a body of Nova",
        {
            "stopReason": "end_turn",
            "usage": {"inputTokens": 10, "outputTokens": 1, "cacheReadInputTokenCount": 300},
        },
        {"model_id": NOVA},
        {"input_tokens": 310, "cached_tokens": 300},
    ),
    (
        "writes that Converse tells by their time to live alone",
        {
            "stopReason": "end_turn",
            "usage": {
                "inputTokens": 10,
                "outputTokens": 1,
                "cacheWriteInputTokens": None,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 5}],
            },
        },
        {"model_id": CLAUDE},
        {"input_tokens": 15, "cache_write_tokens": 5, "cache_write_extended_tokens": 5},
    ),
    (
        "text and images of Cohere's embeddings, told apart",
        {"embeddings": {}, "meta": {"billed_units": {"text_tokens": 7, "image_tokens": 100}}},
        {"model_id": "embed-v4.0"},
        {"input_tokens": 107},
    ),
    (
        "the same beside their sum",
        {
            "embeddings": {},
            "meta": {"billed_units": {"input_tokens": 107, "text_tokens": 7, "image_tokens": 100}},
        },
        {"model_id": "embed-v4.0"},
        {"input_tokens": 107},
    ),
    (
        "the tools of Mistral's conversations, and what they brought in",
        conversation(connector_tokens=5000, connectors={"web_search": 2}, total_tokens=6100),
        {},
        {
            "provider": "mistral",
            "model_id": "mistral-medium-2505",
            "input_tokens": 6000,
            "meters": {"web_searches": 2},
        },
    ),
    (
        "the same where the usage does not say which",
        conversation({"type": "tool.execution", "name": "code_interpreter"}),
        {},
        {"provider": "mistral", "input_tokens": 1000, "meters": {"code_executions": 1}},
    ),
    (
        "the same with tokens of tools alone",
        conversation(connector_tokens=5000, connectors=None, total_tokens=6100),
        {},
        {"input_tokens": 6000, "meters": {"connector_calls": 1}},
    ),
    (
        "the tier in Mistral's usage",
        {**chat(1000, 100, 1100, service_tier="batch"), "model": "mistral-large-2512"},
        {},
        {"provider": "mistral", "processing": "batch"},
    ),
    (
        "pictures that were annotated",
        {
            "model": "mistral-ocr-2512",
            "pages": [{"images": []}, {"images": [{"image_annotation": "{}"}]}],
            "usage_info": {"pages_processed": 2},
        },
        {},
        {"meters": {"annotated_pages": 2}},
    ),
    (
        "more context of Perplexity's searches",
        {**chat(1000, 100, 1100, search_context_size="high"), "model": "sonar-pro"},
        {},
        {"provider": "perplexity", "meters": {"requests": 1, "high_context_requests": 1}},
    ),
    (
        "a batch with the sums of its answers",
        responses(
            id="batch_1",
            object="batch",
            status="completed",
            output=None,
            request_counts={"total": 9, "completed": 8, "failed": 1},
        ),
        {"provider": "openai"},
        {"processing": "batch", "request_count": 8, "outcome": "unspecified"},
    ),
]


@pytest.mark.parametrize(
    ("response", "fields", "wanted"), [case[1:] for case in READ], ids=[case[0] for case in READ]
)
def test_it_is_read(response, fields, wanted):
    record = usage_from_response(response, **fields)
    assert {name: getattr(record, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "response",
    [
        {
            "created": 1793534400,
            "data": [{}],
            "model": "gpt-image-1",
            "usage": {"input_tokens": 5, "output_tokens": 10, "total_tokens": 15},
            "svg_usage": SVG,
        },
        responses(output=[{"type": "image_generation_call", "status": "completed", "svg_usage": SVG}]),
    ],
    ids=["images", "responses"],
)
def test_the_model_that_wrote_an_svg_is_a_call_of_its_own(response):
    with CostOpsClient(base_url="sqlite://") as client:
        alone = usage_from_response(response, provider="openai")
        assert alone.meters["other_model_calls"] == 1
        assert client.costs.estimate(alone).status == "partial"
        first, other = usages_from_response(response, provider="openai")
        assert "other_model_calls" not in first.meters
        assert (other.model_id, other.input_tokens, other.output_tokens) == ("gpt-5", 500, 300)
        assert (other.reasoning_tokens, client.costs.estimate(other).status) == (50, "priced")


def test_more_context_costs_what_perplexity_states():
    def cost(size, total):
        stated = {"input_tokens_cost": 0.003, "output_tokens_cost": 0.0015, "total_cost": total}
        answer = {**chat(1000, 100, 1100, search_context_size=size, cost=stated), "model": "sonar-pro"}
        record = usage_from_response(answer)
        return client.costs.estimate(record), record.reported_cost

    with CostOpsClient(base_url="sqlite://") as client:
        for size, total in (("low", 0.0105), ("medium", 0.0145), ("high", 0.0185)):
            charged, stated = cost(size, total)
            assert (charged.total_cost, charged.status) == (stated, "priced")


def test_a_prompt_grounded_in_maps_has_a_price_before_gemini_3():
    with CostOpsClient(base_url="sqlite://") as client:
        cost = client.costs.estimate(usage_from_response(gemini(groundingChunks=[{"maps": {"uri": "x"}}])))
    assert (cost.other_cost, cost.status) == (Decimal("0.025"), "priced")


@pytest.mark.parametrize(
    ("response", "fields"),
    [
        (gemini("gemini-3-flash-preview", groundingChunks=[{"maps": {"uri": "x"}}]), {}),
        (conversation(connectors={"web_search": 1}), {}),
        (gpt("llama-3.3-70b-versatile", message={"executed_tools": [{"type": "search"}]}, x_groq={}), {}),
        ({**chat(1000, 100, 1100, num_sources_used=4), "model": "grok-4"}, {}),
    ],
    ids=["maps", "connectors", "groq", "sources"],
)
def test_what_is_billed_without_a_known_price_makes_the_cost_partial(response, fields):
    with CostOpsClient(base_url="sqlite://") as client:
        cost = client.costs.estimate(usage_from_response(response, **fields))
    assert cost.status == "partial"
    assert cost.total_cost > 0
