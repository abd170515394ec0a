"""What a call ended with: gRPC's status codes, and the error that carries one between the rooms.

`RpcError` is the internal error. Servicers and transports raise it; the channel turns it into the public tree
of `llm_cost_ops.exceptions`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_cost_ops.rpc.context import Metadata

__all__ = [
    "HTTP_STATUS",
    "KNOWN_CODES",
    "OVERLOADED",
    "RESPONSE_TOO_LARGE",
    "STATUS_BY_REASON",
    "UNTRUSTED_CERTIFICATE",
    "RpcError",
    "StatusCode",
    "Violation",
    "client_closed",
    "invalid_argument",
    "invalid_arguments",
    "violations_text",
]


class StatusCode(enum.IntEnum):
    """The canonical codes of gRPC, with its numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


OVERLOADED = "OVERLOADED"
"""The error code of a server that has too many calls, and did nothing with this one."""

RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"
"""The error code of an answer that has more bytes than the client takes: another attempt gets as many."""

UNTRUSTED_CERTIFICATE = "UNTRUSTED_CERTIFICATE"
"""The error code where a server's certificate is not trusted: another attempt would find the same."""


class Violation(NamedTuple):
    """One rule that one field broke: the field's path in the request, and the rule in words."""

    field: str
    description: str


class RpcError(Exception):
    """A call that failed, as servicers and transports say it.

    `origin` tells who said so: "server" when a peer answered with this status, "network" when no
    answer came, "client" when the call was refused before anything was sent. `maybe_applied` is
    True when the request may have taken effect. `retry_after` is the server's hint in seconds.
    `local_detail` says what only who runs the service should read, such as paths: it is shown by the
    embedded engine and never sent to a peer. `server` is set where there are several: the URL of the one that
    was asked last.
    """

    server = ""

    def __init__(
        self,
        code: StatusCode,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
        origin: str = "server",
        maybe_applied: bool = False,
        http_status: int | None = None,
        error_code: str = "",
        request_id: str = "",
        metadata: Metadata | None = None,
        body: bytes = b"",
        local_detail: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.origin = origin
        self.maybe_applied = maybe_applied
        self.http_status = http_status
        self.error_code = error_code
        self.request_id = request_id
        self.metadata = metadata
        self.body = body
        self.local_detail = local_detail

    def __copy__(self) -> Self:
        """The same error for another call that failed with it, which adds what it knows of itself."""
        made = type(self).__new__(type(self), *self.args)
        vars(made).update(vars(self))
        made.__cause__ = self.__cause__
        return made

    @property
    def local_message(self) -> str:
        """The message with what only who runs the service should read."""
        message = self.message or self.code.name.lower().replace("_", " ")
        return f"{message} ({self.local_detail})" if self.local_detail else message

    @property
    def is_refusal(self) -> bool:
        """Whether the server had too many calls, did nothing with this one, and says when to come again."""
        return self.error_code == OVERLOADED and self.retry_after is not None

    @staticmethod
    def code_of_cause(error: BaseException) -> str:
        """UNTRUSTED_CERTIFICATE where that is what an exception, or one behind it, says; else ""."""
        seen: BaseException | None = error
        while seen is not None:
            if type(seen).__name__ == "SSLCertVerificationError":
                return UNTRUSTED_CERTIFICATE
            seen = seen.__cause__ or seen.__context__
        return ""

    def __str__(self) -> str:
        details = "; ".join(f"{v.field}: {v.description}" for v in self.violations)
        return f"{self.code.name}: {self.message}" + (f" ({details})" if details else "")


HTTP_STATUS: dict[StatusCode, int] = {
    StatusCode.OK: 500,
    StatusCode.CANCELLED: 499,
    StatusCode.UNKNOWN: 500,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.ABORTED: 409,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.INTERNAL: 500,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DATA_LOSS: 500,
    StatusCode.UNAUTHENTICATED: 401,
}
"""The HTTP status of an error by its code; one that says OK is the server's own mistake."""

STATUS_BY_REASON: dict[str, tuple[StatusCode, int]] = {
    "STORAGE_FULL": (StatusCode.RESOURCE_EXHAUSTED, 507),
    "STORAGE_READ_ONLY": (StatusCode.UNAVAILABLE, 503),
    "STORAGE_REPLACED": (StatusCode.UNAVAILABLE, 503),
    "STORAGE_UNUSABLE": (StatusCode.FAILED_PRECONDITION, 500),
    "STORAGE_FAILED": (StatusCode.INTERNAL, 500),
}
"""The code and the HTTP status of errors of storage, by their error_code. They are the service's fault,
where their codes alone would say that the caller sent too much, or something wrong."""

KNOWN_CODES = frozenset({
    *StatusCode.__members__, *STATUS_BY_REASON, OVERLOADED, RESPONSE_TOO_LARGE, UNTRUSTED_CERTIFICATE,
    "PAYLOAD_TOO_LARGE", "CIRCUIT_OPEN", "RATE_LIMITED",
})  # fmt: skip
"""The codes of errors that are ours; a gateway between a client and a service may make up any number."""


def invalid_argument(field: str, rule: str, *, origin: str = "server") -> RpcError:
    """The error for one field that broke a rule; the rule reads on from the field's name."""
    return invalid_arguments([Violation(field, rule)], origin=origin)


def invalid_arguments(violations: Sequence[Violation], *, origin: str = "server") -> RpcError:
    """The error for every rule that was broken; its message names the first twenty."""
    return RpcError(
        StatusCode.INVALID_ARGUMENT, violations_text(violations), violations=violations, origin=origin
    )


def violations_text(violations: Sequence[Violation]) -> str:
    """The first twenty of the violations as one line of text, for a message."""
    return "; ".join(f"{field} {rule}".strip() for field, rule in violations[:20])


def client_closed(*, maybe_applied: bool = False) -> RpcError:
    """The error of a call on a client that was closed: before the call, or while it was under way."""
    return RpcError(
        StatusCode.FAILED_PRECONDITION,
        "the client is closed, or the one that it was derived from: make a new one, or close it after its "
        "last call",
        origin="client",
        maybe_applied=maybe_applied,
    )
