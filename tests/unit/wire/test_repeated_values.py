"""What repeats from message to message, a moment or a label, is decoded once, and little is kept for that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops._gen.codecs import BATCH_RECEIPT, BATCH_SUBMIT_USAGE_REQUEST, USAGE_RECORD
from llm_cost_ops._gen.messages import (
    BatchReceipt,
    BatchSubmitUsageRequest,
    SubmitResult,
    UsageReceipt,
    UsageRecord,
)
from llm_cost_ops.wire import DecodeError, fields
from llm_cost_ops.wire.timestamps import read_timestamp, write_timestamp

NOW = datetime(2026, 11, 27, 23, 12, 35, 123456, tzinfo=UTC)


def test_the_receipts_of_a_batch_share_their_moment() -> None:
    results = [SubmitResult(usage=UsageReceipt(processed_at=NOW + timedelta(0))) for _ in range(3)]
    decoded = BATCH_RECEIPT.decode(BATCH_RECEIPT.encode(BatchReceipt(results=results)))
    moments = [each.usage.processed_at for each in decoded.results if each.usage is not None]
    assert moments == [NOW] * 3
    assert moments[0] is moments[1] is moments[2]


@given(st.lists(st.datetimes(timezones=st.just(UTC)), min_size=1), st.binary(max_size=3))
def test_moments_are_read_where_they_lie_whatever_was_read_before(
    moments: list[datetime], around: bytes
) -> None:
    for moment in [*moments, moments[0], moments[0]]:
        payload = write_timestamp(moment)
        data = around + payload + around
        assert read_timestamp(data, len(around), len(around) + len(payload), None) == moment


# Seconds in four, five and six bytes, and the first and last of each; with nanoseconds and without.
@pytest.mark.parametrize("seconds", [2**28 - 1, 2**28, 2**35 - 1, 2**35, 1_764_284_400])
@pytest.mark.parametrize("micros", [0, 1, 999_999])
def test_moments_around_those_of_five_bytes(seconds: int, micros: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=micros)
    payload = write_timestamp(moment)
    assert read_timestamp(payload, 0, len(payload), None) == moment


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_moment_that_is_cut_off_is_no_moment_of_before(cut: int) -> None:
    payload = write_timestamp(NOW)
    assert read_timestamp(payload, 0, len(payload), None) == NOW
    if cut == 6:  # the seconds alone
        assert read_timestamp(payload, 0, cut, None) == NOW.replace(microsecond=0)
    else:
        with pytest.raises((DecodeError, IndexError)):
            read_timestamp(payload, 0, cut, None)


def test_labels_that_repeat_are_decoded_once() -> None:
    records = [UsageRecord(labels={"team": "search", "env": f"env-{n % 2}"}) for n in range(4)]
    decoded = BATCH_SUBMIT_USAGE_REQUEST.decode(
        BATCH_SUBMIT_USAGE_REQUEST.encode(BatchSubmitUsageRequest(records=records))
    )
    assert decoded.records == records
    assert decoded.records[0].labels["env"] is decoded.records[2].labels["env"]


def test_few_labels_are_kept_and_no_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[bytes, tuple[str, str]] = {}
    monkeypatch.setattr(fields, "_text_entries", kept)
    labels = {f"label-{n}": "x" * (n % 400) for n in range(3000)}
    assert USAGE_RECORD.decode(USAGE_RECORD.encode(UsageRecord(labels=labels))).labels == labels
    assert 0 < len(kept) <= 1024
    assert max(map(len, kept)) <= 256
