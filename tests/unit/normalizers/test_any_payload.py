"""Whatever the payload: a record whose details fit their totals, or a PayloadError."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops.normalizers import APIS, PayloadError, record_from_line, usage_from_response

CASES = json.loads((Path(__file__).parents[2] / "golden/provider_payloads.json").read_text())


def keys_of(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from keys_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys_of(item)


OTHERS = """
    cost cost_in_usd_ticks server_side_tool_usage_details web_search_calls candidates groundingMetadata
    webSearchQueries choices content_filter_results x_groq response result custom_id key type object
    created createTime id meta data text duration attributes context start_time
    gen_ai.usage.input_tokens gen_ai.usage.cache_read.input_tokens events input_token_details
    output_token_details cached_tokens_details audio_tokens image_tokens trafficType message delta
    cache_write_tokens_details ttl_12h citation_tokens num_search_queries prompt_audio_seconds
    document_annotation event serviceTier performanceConfig ResponseMetadata status body provider
    metadata action container_id error model_id api
    """.split()
KEYS = st.sampled_from(sorted({*keys_of([case["payload"] for case in CASES]), *OTHERS}))
WORDS = st.sampled_from(
    """
    message response chat.completion response.done message_start message_delta list AUDIO IMAGE 1h compaction
    web_search_call code_interpreter_call duration tokens gpt-5 grok-4 sonar default flex 2026-11-01 0.5 x
    """.split()
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 20), st.integers(), st.floats(), WORDS, st.text(max_size=3)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=25,
)


def fits(record):
    given, returned = record.input_tokens or 0, record.output_tokens or 0
    assert 0 <= record.cached_tokens + record.cache_write_tokens <= given
    assert 0 <= record.cache_write_extended_tokens <= record.cache_write_tokens
    assert 0 <= record.reasoning_tokens <= returned
    assert all(type(count) is int and count > 0 for count in record.meters.values())
    assert record.total_tokens in (None, given + returned)
    assert len(record.idempotency_key) <= 255


def read(function, *args, **kwargs):
    try:
        record = function(*args, **kwargs)
    except PayloadError:
        return
    fits(record)
    # What was read can be sent.
    USAGE_RECORD.decode(USAGE_RECORD.encode(record))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(KEYS, VALUES, max_size=8),
    st.sampled_from([None, *APIS]),
    st.sampled_from([None, "x-ai", "p"]),
)
def test_any_payload(payload, api, provider):
    read(usage_from_response, payload, api=api, provider=provider)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=4))
def test_any_stream(events):
    read(usage_from_response, events, provider="p")


@settings(max_examples=40, deadline=None)
@given(VALUES | st.fixed_dictionaries({"response": VALUES}, optional={"provider": VALUES, "user_id": VALUES}))
def test_any_line(line):
    read(record_from_line, line)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(CASES), st.data())
def test_a_good_payload_with_one_thing_changed(case, data):
    payload = json.loads(json.dumps(case["payload"]))
    holders = [payload]
    for holder in holders:
        items = holder.values() if isinstance(holder, dict) else holder
        holders.extend(item for item in items if isinstance(item, (dict, list)) and item)
    holder = data.draw(st.sampled_from(holders))
    key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(VALUES)
    read(
        usage_from_response,
        payload,
        provider=case["provider"],
        api=data.draw(st.sampled_from([None, case["api"]])),
    )
