"""Group commit: jobs that come while a commit waits for the disk share the next one."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from copy import copy
from functools import partial
from typing import Any, TypeVar

from llm_cost_ops.ledger.sqlite.connection import BusyRetry, Job, Writer, poll_delay
from llm_cost_ops.ledger.sqlite.errors import StorageError, busy_error, closed_error, is_busy
from llm_cost_ops.ledger.sqlite.rows import Interner
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.dropped import ends_soon, when_dropped
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rpc.threads import started
from llm_cost_ops.rpc.wake import waking_once

__all__ = ["GroupCommit"]

T = TypeVar("T")

_MAX_ROWS = 20_000
_MAX_WAITING = 10_000
_STOP = None


_Queue = queue.SimpleQueue["_Ticket | None"]


class _Ticket:
    __slots__ = ("context", "future", "job", "until", "weight")

    def __init__(self, job: Job[Any], weight: int, context: CallContext, until: float) -> None:
        self.job = job
        self.weight = weight
        self.context = context
        self.until = until
        self.future: Future[Any] = Future()

    def is_late(self) -> bool:
        return self.context.runtime.monotonic() >= self.until


class GroupCommit:
    """A thread that runs the jobs of many calls in one transaction, and acknowledges them after its commit.

    A job that fails is rolled back alone: the others of its group are run again without it. The thread does
    not keep this object: it ends with one that is collected.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._queue = _Queue()
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._closing = False

    async def run(self, job: Job[T], weight: int, context: CallContext) -> T:
        """Have a job committed; `weight` is the number of its rows.

        Where no thread can be started, it is committed by itself, in this one. UNAVAILABLE when it was not
        begun until just before the deadline; DEADLINE_EXCEEDED with `maybe_applied` when it was begun and
        had not ended.
        """
        if self._queue.qsize() > _MAX_WAITING:
            raise busy_error(self._writer.database.name)
        left = BusyRetry(context, self._writer.database.name).left()
        ticket = _Ticket(job, weight, context, context.runtime.monotonic() + left)
        if not self._start():
            return await self._writer.run(job, context)
        self._queue.put(ticket)
        try:
            result: T = await context.runtime.wait(ticket.future, left)
        except TimeoutError:
            if ticket.future.cancel():
                raise busy_error(self._writer.database.name) from None
            raise RpcError(
                StatusCode.DEADLINE_EXCEEDED, "the deadline passed during the commit", maybe_applied=True
            ) from None
        except BaseException:
            ticket.future.cancel()
            raise
        return result

    @property
    def waiting(self) -> int:
        """How many jobs wait for a commit."""
        return self._queue.qsize()

    def close(self) -> None:
        """Commit what is queued and end the thread."""
        with self._starting:
            thread, self._thread = self._thread, None
            self._closing = True
        if thread is not None:
            self._queue.put(_STOP)
            thread.join()

    def _start(self) -> bool:
        """Have the thread running; False where none can be started."""
        if self._thread is None:
            with self._starting:
                if self._closing:
                    raise closed_error()
                if self._thread is None:
                    self._thread = started(_Commits(self._writer, self._queue).work, "llm-cost-ops-commit")
                    if self._thread is not None:
                        when_dropped(self, partial(_end, self._thread, self._queue))
                return self._thread is not None
        return True


def _end(thread: threading.Thread, tickets: _Queue) -> None:
    ends_soon(thread)
    tickets.put(_STOP)


class _Commits:
    """What the thread does."""

    def __init__(self, writer: Writer, tickets: _Queue) -> None:
        self._writer = writer
        self._queue = tickets

    def work(self) -> None:
        """Commit what comes, until _STOP does."""
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            try:
                self._commit(group)
            except BaseException as error:  # noqa: BLE001 - whatever it was, nobody may wait for ever
                for ticket in group:
                    _fail(ticket, RpcError(StatusCode.INTERNAL, f"the commit failed: {error!r}"))
            # Not kept alive while waiting for the next.
            del group
        self._refuse_rest()

    def _next_group(self) -> tuple[list[_Ticket], bool]:
        """Wait for a ticket, and take those that are behind it too."""
        ticket = self._queue.get()
        group: list[_Ticket] = []
        rows = 0
        while ticket is not _STOP:
            group.append(ticket)
            rows += ticket.weight
            if rows >= _MAX_ROWS:
                return group, False
            try:
                ticket = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _refuse_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                ticket = self._queue.get_nowait()
                if ticket is not None:
                    _fail(ticket, closed_error())

    def _commit(self, group: list[_Ticket]) -> None:
        """Commit a group, waiting while the file is busy; what waits too long drops out."""
        began = time.monotonic()
        try:
            while group:
                group = [ticket for ticket in group if not self._drops_out(ticket)]
                try:
                    self._commit_once(group)
                except (sqlite3.Error, OverflowError) as error:
                    if not is_busy(error):
                        raise
                else:
                    return
                time.sleep(poll_delay(time.monotonic() - began))
        finally:
            self._writer.leave_queue()

    def _drops_out(self, ticket: _Ticket) -> bool:
        if ticket.is_late():
            _fail(ticket, busy_error(self._writer.database.name))
        return ticket.future.done()

    def _commit_once(self, group: list[_Ticket]) -> None:
        """Run the jobs in one transaction; when that fails, each in one of its own."""
        if not group:
            return

        def jobs(cursor: sqlite3.Cursor, interner: Interner) -> list[tuple[_Ticket, object]]:
            # From here on nobody can cancel: the transaction has begun.
            begun = [ticket for ticket in group if _begin(ticket)]
            return [(ticket, ticket.job(cursor, interner)) for ticket in begun]

        try:
            results = self._writer.transact(jobs, context=group[0].context)
        except StorageError as error:
            # It is nobody's job that failed, and all of them may have been committed.
            for ticket in group:
                if _begin(ticket):
                    ticket.future.set_exception(copy(error))
        except Exception as error:
            if is_busy(error):
                raise
            self._commit_singly(group, error)
        else:
            with waking_once():
                for ticket, result in results:
                    ticket.future.set_result(result)

    def _commit_singly(self, group: list[_Ticket], error: Exception) -> None:
        for ticket in group:
            if not _begin(ticket):
                continue
            if len(group) > 1:
                try:
                    ticket.future.set_result(self._transact(ticket))
                    continue
                except Exception as own:  # noqa: BLE001 - it is the ticket's to raise
                    error = own
            if isinstance(error, sqlite3.Error | OverflowError):
                error = self._writer.translated(error)
            ticket.future.set_exception(error)

    def _transact(self, ticket: _Ticket) -> object:
        """Run a job in a transaction of its own; while the file is busy, wait as long as its call may."""
        began = time.monotonic()
        while True:
            try:
                return self._writer.transact(ticket.job, context=ticket.context)
            except sqlite3.Error as error:
                if not is_busy(error) or ticket.is_late():
                    raise
            time.sleep(poll_delay(time.monotonic() - began))


def _begin(ticket: _Ticket) -> bool:
    future = ticket.future
    return future.running() or (not future.done() and future.set_running_or_notify_cancel())


def _fail(ticket: _Ticket, error: RpcError) -> None:
    # Cancelled by its caller in the meantime, perhaps.
    with contextlib.suppress(Exception):
        if not ticket.future.done():
            ticket.future.set_exception(error)
