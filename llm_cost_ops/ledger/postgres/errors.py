"""What PostgreSQL's errors mean to a caller.

Messages hold no text of PostgreSQL, since they travel to callers of a server; `local_detail` does, for who
runs it. libpq never puts the password into its messages.
"""

from __future__ import annotations

import psycopg

from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = [
    "DeadlinePassedError",
    "busy_error",
    "closed_error",
    "connect_error",
    "is_lost",
    "is_retryable",
    "rpc_error",
]

NAME = "the database"


class DeadlinePassedError(Exception):
    """The deadline passed, or the caller went away, while a statement ran; its connection is closed."""


# By SQLSTATE, or its class.
_MESSAGES = {
    "57014": (StatusCode.DEADLINE_EXCEEDED, "the query took longer than its deadline", ""),
    "53100": (StatusCode.RESOURCE_EXHAUSTED, "there is no room left for {name}", "STORAGE_FULL"),
    "53200": (StatusCode.RESOURCE_EXHAUSTED, "{name} needs more memory than there is", ""),
    "25006": (
        StatusCode.UNAVAILABLE,
        "{name} is read-only, as a standby is; nothing was written",
        "STORAGE_READ_ONLY",
    ),
    "42501": (
        StatusCode.FAILED_PRECONDITION,
        "{name} does not let this user do that: its owner runs `llm-cost-ops db init`, and grants the use",
        "STORAGE_UNUSABLE",
    ),
    "22003": (StatusCode.OUT_OF_RANGE, "a count or a cost is too large to be summed exactly", ""),
    "54000": (StatusCode.INVALID_ARGUMENT, "a record is too large for {name}", ""),
    "3F000": (StatusCode.FAILED_PRECONDITION, "{name} holds no ledger", "STORAGE_UNUSABLE"),
    "42P01": (StatusCode.FAILED_PRECONDITION, "{name} holds no ledger, or lost a table", "STORAGE_UNUSABLE"),
    "XX001": (StatusCode.DATA_LOSS, "{name} is damaged", ""),
    "XX002": (StatusCode.DATA_LOSS, "{name} is damaged", ""),
}
_RETRYABLE = ("40001", "40P01", "55P03")
# Or its class: of a connection that is lost, or that the server ends.
_LOST = ("08", "57P", "25P03", "25P04")
# Or its severity: where the WAL can't be written, a server ends by PANIC at a COMMIT that may be there again.
_ENDS = ("FATAL", "PANIC")

# Parts of what libpq says, which gives no SQLSTATE for a connection that was refused.
_REFUSALS = (
    (
        ("password authentication failed", "no password supplied", "pg_hba.conf", "authentication"),
        "{name} does not let this user in: its password, or the server's pg_hba.conf",
    ),
    (("role ", "database "), "the user or the database in the URL is not there, or may not be used"),
    (("SSL", "certificate", "sslmode"), "a TLS connection to {name} could not be made as sslmode asks for"),
    (("invalid ", "could not translate", "Servname"), "the URL does not say where {name} is"),
)
_READ_ONLY = ("session is read-only", "is not a primary", "hot standby", "cannot execute")
# What passes, though it names the database, the role or TLS: no connection is free, the server starts, or was
# lost while it let us in.
_FOR_NOW = (
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "starting up",
    "shutting down",
    "recovery",
    "not yet accepting connections",
    "not accepting connections",
    "not currently accepting connections",
    "due to timeout",
    "Temporary failure in name resolution",
    "SSL SYSCALL",
    "closed unexpectedly",
    "unexpected eof",
    "Connection reset",
)


def is_retryable(error: BaseException) -> bool:
    """Whether the transaction was rolled back for a reason that passes."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _RETRYABLE


def is_lost(error: BaseException) -> bool:
    """Whether the connection went away, so that it is not known what became of the last statement."""
    if isinstance(error, DeadlinePassedError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate.startswith(_LOST) or error.diag.severity_nonlocalized in _ENDS


def busy_error() -> RpcError:
    """The error when every connection stayed in use for as long as the call could wait."""
    return RpcError(StatusCode.UNAVAILABLE, f"{NAME} is busy with other calls", retry_after=0.5)


def closed_error() -> RpcError:
    """The error of a call on a closed ledger."""
    return RpcError(StatusCode.FAILED_PRECONDITION, "the ledger is closed")


def connect_error(error: Exception) -> RpcError:
    """The error when no connection could be made: retryable unless what the URL says is wrong."""
    text = str(error)
    if any(part in text for part in _READ_ONLY):
        message = "{name} is read-only: a standby takes no writes, and no other host in the URL does"
        return _made(StatusCode.UNAVAILABLE, message, "STORAGE_READ_ONLY", text, retry_after=0.5)
    if not any(part in text for part in _FOR_NOW):
        for parts, message in _REFUSALS:
            if any(part in text for part in parts) and "Connection refused" not in text:
                return _made(StatusCode.FAILED_PRECONDITION, message, "STORAGE_UNUSABLE", text)
    return _made(StatusCode.UNAVAILABLE, "{name} can't be reached", "", text, retry_after=0.5)


def rpc_error(error: Exception, *, maybe_applied: bool = False) -> RpcError:
    """The error to raise for one of psycopg's."""
    if isinstance(error, DeadlinePassedError):
        message = "the deadline passed while {name} was at it"
        return _made(StatusCode.DEADLINE_EXCEEDED, message, "", "", maybe_applied=maybe_applied)
    state = (error.sqlstate if isinstance(error, psycopg.Error) else None) or ""
    if state in _MESSAGES:
        return _made(*_MESSAGES[state], str(error), maybe_applied=maybe_applied)
    if state in _RETRYABLE or is_lost(error):
        message = "the connection to {name} was lost"
        if state.startswith(("40", "55")):
            message = "{name} is busy with other writers"
        code = StatusCode.UNAVAILABLE
        return _made(code, message, "", str(error), retry_after=0.5, maybe_applied=maybe_applied)
    return _made(
        StatusCode.INTERNAL, "{name} failed", "STORAGE_FAILED", str(error), maybe_applied=maybe_applied
    )


def _made(
    code: StatusCode,
    message: str,
    reason: str,
    detail: str,
    *,
    retry_after: float | None = None,
    maybe_applied: bool = False,
) -> RpcError:
    return RpcError(
        code,
        message.format(name=NAME),
        error_code=reason,
        retry_after=retry_after,
        maybe_applied=maybe_applied,
        # libpq writes several lines, of which the last ones say least.
        local_detail=" ".join(detail.split()),
    )
