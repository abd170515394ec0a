"""Queries, and the connections that they are lent."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from llm_cost_ops.ledger.sqlite.connection import BusyRetry, Database, Writer, lateness
from llm_cost_ops.ledger.sqlite.errors import closed_error, is_busy
from llm_cost_ops.ledger.sqlite.files import FilesChangedError
from llm_cost_ops.ledger.sqlite.stopping import stopping
from llm_cost_ops.rpc.context import CallContext

__all__ = ["Query", "Readers"]

T = TypeVar("T")

Query = Callable[[sqlite3.Connection], T]

_MAX_IDLE = 4
_BEFORE_INTERRUPT = 0.1


class Readers:
    """Runs queries, each over one state of the data. Connections are lent out and kept for the next."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._idle: deque[sqlite3.Connection] = deque()
        # Of the connections that are lent out; while a fork is under way none is.
        # Not the condition itself, whose `__enter__` may be interrupted once it has the lock.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._lent: set[sqlite3.Connection] = set()
        self._opening = 0
        self._resting = False
        self._rests = 0
        self._closings = 0
        writer.close_readers = self.close
        self._run = self._run_in_memory if database.path is None else self._run_on_file

    async def read(self, query: Query[T], context: CallContext, *, quick: bool = False) -> T:
        """Run a query: inline when it is `quick`, else where it holds nobody up, until the deadline."""
        busy_retry: BusyRetry | None = None
        while True:
            rests = self._rests
            try:
                if quick and self._is_free():
                    return self._run(query, context)
                return await context.runtime.offload(self._run, query, context)
            except sqlite3.Error as error:
                if not is_busy(error) and rests == self._rests:
                    raise self._database.translated(error) from error
            # In the way was another writer, or a fork, which stops queries.
            busy_retry = busy_retry or BusyRetry(context, self._database.name)
            await busy_retry.pause()

    async def read_now(self, query: Query[T], context: CallContext) -> T:
        """Run a query of one statement that reads an index: inline where nothing has to be waited for."""
        if self._is_free():
            rests = self._rests
            try:
                return self._run(query, None)
            except sqlite3.Error as error:
                if not is_busy(error) and rests == self._rests:
                    raise self._database.translated(error) from error
        return await self.read(query, context)

    async def run_apart(self, query: Query[T], context: CallContext) -> T:
        """Run a query outside of a transaction; on a file only."""
        return await context.runtime.offload(self._run_on_file, query, None)

    def close(self) -> None:
        """Close the idle connections; those that are lent out are closed when they come back."""
        self._closings += 1
        try:
            while True:
                self._database.close(self._idle.pop())
        except IndexError:
            pass

    def rest(self, until: float) -> bool:
        """Close every connection, and lend none until `go_on`; False when queries run for too long.

        Queries that do not end at once are interrupted, and run again afterwards.
        """
        with self._lock:
            self._resting = True
            self._rests += 1
            if not self._changed.wait_for(self._is_idle, min(_BEFORE_INTERRUPT, until - time.monotonic())):
                for connection in self._lent:
                    connection.interrupt()
                if not self._changed.wait_for(self._is_idle, max(0.0, until - time.monotonic())):
                    return False
        self.close()
        return True

    def go_on(self) -> None:
        """Lend connections again."""
        with self._lock:
            self._resting = False
            self._changed.notify_all()

    def _is_idle(self) -> bool:
        return not self._lent and not self._opening

    def _is_closed(self) -> bool:
        return self._writer.closed

    def _is_free(self) -> bool:
        """Whether a query would have to wait neither for its turn nor for a file to be opened."""
        if self._database.path is not None:
            return bool(self._idle) and not self._resting
        return self._writer.turn.is_free

    def _lend(self, context: CallContext | None) -> sqlite3.Connection:
        """A connection. While a fork is under way, wait for its end: that takes seconds at most."""
        with self._lock:
            while self._resting:
                self._changed.wait()
            if self._idle:
                connection = self._idle.pop()
                self._lent.add(connection)
                return connection
            self._opening += 1
        opened = None
        try:
            opened = self._database.connect(lateness(context))
            return opened
        finally:
            with self._lock:
                self._opening -= 1
                if opened is not None:
                    self._lent.add(opened)
                self._changed.notify_all()

    def _take_back(self, connection: sqlite3.Connection, *, keep: bool) -> None:
        if keep and not self._resting and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            self._database.close(connection)
        with self._lock:
            self._lent.discard(connection)
            self._changed.notify_all()
        # The store may have been closed since.
        if self._is_closed():
            self.close()

    def _run_on_file(self, query: Query[T], context: CallContext | None) -> T:
        if self._is_closed():
            raise closed_error()
        files = self._database.files
        if files is not None:
            try:
                files.look_if_due(None)
            except FilesChangedError:
                if not files.is_moved():
                    self.close()
                raise
        closings = self._closings
        connection = self._lend(context)
        try:
            result = _ask(connection, query, context)
        except BaseException as error:
            # What state it is in is not worth finding out. Cursors would keep it open.
            self._database.notice(error)
            traceback.clear_frames(error.__traceback__)
            self._take_back(connection, keep=False)
            raise
        self._take_back(connection, keep=closings == self._closings)
        return result

    def _run_in_memory(self, query: Query[T], context: CallContext | None) -> T:
        turn, owner = self._writer.turn, object()
        try:
            try:
                if not turn.try_acquire(owner):
                    turn.take_blocking(owner, BusyRetry.allowed(context), self._database.name)
                with self._writer.in_use:
                    return _ask(self._writer.open(), query, context)
            finally:
                turn.release(owner)
        except BaseException:
            turn.release(owner)  # which may have been interrupted
            raise


def _ask(connection: sqlite3.Connection, query: Query[T], context: CallContext | None) -> T:
    """Run a query in a transaction that is never kept, and stop it at the deadline."""
    if context is None:
        return query(connection)
    try:
        with stopping(connection, lateness(context)):
            connection.execute("BEGIN")
            return query(connection)
    finally:
        # After some errors SQLite has rolled back by itself. If it fails, what failed before says more.
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
