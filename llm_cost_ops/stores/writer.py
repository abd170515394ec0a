"""The one connection that writes: a job is a transaction, run on the calling thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.stores.append import Interner
from llm_cost_ops.stores.database import Database
from llm_cost_ops.stores.failures import is_busy, rpc_error
from llm_cost_ops.stores.turns import Patience, Turn

__all__ = ["Job", "Writer", "closed_error"]

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
        self.turn = Turn()
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
        patience: Patience | None = None
        while True:
            if not turn.try_take():
                await turn.take(context, self.database.name)
            try:
                return self.transact(job, statement=statement)
            except (sqlite3.Error, OverflowError) as error:
                if not is_busy(error):
                    raise self.translated(error) from error
            finally:
                turn.give_back()
            patience = patience or Patience(context, self.database.name)
            await patience.pause()

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
