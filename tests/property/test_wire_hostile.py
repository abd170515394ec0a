"""Hostile bytes: a DecodeError that names the field, at once, and never anything else."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_cost_ops.wire import DecodeError, EncodeError
from tests.property.wire_oracles import EVERYTHING, OURS, codecs

_RECORD = f"{OURS}.UsageRecord"
_BATCH = f"{OURS}.BatchSubmitUsageRequest"
_NESTED = 120


def _delimited(tag: bytes, payload: bytes) -> bytes:
    size = len(payload)
    length = bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return tag + bytes([*length, size]) + payload


def _deep(tag: bytes, levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = _delimited(tag, data)
    return data


def _short(value: object) -> str:
    """Name a case without its megabytes."""
    return value[:24].hex() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    ("name", "data", "path", "reason"),
    [
        (_RECORD, b"\x30" + b"\xff" * 10 + b"\x01", "input_tokens", "more than ten bytes"),
        (_RECORD, b"\x30\xff", "input_tokens", "ends within"),
        (_RECORD, b"\x30", "input_tokens", "ends within"),
        (_RECORD, b"\x1a\x05abc", "organization_id", "ends within"),
        (_RECORD, b"\x1a\xff\xff\xff\xff\x07abc", "organization_id", "ends within"),
        (_RECORD, b"\x1a\x80\x80\x80\x80\x08abc", "organization_id", "ends within"),
        (_RECORD, b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01abc", "organization_id", "ends within"),
        (_RECORD, b"\x1a\x02\xff\xfe", "organization_id", "UTF-8"),
        (_RECORD, b"\x1a\x03\xed\xa0\x80", "organization_id", "UTF-8"),
        (_RECORD, b"\xda\x01\x01a\xda\x01\x01\xff", "tags[1]", "UTF-8"),
        (_RECORD, b"\xe2\x01\x04\x0a\x01a\x12", "labels", "ends within"),
        (_RECORD, b"\xe2\x01\x03\x0a\x01\xff", "labels", "UTF-8"),
        (_RECORD, b"\x9a\x01\x0d\x10" + b"\xff" * 12, "meters", "more than ten bytes"),
        (_RECORD, b"\x6a\x02\x10\xff", "timestamp", "ends within"),
        (_RECORD, b"\x6a\x06\x10\x80\x94\xeb\xdc\x03", "timestamp", "nanoseconds"),
        (_RECORD, b"\x6a\x0b\x08" + b"\xff" * 9 + b"\x01\x6a\x03\x08\x01\x99", "timestamp", "ends within"),
        (_RECORD, b"\x6a\x0a\x08" + b"\xff" * 8 + b"\x7f", "timestamp", "years 1 and 9999"),
        (_RECORD, b"\x9a\x02\x0b1e999999999", "reported_cost", "plain decimal"),
        (_RECORD, b"\x9a\x02\x03NaN", "reported_cost", "plain decimal"),
        (_RECORD, b"\xaa\x02\x02[]", "metadata", "JSON object"),
        (_RECORD, b"\xaa\x02\x02{\xff", "metadata", "JSON object"),
        (_RECORD, _delimited(b"\xaa\x02", b'{"a":' * 100_000), "metadata", "JSON object"),
        (_RECORD, b"\x92\x01\x02\x08\xff", "modality.input_audio_tokens", "ends within"),
        (_RECORD, b"\x00\x01", "", "number 0"),
        (_RECORD, b"\x02\x00", "", "number 0"),
        (_RECORD, b"\x0e", "", "wire type 6"),
        (_RECORD, b"\x0f", "", "wire type 7"),
        (_RECORD, b"\x0c", "", "did not begin"),
        (_RECORD, b"\xff\xff\xff\xff\xff\xff\x01\x00", "", "32 bits"),
        (_RECORD, b"\x80\x80\x80\x80\x80\x01", "", "32 bits"),
        (_RECORD, b"\xfb\x07", "", "ends within a group"),
        (_RECORD, b"\xfb\x07\xf4\x07", "", "number of another"),
        (_RECORD, b"\xfb\x07" * (_NESTED) + b"\xfc\x07" * _NESTED, "", "100 deep"),
        (_RECORD, b"\xfb\x07" * 1_000_000, "", "100 deep"),
        (_RECORD, b"\xf9\x07\x00\x00", "", "ends within"),
        (_RECORD, b"\xfd\x07\x00\x00", "", "ends within"),
        (
            _BATCH,
            _delimited(b"\x0a", b"\x0a\x01a") * 3 + b"\x0a\x02\x6a\x09",
            "records[3].timestamp",
            "ends within",
        ),
        (
            _BATCH,
            _delimited(b"\x0a", b"") * 3 + b"\x0a\x04\x6a\x02\x10\xff",
            "records[3].timestamp",
            "ends within",
        ),
        (_BATCH, b"\x0a\x04\x1a\x02\xc3\x28", "records[0].organization_id", "UTF-8"),
        (f"{EVERYTHING}.Scalars", b"\x09\x00\x00", "a_double", "ends within"),
        (f"{EVERYTHING}.Scalars", b"\x4d\x00", "a_fixed32", "ends within"),
        (f"{EVERYTHING}.Lists", b"\x0a\x07" + bytes(7), "doubles", "ends within"),
        (f"{EVERYTHING}.Lists", b"\x1a\x02\x01\xff", "int32s", "ends within"),
        (f"{EVERYTHING}.Lists", b"\x1a\xff\xff\xff\xff\x0f\x01", "int32s", "ends within"),
        (f"{EVERYTHING}.Lists", b"\x8a\x01\x02\x01\xff", "unpacked_int32s", "ends within"),
        (f"{EVERYTHING}.Tree", _deep(b"\x12", _NESTED), ".".join(["left"] * 101), "100 deep"),
        (f"{EVERYTHING}.Tree", _deep(b"\x1a", 100_000), ".".join(["children[0]"] * 101), "100 deep"),
        (f"{EVERYTHING}.WellKnown", b"\x1a\x02\x0a\xff", "struct", "ends within"),
        (
            f"{EVERYTHING}.WellKnown",
            _delimited(b"\x2a", _deep(b"\x0a\x32"[:1], 1) * 2 + b"\xff"),
            "list_value",
            "",
        ),
        (f"{EVERYTHING}.WellKnown", b"\x12\x0a\x08" + b"\xff" * 8 + b"\x7f", "duration", "10,000 years"),
        (
            f"{EVERYTHING}.WellKnown",
            b"\x12\x0d\x08\x01\x10" + b"\xff" * 9 + b"\x01",
            "duration",
            "no fraction",
        ),
        (f"{EVERYTHING}.WellKnown", b"\x6a\x03\x0a\x01\xff", "string_value", "UTF-8"),
        (f"{EVERYTHING}.Special", b"\xfa\xff\xff\xff\x0f\x01\xff", "farthest", "ends within"),
    ],
    ids=_short,
)
def test_hostile_bytes_are_refused_with_the_field(name: str, data: bytes, path: str, reason: str) -> None:
    codec = codecs()[name]  # the first to ask has all made, which takes seconds
    began = time.process_time()
    with pytest.raises(DecodeError) as caught:
        codec.decode(data)
    assert caught.value.path == path
    assert reason in caught.value.reason
    assert time.process_time() - began < 1.0


def _nested_value(levels: int) -> bytes:
    """Give a Value of lists within lists."""
    data = b""
    for _ in range(levels):
        data = _delimited(b"\x32", _delimited(b"\x0a", data))
    return _delimited(b"\x22", data)


def test_values_of_no_fixed_shape_nest_so_far_and_no_further() -> None:
    codec = codecs()[f"{EVERYTHING}.WellKnown"]
    assert codec.decode(_nested_value(40)).value
    with pytest.raises(DecodeError, match="value: messages lie more than 100 deep"):
        codec.decode(_nested_value(60_000))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        # Each of these costs quadratic time where it is done in the obvious way.
        (_RECORD, b"\xf8\x07\x01" * 300_000),
        (_RECORD, b"\xb0\x00\x01" * 300_000),
        (_RECORD, b"\xb0\x80\x00\x01\x30\x01" * 150_000),
        (_RECORD, _delimited(b"\x92\x01", b"\xf8\x07\x01") * 150_000),
        (_RECORD, b"\xfb\x07\xfc\x07" * 200_000),
        (_RECORD, b"\x9a\x02\x011" * 200_000),
        (_RECORD, _delimited(b"\x6a", b"\x08\x01") * 200_000),
        (f"{EVERYTHING}.Tree", _delimited(b"\x12", b"\x12\x03\xf8\x07\x01") * 100_000),
        (f"{EVERYTHING}.WellKnown", _delimited(b"\x2a", b"\x0a\x02\x20\x01") * 100_000),
        (f"{EVERYTHING}.Maps", _delimited(b"\x62", b"\xf8\x07\x01") * 150_000),
    ],
    ids=_short,
)
def test_long_messages_take_time_in_proportion(name: str, data: bytes) -> None:
    codec = codecs()[name]
    began = time.process_time()
    codec.encode(codec.decode(data))
    assert time.process_time() - began < 10.0


def test_well_formed_unknown_groups_come_back() -> None:
    data = b"\x0a\x01a\xfb\x07\x08\x01\x13\x14\xfc\x07"
    codec = codecs()[_RECORD]
    assert codec.encode(codec.decode(data)) == data
    deepest = b"\xfb\x07" * 100 + b"\xfc\x07" * 100
    assert codec.encode(codec.decode(deepest)) == deepest


def test_a_known_field_in_another_wire_type_is_kept_as_unknown() -> None:
    codec = codecs()[_RECORD]
    data = b"\x1d\x01\x02\x03\x04"
    message = codec.decode(data)
    assert message.organization_id == ""
    assert codec.encode(message) == data


def _everything(name: str, /, **fields: Any) -> Any:
    return codecs()[f"{EVERYTHING}.{name}"].type(**fields)


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (_everything("Scalars", an_int32=2**31), "an_int32"),
        (_everything("Scalars", an_int64=-(2**63) - 1), "an_int64"),
        (_everything("Scalars", a_uint32=-1), "a_uint32"),
        (_everything("Scalars", a_uint64=2**64), "a_uint64"),
        (_everything("Scalars", a_sint32=-(2**31) - 1), "a_sint32"),
        (_everything("Scalars", a_fixed64=-1), "a_fixed64"),
        (_everything("Scalars", a_float=1e300), "a_float"),
        (_everything("Scalars", a_double="1"), "a_double"),
        (_everything("Scalars", an_int32=1.5), "an_int32"),
        (_everything("Scalars", an_int32=20000.0), "an_int32"),
        (_everything("Scalars", a_string=5), "a_string"),
        (_everything("Scalars", a_string=b"x"), "a_string"),
        (_everything("Scalars", a_string="\ud800"), "a_string"),
        (_everything("Scalars", some_bytes="x"), "some_bytes"),
        (_everything("Scalars", colour="no such colour"), "colour"),
        (_everything("Scalars", colour=5), "colour"),
        (_everything("Lists", strings=["a", "b", None]), "strings[2]"),
        (_everything("Lists", leaves=[_everything("Leaf"), _everything("Leaf", size="x")]), "leaves[1].size"),
        (_everything("Lists", int32s=[1, 2**40]), "int32s"),
        (_everything("Maps", strings={"a": 1}), "strings"),
        (_everything("Maps", leaves={"a": _everything("Leaf", name=1)}), "leaves.name"),
        (_everything("Choice", text="a", number=1), "choice"),
        (_everything("WellKnown", duration=timedelta.max), "duration"),
        (_everything("WellKnown", timestamp="2026-01-01"), "timestamp"),
        (_everything("WellKnown", struct={"a": {1}}), "struct"),
        (_everything("WellKnown", struct={"a": 2**53 + 1}), "struct"),
        (_everything("WellKnown", value=10**400), "value"),
        (_everything("Special", document={"a": object()}), "document"),
        (_everything("Tree", left=3), "left"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_does_not_fit_is_refused_with_the_field(message: Any, path: str) -> None:
    codec = next(codec for codec in codecs().values() if codec.type is type(message))
    with pytest.raises(EncodeError) as caught:
        codec.encode(message)
    assert caught.value.path == path
    assert caught.value.reason


def test_a_message_within_itself_is_refused() -> None:
    tree = _everything("Tree")
    tree.children.append(tree)
    with pytest.raises(EncodeError, match="without end"):
        codecs()[f"{EVERYTHING}.Tree"].encode(tree)


@pytest.mark.parametrize(
    ("nanos", "micros"),
    [(0, 0), (499, 0), (500, 1), (1499, 1), (1500, 2), (999_999_499, 999_999), (999_999_500, 1_000_000)],
)
def test_nanoseconds_are_rounded_as_in_json(nanos: int, micros: int) -> None:
    import msgspec

    codec = codecs()[f"{EVERYTHING}.WellKnown"]
    payload = codec.google(timestamp={"seconds": 1_768_000_000, "nanos": nanos}).SerializeToString()
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=1_768_000_000, microseconds=micros)
    assert codec.decode(payload).timestamp == moment
    text = f'"2026-01-09T23:06:40.{nanos:09}Z"'
    assert msgspec.json.decode(text.encode(), type=datetime) == moment
    for sign in (1, -1):
        payload = codec.google(duration={"seconds": sign * 5, "nanos": sign * nanos}).SerializeToString()
        assert codec.decode(payload).duration == sign * timedelta(seconds=5, microseconds=micros)


def test_a_naive_time_is_utc_and_any_zone_is_taken() -> None:
    from datetime import timezone

    codec = codecs()[f"{EVERYTHING}.WellKnown"]
    moment = datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC)
    for value in (moment, moment.replace(tzinfo=None), moment.astimezone(timezone(timedelta(hours=-7)))):
        read = codec.decode(codec.encode(codec.type(timestamp=value))).timestamp
        assert read == moment
        assert read.tzinfo is UTC
    for edge in (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)):
        assert codec.decode(codec.encode(codec.type(timestamp=edge))).timestamp == edge
    with pytest.raises(EncodeError, match="timestamp: is not a time between the years 1 and 9999"):
        codec.encode(codec.type(timestamp=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=7)))))
