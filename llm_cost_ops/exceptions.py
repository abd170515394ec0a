"""The errors that users catch.

    CostOpsError
    +-- APIError                     a server, or the embedded engine, said no
    |   +-- AuthenticationError      401
    |   +-- AuthorizationError       403
    |   +-- ValidationError          400, 413, 415, 422; also raised before anything is sent
    |   +-- NotFoundError            404
    |   +-- ConflictError            409
    |   +-- RateLimitError           429
    |   +-- ServerError              5xx
    |       +-- DeadlineError        504: a ServerError and a TimeoutError
    +-- NetworkError                 no answer came
    |   +-- TimeoutError             the deadline passed; also the builtin TimeoutError
    +-- ConfigurationError           the client was set up wrongly
    +-- ClientClosedError            the client was closed before the call; also a RuntimeError
    +-- RecorderFullError            record() found no room, where the configuration asks for an error
    +-- PayloadError                 a provider's response contradicts itself; also a ValueError

Which class a status gets is one table, `_BY_CODE`; an HTTP status that says more wins over it.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from llm_cost_ops.rpc.status import (
    HTTP_STATUS,
    STATUS_BY_REASON,
    RpcError,
    StatusCode,
    Violation,
    violations_text,
)

__all__ = [
    "APIError",
    "AuthenticationError",
    "AuthorizationError",
    "ClientClosedError",
    "ConfigurationError",
    "ConflictError",
    "CostOpsError",
    "DeadlineError",
    "NetworkError",
    "NotFoundError",
    "PayloadError",
    "RateLimitError",
    "RecorderFullError",
    "ServerError",
    "TimeoutError",
    "ValidationError",
    "error_from_rpc",
]


class ErrorFacts(TypedDict, total=False):
    """What every error takes beside its message; see CostOpsError."""

    status_code: int | None
    code: str
    request_id: str
    response: object
    attempts: int
    maybe_applied: bool
    retryable: bool
    retry_after: float | None
    grpc_code: StatusCode | None
    waited: float


class CostOpsError(Exception):
    """Everything that this package raises on purpose.

    `message` says what happened. `code` is the gRPC status name ("UNAVAILABLE"), or the server's
    own code where it gave one. `status_code` is the HTTP status, None where there was none.
    `attempts` counts how often the call was sent, 0 when it was refused before that, and `waited`
    the seconds spent before attempts. `maybe_applied` is True when the request may have taken
    effect although no answer came. `retryable` says whether the same call may succeed later.
    `response` is what the server sent, parsed where it was JSON. `server` is the URL of the server that the
    call was sent to last, "" where `base_url` names only one.
    """

    server = ""

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        code: str = "",
        request_id: str = "",
        response: object = None,
        attempts: int = 1,
        maybe_applied: bool = False,
        retryable: bool = False,
        retry_after: float | None = None,
        grpc_code: StatusCode | None = None,
        waited: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.code = code
        self.request_id = request_id
        self.response = response
        self.attempts = attempts
        self.maybe_applied = maybe_applied
        self.retryable = retryable
        self.retry_after = retry_after
        self.grpc_code = grpc_code
        self.waited = waited

    def __str__(self) -> str:
        facts = [str(self.status_code)] if self.status_code else []
        facts += [self.code] if self.code else []
        facts += [f"request {self.request_id}"] if self.request_id else []
        facts += [f"{self.attempts} attempts"] if self.attempts > 1 else []
        facts += [f"server {self.server}"] if self.server else []
        return f"{self.message} [{', '.join(facts)}]" if facts else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[CostOpsError], args: tuple[object, ...], state: dict[str, object]) -> CostOpsError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class APIError(CostOpsError):
    """The service answered with an error."""


class AuthenticationError(APIError):
    """The credentials are missing or not valid (401)."""


class AuthorizationError(APIError):
    """The credentials do not allow this (403)."""


class ValidationError(APIError):
    """The request breaks a rule (400 or 422), or would: then nothing was sent.

    `violations` lists every broken rule as (field, description).
    """

    def __init__(
        self, message: str, *, violations: tuple[Violation, ...] = (), **facts: Unpack[ErrorFacts]
    ) -> None:
        super().__init__(message, **facts)
        self.violations = violations

    @property
    def errors(self) -> dict[str, list[str]]:
        """The broken rules by field."""
        found: dict[str, list[str]] = {}
        for field, description in self.violations:
            found.setdefault(field, []).append(description)
        return found


class PayloadError(CostOpsError, ValueError):
    """A provider's response that contradicts itself or cannot be read. Nothing was sent.

    `path` is where in the payload, such as "usage.prompt_tokens_details.cached_tokens"; "" is the
    payload as a whole. `message` says what is wrong there.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message, code="INVALID_ARGUMENT", attempts=0)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class NotFoundError(APIError):
    """There is no such thing, or it is not yours to see (404)."""


class ConflictError(APIError):
    """It contradicts what is there, such as a used idempotency key with other content (409)."""


class RateLimitError(APIError):
    """Too many requests (429). `retry_after` is in seconds; `limit` is the server's, if it said."""

    def __init__(self, message: str, *, limit: int | None = None, **facts: Unpack[ErrorFacts]) -> None:
        super().__init__(message, **facts)
        self.limit = limit


class ServerError(APIError):
    """The server failed (5xx)."""


class NetworkError(CostOpsError):
    """No answer came: the connection failed, or broke. `maybe_applied` tells what that may mean."""


class TimeoutError(NetworkError, builtins.TimeoutError):
    """The deadline of the call passed."""


class DeadlineError(ServerError, TimeoutError):
    """The server said that the deadline passed (504, DEADLINE_EXCEEDED)."""


class ConfigurationError(CostOpsError, ValueError):
    """A parameter of the client has a wrong value; `parameter` names it."""

    def __init__(self, message: str, *, parameter: str = "", **facts: Unpack[ErrorFacts]) -> None:
        super().__init__(message, **facts)
        self.parameter = parameter


class ClientClosedError(CostOpsError, RuntimeError):
    """The client was closed, or the one that it was derived from: nothing was sent."""


class RecorderFullError(CostOpsError):
    """record() found no room for a record, and RecorderConfig(overflow="raise") asks to be told."""


_BY_STATUS: dict[int, type[CostOpsError]] = {
    400: ValidationError,
    401: AuthenticationError,
    403: AuthorizationError,
    404: NotFoundError,
    409: ConflictError,
    413: ValidationError,
    415: ValidationError,
    422: ValidationError,
    429: RateLimitError,
    504: DeadlineError,
}

_RETRYABLE = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED}


def _class_of(status: int) -> type[CostOpsError]:
    return _BY_STATUS.get(status, ServerError if status >= 500 else APIError)


def _kind_of(error: RpcError) -> tuple[type[CostOpsError], int | None]:
    if error.origin == "network":
        timed_out = error.code is StatusCode.DEADLINE_EXCEEDED
        return (TimeoutError if timed_out else NetworkError), None
    if error.origin == "client":
        if error.code is StatusCode.DEADLINE_EXCEEDED:
            return TimeoutError, None
        if error.code is StatusCode.UNAVAILABLE:
            return NetworkError, None
        if error.code is StatusCode.FAILED_PRECONDITION:
            return ClientClosedError, None
        return _class_of(HTTP_STATUS[error.code]), None
    if error.error_code in STATUS_BY_REASON:
        return ServerError, STATUS_BY_REASON[error.error_code][1]
    kind, status = _class_of(HTTP_STATUS[error.code]), error.http_status or HTTP_STATUS[error.code]
    if status >= 500 or status in _BY_STATUS or kind is ServerError:
        return _class_of(status), status
    return kind, status


def error_from_rpc(error: RpcError, attempts: int = 1, waited: float = 0.0) -> CostOpsError:
    """The public error for a call that failed. Total: every status and every code has a class."""
    kind, status = _kind_of(error)
    message = error.local_message
    facts: dict[str, Any] = {
        "status_code": status,
        "code": error.error_code or error.code.name,
        "request_id": error.request_id,
        "response": _parsed(error.body),
        "attempts": attempts,
        "maybe_applied": error.maybe_applied,
        "retryable": error.code in _RETRYABLE,
        "retry_after": error.retry_after,
        "grpc_code": error.code,
        "waited": waited,
    }
    if issubclass(kind, ValidationError):
        if error.violations:
            rules = violations_text(error.violations)
            message = rules if rules in message or message in rules else f"{message}: {rules}"
        facts["violations"] = error.violations
    elif issubclass(kind, RateLimitError):
        facts["limit"] = _limit_of(error)
    made = kind(message, **facts)
    made.server = error.server
    return made


def _parsed(body: bytes) -> object:
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def _limit_of(error: RpcError) -> int | None:
    limit = error.metadata.get("x-ratelimit-limit") if error.metadata is not None else ""
    if not limit:
        parsed = _parsed(error.body)
        limit = str(parsed.get("limit", "")) if isinstance(parsed, Mapping) else ""
    return int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 19 else None
