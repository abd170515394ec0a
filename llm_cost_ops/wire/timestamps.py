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
from llm_cost_ops.wire.varint import CONTINUED, SHORT, read_varint, to_int32, varint

__all__ = ["ZERO_MOMENT", "read_duration", "read_timestamp", "write_duration", "write_timestamp"]

ZERO_MOMENT = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400
_MAX_SECONDS = 315_576_000_000
_OUT_OF_RANGE = "is not a time between the years 1 and 9999"

# MessagePack's timestamp is the same pair of numbers, and msgspec makes a datetime of it in C: in half the
# time that datetime's own constructors take.
_extension = Struct(">HBIq").pack
_from_msgpack = msgspec.msgpack.Decoder(datetime).decode

# A varint of five bytes, all but the last continued: the seconds of a moment between 1978 and 3058.
_five_bytes = Struct("5B").unpack_from
_CONTINUATIONS = 128 * (1 + 2**7 + 2**14 + 2**21)


# What was written last, and what was read last: the receipts of a batch share one moment.
_last_written: tuple[datetime, bytes] = (ZERO_MOMENT, b"")
_last_read: tuple[bytes, datetime] = (b"", ZERO_MOMENT)


def write_timestamp(value: datetime) -> bytes:
    """The payload of a Timestamp. A naive datetime is UTC.

    Raises EncodeError for a moment that lies outside the years 1 to 9999 in UTC.
    """
    global _last_written  # noqa: PLW0603  # replaced as a whole, so that threads see a moment with its own payload
    before, data = _last_written
    if before is value:
        return data
    data = _timestamp(value)
    _last_written = value, data
    return data


def _timestamp(value: datetime) -> bytes:
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    since = value - ZERO_MOMENT
    seconds, nanos = since.days * _DAY + since.seconds, since.microseconds * 1000
    if 2**28 <= seconds < 2**35:
        # Nearly every moment: five bytes, written without a call.
        out = b"\x08" + CONTINUED[seconds & 16383] + CONTINUED[seconds >> 14 & 16383] + SHORT[seconds >> 28]
        return out + b"\x10" + varint(nanos) if nanos else out
    if not -62_135_596_800 <= seconds < 253_402_300_800:
        raise EncodeError(_OUT_OF_RANGE)
    return _pair(seconds, nanos)


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
    global _last_read  # noqa: PLW0603  # as `_last_written`
    if earlier is None:
        payload = data[pos:end]
        before, moment = _last_read
        if before == payload:
            return moment
        # The usual form, read without a call: seconds in five bytes, then nanoseconds or nothing.
        if len(payload) > 5 and payload[0] == 8:
            a, b, c, d, e = _five_bytes(payload, 1)
            if e < 128 <= a & b & c & d:
                seconds = a + b * 2**7 + c * 2**14 + d * 2**21 + e * 2**28 - _CONTINUATIONS
                at, nanos = pos + 6, 0
                if at < end and data[at] == 16:
                    nanos, at = read_varint(data, at + 1)
                if at == end and nanos < 1_000_000_000:
                    moment = _from_msgpack(_extension(0xC70C, 0xFF, nanos, seconds))
                    _last_read = payload, moment
                    return moment
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
