"""The few protobuf messages of gRPC itself, both ways, without google's runtime.

google.rpc.Status travels beside a failed call and says more than its code: which fields broke which
rule (BadRequest), when to come again (RetryInfo), what the server calls it (ErrorInfo), and under
which id it knows the call (RequestInfo). What can't be read of it is left out, never an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from llm_cost_ops.rpc.status import RpcError, Violation
from llm_cost_ops.wire import DecodeError
from llm_cost_ops.wire.fields import walk
from llm_cost_ops.wire.varint import read_varint, varint

__all__ = ["StatusDetails", "block", "fields_of", "number", "read_status", "write_status"]

# Clients and proxies take 8 KiB of trailers; base64 makes four bytes of three.
MAX_DETAIL_BYTES = 4096
MAX_VIOLATIONS = 1000
MAX_RETRY_DELAY = 24 * 3600.0

_PREFIX = "type.googleapis.com/google.rpc."
_DOMAIN = "llm-cost-ops"


class StatusDetails(msgspec.Struct):
    """What google.rpc.Status says beside code and message."""

    violations: list[Violation] = []
    retry_after: float | None = None
    error_code: str = ""
    request_id: str = ""


def fields_of(data: bytes) -> Iterator[tuple[int, Any]]:
    """Each field's number and value: bytes, or an unsigned int; fixed-size fields and groups are passed by.

    Raises DecodeError where the bytes are no message.
    """
    try:
        for tag, start, stop in walk(data, 0, len(data)):
            if tag & 7 == 2:
                yield tag >> 3, data[start:stop]
            elif tag & 7 == 0:
                yield tag >> 3, read_varint(data, start)[0]
    except IndexError:
        raise DecodeError("the data ends within a field") from None


def block(field: int, value: str | bytes) -> bytes:
    """A field of text, bytes or a message."""
    data = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    """A field of an int or an enum; nothing for 0."""
    return varint(field << 3) + varint(value & 0xFFFFFFFFFFFFFFFF) if value else b""


def write_status(error: RpcError, message: str, request_id: str) -> bytes:
    """A google.rpc.Status for an error; violations that are over the size of trailers are left out."""
    out = number(1, int(error.code)) + block(2, message)
    if error.retry_after is not None:
        whole = math.floor(max(0.0, error.retry_after))
        nanos = round((max(0.0, error.retry_after) - whole) * 1e9)
        out += _any("RetryInfo", block(1, number(1, whole) + number(2, min(nanos, 999_999_999))))
    if error.error_code:
        out += _any("ErrorInfo", block(1, error.error_code) + block(2, _DOMAIN))
    if request_id:
        out += _any("RequestInfo", block(1, request_id))
    if error.violations:
        out += _any("BadRequest", _bad_request(error.violations, MAX_DETAIL_BYTES - len(out)))
    return out


def _bad_request(violations: Iterable[Violation], room: int) -> bytes:
    out = b""
    for field, description in violations:
        one = block(1, block(1, field) + block(2, description))
        if len(out) + len(one) > room:
            break
        out += one
    return out


def _any(name: str, value: bytes) -> bytes:
    return block(3, block(1, _PREFIX + name) + block(2, value))


def read_status(data: bytes) -> StatusDetails:
    """The details in a google.rpc.Status."""
    details = StatusDetails()
    for field, value in _lenient(data):
        if field == 3 and isinstance(value, bytes):
            parts = dict(_lenient(value))
            kind = _text(parts.get(1)).rpartition("/")[2]
            content = parts.get(2)
            _read_detail(kind, content if isinstance(content, bytes) else b"", details)
    return details


def _read_detail(kind: str, content: bytes, details: StatusDetails) -> None:
    if kind == "google.rpc.BadRequest":
        found = [dict(_lenient(value)) for field, value in _lenient(content) if field == 1]
        details.violations += [Violation(_text(one.get(1)), _text(one.get(2))) for one in found]
        del details.violations[MAX_VIOLATIONS:]
        return
    fields = dict(_lenient(content))
    if kind == "google.rpc.RetryInfo" and isinstance(fields.get(1), bytes):
        details.retry_after = _seconds(dict(_lenient(fields[1])))
    elif kind == "google.rpc.ErrorInfo":
        details.error_code = _text(fields.get(1))[:200]
    elif kind == "google.rpc.RequestInfo":
        details.request_id = _text(fields.get(1))[:200]


def _lenient(data: object) -> Sequence[tuple[int, object]]:
    found = []
    try:
        for item in fields_of(data if isinstance(data, bytes) else b""):
            found.append(item)  # noqa: PERF402  # what was read before the error counts
    except DecodeError:
        pass
    return found


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _seconds(duration: dict[int, object]) -> float | None:
    seconds, nanos = duration.get(1, 0), duration.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int):
        return None
    if seconds >= 2**63 or nanos >= 10**9:
        return 0.0  # negative, or no duration
    return min(seconds + nanos / 1e9, MAX_RETRY_DELAY)
