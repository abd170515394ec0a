"""Streamed responses: events become one payload, cumulative counts are not added up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_cost_ops.normalizers import PayloadError, usage_from_response

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "model": "claude-opus-5-5",
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 100,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 100},
            "cache_read_input_tokens": 50,
            "output_tokens": 1,
            "service_tier": "priority",
        },
    },
}
DELTAS = [
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 15, "input_tokens": None}},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 40, "server_tool_use": {"web_search_requests": 2}},
    },
    {"type": "message_stop"},
]


@pytest.mark.parametrize(
    "shape",
    [
        lambda events: events,
        iter,
        tuple,
        lambda events: [{"event": event["type"], "data": event} for event in events],
        lambda events: (SimpleNamespace(**event) for event in events),
    ],
    ids=["list", "iterator", "tuple", "sse", "objects"],
)
def test_anthropic_deltas_are_cumulative(shape):
    record = usage_from_response(shape([START, *DELTAS]))
    assert (record.input_tokens, record.output_tokens) == (175, 40)
    assert (record.cached_tokens, record.cache_write_extended_tokens) == (50, 100)
    assert (record.model_id, record.service_tier, record.meters) == (
        "claude-opus-5-5",
        "priority",
        {"web_searches": 2},
    )
    assert (record.quality, record.idempotency_key) == ("unspecified", "anthropic:msg_1")


def test_anthropic_stream_that_broke_off_is_unknown():
    record = usage_from_response([START, DELTAS[0]])
    assert record.quality == "unknown"
    assert (record.input_tokens, record.idempotency_key) == (175, "anthropic:msg_1")


def test_the_events_are_not_changed():
    before = repr((START, DELTAS))
    usage_from_response([START, *DELTAS])
    assert repr((START, DELTAS)) == before


def chunk(**fields):
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1793534400,
        "model": "gpt-5.4",
        **fields,
    }


def test_openai_last_chunk_with_usage():
    chunks = [
        {"id": "", "object": "", "model": "", "choices": [], "prompt_filter_results": []},
        chunk(choices=[{"delta": {"content": "Hi"}}], usage=None, service_tier="flex"),
        chunk(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}),
    ]
    record = usage_from_response(iter(chunks[1:]))
    assert (record.provider, record.model_id, record.input_tokens, record.output_tokens) == (
        "openai",
        "gpt-5.4",
        9,
        2,
    )
    assert (record.service_tier, record.idempotency_key) == ("flex", "openai:c1")
    assert usage_from_response(chunks).idempotency_key == "openai:c1"


def test_openai_chunks_without_usage_are_unknown():
    record = usage_from_response([chunk(choices=[{"delta": {}}], usage=None)])
    assert (record.quality, record.model_id, record.input_tokens) == ("unknown", "gpt-5.4", None)


def test_openai_responses_events():
    response = {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-5.4",
        "status": "in_progress",
        "usage": None,
    }
    done = {
        **response,
        "status": "completed",
        "usage": {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8},
    }
    events = [
        {"type": "response.created", "response": response},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": done},
    ]
    assert usage_from_response(events).input_tokens == 5
    assert usage_from_response(events[-1]).output_tokens == 3
    aborted = usage_from_response(events[:2])
    assert (aborted.quality, aborted.model_id) == ("unknown", "gpt-5.4")


def test_gemini_chunks_keep_the_last_counts():
    chunks = [
        {"modelVersion": "gemini-3.8-flash", "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}},
        {
            "modelVersion": "gemini-3.8-flash",
            "responseId": "r",
            "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13},
        },
    ]
    record = usage_from_response(chunks)
    assert (record.input_tokens, record.output_tokens, record.idempotency_key) == (9, 4, "google:r")


def test_bedrock_and_cohere_streams():
    events = [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "Hi"}}},
        {
            "metadata": {
                "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5},
                "metrics": {"latencyMs": 9},
            }
        },
    ]
    record = usage_from_response(events, model_id="us.amazon.nova-lite-v1:0")
    assert (record.provider, record.region, record.input_tokens) == ("aws", "us", 3)
    events = [
        {"type": "message-start", "id": "c1"},
        {"type": "content-delta", "delta": {"message": {}}},
        {
            "type": "message-end",
            "delta": {"usage": {"billed_units": {"input_tokens": 1, "output_tokens": 2}}},
        },
    ]
    record = usage_from_response(events, model_id="command-a-03-2025")
    assert (record.provider, record.output_tokens, record.idempotency_key) == ("cohere", 2, "cohere:c1")


def test_sse_data_as_text():
    events = [
        {"data": '{"object": "chat.completion.chunk", "model": "gpt-5.4", "usage": {"prompt_tokens": 1}}'},
        {"data": "[DONE]"},
    ]
    assert usage_from_response(events).input_tokens == 1
    with pytest.raises(PayloadError) as caught:
        usage_from_response([{"data": "{"}])
    assert caught.value.path == "[0].data"


def test_several_responses_are_not_one_record():
    with pytest.raises(PayloadError, match="more than one response"):
        usage_from_response([START, *DELTAS, START])


def test_an_empty_stream():
    with pytest.raises(PayloadError, match="no known shape"):
        usage_from_response([])
    record = usage_from_response([], provider="openai", model_id="gpt-5.4")
    assert record.quality == "unknown"
    with pytest.raises(PayloadError) as caught:
        usage_from_response([1])
    assert caught.value.path == "[0]"


@pytest.mark.parametrize("index", [None, [], {"a": 1}, "0", 0.5])
def test_an_index_of_any_kind_is_one_answer(index):
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    chunk = {"object": "chat.completion.chunk", "model": "gpt-5.4"}
    choices = [[{"index": index, "delta": {}}], [{"index": index, "finish_reason": "stop"}]]
    record = usage_from_response(
        [*({**chunk, "choices": each} for each in choices), {**chunk, "usage": usage}]
    )
    assert (record.output_tokens, record.quality) == (2, "unspecified")
