"""Whether the files under a database's path are still those that this process has open.

A connection goes on with files that were removed or replaced under it, and acknowledges into nothing. So
they are looked at: after each commit that waits for the disk, before it is acknowledged, and before one when
that is 5 ms ago; where commits wait for no disk, 50 times a second.
Files are only ever looked at with `os.stat`: to open and close one of SQLite's files would drop this
process's locks on it (POSIX advisory locks belong to the process, not to the descriptor).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

from llm_cost_ops.ledger.sqlite.errors import StorageError
from llm_cost_ops.rpc.status import StatusCode

__all__ = [
    "FileWatch",
    "FilesChangedError",
    "create_private",
    "file_key",
    "is_refused",
    "real_path",
    "refuse_in_this_process",
]

# Seconds. Looking takes 10 µs: a twentieth of a commit to disk, a quarter of one that waits for none.
_GAPS = {True: 0.005, False: 0.02}
_WAL_HEADER, _FRAME_HEADER = 32, 24
# Before files that became smaller are taken for cut.
_QUESTIONS = 5

_Key = tuple[int, int]


class FilesChangedError(StorageError):
    """A file was removed or replaced; nothing more may be written through the connections that are open."""


def file_key(path: str) -> _Key | None:
    """What tells a file from every other one; None when there is none."""
    return _look(path)[0]


def _look(path: str) -> tuple[_Key | None, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat takes twice as long
    except OSError:  # it is not there, or not to be found, as behind a link to itself
        return None, 0
    return (found.st_dev, found.st_ino), found.st_size


def real_path(path: str) -> str:
    """Where a path leads: SQLite has -wal and -shm beside the file itself, not beside a link to it."""
    try:
        return os.path.realpath(path)
    except FileNotFoundError:  # a relative path, in a folder that is gone: opening the file fails
        return path


def create_private(path: str) -> None:
    """Make an empty file that only this user can read, if there is none.

    SQLite gives -wal and -shm the mode of the database.
    """
    with suppress(OSError):  # it is there, or SQLite says better why it can't be made
        made = os.open(real_path(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.fchmod(made, 0o600)  # whatever the umask
        finally:
            os.close(made)


# Of files that were in use when this process was forked: SQLite's table of locks, which it inherited,
# can't be trusted about them.
_refused: set[_Key] = set()


def refuse_in_this_process(path: str) -> None:
    """Let no connection to a file be opened from now on."""
    key = file_key(path)
    if key is not None:
        _refused.add(key)


def is_refused(path: str) -> bool:
    """Whether `refuse_in_this_process` was called for the file."""
    return bool(_refused) and file_key(path) in _refused


class FileWatch:
    """Remembers the files of a database. The database file itself may never become another one; -wal and
    -shm are new each time that the last connection was closed.
    """

    def __init__(self, path: str, *, every_commit: bool) -> None:
        self.every_commit = every_commit
        self.damage = ""
        """What is wrong with the content of the files, for as long as this object lives."""
        self._paths = (path, f"{path}-wal", f"{path}-shm")
        self._path = path
        self._lock = threading.RLock()
        self._open = 0
        self._database: _Key | None = None
        self._logs: tuple[_Key | None, _Key | None] | None = None
        self._lost_log = False
        self._sizes = (0, 0)
        self._next = 0.0
        self._gap = _GAPS[every_commit]

    def check_before_open(self) -> None:
        """Raise when a connection would not see the files that this process has written to."""
        found = file_key(self._path)
        if self._database is None:
            real = real_path(self._path)  # now: a link may lead elsewhere than when the client was made
            self._paths = (self._path, f"{real}-wal", f"{real}-shm")
        elif found != self._database:
            raise self._moved(found)
        if found is not None and not Path(self._path).is_file():
            # SQLite would open a pipe or a device, and then tell of a disk that fails.
            raise StorageError(
                StatusCode.FAILED_PRECONDITION,
                "the database must be a file, and its path leads to a folder, a pipe or a device",
                error_code="STORAGE_UNUSABLE",
                local_detail=self._path,
            )
        with self._lock:
            if self._logs is None or self._open:
                return
            if self._lost_log and file_key(self._paths[2]) is not None:
                raise self._changed("write-ahead log", "restart every process that uses it")
            self._lost_log = False
            self._logs = None

    def opened(self) -> None:
        """A connection was opened, and has read the file."""
        (database, size), (wal, wal_size), (shm, _) = map(_look, self._paths)
        with self._lock:
            self._open += 1
            self._database = self._database or database
            if self._logs is None:
                self._logs = (wal, shm)
                self._sizes = (size, wal_size)

    def closed(self) -> None:
        """A connection was closed."""
        with self._lock:
            self._open -= 1
            if not self._open and not self._lost_log:
                self._logs = None

    def look_if_due(self, connection: sqlite3.Connection | None) -> None:
        """`look`, unless that was done a moment ago."""
        if time.monotonic() >= self._next:
            self.look(connection)

    def look(self, connection: sqlite3.Connection | None) -> None:
        """Raise FilesChangedError when files are no longer what they were.

        The connection, outside a transaction, is asked about files that have become smaller.
        """
        (database, size), (wal, wal_size), (shm, _) = map(_look, self._paths)
        self._next = 0.0  # unless all is found as it was
        if self._database is None:
            return
        if database != self._database:
            raise self._moved(database)
        if self._logs is None or not self._open:
            return
        if wal != self._logs[0]:
            self._lost_log = True
            raise self._changed("write-ahead log", "it is opened again where that is safe")
        if shm != self._logs[1]:
            raise self._changed("shared-memory file", "it is opened again")
        if size < self._sizes[0] or wal_size < self._sizes[1]:
            if connection is None or connection.in_transaction:
                return
            if not self._is_rightly_smaller(connection):
                # It is asked again the next time, against the sizes as they were.
                return
        self._sizes = (size, wal_size)
        self._next = time.monotonic() + self._gap

    def check_damage(self) -> None:
        """Raise DATA_LOSS when the content of the files is known to be wrong."""
        if self.damage:
            raise self.damage_error("")

    def damage_error(self, detail: str) -> StorageError:
        """The error of calls on files whose content is wrong."""
        detail = f"{self._path}: {detail}" if detail else self._path
        return StorageError(StatusCode.DATA_LOSS, self.damage, local_detail=detail)

    def note_damage(self, cause: str) -> None:
        """Have writes refused from now on."""
        self.damage = self.damage or (
            f"{cause}; nothing is written to it any more. Stop what uses it, keep a copy of its files, and "
            "run `llm-cost-ops db check`"
        )

    def truncated(self) -> str:
        """What was cut, told by sizes alone; "" when none is known to have been."""
        (_, size), (_, wal_size), _ = map(_look, self._paths)
        if self._logs is None:
            return ""
        if size < self._sizes[0]:
            return "the database file was truncated"
        return "the write-ahead log of the database was truncated" if wal_size < self._sizes[1] else ""

    def is_moved(self) -> bool:
        """Whether the database file itself is not at its path."""
        return self._database is not None and file_key(self._path) != self._database

    def _is_rightly_smaller(self, connection: sqlite3.Connection) -> bool:
        """Whether nothing is missing; False while that can't be known. Raise DATA_LOSS when something is.

        VACUUM and checkpoints make files smaller; other causes lose data.
        Another process may write, or empty the log, between the question and the look at the files: what is
        missing then is there the next time.
        """
        cause = self.truncated() or "a file of the database was truncated"
        try:
            for _ in range(_QUESTIONS):
                holds_all = self._holds_all(connection)
                if holds_all is not False:
                    return holds_all is True
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return False
        self.note_damage(cause)
        raise self.damage_error("")

    def _holds_all(self, connection: sqlite3.Connection) -> bool | None:
        """Whether the files are as long as what SQLite says is in them.

        None while others keep SQLite from telling how long the log is, or from moving all of it to the
        database, whose last pages may be in the log alone.
        """
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        [page_size] = connection.execute("PRAGMA page_size").fetchone()
        busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy and frames < 0:
            return None
        (_, size), (_, wal_size), _ = map(_look, self._paths)
        if frames and wal_size < _WAL_HEADER + frames * (page_size + _FRAME_HEADER):
            return False
        if size >= min(self._sizes[0], pages * page_size):
            return True
        return None if moved < frames else False

    def _moved(self, found: _Key | None) -> FilesChangedError:
        what = "removed" if found is None else "replaced by another"
        return FilesChangedError(
            StatusCode.UNAVAILABLE,
            f"the database file was {what} while it was in use; nothing is written until it is back, or the "
            "processes that use it are restarted",
            error_code="STORAGE_REPLACED",
            local_detail=self._path,
        )

    def _changed(self, what: str, then: str) -> FilesChangedError:
        return FilesChangedError(
            StatusCode.UNAVAILABLE,
            f"the database's {what} was removed or replaced while it was in use; {then}",
            error_code="STORAGE_REPLACED",
            retry_after=0.1,
            local_detail=self._path,
        )
