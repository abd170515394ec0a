"""Errors over HTTP: codes from statuses, and error bodies both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.status import (
    HTTP_STATUS,
    OVERLOADED,
    STATUS_BY_REASON,
    RpcError,
    StatusCode,
    Violation,
)
from llm_cost_ops.transports.net.headers import REQUEST_ID_HEADER, retry_after

__all__ = ["code_of_status", "error_from_response", "error_to_response"]

_CODE: dict[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ALREADY_EXISTS,
    410: StatusCode.NOT_FOUND,
    425: StatusCode.UNAVAILABLE,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}

_KEPT_BODY = 64 * 1024
_MAX_MESSAGE = 2000
_MAX_VIOLATIONS = 1000
# Of a code, and of a request id.
_MAX_NAME = 200


def code_of_status(status: int, error_code: str = "") -> StatusCode:
    """The code of an HTTP status; a server's own code decides among those that share the status."""
    by_reason = STATUS_BY_REASON.get(error_code)
    if by_reason is not None and by_reason[1] == status:
        return by_reason[0]
    named = StatusCode.__members__.get(error_code.upper())
    if named is not None and HTTP_STATUS[named] == status:
        return named
    code = _CODE.get(status)
    if code is not None:
        return code
    if 400 <= status < 500:
        return StatusCode.INVALID_ARGUMENT
    return StatusCode.INTERNAL if status >= 500 else StatusCode.UNKNOWN


def error_to_response(error: RpcError, request_id: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body that tell an error to an HTTP client."""
    _, status = STATUS_BY_REASON.get(error.error_code, (error.code, HTTP_STATUS[error.code]))
    status = error.http_status or status
    headers = []
    if error.retry_after is not None:
        seconds = max(0.0, error.retry_after)
        headers.append(("retry-after", str(math.ceil(seconds))))
        if seconds != math.ceil(seconds):
            headers.append(("retry-after-ms", str(math.ceil(seconds * 1000))))
    if status == 401:
        headers.append(("www-authenticate", "Bearer"))
    body = {
        "error": {
            "code": error.error_code or error.code.name,
            "message": error.message,
            "details": [{"field": v.field, "description": v.description} for v in error.violations],
        },
        "request_id": request_id,
    }
    return status, headers, msgspec.json.encode(body)


def error_from_response(status: int, metadata: Metadata, body: bytes, *, safe: bool, now: float) -> RpcError:
    """The error that an HTTP response tells, in any of the documented shapes or in none.

    `safe` says that the method has no side effects; `now` is in seconds since 1970.
    """
    decoded = _decoded_body(body)
    inner = decoded.get("error")
    facts: Mapping[str, Any] = inner if isinstance(inner, Mapping) else decoded
    error_code = (_text(facts.get("code")) or _text(decoded.get("code")))[:_MAX_NAME]
    code = code_of_status(status, error_code)
    message = inner if isinstance(inner, str) else ""
    message = message or _text(facts.get("message")) or _text(facts.get("detail"))
    violations = _violations(facts.get("details"))
    violations += _violations(decoded.get("errors"))
    if facts is not decoded:
        violations += _violations(facts.get("errors"))
    return RpcError(
        code,
        message[:_MAX_MESSAGE] or _silent(status, metadata),
        violations=violations[:_MAX_VIOLATIONS],
        retry_after=_hint(metadata, facts, decoded, now),
        # A server that failed may have got far enough.
        maybe_applied=not safe
        and error_code != OVERLOADED
        and (status == 499 or (status >= 500 and status != 501)),
        http_status=status,
        error_code="" if error_code.upper() == code.name else error_code,
        request_id=_text(decoded.get("request_id"))[:_MAX_NAME] or metadata.get(REQUEST_ID_HEADER),
        metadata=metadata,
        body=body[:_KEPT_BODY],
    )


def _silent(status: int, metadata: Metadata) -> str:
    if 300 <= status < 400:
        return f"the server redirects (HTTP {status}) to {metadata.get('location')!r}, which is not followed"
    return f"the server answered with HTTP {status}"


def _decoded_body(body: bytes) -> Mapping[str, object]:
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, Mapping) else {}


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _violations(decoded: object) -> list[Violation]:
    if isinstance(decoded, Mapping):
        if isinstance(decoded.get("field"), str):
            decoded = [decoded]
        else:
            return [Violation(str(f), text) for f, rule in decoded.items() for text in _rules(rule)]
    if not isinstance(decoded, Sequence) or isinstance(decoded, str):
        return []
    return [violation for item in decoded if (violation := _violation(item)) is not None]


def _rules(rule: object) -> list[str]:
    if isinstance(rule, str):
        return [rule]
    return [text for text in rule if isinstance(text, str)] if isinstance(rule, list) else []


def _violation(item: object) -> Violation | None:
    if isinstance(item, str):
        return Violation("", item)
    if not isinstance(item, Mapping):
        return None
    field = item.get("field", item.get("loc", item.get("path", "")))
    if isinstance(field, list):
        field = ".".join(str(part) for part in field)
    words = _text(item.get("description")) or _text(item.get("message")) or _text(item.get("msg"))
    return Violation(_text(field), words) if field or words else None


def _hint(
    metadata: Metadata, facts: Mapping[str, object], decoded: Mapping[str, object], now: float
) -> float | None:
    milliseconds = retry_after(metadata.get("retry-after-ms"), now)
    if milliseconds is not None:
        return milliseconds / 1000
    hint = retry_after(metadata.get("retry-after"), now)
    if hint is not None:
        return hint
    for source in (facts, decoded):
        value = source.get("retry_after")
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            hint = retry_after(str(value), now)
            if hint is not None:
                return hint
    return None
