"""How many records a message of a stream carries."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import UsageRecord
from llm_cost_ops._gen.codecs import STREAM_USAGE_REQUEST
from llm_cost_ops._gen.messages import StreamUsageRequest
from llm_cost_ops.rules.chunks import MAX_BYTES, MAX_RECORDS, chunks_of
from llm_cost_ops.wire.unknown import Unknown

WIDE = "\U0001f600"
LARGEST = UsageRecord(
    organization_id=WIDE * 100,
    **{
        field: WIDE * 255
        for field in ("provider", "model_id", "project_id", "user_id", "api_key_id", "session_id", "source")
        if field in UsageRecord.__struct_fields__
    },
    tags=[WIDE * 255] * 64,
    labels={f"{n:02}{WIDE * 253}": WIDE * 255 for n in range(64)},
    meters={f"{n:02}{WIDE * 253}": 2**62 for n in range(32)},
    metadata={"a": "b" * 16_000},
)
KINDS = [
    UsageRecord(organization_id="a", input_tokens=1),
    UsageRecord(organization_id="b", tags=["t"] * 3, metadata={"k": "v"}),
    LARGEST,
    UsageRecord(organization_id="c", unknown_=Unknown(b"\xf2\x07\x80\x80\x40" + b"x" * 2**20)),
]


@given(
    st.lists(
        st.integers(0, 3).map(lambda kind: (kind, 1)) | st.tuples(st.integers(0, 1), st.integers(1, 120)),
        max_size=12,
    )
)
def test_nothing_is_lost_and_no_message_is_too_large(counts: list[tuple[int, int]]) -> None:
    records = [KINDS[kind] for kind, count in counts for _ in range(count)]
    chunks = list(chunks_of(iter(records)))
    assert [record for chunk in chunks for record in chunk] == records
    for chunk in chunks:
        assert 1 <= len(chunk) <= MAX_RECORDS
        size = len(STREAM_USAGE_REQUEST.encode(StreamUsageRequest(records=chunk)))
        assert size <= MAX_BYTES or len(chunk) == 1


def test_what_is_at_hand_goes_together() -> None:
    assert [len(chunk) for chunk in chunks_of(KINDS[:1] * 250)] == [100, 100, 50]
    assert list(chunks_of([])) == []


def test_a_record_of_wrong_types_harms_nothing_here() -> None:
    tags: Any = 7
    wrong = UsageRecord(organization_id="a", tags=tags)
    assert list(chunks_of([wrong, wrong])) == [[wrong, wrong]]
