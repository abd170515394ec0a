"""A database: its file or memory, how durable it is, and connections to it."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_cost_ops.ledger.sqlite import schema
from llm_cost_ops.rpc.status import RpcError, StatusCode

if TYPE_CHECKING:
    from llm_cost_ops.rpc.context import CallContext
from typing import TypeVar

from llm_cost_ops.ledger.sqlite.append import Interner
from llm_cost_ops.rpc.context import CallContext

__all__ = [
    "DURABILITIES",
    "BusyRetry",
    "Database",
    "FifoLock",
    "Job",
    "Query",
    "Readers",
    "Writer",
    "busy_error",
    "closed_error",
    "is_busy",
    "rpc_error",
]


DURABILITIES = {"disk": "FULL", "process": "NORMAL"}

# The first with STRICT tables.
_MIN_VERSION = (3, 37)

# Of a query: the series that its filter lets through, the pieces of time it sums, and the sums of the rows
# that are not in rollup yet.
_TEMPORARY = (
    "CREATE TEMP TABLE picked (id INTEGER PRIMARY KEY, org INTEGER NOT NULL)",
    """CREATE TEMP TABLE piece (
        n INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL
    )""",
    """CREATE TEMP TABLE tail (
        series INTEGER NOT NULL, level INTEGER NOT NULL, bucket INTEGER NOT NULL, user TEXT NOT NULL,
        records INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER NOT NULL,
        output INTEGER NOT NULL, cached INTEGER NOT NULL, unpriced INTEGER NOT NULL,
        cost_micros INTEGER NOT NULL, cost_picos INTEGER NOT NULL, PRIMARY KEY (series, level, bucket, user)
    ) WITHOUT ROWID""",
)


class Database:
    """A SQLite file, or private memory when `path` is None. Nothing is opened before `connect`.

    With durability "disk" a commit is on disk when it returns; with "process" it survives the end of the
    process, but the last commits may be lost when the machine loses power.
    """

    def __init__(self, path: str | None, durability: str) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, not {durability!r}")
        self.path = path
        self.durability = durability
        self.name = "the database in memory" if path is None else f"the database {path}"

    def connect(self) -> sqlite3.Connection:
        """A connection to the database, which is created, or brought to this version, where it must be.

        Never waits inside SQLite: sqlite3.OperationalError when the file is busy. RpcError as `identify`, and
        for a SQLite that is too old.
        """
        if sqlite3.sqlite_version_info < _MIN_VERSION:
            needed = ".".join(map(str, _MIN_VERSION))
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                f"this Python has SQLite {sqlite3.sqlite_version}, and the store needs {needed} or newer",
            )
        connection = sqlite3.connect(
            ":memory:" if self.path is None else str(Path(self.path)),
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

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
        # Nothing is deleted, so that nothing deleted needs to be overwritten.
        execute("PRAGMA secure_delete = OFF").fetchone()
        if version < schema.VERSION:
            schema.migrate(connection, self.name)
        for statement in _TEMPORARY:
            execute(statement)


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


_LONGEST = 30.0
_MARGIN = 0.01


class BusyRetry:
    """How long a call may wait for the file: until just before its deadline, or 30 seconds without one."""

    __slots__ = ("_context", "_delay", "_name", "_until")

    def __init__(self, context: CallContext, name: str) -> None:
        self._context = context
        self._name = name
        self._until = context.runtime.monotonic() + self.allowed(context)
        self._delay = 0.001

    @staticmethod
    def allowed(context: CallContext | None) -> float:
        """Seconds that a call may wait, from now."""
        remaining = None if context is None else context.remaining()
        return _LONGEST if remaining is None else remaining - min(_MARGIN, remaining / 10)

    def left(self) -> float:
        """Seconds that may still be waited; UNAVAILABLE when there are none."""
        left = self._until - self._context.runtime.monotonic()
        if left <= 0:
            self._context.check_deadline()
            raise busy_error(self._name)
        return left

    async def pause(self) -> None:
        """Wait a little longer than before; UNAVAILABLE when that was too long."""
        runtime = self._context.runtime
        left = self.left()
        await runtime.sleep(min(self._delay * (0.5 + runtime.random()), left))
        self._delay = min(self._delay * 2, 0.05)


class FifoLock:
    """A lock that threads and tasks queue for, first come, first served, each within its patience."""

    __slots__ = ("_held", "_waiting", "try_acquire")

    def __init__(self) -> None:
        self._held = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self.try_acquire: Callable[[], bool] = partial(self._held.acquire, False)
        """Take the turn if it is free."""

    async def acquire(self, context: CallContext, name: str) -> None:
        """Wait for the turn as the runtime waits; UNAVAILABLE just before the deadline."""
        place = self._queue()
        if place is None:
            return
        try:
            await context.runtime.wait(place, BusyRetry(context, name).left())
        except TimeoutError:
            if place.cancel():
                raise busy_error(name) from None
        except BaseException:
            if not place.cancel():
                self.release()
            raise

    def take_blocking(self, timeout: float, name: str) -> None:
        """Wait for the turn by blocking the thread; UNAVAILABLE after `timeout` seconds."""
        place = self._queue()
        if place is None:
            return
        try:
            place.result(timeout)
        except TimeoutError:
            if place.cancel():
                raise busy_error(name) from None
        except BaseException:
            if not place.cancel():
                self.release()
            raise

    def release(self) -> None:
        """Hand the turn to whoever has waited longest."""
        if not self._waiting:
            self._held.release()
            # Somebody may have queued between the look and the release.
            if not self._waiting or not self.try_acquire():
                return
        while True:
            while self._waiting:
                place = self._waiting.popleft()
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self._held.release()
            if not self._waiting or not self.try_acquire():
                return

    def _queue(self) -> Future[None] | None:
        place: Future[None] = Future()
        self._waiting.append(place)
        if self.try_acquire():
            place.cancel()
            return None
        return place


T = TypeVar("T")

Job = Callable[[sqlite3.Cursor, Interner], T]
"""What is committed together. It is run again when the transaction could not be had or kept."""


def closed_error() -> RpcError:
    """The error of a call on a closed store."""
    return RpcError(StatusCode.FAILED_PRECONDITION, "the store is closed")


class Writer:
    """Safe for threads and tasks, who queue for the turn. The file is opened by the first job."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.turn = FifoLock()
        self.closed = False
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self.interner = Interner()
        self._committing = False
        self._unsure: BaseException | None = None

    async def run(self, job: Job[T], context: CallContext, *, statement: bool = False) -> T:
        """Run a job and commit it; while the file is busy, wait as long as the call may.

        One that is a single `statement` runs without BEGIN and COMMIT: SQLite commits each statement by
        itself.
        """
        turn = self.turn
        busy_retry: BusyRetry | None = None
        while True:
            if not turn.try_acquire():
                await turn.acquire(context, self.database.name)
            try:
                return self.transact(job, statement=statement)
            except (sqlite3.Error, OverflowError) as error:
                if not is_busy(error):
                    raise self.translated(error) from error
            finally:
                turn.release()
            busy_retry = busy_retry or BusyRetry(context, self.database.name)
            await busy_retry.pause()

    def transact(self, job: Job[T], *, statement: bool = False) -> T:
        """Run a job in a transaction of its own. Only for who has the turn."""
        cursor = self._cursor or self.open().cursor()
        self._cursor = cursor
        execute = cursor.execute
        if not statement:
            execute("BEGIN IMMEDIATE")
        try:
            self._committing = statement
            result = job(cursor, self.interner)
            if not statement:
                self._committing = True
                execute("COMMIT")
                self.interner.keep()
        except BaseException as error:
            self._roll_back(error)
            raise
        self._committing = False
        return result

    def open(self) -> sqlite3.Connection:
        """The connection. Only for who has the turn."""
        if self.closed:
            raise closed_error()
        if self._connection is None:
            self._connection = self.database.connect()
        return self._connection

    def translated(self, error: Exception) -> RpcError:
        """The error to raise for what `transact` raised last. Only for who has the turn."""
        return rpc_error(error, self.database.name, maybe_applied=error is self._unsure)

    def close(self) -> None:
        """Close the connection. Only for who has the turn."""
        self.closed = True
        self._drop()

    def _roll_back(self, error: BaseException) -> None:
        self.interner.forget()
        broken = getattr(error, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CORRUPT,
        )
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
        self.interner = Interner()
        if connection is not None:
            connection.close()


Query = Callable[[sqlite3.Connection], T]

_MAX_IDLE = 4
_STEPS_BETWEEN_LOOKS = 10_000


class Readers:
    """Runs queries, each over one state of the data. Connections are lent out and kept for the next."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._idle: deque[sqlite3.Connection] = deque()
        self._run = self._run_in_memory if database.path is None else self._run_on_file

    async def read(self, query: Query[T], context: CallContext, *, quick: bool = False) -> T:
        """Run a query: inline when it is `quick`, else where it holds nobody up, until the deadline."""
        busy_retry: BusyRetry | None = None
        while True:
            try:
                if quick and self._is_free():
                    return self._run(query, context)
                return await context.runtime.offload(self._run, query, context)
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise rpc_error(error, self._database.name) from error
            busy_retry = busy_retry or BusyRetry(context, self._database.name)
            await busy_retry.pause()

    async def read_now(self, query: Query[T], context: CallContext) -> T:
        """Run a query of one statement that reads an index: inline where nothing has to be waited for."""
        if self._is_free():
            try:
                return self._run(query, None)
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise rpc_error(error, self._database.name) from error
        return await self.read(query, context)

    def close(self) -> None:
        """Close the idle connections; those that are lent out are closed when they come back."""
        try:
            while True:
                self._idle.pop().close()
        except IndexError:
            pass

    def _is_closed(self) -> bool:
        return self._writer.closed

    def _is_free(self) -> bool:
        """Whether a query would have to wait neither for its turn nor for a file to be opened."""
        turn = self._writer.turn
        if self._database.path is not None:
            return bool(self._idle)
        if turn.try_acquire():
            turn.release()
            return True
        return False

    def _run_on_file(self, query: Query[T], context: CallContext | None) -> T:
        if self._is_closed():
            raise closed_error()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._database.connect()
        try:
            result = _ask(connection, query, context)
        except BaseException:
            # What state it is in is not worth finding out.
            connection.close()
            raise
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
            # The store may have been closed since.
            if self._is_closed():
                self.close()
        else:
            connection.close()
        return result

    def _run_in_memory(self, query: Query[T], context: CallContext | None) -> T:
        turn = self._writer.turn
        if not turn.try_acquire():
            turn.take_blocking(BusyRetry.allowed(context), self._database.name)
        try:
            return _ask(self._writer.open(), query, context)
        finally:
            turn.release()


def _ask(connection: sqlite3.Connection, query: Query[T], context: CallContext | None) -> T:
    """Run a query in a transaction that is never kept, and stop it at the deadline."""
    if context is None:
        return query(connection)
    deadline = context.deadline
    if deadline is not None:
        monotonic = context.runtime.monotonic
        connection.set_progress_handler(lambda: monotonic() >= deadline, _STEPS_BETWEEN_LOOKS)
    connection.execute("BEGIN")
    try:
        return query(connection)
    finally:
        if deadline is not None:
            connection.set_progress_handler(None, 0)
        if connection.in_transaction:
            connection.execute("ROLLBACK")
