"""Where no thread can be started, as in an interpreter that is ending, the caller's does the work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.postgres.append import Appender
from llm_cost_ops.ledger.postgres.workers import Ticket, Workers
from llm_cost_ops.ledger.sqlite.ledger import SqliteLedger
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.threads import beside
from llm_cost_ops.transports.grpc.portal import NoThreadError, Portal
from llm_cost_ops.transports.http.sockets import DeadlineBackend
from llm_cost_ops.transports.net.dial import resolve
from tests.unit.ledger.making import context, entry
from tests.unit.ledger.test_postgres_workers import Database
from tests.waiting import MAX_WAIT


@contextmanager
def no_threads() -> Iterator[None]:
    """In it no thread starts."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


async def answer() -> threading.Thread:
    await asyncio.sleep(0.01)
    return threading.current_thread()


def test_a_shared_commit(tmp_path: Path) -> None:
    ledger = SqliteLedger(str(tmp_path / "costs.db"), durability="disk", group_commit=True)
    with no_threads():
        [first] = drive(ledger.append([entry(idempotency_key="first")], context())) or []
    [again] = drive(ledger.append([entry(idempotency_key="first")], context())) or []
    assert (first.status, again.status) == (SubmitStatus.CREATED, SubmitStatus.DUPLICATE)
    drive(ledger.aclose())


def test_a_call_over_grpc() -> None:
    portal = Portal("test")
    here = threading.current_thread()
    with no_threads():
        assert portal.run(answer, MAX_WAIT) is here
        with pytest.raises(NoThreadError):
            portal.start(answer)
    # One that can be started later is.
    assert portal.run(answer, MAX_WAIT) is not here
    portal.close()


def test_calls_over_grpc_one_after_the_other() -> None:
    portal = Portal("test")
    done: list[threading.Thread] = []
    callers = [threading.Thread(target=lambda: done.append(portal.run(answer, MAX_WAIT))) for _ in range(5)]
    started = threading.Thread.start
    with no_threads():
        for caller in callers:
            started(caller)
        for caller in callers:
            caller.join(MAX_WAIT)
        for _ in range(2):
            portal.close()
        with pytest.raises(RuntimeError, match="closed"):
            portal.run(answer, MAX_WAIT)
    assert set(done) == set(callers)


def test_a_call_over_grpc_has_its_time_and_fails_as_it_does() -> None:
    async def for_ever() -> None:
        await asyncio.sleep(MAX_WAIT)

    async def fail() -> None:
        raise KeyError("its own")

    portal = Portal("test")
    with no_threads():
        with pytest.raises(TimeoutError):
            portal.run(for_ever, -0.99)
        with pytest.raises(KeyError, match="its own"):
            portal.run(fail, MAX_WAIT)
        portal.close()


def test_no_thread_takes_the_turn_of_a_call_over_grpc_that_waits() -> None:
    """One that can be started meanwhile: it would keep the loop for good."""
    portal = Portal("test")
    waiting, meanwhile = threading.Event(), threading.Event()

    class Turn:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if blocking and not waiting.is_set():
                waiting.set()
                meanwhile.wait(MAX_WAIT)
            return lock.acquire(blocking, timeout)

        def release(self) -> None:
            lock.release()

    lock, portal._turn = threading.Lock(), cast("Any", Turn())
    done: list[threading.Thread] = []
    caller = threading.Thread(target=lambda: done.append(portal.run(answer, MAX_WAIT)), daemon=True)
    started = threading.Thread.start
    with no_threads():
        started(caller)
        assert waiting.wait(MAX_WAIT)
    assert portal.run(answer, MAX_WAIT) is threading.current_thread()
    meanwhile.set()
    caller.join(MAX_WAIT)
    assert done == [caller]
    assert portal.run(answer, MAX_WAIT).name == "test"
    portal.close()


async def test_a_call_over_grpc_from_within_an_event_loop() -> None:
    portal = Portal("test")
    with no_threads():
        assert portal.run(answer, MAX_WAIT) is threading.current_thread()
        portal.close()
    assert asyncio.get_running_loop().is_running()


def test_postgresql() -> None:
    """Nothing stays queued: it would be written by the next thread, though its caller went away."""
    appender = Appender(cast("Any", Database()), lambda *_: None)
    workers = Workers(cast("Any", Database()), 1)
    done: list[threading.Thread] = []

    def job(_: object) -> None:
        done.append(threading.current_thread())

    with no_threads():
        empty = appender.put(cast("Any", SimpleNamespace(rows=[1], open=set(), settled={})), None)
        assert empty.future.done()
        workers.put(Ticket(job, None))
    workers.put(later := Ticket(job, None))
    later.future.result(MAX_WAIT)
    assert (appender.waiting, [one is threading.current_thread() for one in done]) == (0, [True, False])
    appender.close()
    workers.close()


def test_names_and_connections() -> None:
    with no_threads():
        assert asyncio.run(resolve("localhost", 80))
        backend = DeadlineBackend()
        done = backend._elsewhere(threading.current_thread)
    assert done.result(0) is threading.current_thread()


def test_what_blocks() -> None:
    assert asyncio.run(beside(threading.current_thread)) is not threading.current_thread()
    with no_threads():
        assert asyncio.run(beside(threading.current_thread)) is threading.current_thread()
        with pytest.raises(ZeroDivisionError):
            asyncio.run(beside(divmod, 1, 0))
