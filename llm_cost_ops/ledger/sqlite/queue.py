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
from weakref import finalize

from llm_cost_ops.ledger.sqlite.files import real_path

__all__ = ["QueuedError", "WriteQueue"]

# Behind any file. Places are microseconds of a clock that all processes share.
_BEGIN = 1 << 60
_END = 1 << 62
_FLOCK = struct.Struct("hhqqi4x")
# Seconds. A process that is stopped keeps its place: when the same one is the first for so long, nothing
# was written meanwhile, and the file is free, it is heeded no more. How long who looks has waited itself says
# nothing: on a busy machine the turns of four others take longer.
_MAX_WAIT = 0.5
_MAX_PASSED = 4
# A turn of one commit each would leave the file idle for most of the time, since who is next sleeps a little
# between its looks. With three, who waits sees at most three commits of each other process: of five that
# never pause, each is among any 13 successive commits.
_COMMITS_A_TURN = 3


class QueuedError(sqlite3.OperationalError):
    """It is another process's turn to write. To callers this is as SQLite's own "database is locked"."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class WriteQueue:
    """A process's place among those that wait. Only for who has the writer's turn.

    A process has three commits once nobody was before it, and looks for others that wait before the next.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._place = 0
        # Commits that may follow without a look at who waits.
        self._left = 0
        # The first place and the time of the last write when this process last looked, and since when.
        self._seen = (0, 0)
        self._since = 0.0
        # Below it nobody is heeded. Whether it was raised just now, and how often.
        self._floor = _BEGIN
        self._passes = False
        self._passed = 0

    def must_wait(self) -> bool:
        """Whether it is another process's turn; then this one has a place in the queue."""
        if not self._place:
            if self._left:
                self._left -= 1
                return False
            if self._passed and self._first(self._floor, _BEGIN) is None:
                self._passed = 0
            if self._first(_END) is None:
                self._left = _COMMITS_A_TURN - 1
                return False
            self.join()
            return bool(self._place)
        head = self._first(self._place)
        if head is None or self._file is None:
            return False
        now, seen = time.monotonic(), (head, os.fstat(self._file).st_mtime_ns)
        if seen != self._seen:
            self._seen, self._since = seen, now
        if now - self._since < _MAX_WAIT * 2**self._passed:
            return True
        self._floor, self._passes = head + 1, True
        # It waits longer than those who are still behind the one that is stopped: it writes again and again
        # otherwise, so that they never see nothing written, and pass each of them too.
        self._passed = min(self._passed + 1, _MAX_PASSED)
        return False

    def join(self) -> None:
        """Take a place at the end, after the file was found busy, unless this process has one."""
        if self._place:
            if self._passes:
                # The first waits for the file as well, and is not to blame.
                self._floor, self._passes, self._since = self._seen[0], False, time.monotonic()
                self._passed -= 1
            return
        file = self._open()
        if file is None:
            return
        self._seen = (0, 0)
        place = _BEGIN + int(time.monotonic() * 1e6)
        while not self._place:
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
                self._place = place
            except (BlockingIOError, PermissionError):
                # Another came in the same microsecond.
                place += 1
            except OSError:
                # A file system without such locks has no queue.
                return

    def committed(self) -> None:
        """Give the place up after a commit, which begins a turn."""
        if self._place:
            self.leave()
            self._left = _COMMITS_A_TURN - 1

    def leave(self) -> None:
        """Give the place up when nobody waits any more."""
        if self._place and self._file is not None:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
            self._place = self._left = 0
            self._passes = False

    def close(self) -> None:
        """Give the place up and let go of the file: there is another one after the last connection's end."""
        file, self._file = self._file, None
        self._place = self._left = 0
        self._passes = False
        if file is not None:
            self._closing()

    def _first(self, before: int, floor: int | None = None) -> int | None:
        """The first place below one that another process has; of those that are heeded without `floor`."""
        floor = self._floor if floor is None else floor
        file = self._open()
        found = None
        while file is not None and before > floor:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, floor, before - floor, 0)
            try:
                kind, _, place, *_ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
            except OSError:
                return None  # as in `join`
            if kind == fcntl.F_UNLCK:
                break
            # Any of those in the range.
            found = before = place
        return found

    def _open(self) -> int | None:
        if self._file is None:
            # SQLite has no locks on -wal that closing this would drop.
            with contextlib.suppress(OSError):
                self._file = os.open(f"{real_path(self._path)}-wal", os.O_RDWR | os.O_CLOEXEC)
                # Of a client that nobody closed, the descriptor goes with the queue.
                self._closing = finalize(self, os.close, self._file)
                self._closing.atexit = False
        return self._file
