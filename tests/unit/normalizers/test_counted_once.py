"""What two fields of one answer tell is counted once, and what one of them tells alone is not lost."""

from __future__ import annotations

from decimal import Decimal

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.normalizers import usage_from_response, usages_from_response
from tests.unit.normalizers.bodies import chat

COUNTS = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}


def searched(count, **usage):
    """As LiteLLM tells searches of Gemini and Grok."""
    return chat(1000, 100, 1100, prompt_tokens_details={"web_search_requests": count}, **usage)


@pytest.mark.parametrize("provider", ["x-ai", "litellm", "acme"])
@pytest.mark.parametrize("ticks", [{}, {"cost_in_usd_ticks": 1}, {"cost_in_usd_ticks": None}])
@pytest.mark.parametrize(
    ("usage", "meters"),
    [
        (
            {"server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 1}},
            {"web_searches": 2, "social_searches": 1},
        ),
        ({"num_sources_used": 2}, {"search_sources": 2}),
        ({"num_sources_used": 0}, {"web_searches": 2}),
    ],
    ids=["calls", "sources", "neither"],
)
def test_searches_of_grok_through_litellm(provider, ticks, usage, meters):
    record = usage_from_response({**searched(2, **usage, **ticks), "model": "grok-4"}, provider=provider)
    assert record.meters == meters


@pytest.mark.parametrize("provider", ["x-ai", "openai", "litellm"])
@pytest.mark.parametrize("ticks", [{}, {"cost_in_usd_ticks": 1}, {"cost_in_usd_ticks": None}])
def test_tools_of_xai_in_the_responses_api(provider, ticks):
    details = {"web_search_calls": 2, "x_search_calls": 1}
    usage = {"input_tokens": 9, "output_tokens": 1, "server_side_tool_usage_details": details, **ticks}
    response = {"id": "r", "object": "response", "model": "grok-4", "output": [], "usage": usage}
    record = usage_from_response(response, provider=provider)
    assert record.meters == {"web_searches": 2, "social_searches": 1}


def test_a_null_of_an_sdk_is_no_mark_of_xai():
    nothing = {"cost_in_usd_ticks": None, "num_sources_used": None}
    assert usage_from_response(chat(1000, 100, 1100, **nothing)).provider == "openai"


@pytest.mark.parametrize(
    ("model", "billed"),
    [
        ("gemini-2.5-flash", 1),
        ("gemini/gemini-2.0-flash", 1),
        ("gemini-3-pro", 3),
        ("gpt-5.4", 3),
        ("gemini-25", 3),
    ],
)
def test_litellm_counts_queries_where_gemini_bills_prompts(model, billed):
    details = {"web_search_requests": 3, "google_maps_grounding_requests": 3}
    answer = {**chat(1000, 100, 1100, prompt_tokens_details=details), "model": model}
    record = usage_from_response(answer, provider="google")
    assert record.meters == {"web_searches": billed, "map_searches": billed}


@pytest.mark.parametrize(
    ("chunks", "meters"),
    [
        ([{"maps": {"uri": "x"}}], {"map_searches": 1}),
        ([{"maps": {"uri": "x"}}, {"web": {"uri": "y"}}], {"map_searches": 1, "web_searches": 1}),
        ([{"web": {"uri": "y"}}], {"web_searches": 1}),
        ([], {"web_searches": 1}),
    ],
    ids=["places", "both", "pages", "none"],
)
def test_queries_for_places_are_no_searches_of_the_web(chunks, meters):
    response = {
        "candidates": [{"groundingMetadata": {"webSearchQueries": ["x"], "groundingChunks": chunks}}],
        "modelVersion": "gemini-2.5-flash",
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 1, "totalTokenCount": 11},
    }
    assert usage_from_response(response).meters == meters


BYOK = {"is_byok": True}


@pytest.mark.parametrize(
    ("provider", "usage", "cost"),
    [
        ("openrouter", {"cost": 0}, 0),
        ("requesty", {"cost": 0}, None),
        ("litellm", {"cost": 0.0}, None),
        ("openrouter", {"cost": 0, **BYOK}, None),
        ("openrouter", {"cost": 0.001, **BYOK, "cost_details": {"upstream_inference_cost": None}}, None),
        ("openrouter", {"cost": 0, **BYOK, "cost_details": {"upstream_inference_cost": 0}}, None),
        ("openrouter", {"cost": 0, **BYOK, "cost_details": {"upstream_inference_cost": 0.002}}, "0.002"),
    ],
)
def test_a_cost_of_nothing_is_a_price_at_openrouter_alone(provider, usage, cost):
    record = usage_from_response(chat(1000, 100, 1100, **usage), provider=provider)
    assert record.reported_cost == (None if cost is None else Decimal(cost))
    response = {"object": "response", "usage": {"input_tokens": 1, "output_tokens": 1, **usage}}
    record = usage_from_response(response, provider=provider)
    assert record.reported_cost == (None if cost is None else Decimal(cost))


def test_the_tools_of_a_compound_system_are_billed_with_its_models():
    tools = [{"index": 0, "type": "search"}, {"index": 1, "type": "search"}]
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    answer = {
        **chat(18, 2, 20),
        "model": "groq/compound",
        "choices": [{"index": 0, "message": {"executed_tools": tools}, "finish_reason": "stop"}],
        "usage_breakdown": {"models": [{"model": name, "usage": usage} for name in ("a", "b")]},
        "x_groq": {"id": "req_1"},
    }
    records = usages_from_response(answer, meters={"seats": 1})
    assert [record.model_id for record in records] == ["a", "b"]
    assert [record.meters for record in records] == [{"web_searches": 2, "seats": 1}, {}]


@pytest.mark.parametrize(
    ("tools", "searches"),
    [
        ([{"arguments": "a"}, {"arguments": "a", "output": "x"}], 1),
        ([{"arguments": "a"}, {"arguments": "b"}], 2),
        ([{"arguments": "a"}, {"arguments": "b"}, {"arguments": "a", "output": "x"}], 2),
        ([{"arguments": "a", "output": "x"}, {"arguments": "a", "output": "x"}], 2),
    ],
)
def test_tools_without_an_index_are_told_apart(tools, searches):
    def chunk(delta, reason=None):
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": choices}

    events = [chunk({"executed_tools": [{"type": "search", **tool}]}) for tool in tools]
    events.append({**chunk({}, "stop"), "x_groq": {"usage": COUNTS}})
    assert usage_from_response(events).meters == {"web_searches": searches}


def conversation(*models):
    outputs = [{"type": "message.output", "model": model} for model in models]
    return {"object": "conversation.response", "outputs": outputs, "usage": COUNTS}


def streamed(*models):
    texts = [{"type": "message.output.delta", "content": "x", "model": model} for model in models]
    return [*texts, {"type": "conversation.response.done", "usage": COUNTS}]


@pytest.mark.parametrize("answer", [conversation, streamed])
def test_tokens_of_two_models_are_no_exact_price_of_one(answer):
    one = usage_from_response(answer(*["mistral-medium-2505"] * 2))
    assert (one.model_id, one.quality) == ("mistral-medium-2505", "unspecified")
    two = usage_from_response(answer("mistral-medium-2505", "mistral-large-2512"))
    assert (two.input_tokens, two.quality) == (1000, "estimated")


@pytest.mark.parametrize("key", ["server_tool_use", "server_tool_use_details"])
@pytest.mark.parametrize("value", [True, 5, "x", [1], 0.5])
def test_what_is_no_object_tells_no_searches(key, value):
    record = usage_from_response(chat(1000, 100, 1100, **{key: value}))
    assert (record.input_tokens, record.meters) == (1000, {})
    details = {"server_side_tool_usage_details": value}
    assert usage_from_response(chat(1000, 100, 1100, **details)).input_tokens == 1000


def test_the_fees_of_searches_told_twice():
    details = {"web_search_calls": 2}
    answer = {**searched(2, server_side_tool_usage_details=details), "model": "grok-4.3"}
    with CostOpsClient(base_url="sqlite://") as client:
        twice = client.costs.estimate(usage_from_response(answer, provider="x-ai"))
        del answer["usage"]["server_side_tool_usage_details"]
        once = client.costs.estimate(usage_from_response(answer, provider="x-ai"))
    assert (twice.other_cost, twice.status) == (once.other_cost, "priced")
