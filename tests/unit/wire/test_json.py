"""REST JSON: what is refused, and how; what survives."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops._gen.codecs import BATCH_SUBMIT_USAGE_REQUEST, GET_HEALTH_RESPONSE, USAGE_RECORD
from llm_cost_ops._gen.messages import GetHealthResponse, HealthStatus, UsageRecord
from llm_cost_ops.wire.errors import DecodeError, EncodeError
from llm_cost_ops.wire.json_keys import repeated_keys
from llm_cost_ops.wire.unknown import Unknown

TOO_LARGE = "must have at most 18 digits before and 18 after the point"
NO_TIME = "expected a time from the years 1 to 9999, such as 2026-01-31T12:00:00Z"
OUTSIDE = "is outside the years 1 to 9999 in UTC"
GRAMMAR = "must be a plain decimal such as 0.015, with at most 18 digits before and 18 after the point"


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        (b"", "", "Input data was truncated"),
        (b"{", "", "Input data was truncated"),
        (b"[]", "", "expected object, got array"),
        (b'{"provider": "\xff"}', "", "is not valid UTF-8"),
        (b'{"new": "\xff"}', "new", "is not valid UTF-8"),
        (b'{"new": {"\xed\xa0\x80": 1}}', "new", "is not valid UTF-8"),
        (b'{"modality": {"new": ["\xff"]}}', "modality.new", "is not valid UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "", "is nested too deep"),
        (b'{"metadata": ' + b'{"a":' * 100_000, "", "is nested too deep"),
        (b'{"input_tokens": 9223372036854775808}', "input_tokens", "expected int <= 9223372036854775807"),
        (b'{"input_tokens": 18446744073709551616}', "input_tokens", "expected int <= 9223372036854775807"),
        (b'{"request_count": 2147483648}', "request_count", "expected int <= 2147483647"),
        (b'{"input_tokens": true}', "input_tokens", "expected int, got bool"),
        (b'{"input_tokens": 1.0}', "input_tokens", "expected int, got float"),
        (b'{"input_tokens": "1"}', "input_tokens", "expected int, got str"),
        (b'{"cached_tokens": null}', "cached_tokens", "expected int, got null"),
        (b'{"operation": 5}', "operation", "expected str, got int"),
        (
            b'{"modality": {"input_audio_tokens": "x"}}',
            "modality.input_audio_tokens",
            "expected int, got str",
        ),
        (
            b'{"new": 1, "modality": {"input_audio_tokens": []}}',
            "modality.input_audio_tokens",
            "expected int, got array",
        ),
        (b'{"labels": {"a": 1}}', "labels[...]", "expected str, got int"),
        (b'{"timestamp": "2026-01-01"}', "timestamp", NO_TIME),
        (b'{"timestamp": "0001-01-01T00:00:00+05:00"}', "timestamp", OUTSIDE),
        (b'{"timestamp": "9999-12-31T23:59:59.9999999Z"}', "timestamp", NO_TIME),
        (b'{"reported_cost": true}', "reported_cost", "expected a decimal, as a string or a number"),
        (b'{"reported_cost": 1e999}', "reported_cost", "Number out of range"),
        (b'{"reported_cost": 1e18}', "reported_cost", TOO_LARGE),
        (b'{"reported_cost": 1e-19}', "reported_cost", TOO_LARGE),
        *(
            (json.dumps({"reported_cost": text}).encode(), "reported_cost", GRAMMAR)
            for text in [*"NaN Infinity 1e5 1E-9 1e999999999 1_000 １ +1 01 .5 5. -".split(), "", " 1"]
        ),
    ],
)
def test_bad_json_names_the_field(data: bytes, path: str, reason: str) -> None:
    for unique in (False, True):
        with pytest.raises(DecodeError) as caught:
            USAGE_RECORD.decode_json(data, unique=unique)
        assert (caught.value.path, caught.value.reason) == (path, reason)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ('"0.0000000011"', "0.0000000011"),
        ("0.0000000011", "0.0000000011"),
        ("1.1e-9", "0.0000000011"),
        ("12E2", "1200"),
        ("0.10", "0.10"),
        ("0.1234567890123456789", None),
        ("0.123456789012345678", "0.123456789012345678"),
        ("123456789012345678", "123456789012345678"),
        ("-0", "0"),
        ("5", "5"),
    ],
)
def test_decimals_are_strings_or_numbers_and_exact(sent: str, read: str | None) -> None:
    data = b'{"reported_cost": %s}' % sent.encode()
    if read is None:
        with pytest.raises(DecodeError, match="at most 18 digits"):
            USAGE_RECORD.decode_json(data)
        return
    record = USAGE_RECORD.decode_json(data)
    assert record.reported_cost == Decimal(read)
    assert json.loads(USAGE_RECORD.encode_json(record))["reported_cost"] == read


def test_times_are_utc_whatever_came() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for text in ("12:00:00Z", "14:00:00+02:00", "12:00:00", "12:00:00.0000001z"):
        record = USAGE_RECORD.decode_json(json.dumps({"timestamp": f"2026-01-01T{text}"}).encode())
        assert record.timestamp == noon
        assert record.timestamp is not None
        assert record.timestamp.tzinfo is UTC
    for time in (noon, noon.astimezone(timezone(timedelta(hours=-5))), noon.replace(tzinfo=None)):
        sent = UsageRecord(timestamp=time)
        assert USAGE_RECORD.encode_json(sent) == b'{"timestamp":"2026-01-01T12:00:00Z"}'
        assert sent.timestamp is time


def test_null_is_absent_where_absence_can_be() -> None:
    for name in ("total_tokens", "modality", "metadata", "reported_cost", "timestamp"):
        assert USAGE_RECORD.decode_json(b'{"%s": null}' % name.encode()) == UsageRecord()


def test_requests_omit_defaults_and_responses_do_not() -> None:
    assert USAGE_RECORD.encode_json(UsageRecord()) == b"{}"
    response = GetHealthResponse(status=HealthStatus.HEALTHY)
    written = b'{"status":"healthy","version":"","uptime_seconds":0.0,"components":[]}'
    assert GET_HEALTH_RESPONSE.encode_json(response) == written
    response.unknown_ = Unknown(json={})
    assert GET_HEALTH_RESPONSE.encode_json(response) == written


def test_unknown_fields_keep_their_text() -> None:
    data = (
        b'{"provider":"p","modality":{"input_audio_tokens":1,"new":[1.10,{"a":1e5}]},'
        b'"newer":123456789012345678901234567890}'
    )
    record = USAGE_RECORD.decode_json(data)
    assert record.unknown_
    assert USAGE_RECORD.encode_json(record) == data


def test_the_slot_of_unknown_fields_is_not_a_field() -> None:
    for name in ("unknown_", "?unknown"):
        record = USAGE_RECORD.decode_json(json.dumps({name: {"binary": "AAAA"}}).encode())
        assert record.unknown_
        assert (list(record.unknown_.json), record.unknown_.binary) == ([name], b"")


def test_a_later_key_wins() -> None:
    assert USAGE_RECORD.decode_json(b'{"provider": "a", "provider": "b"}').provider == "b"


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"provider":"a","provider":"b"}', "provider"),
        (b'{"provider":"a","provider":""}', "provider"),
        (b'{"provider":"a","provi\\u0064er":"b"}', "provider"),
        (b'{"provider":"\\u003a","provider":"\\u003a"}', "provider"),
        (b'{"labels":{"team":"a","team":"b"}}', "labels.team"),
        (b'{"meters":{"pages":1,"pages":1}}', "meters.pages"),
        (b'{"metadata":{"a":[{},{"b":{"c":1,"c":2}}]}}', "metadata.a[1].b.c"),
        (b'{"new":{"a":1,"a":1}}', "new.a"),
        (b'{"new":1,"new":2}', "new"),
        (b'{"modality":{"input_audio_tokens":1,"new":1,"new":1}}', "modality.new"),
        (b'{"reported_cost":1.5,"reported_cost":1.5}', "reported_cost"),
        (b'{"timestamp":"2026-01-01T00:00:00+02:00","provider":"a","provider":"b"}', "provider"),
        (b'{"metadata":{"%s":1,"%s":1}}' % (b"x" * 50, b"x" * 50), f"metadata.{'x' * 40}…"),
    ],
)
def test_a_key_that_comes_twice_is_refused_where_that_is_asked_for(data: bytes, path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        USAGE_RECORD.decode_json(data, unique=True)
    assert (caught.value.path, caught.value.reason) == (path, "is given more than once")


def test_one_record_with_a_key_twice_harms_only_itself() -> None:
    twice = b'{"provider":"a","metadata":{"a":1,"a":2}}'
    data = b'{"records":[{"provider":"a"},%s,{"input_tokens":"x","provider":"a","provider":"b"},%s]}'
    records = BATCH_SUBMIT_USAGE_REQUEST.decode_json(data % (twice, twice), unique=True).records
    assert records[0] == UsageRecord(provider="a")
    errors = [(each.unknown_.error_field, each.unknown_.error) for each in records[1:] if each.unknown_]
    again = ("metadata.a", "is given more than once")
    assert errors == [again, ("input_tokens", "expected int, got str"), again]
    for whole in (b'{"records":[],"records":[]}', b'{"records":[{}],"new":{"a":1,"a":1}}'):
        with pytest.raises(DecodeError, match="is given more than once"):
            BATCH_SUBMIT_USAGE_REQUEST.decode_json(whole, unique=True)


def test_the_search_for_keys_takes_memory_in_proportion() -> None:
    deep = b'{"a":' * 300 + b'{"b":1,"b":2,"c":[%s]}' % b",".join([b'{"d":1,"d":2}'] * 5000) + b"}" * 300
    [path] = repeated_keys(deep)
    assert path == ("a",) * 300 + ("b",)


def test_a_bad_record_harms_only_itself() -> None:
    early = b'{"timestamp": "0001-01-01T00:00:00+05:00"}'
    no_text = b'{"provider": "\xff"}, {"x": "\xff"}'
    data = b'{"records": [{"provider": "a"}, {"input_tokens": "x"}, %s, 7, %s]}' % (early, no_text)
    for unique in (False, True):
        records = BATCH_SUBMIT_USAGE_REQUEST.decode_json(data, unique=unique).records
        assert records[0] == UsageRecord(provider="a")
        errors = [
            (record.unknown_.error_field, record.unknown_.error) for record in records[1:] if record.unknown_
        ]
        assert errors == [
            ("input_tokens", "expected int, got str"),
            ("timestamp", OUTSIDE),
            ("", "expected object, got int"),
            ("", "is not valid UTF-8"),
            ("x", "is not valid UTF-8"),
        ]
    with pytest.raises(DecodeError, match="records: expected array, got object"):
        BATCH_SUBMIT_USAGE_REQUEST.decode_json(b'{"records": {}}')


def _loop() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    return loop


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (UsageRecord(metadata={"a": object()}), "can't write object as JSON"),
        (UsageRecord(metadata=_loop()), "is nested too deep"),
        (UsageRecord(provider="\ud800"), "lone surrogate"),
        (UsageRecord(reported_cost=Decimal("1E+30")), "reported_cost: must have at most 18 digits"),
        (UsageRecord(reported_cost=Decimal("1E+999999999")), "reported_cost: must have at most 18 digits"),
    ],
)
def test_what_json_cannot_hold_is_an_encode_error(record: UsageRecord, words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        USAGE_RECORD.encode_json(record)
