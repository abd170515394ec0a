"""A database: its file or memory, how durable it is, and connections to it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from llm_cost_ops.ledger.sqlite import schema
from llm_cost_ops.ledger.sqlite.errors import (
    StorageError,
    busy_error,
    closed_error,
    is_at_size_limit,
    is_broken,
    is_busy,
    is_damage,
    rpc_error,
)
from llm_cost_ops.ledger.sqlite.files import (
    FilesChangedError,
    FileWatch,
    create_private,
    is_refused,
)
from llm_cost_ops.ledger.sqlite.obvious_faults import find_obvious_fault
from llm_cost_ops.ledger.sqlite.queue import QueuedError, WriteQueue
from llm_cost_ops.ledger.sqlite.rows import Interner
from llm_cost_ops.ledger.sqlite.stopping import stopping
from llm_cost_ops.ledger.sqlite.sums import TEMPORARY
from llm_cost_ops.rpc.context import CallContext, drive
from llm_cost_ops.rpc.fifo import Place
from llm_cost_ops.rpc.runtime import Runtime, SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = [
    "DURABILITIES",
    "BusyRetry",
    "Database",
    "FifoLock",
    "Job",
    "Writer",
    "lateness",
    "poll_delay",
]


DURABILITIES = {"disk": "FULL", "process": "NORMAL"}

# The first with STRICT tables.
_MIN_VERSION = (3, 37)


class Database:
    """A SQLite file, or private memory when `path` is None. Nothing is opened before `connect`.

    With durability "disk" a commit is on disk when it returns; with "process" it survives the end of the
    process, but the last commits may be lost when the machine loses power.
    """

    def __init__(self, path: str | None, durability: str) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, not {durability!r}")
        # A program may go to another folder later, such as a daemon. Where its folder is gone, opening fails.
        with contextlib.suppress(FileNotFoundError):
            path = None if path is None else str(Path(path).absolute())
        self.path = path
        self.durability = durability
        self.name = "the database in memory" if path is None else "the database"
        self._looked_into = False
        self._at_size_limit: BaseException | None = None
        self.files = None if path is None else FileWatch(path, every_commit=durability == "disk")

    def connect(self, is_late: Callable[[], bool] | None = None) -> sqlite3.Connection:
        """A connection to the database, which is created, or brought to this version, where it must be.

        Never waits inside SQLite: sqlite3.OperationalError when the file is busy. RpcError as `identify`, and
        for a SQLite that is too old. DEADLINE_EXCEEDED, with nothing changed, as soon as `is_late` says so.
        """
        if sqlite3.sqlite_version_info < _MIN_VERSION:
            needed = ".".join(map(str, _MIN_VERSION))
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                f"this Python has SQLite {sqlite3.sqlite_version}, and the store needs {needed} or newer",
            )
        if self.path is not None and self.files is not None:
            self._check_inherited(self.path)
            self.files.check_before_open()
            create_private(self.path)
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            with stopping(connection, is_late):
                self._prepare(connection)
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT and is_late is not None and is_late():
                raise _late_error(self.path) from error
            raise
        except BaseException:
            connection.close()
            raise
        if self.files is not None:
            self.files.opened()
            if not self._looked_into:
                self._look_into(connection, self.files)
        return connection

    def look_again(self) -> None:
        """Have the next connection look into the file, as the first one did."""
        self._looked_into = False

    def _look_into(self, connection: sqlite3.Connection, files: FileWatch) -> None:
        """Have writes refused to a file that is inconsistent at first sight."""
        try:
            fault = find_obvious_fault(connection)
        except sqlite3.Error as error:
            self.notice(error)
            if not is_broken(error):
                self.close(connection)
                raise
        else:
            if fault:
                files.note_damage(f"the database is damaged: {fault}")
        self._looked_into = True

    def close(self, connection: sqlite3.Connection) -> None:
        """Close a connection that `connect` gave."""
        if self.files is not None:
            # Before: with the last connection the -wal and -shm end, and one that another thread opens at
            # this moment makes new ones.
            self.files.closed()
        connection.close()

    def notice(self, error: BaseException) -> None:
        """Remember what is behind an error; before its connection is closed, which may hide the cause."""
        if self.path is not None and self.files is not None and is_broken(error):
            if is_at_size_limit(self.path):
                self._at_size_limit = error
            cut = self.files.truncated()
            if cut or is_damage(error):
                self.files.note_damage(cut or "the database is damaged")

    def translated(self, error: Exception, *, maybe_applied: bool = False) -> RpcError:
        """The error to raise for one of SQLite's."""
        if self.files is not None and self.files.damage and is_broken(error):
            return self.files.damage_error(str(error))
        return rpc_error(
            error,
            self.name,
            self.path,
            maybe_applied=maybe_applied,
            at_size_limit=error is self._at_size_limit,
        )

    @staticmethod
    def _check_inherited(path: str) -> None:
        if is_refused(path):
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                "the database was in use when this process was forked, for longer than a fork waits: fork "
                "when no call is under way, or start processes with multiprocessing's spawn or forkserver",
                error_code="STORAGE_UNUSABLE",
                local_detail=path,
            )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = schema.identify(connection, self.name)
        execute = connection.execute
        if self.path is not None:
            execute("PRAGMA journal_mode = WAL").fetchone()
            execute(f"PRAGMA synchronous = {DURABILITIES[self.durability]}")
            execute("PRAGMA fullfsync = ON")
            execute("PRAGMA checkpoint_fullfsync = ON")
            execute("PRAGMA journal_size_limit = 67108864").fetchone()
            execute("PRAGMA cache_size = -16000")
        execute("PRAGMA temp_store = MEMORY")
        # SQLite would index all of usage for one query, where the index by time is what to read.
        execute("PRAGMA automatic_index = OFF")
        # What is erased is nowhere in the file then: neither where it stood, nor where SQLite moved it from.
        execute("PRAGMA secure_delete = ON").fetchone()
        if version < schema.VERSION:
            schema.migrate(connection, self.name)
        for statement in TEMPORARY:
            execute(statement)
        # From the first read on the -wal and -shm files are there.
        execute("SELECT count(*) FROM sqlite_schema").fetchone()


_MAX_WAIT = 30.0


def _late_error(path: str | None) -> RpcError:
    return RpcError(
        StatusCode.DEADLINE_EXCEEDED,
        "the deadline passed while the database was brought to this version, and it is as it was: open it "
        "once with more time",
        local_detail=path or "",
    )


def poll_delay(waited: float) -> float:
    """Seconds until the next look at a busy file, after `waited` seconds.

    Nobody writes while the next in line sleeps: short waits are looked at often.
    """
    return min(0.01, max(0.0005, waited / 20))


_MARGIN = 0.01


class BusyRetry:
    """How long a call may wait for the file: until just before its deadline, or 30 seconds without one."""

    __slots__ = ("_began", "_context", "_name", "_until")

    def __init__(self, context: CallContext, name: str) -> None:
        self._context = context
        self._name = name
        self._began = context.runtime.monotonic()
        self._until = self._began + self.allowed(context)

    @staticmethod
    def allowed(context: CallContext | None) -> float:
        """Seconds that a call may wait, from now."""
        remaining = None if context is None else context.remaining()
        return _MAX_WAIT if remaining is None else remaining - min(_MARGIN, remaining / 10)

    def left(self) -> float:
        """Seconds that may still be waited; UNAVAILABLE when there are none."""
        left = self._until - self._context.runtime.monotonic()
        if left <= 0:
            self._context.check_deadline()
            raise busy_error(self._name)
        return left

    async def pause(self) -> None:
        """Wait a little; UNAVAILABLE when that was too long."""
        runtime = self._context.runtime
        left = self.left()
        delay = poll_delay(runtime.monotonic() - self._began)
        await runtime.sleep(min(delay * (0.5 + runtime.random()), left))


class FifoLock:
    """A lock that threads and tasks queue for, first come, first served, each for as long as its call may.

    An `owner` is what tells a call from others. It releases the turn whatever was raised, KeyboardInterrupt
    out of these methods included, and once more where that came out of `release`. What stands under the lock
    calls nothing: only at calls can an interrupt come, or a signal handler or finalizer that asks for the
    turn as well.
    """

    __slots__ = ("_end", "_lock", "_owner", "_place", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: object = None
        self._place: Place | None = None  # the one that the owner had, if it waited
        self._thread = 0  # the owner's, once it runs
        self._end = Place(None)  # stands behind the last, and before the first
        self._end.before = self._end.behind = self._end

    def try_acquire(self, owner: object) -> bool:
        """Take the turn if it is free."""
        thread = threading.get_ident()
        with self._lock:
            taken = self._owner is None
            if taken:
                self._owner, self._thread = owner, thread
        return taken

    @property
    def is_free(self) -> bool:
        """Whether nobody has the turn, now."""
        return self._owner is None

    @property
    def is_entered(self) -> bool:
        """Whether this thread has the turn, and is in the middle of its call."""
        return self._thread == threading.get_ident()

    async def acquire(self, owner: object, runtime: Runtime, seconds: float, name: str) -> None:
        """Wait for the turn as the runtime waits; UNAVAILABLE after so many seconds."""
        place: Any = Place(owner)
        try:
            if not self._joined(place):
                try:
                    await runtime.wait(place, seconds)
                except TimeoutError:
                    if not place.granted:
                        raise busy_error(name) from None
            self._thread = threading.get_ident()
        except BaseException:
            try:
                self._leave(place)
            finally:
                self._leave(place)  # the first may have been interrupted
            raise

    def take_blocking(self, owner: object, seconds: float, name: str) -> None:
        """Wait for the turn by blocking the thread; UNAVAILABLE after so many seconds."""
        drive(self.acquire(owner, SyncRuntime(), seconds, name))

    def release(self, owner: object) -> None:
        """Hand the turn to whoever has waited longest, if `owner` has it."""
        with self._lock:
            if self._owner is owner:
                self._thread = 0
                place = self._end.behind
                if place is self._end:
                    self._owner = self._place = None
                else:
                    self._owner, self._place, place.granted = place.owner, place, True
                    self._end.behind, place.behind.before = place.behind, self._end
                    place.before = place.behind = None
            place = self._place
        # Whoever has it by now: they may have been handed it by a call that was interrupted then.
        if place is not None:
            place.wake()

    def _joined(self, place: Place) -> bool:
        """Take the turn if it is free, or else a place behind the last."""
        if self.is_entered:
            raise nested_error()
        with self._lock:
            taken = self._owner is None
            if taken:
                self._owner = place.owner
            else:
                place.before, place.behind = self._end.before, self._end
                place.before.behind = self._end.before = place
        return taken

    def _leave(self, place: Place) -> None:
        with self._lock:
            if place.behind is not None:
                place.before.behind, place.behind.before = place.behind, place.before
                place.before = place.behind = None
        self.release(place.owner)


def nested_error() -> RpcError:
    """The error of a call that a thread makes while it is in the middle of another one."""
    return RpcError(
        StatusCode.FAILED_PRECONDITION,
        "this thread is in the middle of another call to this ledger, and was stopped there by a signal "
        "handler or a finalizer: use record() in these",
        error_code="STORAGE_UNUSABLE",
    )


T = TypeVar("T")

Job = Callable[[sqlite3.Cursor, Interner], T]
"""What is committed together. It is run again when the transaction could not be had or kept."""


def forked_error() -> RpcError:
    """The error in a child process of a ledger in its parent's memory."""
    return RpcError(
        StatusCode.FAILED_PRECONDITION,
        "the ledger in memory belongs to the process that made it, and this is a child of it: give each "
        "process a client of its own, or use a file (sqlite:///costs.db)",
        error_code="STORAGE_UNUSABLE",
    )


class Writer:
    """Safe for threads and tasks, who queue for the turn. The file is opened by the first job."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.turn = FifoLock()
        self.closed = False
        self.commits = 0
        """How many transactions were committed."""
        self.is_childs = False
        """Whether what it wrote to is in the memory of the process that forked this one."""
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self.interner = Interner()
        self._committing = False
        self._unsure: BaseException | None = None
        self.close_readers: Callable[[], None] = lambda: None
        """Closes the connections beside this one."""
        # Who uses the connection. The turn may belong to a task that is not running.
        self.in_use = threading.RLock()
        self._queue = None if database.path is None else WriteQueue(database.path)
        self._waiting = 0

    async def run(self, job: Job[T], context: CallContext, *, statement: bool = False) -> T:
        """Run a job and commit it; while the file is busy, wait as long as the call may.

        One that is a single `statement` runs without BEGIN and COMMIT: SQLite commits each statement by
        itself.
        """
        turn = self.turn
        busy_retry: BusyRetry | None = None
        try:
            while True:
                try:
                    if not turn.try_acquire(context):
                        left = BusyRetry(context, self.database.name).left()
                        await turn.acquire(context, context.runtime, left, self.database.name)
                    return self.transact(job, statement=statement, context=context)
                except (sqlite3.Error, OverflowError) as error:
                    if not is_busy(error):
                        raise self.translated(error) from error
                finally:
                    turn.release(context)
                if busy_retry is None:
                    busy_retry = BusyRetry(context, self.database.name)
                    self._waiting += 1
                await busy_retry.pause()
        except BaseException:
            turn.release(context)  # which may have been interrupted
            raise
        finally:
            if busy_retry is not None:
                self._waiting -= 1
                self.leave_queue()

    def leave_queue(self) -> None:
        """Give up this process's place among those that wait for the file, unless a call still waits."""
        if not self._waiting and self._queue is not None:
            with self.in_use:
                self._queue.leave()

    def transact(self, job: Job[T], *, statement: bool = False, context: CallContext | None = None) -> T:
        """Run a job in a transaction of its own. Only for who has the turn.

        The context's deadline bounds the opening of the file.
        """
        with self.in_use:
            files = self.database.files
            if files is None:
                return self._transact(job, statement=statement)
            try:
                if self._connection is None:
                    # Which may find damage.
                    self.open(context)
                files.check_damage()
                files.look_if_due(self._connection)
                result = self._transact_in_order(job, self._queue, statement=statement)
                if files.every_commit:
                    files.look(self._connection)
            except StorageError as error:
                error.maybe_applied = self._committing
                self._committing = False
                if isinstance(error, FilesChangedError):
                    self._give_up_files(files)
                raise
            self._committing = False
            return result

    def _transact_in_order(self, job: Job[T], queue: WriteQueue | None, *, statement: bool) -> T:
        """`_transact`, behind other processes that have waited for longer."""
        if queue is None:
            return self._transact(job, statement=statement)
        if queue.must_wait():
            raise QueuedError
        try:
            result = self._transact(job, statement=statement)
        except sqlite3.Error as error:
            if is_busy(error):
                queue.join()
            raise
        queue.committed()
        return result

    def _transact(self, job: Job[T], *, statement: bool) -> T:
        cursor = self._cursor or self.open().cursor()
        self._cursor = cursor
        execute = cursor.execute
        try:
            # KeyboardInterrupt may come behind any statement, and as another one is rolled back. What is
            # acknowledged next would be in the transaction that was left open.
            if cursor.connection.in_transaction:
                self.interner.forget()
                execute("ROLLBACK")
            if not statement:
                execute("BEGIN IMMEDIATE")
            self._committing = statement
            result = job(cursor, self.interner)
            if not statement:
                self._committing = True
                execute("COMMIT")
                self.interner.keep()
            self.commits += 1
        except BaseException as error:
            self.database.notice(error)
            self._roll_back(error)
            raise
        return result

    def open(self, context: CallContext | None = None) -> sqlite3.Connection:
        """The connection. Only for who has the turn."""
        if self.closed:
            raise closed_error()
        if self.is_childs:
            raise forked_error()
        if self._connection is None:
            self._connection = self.database.connect(lateness(context))
        return self._connection

    def translated(self, error: Exception) -> RpcError:
        """The error to raise for what `transact` raised last. Only for who has the turn."""
        return self.database.translated(error, maybe_applied=error is self._unsure)

    def close(self) -> None:
        """Close the connection. Only for who has the turn."""
        self.closed = True
        with self.in_use:
            self._drop()

    def rest(self, until: float) -> bool:
        """Close the connection, and keep it closed until `go_on`; False when it is in use for too long, or by
        this thread.
        """
        if self.turn.is_entered or not self.in_use.acquire(timeout=max(0.0, until - time.monotonic())):
            return False
        if self.database.path is not None:
            self._drop()
        return True

    def go_on(self) -> None:
        """What `rest` kept from being opened may be opened."""
        self.in_use.release()

    def _give_up_files(self, files: FileWatch) -> None:
        """Save what the log holds, where that can be, once files are no longer what they were."""
        if not files.is_moved():
            # Whose connection is the last moves the log's content into the database. Else what was written
            # may be lost, and other rows may get its numbers.
            self._drop()
            self.interner = Interner()
            self.close_readers()
            # What is there now may be what somebody restored, with what our log had of another state.
            self.database.look_again()
        elif self._connection is not None:
            # Else the log of the file that was moved away is taken for that of the file in its place.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _roll_back(self, error: BaseException) -> None:
        self.interner.forget()
        broken = is_broken(error)
        if self._committing and broken:
            # The log may hold the whole transaction, and recovery may find it there.
            self._unsure = error
        self._committing = False
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            broken = True
        if broken and self.database.path is not None:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        if self._queue is not None:
            self._queue.close()
        if connection is not None:
            self.database.close(connection)


def lateness(context: CallContext | None) -> Callable[[], bool] | None:
    """What tells whether a call's deadline has passed; None when it has none."""
    deadline = None if context is None else context.deadline
    if context is None or deadline is None:
        return None
    monotonic = context.runtime.monotonic
    return lambda: monotonic() >= deadline
