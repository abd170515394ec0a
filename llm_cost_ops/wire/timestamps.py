"""google.protobuf.Timestamp and Duration, as datetime and timedelta.

Python counts microseconds. Nanoseconds are rounded to the nearest, halves away from zero for a duration and
upward for a time, as msgspec rounds the digits of an RFC 3339 time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from struct import Struct

import msgspec

from llm_cost_ops.wire.errors import DecodeError, EncodeError
from llm_cost_ops.wire.fields import canonicalize_tags, skip_field
from llm_cost_ops.wire.varint import read_more, read_varint, to_int32, varint

__all__ = ["ZERO_MOMENT", "read_duration", "read_timestamp", "write_duration", "write_timestamp"]

ZERO_MOMENT = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400
_MAX_SECONDS = 315_576_000_000
_OUT_OF_RANGE = "is not a time between the years 1 and 9999"

# MessagePack's timestamp is the same pair of numbers, and msgspec makes a datetime of it in C: in half the
# time that datetime's own constructors take.
_extension = Struct(">HBIq").pack
_from_msgpack = msgspec.msgpack.Decoder(datetime).decode


# What was written last. The receipts of a batch share one moment, and its object.
_last: tuple[datetime, bytes] = (ZERO_MOMENT, b"")


def write_timestamp(value: datetime) -> bytes:
    """The payload of a Timestamp. A naive datetime is UTC.

    Raises EncodeError for a moment that lies outside the years 1 to 9999 in UTC.
    """
    global _last  # noqa: PLW0603  # replaced as a whole, so that threads see a moment with its own payload
    before, data = _last
    if before is value:
        return data
    data = _timestamp(value)
    _last = value, data
    return data


def _timestamp(value: datetime) -> bytes:
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    since = value - ZERO_MOMENT
    seconds = since.days * _DAY + since.seconds
    if not -62_135_596_800 <= seconds < 253_402_300_800:
        raise EncodeError(_OUT_OF_RANGE)
    return _pair(seconds, since.microseconds * 1000)


def write_duration(value: timedelta) -> bytes:
    """The payload of a Duration. Raises EncodeError beyond ten thousand years, Duration's range."""
    seconds = value.days * _DAY + value.seconds
    micros = value.microseconds
    if seconds < 0 and micros:
        seconds += 1
        micros -= 1_000_000
    if not -_MAX_SECONDS <= seconds <= _MAX_SECONDS:
        raise EncodeError("is longer than 10,000 years")
    return _pair(seconds, micros * 1000)


def _pair(seconds: int, nanos: int) -> bytes:
    out = b"\x08" + varint(seconds & 0xFFFFFFFFFFFFFFFF) if seconds else b""
    return out + b"\x10" + varint(nanos & 0xFFFFFFFFFFFFFFFF) if nanos else out


def read_timestamp(data: bytes, pos: int, end: int, earlier: datetime | None) -> datetime:
    """The moment, in UTC, that the payload from `pos` to `end` holds; what it leaves out is as in `earlier`.

    Raises DecodeError for a moment outside the years 1 to 9999, and for nanoseconds that are no fraction.
    """
    if earlier is None:
        # The usual form, read without a call: seconds, then nanoseconds or nothing.
        at = pos
        seconds = nanos = 0
        if at < end and data[at] == 8:
            seconds = data[at + 1]
            at += 2
            if seconds > 127:
                c = data[at]
                at += 1
                seconds += (c << 7) - 128
                if c > 127:
                    seconds, at = read_more(data, at, seconds)
        if at < end and data[at] == 16:
            nanos = data[at + 1]
            at += 2
            if nanos > 127:
                c = data[at]
                at += 1
                nanos += (c << 7) - 128
                if c > 127:
                    nanos, at = read_more(data, at, nanos)
        if at == end and seconds < 253_402_300_799 and nanos < 1_000_000_000:
            return _from_msgpack(_extension(0xC70C, 0xFF, nanos, seconds))
        seconds = nanos = 0
    else:
        since = earlier - ZERO_MOMENT
        seconds, nanos = since.days * _DAY + since.seconds, since.microseconds * 1000
    seconds, nanos = _read_pair(data, pos, end, seconds, nanos)
    if not 0 <= nanos < 1_000_000_000:
        raise DecodeError("has nanoseconds outside 0..999999999")
    if not -62_135_596_800 <= seconds < 253_402_300_800:
        raise DecodeError(_OUT_OF_RANGE)
    try:
        return _from_msgpack(_extension(0xC70C, 0xFF, nanos, seconds))
    except ValueError:
        # Rounded up into the year 10000.
        raise DecodeError(_OUT_OF_RANGE) from None


def read_duration(data: bytes, pos: int, end: int, earlier: timedelta | None) -> timedelta:
    """The time span that the payload from `pos` to `end` holds; what it leaves out is as in `earlier`.

    Raises DecodeError beyond ten thousand years, for nanoseconds that are no fraction, and where they have
    not the sign of the seconds.
    """
    seconds = nanos = 0
    if earlier is not None:
        seconds, nanos = divmod(abs(earlier) // timedelta(microseconds=1), 1_000_000)
        nanos *= 1000
        if earlier < timedelta(0):
            seconds, nanos = -seconds, -nanos
    seconds, nanos = _read_pair(data, pos, end, seconds, nanos)
    if not -_MAX_SECONDS <= seconds <= _MAX_SECONDS:
        raise DecodeError("is longer than 10,000 years")
    if not -1_000_000_000 < nanos < 1_000_000_000 or seconds * nanos < 0:
        raise DecodeError("has nanoseconds that are no fraction of its seconds")
    micros = (nanos + 500) // 1000 if nanos >= 0 else -((500 - nanos) // 1000)
    return timedelta(seconds=seconds, microseconds=micros)


def _read_pair(data: bytes, pos: int, end: int, seconds: int, nanos: int) -> tuple[int, int]:
    """Both numbers, for which the ones given stand in."""
    while pos < end:
        tag = data[pos]
        if tag in {8, 16}:
            n = data[pos + 1]
            pos += 2
            if n > 127:
                n, pos = read_varint(data, pos - 1)
            if tag == 8:
                seconds = n if n < 0x8000000000000000 else n - 0x10000000000000000
            else:
                nanos = n if n < 0x80000000 else to_int32(n)
            continue
        after = skip_field(data, pos, end, (8, 16))
        if after < 0:
            data = canonicalize_tags(data, pos, end, (8, 16))
            after, end = 0, len(data)
        pos = after
    if pos != end:
        raise DecodeError("the data ends within a field")
    return seconds, nanos
