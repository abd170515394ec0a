"""Our codec, google's protobuf and betterproto read what the others write, and write the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError as GoogleDecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from llm_cost_ops.wire import DecodeError
from tests.property.wire_oracles import EVERYTHING, OURS, better_class, codecs, plain_codecs
from tests.property.wire_strategies import messages

pytestmark = pytest.mark.slow

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
_NAMES = sorted(codecs())
_PLAIN = sorted(plain_codecs())


def _bytes(message: Any) -> bytes:
    return message.SerializeToString(deterministic=True)


def test_the_oracles_leave_our_package_name_free() -> None:
    codecs()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(f"{OURS}.UsageRecord")


@settings(max_examples=600, suppress_health_check=_SLOW)
@given(st.data())
def test_google_and_we_write_the_same_bytes(data: st.DataObject) -> None:
    codec = codecs()[data.draw(st.sampled_from(_NAMES))]
    message = data.draw(messages(codec.name))
    theirs = _bytes(message)
    ours = codec.encode(codec.decode(theirs))
    assert ours == theirs
    assert _bytes(codec.google.FromString(ours)) == theirs


@settings(max_examples=300, suppress_health_check=_SLOW)
@given(st.data())
def test_betterproto_and_we_write_the_same_bytes(data: st.DataObject) -> None:
    codec = codecs()[data.draw(st.sampled_from(_NAMES))]
    message = data.draw(messages(codec.name))
    _drop_what_betterproto_forgets(message)
    ours = codec.encode(codec.decode(_bytes(message)))
    theirs = bytes(better_class(codec.name)().parse(ours))
    if theirs != ours:
        # Betterproto leaves empty texts out of a map's entries, and packs what is declared unpacked. Readers
        # must take both.
        event("written in another form")
        theirs = codec.encode(codec.decode(theirs))
    assert theirs == ours


def _drop_what_betterproto_forgets(message: Any) -> None:
    """Take away entries of maps with two empty texts, times that are zero, negative zeros and durations."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Duration":
        message.seconds, message.nanos = abs(message.seconds), abs(message.nanos)
    for field, value in message.ListFields():
        if _is_map(field) and field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING:
            value.pop("", None)
        elif not field.is_repeated and (value == 0 if field.message_type is None else _is_zero_time(value)):
            message.ClearField(field.name)
    for part in _parts(message):
        _drop_what_betterproto_forgets(part)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_zero_time(message: Any) -> bool:
    return message.DESCRIPTOR.name in ("Timestamp", "Duration") and not message.ByteSize()


def _parts(message: Any) -> Iterator[Any]:
    """Give the messages directly in a message."""
    for field, value in message.ListFields():
        if _is_map(field):
            yield from value.values() if field.message_type.fields_by_name["value"].message_type else ()
        elif field.message_type is not None:
            yield from value if field.is_repeated else [value]


@settings(max_examples=300, suppress_health_check=_SLOW)
@given(st.data())
def test_two_messages_one_behind_the_other_are_merged(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_PLAIN))
    codec = plain_codecs()[name]
    both = _bytes(data.draw(messages(name))) + _bytes(data.draw(messages(name)))
    ours = codec.encode(codec.decode(both))
    assert _bytes(codec.google.FromString(ours)) == _bytes(codec.google.FromString(both))
    # With Python's types the outcome is the same, but for what they cannot hold.
    native = codecs().get(name, codec)
    try:
        ours = native.encode(native.decode(both))
    except DecodeError:
        event("merged to a duration with two signs")
    else:
        assert _bytes(codec.google.FromString(ours)) == _bytes(codec.google.FromString(both))


def _agree(name: str, data: bytes) -> None:
    """Hold our answer to any bytes against google's: both take them, to the same end, or neither."""
    codec = plain_codecs()[name]
    try:
        theirs = codec.google.FromString(data)
    except GoogleDecodeError:
        with pytest.raises(DecodeError):
            codec.decode(data)
        event("refused")
    else:
        ours = codec.encode(codec.decode(data))
        if not _keeps_an_entry_apart(theirs):
            again = codec.google.FromString(ours)
            # Python makes a signalling NaN of four bytes a quiet one; as text both are nan.
            assert _bytes(again) == _bytes(theirs) or ("nan" in str(theirs) and str(again) == str(theirs))
        event("taken")


def _keeps_an_entry_apart(message: Any) -> bool:
    """Google keeps a map's entry with an unknown field in it as unknown; we take what is known of it."""
    maps = {field.number for field in message.DESCRIPTOR.fields if _is_map(field)}
    unknown = {field.field_number for field in UnknownFieldSet(message)}
    return bool(maps & unknown) or any(map(_keeps_an_entry_apart, _parts(message)))


@settings(max_examples=300, suppress_health_check=_SLOW)
@given(st.data())
def test_a_message_read_as_another_type_keeps_what_is_unknown(data: st.DataObject) -> None:
    written, read = data.draw(st.sampled_from(_PLAIN)), data.draw(st.sampled_from(_PLAIN))
    _agree(read, _bytes(data.draw(messages(written))))


@settings(max_examples=60, suppress_health_check=_SLOW)
@given(st.data())
def test_truncated_at_every_byte_we_judge_as_google_does(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_PLAIN))
    whole = _bytes(data.draw(messages(name)))
    for end in range(len(whole)):
        _agree(name, whole[:end])


@settings(max_examples=600, suppress_health_check=_SLOW)
@given(st.data())
def test_corrupted_bytes_we_judge_as_google_does(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_PLAIN))
    broken = bytearray(_bytes(data.draw(messages(name))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken)))
        broken[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    _agree(name, bytes(broken))


@settings(max_examples=400)
@given(st.sampled_from(_PLAIN), st.binary(max_size=40))
def test_random_bytes_we_judge_as_google_does(name: str, data: bytes) -> None:
    _agree(name, data)


@settings(max_examples=300, suppress_health_check=_SLOW)
@given(st.data())
def test_broken_bytes_give_a_message_or_a_decode_error(data: st.DataObject) -> None:
    codec = codecs()[
        data.draw(st.sampled_from([*_NAMES, f"{EVERYTHING}.WellKnown", f"{EVERYTHING}.Special"]))
    ]
    broken = bytearray(_bytes(data.draw(messages(codec.name))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken)))
        broken[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        message = codec.decode(bytes(broken))
    except DecodeError:
        event("refused")
    else:
        codec.encode(message)
