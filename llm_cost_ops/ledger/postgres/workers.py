"""The threads that talk to the database: each has a connection of its own, and calls wait for what they do.

So an event loop is never held up, a sync client needs no loop, and the number of threads bounds that of the
connections.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from math import inf
from threading import Condition, Thread, current_thread
from typing import Any, Generic, TypeVar

import psycopg

from llm_cost_ops.ledger.postgres.connection import Database, Session
from llm_cost_ops.ledger.postgres.errors import (
    DeadlinePassedError,
    busy_error,
    closed_error,
    is_lost,
    is_retryable,
    rpc_error,
)
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rpc.threads import started
from llm_cost_ops.rpc.wake import waking_once

__all__ = ["IDLE", "Connected", "Job", "Ticket", "Workers", "serve_here", "until_of"]

T = TypeVar("T")

Job = Callable[[Session], T]
"""What is done in one go with a connection. It is run again when the connection was lost."""

_MAX_WAITING = 10_000
_MAX_WAIT = 30.0
_MARGIN = 0.01
# How long a job is tried again on a database that can't be reached, before its caller is to decide.
_RECONNECTING = 3.0
IDLE = 60.0
"""Seconds after which a thread that has nothing to do ends, and closes its connection."""


class Ticket(Generic[T]):
    """A job and who waits for it."""

    __slots__ = ("abandoned", "future", "job", "kind", "repeatable", "until", "writes")

    def __init__(
        self,
        job: Job[T],
        until: float | None,
        *,
        repeatable: bool = True,
        writes: bool = False,
        kind: Hashable = None,
    ) -> None:
        self.job = job
        self.kind = kind
        """Unless None: jobs of one kind that wait at the same time are done as one."""
        self.until = until
        self.writes = writes
        self.repeatable = repeatable
        """Whether the job may be run again although it may have been committed."""
        self.abandoned = False
        self.future: Future[T] = Future()

    def is_late(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    async def result(self, context: CallContext) -> T:
        """Wait for the job; UNAVAILABLE when it was not begun until just before the deadline."""
        remaining = context.remaining()
        try:
            return await context.runtime.wait(
                self.future, None if remaining is None else max(0.0, remaining - min(_MARGIN, remaining / 10))
            )
        except TimeoutError:
            if self.future.cancel():
                raise busy_error() from None
            self.abandoned = True
            raise RpcError(
                StatusCode.DEADLINE_EXCEEDED,
                "the deadline passed while the database was at it",
                maybe_applied=self.writes,
            ) from None
        except BaseException:
            self.future.cancel()
            self.abandoned = True
            raise


def _until(ticket: Ticket[Any]) -> float:
    return inf if ticket.until is None else ticket.until


def until_of(context: CallContext) -> float | None:
    """The deadline on the clock of threads."""
    remaining = context.remaining()
    return None if remaining is None else time.monotonic() + remaining


class Workers:
    """At most `size` threads, started as they are needed; the last one that was busy is busy next."""

    def __init__(self, database: Database, size: int) -> None:
        self._database = database
        self._size = size
        self._begin()

    def _begin(self) -> None:
        self._changed = Condition()
        self._waiting: deque[Ticket[Any]] = deque()
        self._threads: set[Thread] = set()
        self._idle = 0
        self._closing = False

    def forget(self) -> None:
        """In a forked child: the threads and their connections are the parent's."""
        closing = self._closing
        self._begin()
        self._closing = closing

    async def run(
        self,
        job: Job[T],
        context: CallContext,
        *,
        writes: bool = False,
        repeatable: bool = True,
        kind: Hashable = None,
    ) -> T:
        """Have a job done. `repeatable`: it may be done twice, as reads may be; `kind` as in Ticket."""
        context.check_deadline()
        ticket = Ticket(job, until_of(context), repeatable=repeatable, writes=writes, kind=kind)
        self.put(ticket)
        return await ticket.result(context)

    def put(self, ticket: Ticket[Any]) -> None:
        """Queue a job; where no thread can be started, do it."""
        with self._changed:
            if self._closing:
                raise closed_error()
            if len(self._waiting) >= _MAX_WAITING:
                raise busy_error()
            self._waiting.append(ticket)
            # One that was woken for another job, and has not taken it yet, is idle no more.
            if len(self._waiting) <= self._idle:
                self._changed.notify()
            elif len(self._threads) < self._size:
                thread = started(self._work, "llm-cost-ops-postgres")
                if thread is not None:
                    self._threads.add(thread)
            if self._threads:
                return
            self._waiting.pop()
        serve_here(self._database, ticket)

    def close(self) -> None:
        """Do what is queued, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(_MAX_WAIT)

    def _next(self) -> list[Ticket[Any]]:
        """Wait for a ticket, and take it with all of its kind; none to end the thread."""
        with self._changed:
            self._idle += 1
            try:
                self._changed.wait_for(lambda: self._waiting or self._closing, IDLE)
                if not self._waiting:
                    # Gone from now on, although its connection is still to be closed: who comes meanwhile
                    # starts another.
                    self._threads.discard(current_thread())
                    return []
                first = self._waiting.popleft()
                if first.kind is None:
                    return [first]
                taken = [first, *(each for each in self._waiting if each.kind == first.kind)]
                self._waiting = deque(each for each in self._waiting if each.kind != first.kind)
                return taken
            finally:
                self._idle -= 1

    def _work(self) -> None:
        connected = Connected(self._database)
        changed, threads = self._changed, self._threads
        try:
            while tickets := self._next():
                connected.serve_alike(tickets)
                del tickets  # not kept alive while waiting for the next
        finally:
            connected.close()
            with changed:
                threads.discard(current_thread())


class Connected:
    """A session that is opened when it is needed, and again after it was lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._session: Session | None = None

    def serve(self, ticket: Ticket[Any]) -> None:
        """Do a job, and hand over what it gives or raises."""
        try:
            ticket.future.set_result(self.attempt(ticket))
        except BaseException as error:  # noqa: BLE001 - it is the caller's to raise
            ticket.future.set_exception(error)

    def serve_alike(self, tickets: list[Ticket[Any]]) -> None:
        """Do jobs of one kind as one, for who waits longest; for the next, should that one go away.

        The others may leave meanwhile, as if theirs had not begun.
        """
        tickets.sort(key=_until)
        while tickets:
            longest = tickets.pop()
            if not longest.future.set_running_or_notify_cancel():
                continue
            self.serve(longest)
            error = longest.future.exception()
            if error is not None and longest.abandoned:
                continue
            with waking_once():
                for ticket in tickets:
                    if not ticket.future.set_running_or_notify_cancel():
                        continue
                    if error is None:
                        ticket.future.set_result(longest.future.result())
                    else:
                        # Each caller adds to its own what it knows.
                        ticket.future.set_exception(copy(error))
            return

    def attempt(self, ticket: Ticket[T]) -> T:
        """Do a job, again where the connection was lost and nothing can have come of it."""
        until = time.monotonic() + _RECONNECTING
        if ticket.until is not None:
            until = min(until, ticket.until - _MARGIN)
        delay = 0.02
        unsure = False
        while True:
            try:
                return self._once(ticket)
            except RpcError as error:
                passes = error.code is StatusCode.UNAVAILABLE and not error.maybe_applied
                # An attempt before this one may have been committed.
                error.maybe_applied = error.maybe_applied or unsure
                if not passes:
                    raise
                failed: RpcError = error
            except (psycopg.Error, DeadlinePassedError) as error:
                lost = is_lost(error)
                unsure = unsure or (lost and self._is_unsure())
                failed = rpc_error(error, maybe_applied=unsure)
                passes = is_retryable(error) or (lost and (ticket.repeatable or not unsure))
                if isinstance(error, DeadlinePassedError) or not passes:
                    raise failed from error
            if ticket.abandoned or time.monotonic() + delay >= until:
                raise failed
            time.sleep(delay)
            delay = min(0.3, delay * 2)

    def session(self) -> Session:
        """The session, which is opened where there is none that can be used."""
        if self._session is not None and not self._session.usable:
            self.close()
        if self._session is None:
            self._session = self._database.connect()
        return self._session

    def close(self) -> None:
        """Close the session, if there is one."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(psycopg.Error):
                session.close()

    def _once(self, ticket: Ticket[T]) -> T:
        session = self.session()
        session.keep(ticket.until, lambda: ticket.abandoned)
        return ticket.job(session)

    def _is_unsure(self) -> bool:
        return self._session is not None and self._session.committing


def serve_here(database: Database, ticket: Ticket[Any]) -> None:
    """Do a job in this thread, with a connection of its own."""
    connected = Connected(database)
    try:
        connected.serve(ticket)
    finally:
        connected.close()
