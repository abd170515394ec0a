"""A stream that breaks off is of unknown usage: the counts so far are no price of the whole."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.normalizers import PayloadError, usage_from_response, usages_from_response
from tests.unit.normalizers.bodies import objects

INPUT = 1000


def chat_with_counts_so_far(pieces):
    """As vLLM's continuous_usage_stats, xAI and Perplexity send them."""
    for number in range(1, pieces + 1):
        yield {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "model": "grok-4",
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": "x"},
                    "finish_reason": "stop" if number == pieces else None,
                }
            ],
            "usage": {
                "prompt_tokens": INPUT,
                "completion_tokens": number,
                "total_tokens": INPUT + number,
            },
        }


def chat_with_counts_at_the_end(pieces):
    """The counts come in a chunk without choices, after the one with the reason."""
    *_, last = chunks = list(chat_with_counts_so_far(pieces))
    for chunk in chunks:
        yield {**chunk, "usage": None}
    yield {**last, "choices": []}


def gemini(pieces):
    for number in range(1, pieces + 1):
        yield {
            "candidates": [
                {
                    "content": {"parts": [{"text": "x"}]},
                    **({"finishReason": "STOP"} if number == pieces else {}),
                }
            ],
            "modelVersion": "gemini-2.5-flash",
            "usageMetadata": {
                "promptTokenCount": INPUT,
                "candidatesTokenCount": number,
                "totalTokenCount": INPUT + number,
            },
        }


def gemini_of_the_sdk(pieces):
    for chunk in gemini(pieces):
        [candidate], counts = chunk["candidates"], chunk["usageMetadata"]
        yield {
            "candidates": [{"content": None, "finish_reason": candidate.get("finishReason")}],
            "model_version": "gemini-2.5-flash",
            "usage_metadata": {
                "prompt_token_count": INPUT,
                "candidates_token_count": counts["candidatesTokenCount"],
                "total_token_count": counts["totalTokenCount"],
            },
        }


def llama_on_bedrock(pieces):
    for number in range(1, pieces + 1):
        yield {
            "generation": "x",
            "prompt_token_count": INPUT if number == 1 else None,
            "generation_token_count": number,
            "stop_reason": "stop" if number == pieces else None,
        }


def claude(pieces):
    """Through a gateway that states the counts so far."""
    yield {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "model": "claude-opus-5",
            "usage": {"input_tokens": INPUT, "output_tokens": 1},
        },
    }
    for number in range(1, pieces + 1):
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn" if number == pieces else None},
            "usage": {"output_tokens": number},
        }


STREAMS = [
    chat_with_counts_so_far,
    chat_with_counts_at_the_end,
    gemini,
    gemini_of_the_sdk,
    llama_on_bedrock,
    claude,
]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("shape", [list, objects], ids=["dicts", "objects"])
@given(pieces=st.integers(2, 8), cut=st.integers(1, 7))
def test_only_a_whole_stream_has_counts(stream, shape, pieces, cut):
    events = list(stream(pieces))
    whole = usage_from_response(shape(events), provider="acme", model_id="m")
    assert (whole.input_tokens, whole.output_tokens, whole.quality) == (INPUT, pieces, "unspecified")
    if cut < len(events):
        broken = usage_from_response(shape(events[:cut]), provider="acme", model_id="m")
        assert broken.quality == "unknown"


def test_each_answer_of_several_must_end():
    def chunk(index, reason, completion):
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 5, "completion_tokens": completion},
        }

    events = [chunk(0, None, 1), chunk(1, None, 2), chunk(0, "stop", 3), chunk(1, "stop", 4)]
    qualities = [usage_from_response(events[:end]).quality for end in (1, 2, 3, 4)]
    assert qualities == ["unknown", "unknown", "unknown", "unspecified"]


def test_counts_beside_an_empty_piece_after_the_end_are_whole():
    """OpenRouter's last chunk has a piece without text and without a reason."""

    def chunk(content, reason, **more):
        delta = {"role": "assistant", "content": content}
        return {
            "id": "gen-1",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            **more,
        }

    counts = {"usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}
    events = [chunk("x", None), chunk("", "stop"), chunk("", None, **counts)]
    assert usage_from_response(events).quality == "unspecified"
    assert usage_from_response([events[0], events[2]]).quality == "unknown"


def test_whole_answers_in_one_list_are_calls_of_their_own():
    answers = [
        {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "model": "gpt-5.4",
            "choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number + 1},
        }
        for number in (1, 2)
    ]
    with pytest.raises(PayloadError, match="more than one response"):
        usage_from_response(answers)
    assert [record.input_tokens for record in usages_from_response(answers)] == [1, 2]


def test_what_came_before_the_end_of_a_gemini_stream_is_kept():
    events = list(gemini(3))
    events[1]["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b"]}
    assert usage_from_response(events).meters == {"web_searches": 1}
    events[2]["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a"]}
    for event in events:
        event["modelVersion"] = "gemini-3-pro"
    assert usage_from_response(events).meters == {"web_searches": 2}


def piece(content="x", reason=None, *, index=0, counts=None, **delta):
    choice = {"index": index, "delta": {"content": content, **delta}, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], "usage": counts}


def counts(completion):
    return {"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 5 + completion}


DONE = {"data": "[DONE]"}
CALL = [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    "chunks",
    [
        [piece(counts=counts(1)), piece(counts=counts(2))],
        [piece(), piece(counts=counts(2))],
        [piece(reason="", counts=counts(1)), piece(reason="", counts=counts(2))],
        [piece(index=0), piece(index=1, counts=counts(2))],
    ],
    ids=["in each", "at the end", "an empty reason", "of several answers"],
)
def test_the_mark_of_the_end_ends_answers_without_a_reason(chunks):
    """Proxies leave out finish_reason."""
    whole = usage_from_response([*chunks, DONE], provider="acme", model_id="m")
    assert (whole.output_tokens, whole.quality) == (2, "unspecified")
    assert usage_from_response(chunks, provider="acme", model_id="m").quality == "unknown"


@pytest.mark.parametrize("shape", [list, objects], ids=["dicts", "objects"])
def test_a_call_of_tools_by_xai_ends_with_an_empty_reason(shape):
    events = [piece(), piece("", "", tool_calls=CALL, counts=counts(2))]
    assert usage_from_response(shape(events), provider="acme").quality == "unspecified"
    # Where all pieces have an empty reason, it says nothing.
    events[0]["choices"][0]["finish_reason"] = ""
    assert usage_from_response(shape(events), provider="acme").quality == "unknown"


@pytest.mark.parametrize("is_snake", [False, True])
def test_counts_of_gemini_without_candidates_are_of_the_whole(is_snake):
    *begun, _ = list(gemini_of_the_sdk(3) if is_snake else gemini(3))
    totals = {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7}
    last = {"usageMetadata": totals, "promptFeedback": {}}
    if is_snake:
        totals = {"prompt_token_count": 5, "candidates_token_count": 2, "total_token_count": 7}
        last = {"usage_metadata": totals}
    record = usage_from_response([*begun, last])
    assert (record.output_tokens, record.quality) == (2, "unspecified")
    assert usage_from_response(begun).quality == "unknown"


COUNTED = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 2}}
ENDED = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}


@pytest.mark.parametrize(
    "events",
    [[COUNTED, {"type": "message_stop"}], [COUNTED, ENDED], [ENDED, COUNTED], [COUNTED, DONE]],
    ids=["message_stop", "a reason after", "a reason before", "the mark of the end"],
)
def test_a_message_that_stopped_after_its_counts_is_whole(events):
    [begun] = claude(0)
    whole = usage_from_response([begun, *events])
    assert (whole.output_tokens, whole.quality) == (2, "unspecified")
    without = [each for each in events if each is not COUNTED]
    assert usage_from_response([begun, *without]).quality == "unknown"
    assert usage_from_response([begun, COUNTED]).quality == "unknown"


@pytest.mark.parametrize(
    ("provider", "usage"),
    [
        ("x-ai", {"cost_in_usd_ticks": 150_000_000}),
        ("perplexity", {"cost": {"total_cost": 0.015}}),
        ("requesty", {"cost": 0.015}),
        ("openrouter", {"cost": 0.015}),
    ],
)
def test_a_cost_so_far_is_no_cost(provider, usage):
    cut = [piece(counts={**counts(1), **usage})]
    record = usage_from_response(cut, provider=provider, model_id="m")
    assert (record.quality, record.reported_cost) == ("unknown", None)
    given = usage_from_response(cut, provider=provider, model_id="m", reported_cost=2)
    assert given.reported_cost == 2
    whole = usage_from_response([*cut, DONE], provider=provider, model_id="m")
    assert whole.reported_cost == Decimal("0.015")


def grounded(model, *groundings):
    events = list(gemini(len(groundings)))
    for event, grounding in zip(events, groundings, strict=True):
        event["modelVersion"] = model
        event["candidates"][0]["groundingMetadata"] = grounding
    return events


@pytest.mark.parametrize(
    ("model", "groundings", "meters"),
    [
        ("gemini-3-pro", [{"webSearchQueries": ["a"]}, {"webSearchQueries": ["b"]}], {"web_searches": 2}),
        (
            "gemini-3-pro",
            [{"webSearchQueries": ["a"]}, {"groundingChunks": [{"web": {"uri": "x"}}]}],
            {"web_searches": 1},
        ),
        (
            "gemini-2.5-flash",
            [{"groundingChunks": [{"maps": {"uri": "x"}}]}, {"groundingSupports": [{}]}],
            {"map_searches": 1},
        ),
        (
            "gemini-3-pro",
            [{"webSearchQueries": ["a", "b"]}, None, {"webSearchQueries": ["a", "b"]}],
            {"web_searches": 2},
        ),
    ],
    ids=["queries", "queries before pages", "places before supports", "repeated"],
)
def test_grounding_in_several_chunks_is_added_up(model, groundings, meters):
    assert usage_from_response(grounded(model, *groundings)).meters == meters


def test_searches_of_each_candidate_are_kept():
    first, last = grounded("gemini-3-pro", {"webSearchQueries": ["a"]}, {"webSearchQueries": ["b"]})
    first["candidates"][0]["finishReason"] = "STOP"
    last["candidates"][0]["index"] = 1
    assert usage_from_response([first, last]).meters == {"web_searches": 2}
