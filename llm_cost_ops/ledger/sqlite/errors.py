"""What SQLite's errors mean to a caller.

Messages name no file and hold no text of SQLite, since they travel to callers of a server; `local_detail`
does, for who has the database in its own process.
"""

from __future__ import annotations

import os
import resource
import sqlite3
from contextlib import suppress
from pathlib import Path

from llm_cost_ops.rpc.status import RpcError, StatusCode, invalid_argument

__all__ = [
    "StorageError",
    "busy_error",
    "closed_error",
    "is_at_size_limit",
    "is_broken",
    "is_busy",
    "is_damage",
    "rpc_error",
]


class StorageError(RpcError):
    """The database can't be used as it is: whatever else the call asked for was not looked at."""


_MESSAGES = {
    sqlite3.SQLITE_FULL: (
        StatusCode.RESOURCE_EXHAUSTED,
        "there is no room left for {name}; nothing was written",
        "STORAGE_FULL",
    ),
    sqlite3.SQLITE_NOMEM: (StatusCode.RESOURCE_EXHAUSTED, "{name} needs more memory than there is", ""),
    sqlite3.SQLITE_NOTADB: (
        StatusCode.FAILED_PRECONDITION,
        "{name} is not a SQLite database",
        "STORAGE_UNUSABLE",
    ),
    sqlite3.SQLITE_CORRUPT: (
        StatusCode.DATA_LOSS,
        "{name} is damaged; look at it with `llm-cost-ops db check`",
        "",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        StatusCode.FAILED_PRECONDITION,
        "can't open {name}: is its folder there, and may this process write to it?",
        "STORAGE_UNUSABLE",
    ),
    sqlite3.SQLITE_READONLY: (
        StatusCode.UNAVAILABLE,
        "{name} or its folder is read-only; nothing was written",
        "STORAGE_READ_ONLY",
    ),
    sqlite3.SQLITE_PERM: (
        StatusCode.FAILED_PRECONDITION,
        "this process may not use {name}",
        "STORAGE_UNUSABLE",
    ),
    sqlite3.SQLITE_IOERR: (
        StatusCode.INTERNAL,
        "{name} could not be read or written: its disk fails",
        "STORAGE_FAILED",
    ),
    sqlite3.SQLITE_TOOBIG: (StatusCode.INVALID_ARGUMENT, "a record is too large for {name}", ""),
    sqlite3.SQLITE_INTERRUPT: (
        StatusCode.DEADLINE_EXCEEDED,
        "the query took longer than its deadline",
        "",
    ),
}
# sqlite3 names it from Python 3.12 on.
_CONSTRAINT_DATATYPE = 3091
# What SQLite says of it has no code of its own.
_TOO_MANY_VALUES = "too many SQL variables"
_TOO_LARGE = "a count or a cost is too large to be summed exactly; nothing was written"


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code


def is_busy(error: BaseException) -> bool:
    """Whether another connection was in the way, so that trying again may help."""
    return _code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_broken(error: BaseException) -> bool:
    """Whether the connection is not to be trusted after this."""
    return _code(error) & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_damage(error: BaseException) -> bool:
    """Whether the content of the file is wrong, which does not pass."""
    # The second is what a file says that was cut while it was open.
    return _code(error) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or _code(error) == (
        sqlite3.SQLITE_IOERR | (2 << 8)
    )


def busy_error(name: str) -> RpcError:
    """The error when the database stayed busy for as long as the call could wait."""
    return RpcError(StatusCode.UNAVAILABLE, f"{name} is busy with other writers", retry_after=0.5)


def closed_error() -> RpcError:
    """The error of a call on a closed store."""
    return RpcError(StatusCode.FAILED_PRECONDITION, "the store is closed")


def rpc_error(
    error: BaseException,
    name: str,
    path: str | None = None,
    *,
    maybe_applied: bool = False,
    at_size_limit: bool = False,
) -> RpcError:
    """The error to raise for one of SQLite's. `name` is what the database is called.

    `at_size_limit` says that `is_at_size_limit` was true when the error came up.
    """
    if is_busy(error):
        return busy_error(name)
    code = _code(error)
    if isinstance(error, OverflowError) or code == _CONSTRAINT_DATATYPE:
        return RpcError(StatusCode.OUT_OF_RANGE, _TOO_LARGE)
    if _TOO_MANY_VALUES in str(error):
        return invalid_argument("filter", "has more values than one query of SQLite takes")
    kind = code & 0xFF
    if kind == sqlite3.SQLITE_IOERR and is_damage(error):
        kind = sqlite3.SQLITE_CORRUPT
    elif kind == sqlite3.SQLITE_IOERR and at_size_limit:
        kind = sqlite3.SQLITE_FULL
    status, text, reason = _MESSAGES.get(kind, (StatusCode.INTERNAL, "{name} failed", "STORAGE_FAILED"))
    return RpcError(
        status,
        text.format(name=name),
        error_code=reason,
        maybe_applied=maybe_applied,
        local_detail=f"{path}: {error}" if path else str(error),
    )


def is_at_size_limit(path: str) -> bool:
    """Whether a file of the database may not grow (RLIMIT_FSIZE), which SQLite calls a failing disk.

    To be asked before the connection is closed, which may take the log, the file that was full, away.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return False
    size, path = 0, os.path.realpath(path)
    for suffix in ("", "-wal", "-journal"):
        with suppress(OSError):
            size = max(size, Path(path + suffix).stat().st_size)
    return size + _MAX_PAGE > limit


_MAX_PAGE = 65_536
