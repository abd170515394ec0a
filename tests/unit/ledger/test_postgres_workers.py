"""Jobs that are alike are done as one, and which are done again. (The database is a stand-in.)"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event
from typing import Any, cast

import psycopg
import pytest

from llm_cost_ops.ledger.postgres import workers as threads
from llm_cost_ops.ledger.postgres.append import Appender, PostgresBatch
from llm_cost_ops.ledger.postgres.errors import connect_error
from llm_cost_ops.ledger.postgres.workers import Connected, Ticket, Workers
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.waiting import MAX_WAIT


class Database:
    """Its sessions are itself."""

    usable = True
    committing = False

    def connect(self) -> Database:
        return self

    def keep(self, until: float | None, is_abandoned: Any) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(cast("Any", Database()), 1)
    yield workers
    workers.close()


def queued(workers: Workers, *tickets: Ticket[Any]) -> None:
    """Queue tickets at the only thread while it is busy, and let it go on."""
    begun, go_on = Event(), Event()

    def busy(_: Any) -> None:
        begun.set()
        assert go_on.wait(MAX_WAIT)

    workers.put(Ticket(busy, None))
    assert begun.wait(MAX_WAIT)
    for ticket in tickets:
        workers.put(ticket)
    go_on.set()


def test_jobs_of_one_kind_are_done_once_and_others_each(workers: Workers) -> None:
    done: list[str] = []

    def ticket(name: str, kind: str | None) -> Ticket[str]:
        def job(_: Any) -> str:
            done.append(name)
            return f"of {name}"

        return Ticket(job, None, kind=kind)

    names = [("a1", "a"), ("alone", None), ("b1", "b"), ("a2", "a"), ("b2", "b"), ("lone", None), ("a3", "a")]
    tickets = {name: ticket(name, kind) for name, kind in names}
    queued(workers, *tickets.values())
    answers = {name: each.future.result(MAX_WAIT) for name, each in tickets.items()}
    assert sorted(name[:1] for name in done) == ["a", "a", "b", "l"]
    for kind in "ab":
        [one] = {answer for name, answer in answers.items() if name[0] == kind and name[1:].isdigit()}
        assert one.removeprefix("of ") in done
    assert answers["alone"] == "of alone"
    assert answers["lone"] == "of lone"
    # Nothing is remembered: what comes later is done again.
    later = ticket("later", "a")
    workers.put(later)
    assert later.future.result(MAX_WAIT) == "of later"


def test_it_is_done_for_who_waits_longest_and_nobody_else_who_leaves(workers: Workers) -> None:
    """A caller with little time left, or one who has gone away, ends no look of the others."""
    done: list[float | None] = []
    now = time.monotonic()
    untils = [now + 500, now + 900, None, now + 700]
    tickets: list[Ticket[Any]] = []

    def of(at: int) -> Any:
        def job(_: Any) -> str:
            done.append(untils[at])
            if untils[at] is None:
                # As a statement ends whose caller leaves.
                tickets[at].abandoned = True
                raise RpcError(StatusCode.DEADLINE_EXCEEDED, "left")
            return "found"

        return job

    tickets += [Ticket(of(at), until, kind="k") for at, until in enumerate(untils)]
    cancelled: Ticket[Any] = Ticket(of(0), None, kind="k")
    cancelled.future.cancel()
    queued(workers, *tickets, cancelled)
    assert [each.future.result(MAX_WAIT) for each in tickets if each.until is not None] == ["found"] * 3
    assert done == [None, now + 900]


def test_what_fails_for_one_fails_for_all_of_its_kind(workers: Workers) -> None:
    done = []

    def job(_: Any) -> None:
        done.append(True)
        raise RpcError(StatusCode.FAILED_PRECONDITION, "no such database")

    tickets: list[Ticket[Any]] = [Ticket(job, None, kind="k") for _ in range(5)]
    queued(workers, *tickets)
    for ticket in tickets:
        with pytest.raises(RpcError, match="no such database"):
            ticket.future.result(MAX_WAIT)
    assert len(done) == 1


def test_who_leaves_while_a_job_of_its_kind_is_done_is_not_served(workers: Workers) -> None:
    """As callers of a look for a key that a lock holds up: each would be a look of its own."""
    done: list[str] = []
    begun, go_on = Event(), Event()

    def stuck(_: Any) -> None:
        done.append("stuck")
        begun.set()
        assert go_on.wait(MAX_WAIT)
        longest.abandoned = True
        raise RpcError(StatusCode.DEADLINE_EXCEEDED, "left")

    longest: Ticket[Any] = Ticket(stuck, None, kind="k")
    others: list[Ticket[Any]] = [
        Ticket(lambda _: done.append("again"), time.monotonic() + 500, kind="k") for _ in range(5)
    ]
    queued(workers, longest, *others)
    assert begun.wait(MAX_WAIT)
    assert all(each.future.cancel() for each in others), "none of them has begun"
    go_on.set()
    after: Ticket[str] = Ticket(lambda _: "another", None)
    workers.put(after)
    assert after.future.result(MAX_WAIT) == "another"
    assert done == ["stuck"]


def test_a_job_that_comes_while_idle_threads_end_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.ledger.postgres.workers.IDLE", 0.0)
    closing, go_on = Event(), Event()

    class Slow(Database):
        def close(self) -> None:
            closing.set()
            assert go_on.wait(MAX_WAIT)

    workers = Workers(cast("Any", Slow()), 1)
    first: Ticket[str] = Ticket(lambda _: "first", None)
    workers.put(first)
    assert first.future.result(MAX_WAIT) == "first"
    assert closing.wait(MAX_WAIT)
    late: Ticket[str] = Ticket(lambda _: "late", None)
    workers.put(late)
    try:
        assert late.future.result(MAX_WAIT / 2) == "late"
    finally:
        go_on.set()
        workers.close()


def test_what_is_appended_while_an_idle_thread_ends_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.ledger.postgres.append.IDLE", 0.0)
    monkeypatch.setattr(Appender, "_together", lambda *_: [{}])
    sessions: list[Session] = []

    class Session(Database):
        def __init__(self) -> None:
            self.closed = Event()

        def connect(self) -> Database:
            sessions.append(Session())
            return sessions[-1]

        def close(self) -> None:
            self.closed.set()

    appender = Appender(cast("Any", Session()), lambda *_: None)
    for number in range(20):
        batch: Any = PostgresBatch(cast("Any", None), "")
        batch.rows.append(None)
        assert appender.put(batch, None).future.result(MAX_WAIT) == {}
        if number % 2:
            assert sessions[-1].closed.wait(MAX_WAIT)
    appender.close()
    assert all(each.closed.is_set() for each in sessions)


@pytest.mark.parametrize(
    ("error", "repeatable", "attempts", "maybe_applied"),
    [
        # It may come right behind the answer to COMMIT, which nobody saw then.
        (psycopg.errors.AdminShutdown(), False, 1, True),
        (psycopg.errors.AdminShutdown(), True, 2, False),
        (psycopg.OperationalError("server closed the connection"), False, 1, True),
        (psycopg.errors.DeadlockDetected(), False, 2, False),
        (psycopg.errors.DiskFull(), True, 1, False),
    ],
)
def test_what_may_be_committed_is_done_again_where_that_does_no_harm(
    error: psycopg.Error, repeatable: bool, attempts: int, maybe_applied: bool
) -> None:
    database, tried = Database(), []

    def job(session: Any) -> str:
        tried.append(session)
        session.committing = len(tried) == 1
        if session.committing:
            raise error
        return "done"

    connected = Connected(cast("Any", database))
    ticket = Ticket[str](job, None, repeatable=repeatable)
    if attempts == 1:
        with pytest.raises(RpcError) as caught:
            connected.attempt(ticket)
        assert caught.value.maybe_applied == maybe_applied
    else:
        assert connected.attempt(ticket) == "done"
    assert len(tried) == attempts


@pytest.mark.parametrize(
    "later",
    [connect_error(psycopg.OperationalError("connection refused")), psycopg.errors.DiskFull()],
    ids=["away", "full"],
)
def test_what_may_be_committed_stays_so_whatever_fails_after_it(
    later: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_RECONNECTING", 0.1)
    tried = []

    def job(session: Any) -> None:
        tried.append(session)
        session.committing = len(tried) == 1
        raise psycopg.OperationalError("server closed the connection") if session.committing else later

    with pytest.raises(RpcError) as caught:
        Connected(cast("Any", Database())).attempt(Ticket(job, None))
    assert len(tried) > 1
    assert caught.value.maybe_applied
