"""The queue of the processes that wait to write to one file: whoever came first is next.

SQLite's lock has no queue: a process that commits without pause takes it again before one that sleeps can.
A waiting process holds a lock on one byte of the -wal file, far behind its content: the byte is the moment
at which it came, so that it is first when nobody holds a lower one. The kernel lets go of the locks of who
dies. These are locks of the open file (OFD), which neither SQLite's nor each other's end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
import time

__all__ = ["QueuedError", "WriteQueue"]

# Behind any file. Places are microseconds of a clock that all processes share.
_BEGIN = 1 << 60
_END = 1 << 62
_FLOCK = struct.Struct("hhqqi4x")
# A process that is stopped keeps its place: who waits for longer than this heeds the first place no more.
_MAX_WAIT = 0.5
# A turn of one commit each would leave the file idle for most of the time, since who is next sleeps a little
# between its looks. With three, each of five processes is among any 20 successive commits.
_COMMITS_A_TURN = 3


class QueuedError(sqlite3.OperationalError):
    """It is another process's turn to write. To callers this is as SQLite's own "database is locked"."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class WriteQueue:
    """A process's place among those that wait. Only for who has the writer's turn.

    A process that waits for its turn has three commits then, and looks for others that wait before the next.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}-wal"
        self._file: int | None = None
        self._place = 0
        self._since = 0.0
        self._commits = 0
        self._floor = _BEGIN

    def must_wait(self) -> bool:
        """Whether it is another process's turn; then this one has a place in the queue."""
        if not self._place:
            self._commits += 1
            if self._commits % _COMMITS_A_TURN:
                return False
            if self._first(_END) is None:
                return False
            self.join()
            return bool(self._place)
        first = self._first(self._place)
        if first is None:
            return False
        if time.monotonic() - self._since < _MAX_WAIT:
            return True
        self._floor = first + 1
        return False

    def join(self) -> None:
        """Take a place at the end, unless this process has one."""
        if self._place:
            return
        file = self._open()
        if file is None:
            return
        self._since = time.monotonic()
        place = _BEGIN + int(self._since * 1e6)
        with contextlib.suppress(OSError):  # two may come in the same microsecond
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
            self._place = place

    def leave(self) -> None:
        """Give the place up, after a commit or when nobody waits any more."""
        if self._place and self._file is not None:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
            self._place = self._commits = 0

    def close(self) -> None:
        """Give the place up and let go of the file: there is another one after the last connection's end."""
        file, self._file = self._file, None
        self._place = 0
        if file is not None:
            os.close(file)

    def _first(self, before: int) -> int | None:
        """The first place below one that another process has."""
        file = self._open()
        found = None
        while file is not None and before > self._floor:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._floor, before - self._floor, 0)
            kind, _, place, *_ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
            if kind == fcntl.F_UNLCK:
                break
            # Any of those in the range.
            found = before = place
        return found

    def _open(self) -> int | None:
        if self._file is None:
            # SQLite has no locks on -wal that closing this would drop.
            with contextlib.suppress(OSError):
                self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        return self._file
