"""A database and sessions in it: where it is, how durable commits are, statements that keep a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.adapt import Loader
from psycopg.generators import execute
from psycopg.types.string import StrDumperUnknown
from psycopg.waiting import Wait

from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.errors import DeadlinePassedError, connect_error
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["DURABILITIES", "Database", "Session"]

T = TypeVar("T")

DURABILITIES = {"disk": "on", "process": "off", "replicated": "on"}
"""The value of synchronous_commit for each durability."""

_MIN_VERSION = 150000
_BETWEEN_LOOKS = 0.1
_ROWS_AT_ONCE = 2000
_BLOCK = 1000
"""By how much the sequence of rows is incremented; see schema.sql."""
# Taken in one round trip, where no more are needed.
_MIN_BLOCKS = 4
_BLOCKS = "SELECT nextval('llm_cost_ops.seq') FROM generate_series(1, %s)"
_CANCELLING = 1.0
_MAX_TIMEOUT = 2**31 - 1
# Seconds for which an attempt to connect that failed stands for others.
_FAILURE_HOLDS = 0.2

# A plan that is kept may be from when the tables were empty, and read all that an organization has since.
_PLANNED = "SET LOCAL plan_cache_mode = force_custom_plan"
# PostgreSQL's planner compiles queries that it thinks long, which takes longer than most of ours do.
_SNAPSHOT = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_PLANNED}; SET LOCAL jit = off"
_KEEPING_SNAPSHOT = (
    f"BEGIN ISOLATION LEVEL REPEATABLE READ; {_PLANNED}; SET LOCAL jit = off; "
    "SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = 100"
)
# Each statement has to see what was committed before it, whatever the database's default is.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
# Of a transaction, the last two since a role may have others: without warnings nobody is told that the wait
# for a standby was ended, and without nulls in arrays they are texts.
_SETTINGS = (
    "SELECT set_config('synchronous_commit', {commit}, true), "
    "set_config('statement_timeout', {timeout}, true), "
    "set_config('client_min_messages', 'warning', true), set_config('array_nulls', 'on', true)"
)
# Where other tables are in the place of those that a session has read ids from, as after a restore: an error.
_SAME_TABLES = ", 1 / (pg_relation_filenode(to_regclass('llm_cost_ops.series')) = {file})::int"
# COMMIT waits for a standby only where something was written. What a transaction finds instead, such as a key
# that is there, may be committed without the standby, should somebody have ended the wait for it.
# (Not where there is no standby to wait for, nor on one: what follows says better that it takes no writes.)
_MARK = (
    ", CASE WHEN current_setting('synchronous_standby_names') <> '' AND NOT pg_is_in_recovery() "
    "THEN pg_logical_emit_message(true, 'llm_cost_ops', '') END"
)
# A time-out that ends the wait for a synchronous standby would make COMMIT succeed without it.
_BEFORE_COMMIT = "SET LOCAL statement_timeout = 0"
_STANDBY = (
    "SELECT current_setting('synchronous_standby_names') <> '' AND EXISTS (SELECT 1 FROM pg_stat_replication "
    # Who may not see the state sees that there is a standby.
    "WHERE coalesce(sync_state, 'sync') IN ('sync', 'quorum'))"
)


class _WholeNumber(Loader):
    """What we select of type numeric has no places."""

    def load(self, data: Any) -> int:
        return int(bytes(data))


class _Text(StrDumperUnknown):
    """No text in a ledger has control characters: with NUL, which PostgreSQL refuses, it equals none."""

    def dump(self, obj: str) -> Any:
        return super().dump(_kept(obj).decode())


def _kept(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\0", b"\1")


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """Stops waiting for a statement once `is_over` says so: cancels it, and closes itself."""

    is_over: Callable[[], bool] = staticmethod(lambda: False)

    def wait(self, gen: Any, interval: float = _BETWEEN_LOOKS, timeout: float | None = None) -> Any:
        try:
            return super().wait(_watched(gen, self.is_over), interval, timeout)
        except DeadlinePassedError:
            with suppress(psycopg.Error):
                self.cancel_safe(timeout=_CANCELLING)
            self.close()
            raise


def _watched(steps: Generator[Any, Any, T], is_over: Callable[[], bool]) -> Generator[Any, Any, T]:
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and is_over():
                raise DeadlinePassedError
            wanted = steps.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result


class Database:
    """Where a database is. Nothing is connected before `connect`."""

    def __init__(self, conninfo: str, durability: str, name: str = "") -> None:
        self.durability = durability
        self.name = name
        self._conninfo = conninfo
        self._lock = Lock()
        self._replicates = False
        self._looked: int | None = None
        self._failure: tuple[float, Exception] | None = None

    def forget(self) -> None:
        """In a forked child: no other thread is there to release the lock."""
        self._lock = Lock()

    def connect(self, *, prepare: bool = True) -> Session:
        """A session in the database, whose tables are made, or brought to this version, where they must be.

        RpcError: UNAVAILABLE when it can't be reached now or takes no writes, FAILED_PRECONDITION for what
        will not pass: another's database, a newer schema, an older server than 15, a refused user.
        """
        failure = self._failure
        if failure is not None and time.monotonic() < failure[0]:
            raise connect_error(failure[1])
        try:
            connection = _Connection.connect(self._conninfo, autocommit=True, client_encoding="UTF8")
        except (psycopg.Error, UnicodeError, OSError) as error:
            self._failure = (time.monotonic() + _FAILURE_HOLDS, error.with_traceback(None))
            raise connect_error(error) from None  # its frames hold the password
        self._failure = None
        connection.adapters.register_loader("numeric", _WholeNumber)
        connection.adapters.register_dumper(str, _Text)
        session = Session(connection, DURABILITIES[self.durability])
        try:
            if session.rows("SELECT pg_backend_pid()") != [(connection.info.backend_pid,)]:
                # Another process answered than the one that let us in: a pooler such as pgbouncer, where the
                # next transaction may meet statements that others prepared under the same names.
                connection.prepare_threshold = None
            self._check(session, prepare=prepare)
        except BaseException:
            session.close()
            raise
        return session

    def _check(self, session: Session, *, prepare: bool) -> None:
        version = session.connection.info.server_version
        if version < _MIN_VERSION:
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                f"the database is PostgreSQL {version // 10000}, and the ledger needs 15 or newer",
                error_code="STORAGE_UNUSABLE",
            )
        encoding = session.connection.info.parameter_status("server_encoding")
        if encoding not in (None, "UTF8"):
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                f"the encoding of the database is {encoding}, and the ledger needs UTF8",
                error_code="STORAGE_UNUSABLE",
            )
        # At the start: later commits wait for a standby that is gone, and a promoted one may have none.
        if self.durability == "replicated" and not self._replicates and not session.rows(_STANDBY)[0][0]:
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                "durability 'replicated' needs a synchronous standby: synchronous_standby_names is empty, or "
                "no standby is connected",
                error_code="STORAGE_UNUSABLE",
            )
        self._replicates = True
        if prepare:
            with self._lock:
                self._prepare(session)

    def _prepare(self, session: Session) -> None:
        schema.migrate(session)
        [(session.series_file,)] = session.rows("SELECT pg_relation_filenode('llm_cost_ops.series')")
        if self._looked != session.series_file and session.rows(schema.RESTORED)[0][0]:
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                "the database was restored from a dump of another server: run `llm-cost-ops db migrate` once",
                error_code="STORAGE_UNUSABLE",
            )
        self._looked = session.series_file


class Session:
    """A connection, used by one thread at a time."""

    def __init__(self, connection: _Connection, synchronous_commit: str) -> None:
        self.connection = connection
        self.committing = False
        """Whether COMMIT was sent and not answered: what was written may be there."""
        self.known: dict[Any, Any] = {}
        """Ids of rows that never change, as this connection has seen them committed."""
        self.series_file: int | None = None
        """Where these rows are: in a table that is made anew, as by a restore, they may be others."""
        self.looks = 0
        """How many of the next writes look for their rows before they copy them; see writing.py."""
        self._synchronous_commit = synchronous_commit
        self._until: float | None = None
        self._warned = False
        self._numbers: list[int] = []
        connection.add_notice_handler(self._notice)

    @property
    def usable(self) -> bool:
        """Whether it can run another statement: it is open, and no transaction was left behind."""
        connection = self.connection
        return not connection.closed and connection.info.transaction_status == pq.TransactionStatus.IDLE

    def keep(self, until: float | None, is_abandoned: Callable[[], bool]) -> None:
        """Stop what runs from here on at `until` (time.monotonic), or when the caller has gone away."""
        self._until = until
        self.connection.is_over = lambda: is_abandoned() or (until is not None and time.monotonic() >= until)
        self.committing = False

    def rows(self, sql: str, *values: object, **named: object) -> list[tuple[Any, ...]]:
        """The rows that a statement gives."""
        return self.run(sql, *values, **named).fetchall()

    def run(self, sql: str, *values: object, **named: object) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement. Without parameters it may be several."""
        parameters: Sequence[object] | dict[str, object] | None = named or values or None
        return self.connection.execute(sql.encode(), parameters)

    def run_planned(self, sql: str, **named: object) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement that is planned each time, for the tables as they are now."""
        return self.connection.execute(sql.encode(), named, prepare=False)

    def copy(
        self,
        statements: Sequence[str],
        copies: Sequence[str],
        lines: Callable[[Sequence[Sequence[bytes]]], Sequence[Iterable[str]] | None],
    ) -> bool:
        """A whole transaction in one query: statements, and what is copied then.

        `lines` is given the first column of what each statement gave, as text, and gives for each COPY its
        lines in PostgreSQL's text form, many in one text. It gives None to have nothing done: False.
        """
        parts = (_BEGIN, self._settings(), *statements, *copies, _BEFORE_COMMIT, "COMMIT")
        results = self.connection.wait(self._copying("; ".join(parts).encode(), lines, len(statements)))
        if results is None:
            return False
        with self._of_same_tables():
            for result in results:
                if result.status == pq.ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result, "utf-8")
        self.end_commit()
        return True

    def _copying(self, sql: bytes, lines: Any, count: int) -> Generator[Any, Any, Any]:
        connection = self.connection.pgconn
        connection.send_query(sql)
        results = yield from execute(connection)
        if results[-1].status != pq.ExecStatus.COPY_IN:
            return results
        said = [[each.get_value(row, 0) for row in range(each.ntuples)] for each in results[-1 - count : -1]]
        copied = lines(said)
        for number, some in enumerate(copied or [[]], 1):
            for part in some:
                while connection.put_copy_data(_kept(part)) == 0:
                    yield Wait.W
            if copied is not None and number == len(copied):
                self._expect_commit()
            while connection.put_copy_end(b"not wanted" if copied is None else None) == 0:
                yield Wait.W
            results = yield from execute(connection)
            if results[-1].status != pq.ExecStatus.COPY_IN:
                break
        return None if copied is None else results

    def numbers(self, count: int) -> list[int]:
        """So many numbers for rows, ascending, that nobody else has; taken from the sequence in blocks."""
        missing = count - len(self._numbers)
        if missing > 0:
            for (first,) in self.rows(_BLOCKS, max(_MIN_BLOCKS, -(-missing // _BLOCK))):
                self._numbers += range(first, first + _BLOCK)
        taken, self._numbers = self._numbers[:count], self._numbers[count:]
        return taken

    def each(self, sql: str, named: dict[str, object]) -> Generator[tuple[Any, ...]]:
        """The rows of a query, fetched some thousands at a time; within a transaction."""
        with self.connection.cursor(name="rows") as cursor:
            cursor.itersize = _ROWS_AT_ONCE
            cursor.execute(sql.encode(), named)
            yield from cursor

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All statements inside see the database as it is at the first of them, and write nothing."""
        self.run(f"{_SNAPSHOT}; {self._limited()}")
        try:
            yield
        except BaseException:
            self.roll_back()
            raise
        self.run("COMMIT")

    @contextmanager
    def keeping_snapshot(self) -> Iterator[None]:
        """The same, but that they may write what can be calculated again: nobody waits for its commit."""
        self.run(f"{_KEEPING_SNAPSHOT}; {self._limited()}")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            self.roll_back()
            raise

    @contextmanager
    def transaction(self, *, lasting: bool = True) -> Iterator[None]:
        """Commit what is done inside, as durably as the ledger promises, or nothing of it.

        Where it need not be `lasting`, nobody waits for the disk: a crash may undo all of it.
        """
        try:
            with self._of_same_tables():
                self.run("; ".join((_BEGIN, self._settings(lasting=lasting), _PLANNED)))
            yield
            self.commit()
        except BaseException:
            self.roll_back()
            raise

    def _settings(self, *, lasting: bool = True) -> str:
        """The statement that has the others of a transaction mean what we mean."""
        commit = self._synchronous_commit if lasting else "off"
        settings = _SETTINGS.format(commit=f"'{commit}'", timeout=f"'{self._timeout()}'")
        if self.series_file is not None:
            settings += _SAME_TABLES.format(file=self.series_file)
        return settings + (_MARK if commit == "on" else "")

    @contextmanager
    def _of_same_tables(self) -> Iterator[None]:
        """Take the error of _SAME_TABLES for a connection that was lost: what is done next begins anew."""
        try:
            yield
        except psycopg.errors.DivisionByZero as error:
            self.close()
            raise psycopg.OperationalError("other tables are in the place of those that were used") from error

    def _limited(self) -> str:
        """The statement that ends those of a transaction at the deadline.

        No SET: before PostgreSQL 18 pg_stat_statements would keep an entry for each number of milliseconds.
        """
        return f"SELECT set_config('statement_timeout', '{self._timeout()}', true)"

    def commit(self) -> None:
        """Commit a transaction, in one round trip."""
        self._expect_commit()
        self.run(f"{_BEFORE_COMMIT}; COMMIT")
        self.end_commit()

    def _expect_commit(self) -> None:
        self.committing = True
        self._warned = False

    def end_commit(self) -> None:
        """COMMIT was answered: raise when somebody ended its wait for a standby."""
        if self._warned:
            raise RpcError(
                StatusCode.UNAVAILABLE,
                "the commit was not confirmed by a standby; it may be lost with the primary",
                retry_after=0.5,
                maybe_applied=True,
            )
        self.committing = False

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        # A server that goes down warns too: behind the answer to COMMIT, or there is none.
        goes_down = (diagnostic.sqlstate or "").startswith("57P")
        if self.committing and diagnostic.severity_nonlocalized == "WARNING" and not goes_down:
            self._warned = True

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _timeout(self) -> int:
        """Milliseconds until the deadline, 0 without one."""
        if self._until is None:
            return 0
        return min(_MAX_TIMEOUT, max(1, int((self._until - time.monotonic()) * 1000)))

    def roll_back(self) -> None:
        """End a transaction that failed; one whose COMMIT was sent stays unsure."""
        # Rows that it added to them are gone.
        self.known.clear()
        # What failed before says more.
        with suppress(psycopg.Error, DeadlinePassedError):
            if not self.connection.closed and not self.committing:
                self.run("ROLLBACK")
