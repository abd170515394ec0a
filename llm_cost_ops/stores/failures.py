"""What SQLite says when it can't, in the words of the service."""

from __future__ import annotations

import sqlite3

from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["busy_error", "is_busy", "rpc_error"]

_MESSAGES = {
    sqlite3.SQLITE_FULL: (
        StatusCode.RESOURCE_EXHAUSTED,
        "there is no room left for {name}; nothing was written",
    ),
    sqlite3.SQLITE_NOMEM: (StatusCode.RESOURCE_EXHAUSTED, "{name} needs more memory than there is"),
    sqlite3.SQLITE_NOTADB: (StatusCode.FAILED_PRECONDITION, "{name} is not a SQLite database"),
    sqlite3.SQLITE_CORRUPT: (StatusCode.DATA_LOSS, "{name} is damaged"),
    sqlite3.SQLITE_CANTOPEN: (
        StatusCode.FAILED_PRECONDITION,
        "can't open {name}: is its folder there, and may this process write to it?",
    ),
    sqlite3.SQLITE_READONLY: (StatusCode.FAILED_PRECONDITION, "{name} or its folder is read-only"),
    sqlite3.SQLITE_PERM: (StatusCode.FAILED_PRECONDITION, "this process may not use {name}"),
    sqlite3.SQLITE_TOOBIG: (StatusCode.INVALID_ARGUMENT, "a record is too large for {name}"),
    sqlite3.SQLITE_INTERRUPT: (StatusCode.DEADLINE_EXCEEDED, "the query took longer than its deadline"),
}
# sqlite3 names it from Python 3.12 on.
_CONSTRAINT_DATATYPE = 3091
_TOO_LARGE = "a count or a cost is too large to be summed exactly; nothing was written"


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code


def is_busy(error: BaseException) -> bool:
    """Whether another connection was in the way, so that trying again may help."""
    return _code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def busy_error(name: str) -> RpcError:
    """The error when the database stayed busy for as long as the call could wait."""
    return RpcError(StatusCode.UNAVAILABLE, f"{name} is busy with other writers", retry_after=0.5)


def rpc_error(error: Exception, name: str, *, maybe_applied: bool = False) -> RpcError:
    """The error to raise for one of SQLite's. `name` is what the database is called."""
    if is_busy(error):
        return busy_error(name)
    code = _code(error)
    if isinstance(error, OverflowError) or code == _CONSTRAINT_DATATYPE:
        return RpcError(StatusCode.OUT_OF_RANGE, _TOO_LARGE)
    status, text = _MESSAGES.get(code & 0xFF, (StatusCode.INTERNAL, f"{{name}} failed: {error}"))
    return RpcError(status, text.format(name=name), maybe_applied=maybe_applied)
