"""Reading: on connections of their own for a file, on the writer's for memory."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.stores.database import Database
from llm_cost_ops.stores.failures import is_busy, rpc_error
from llm_cost_ops.stores.turns import Patience
from llm_cost_ops.stores.writer import Writer, closed_error

__all__ = ["Query", "Readers"]

T = TypeVar("T")

Query = Callable[[sqlite3.Connection], T]

_MOST_IDLE = 4
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
        patience: Patience | None = None
        while True:
            try:
                if quick and self._is_free():
                    return self._run(query, context)
                return await context.runtime.offload(self._run, query, context)
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise rpc_error(error, self._database.name) from error
            patience = patience or Patience(context, self._database.name)
            await patience.pause()

    async def glance(self, query: Query[T], context: CallContext) -> T:
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
        if turn.try_take():
            turn.give_back()
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
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
            # The store may have been closed since.
            if self._is_closed():
                self.close()
        else:
            connection.close()
        return result

    def _run_in_memory(self, query: Query[T], context: CallContext | None) -> T:
        turn = self._writer.turn
        if not turn.try_take():
            turn.take_blocking(Patience.allowed(context), self._database.name)
        try:
            return _ask(self._writer.open(), query, context)
        finally:
            turn.give_back()


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
