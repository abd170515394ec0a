"""What a process makes for itself, and what a child of it finds."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_cost_ops.catalog import load
from llm_cost_ops.client import observer
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.rpc import forks
from llm_cost_ops.rpc.forks import CachedProperty, ForkSafeLock, PerProcess
from tests.unit.pricing.cards import make_usage
from tests.waiting import MAX_WAIT, in_threads


class Connection:
    closed = False

    def __del__(self) -> None:
        Connection.closed = True


class Owner:
    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make

    @CachedProperty
    def part(self) -> object:
        return self.make()


def test_a_child_reads_a_property_that_another_thread_was_making() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make() -> object:
        begun.set()
        return go_on.wait(MAX_WAIT)

    making = threading.Thread(target=lambda: Owner(make).part, daemon=True)
    making.start()
    assert begun.wait(MAX_WAIT)
    child = os.fork()
    if not child:
        signal.alarm(int(MAX_WAIT))
        os._exit(0 if Owner(lambda: "made").part == "made" else 1)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    making.join(MAX_WAIT)
    owner = Owner(object)
    assert owner.part is owner.part


class Adding(weakref.WeakSet[Any]):
    """What another thread adds to when half of it was looked at."""

    late: Any = None

    def __iter__(self) -> Iterator[Any]:
        for owner in super().__iter__():
            yield owner
            if self.late is None:
                self.late = Resting()
                self.add(self.late)


class Resting:
    rested = 0

    def before_fork(self, until: float) -> None:
        self.rested += 1

    def after_fork_in_parent(self) -> None:
        self.rested -= 1

    def after_fork_in_child(self) -> None:
        os._exit(0 if self.rested == 1 else 1)


def test_all_rest_though_another_thread_makes_one_more_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = [Resting() for _ in range(3)]
    monkeypatch.setattr(forks, "_quiescent", Adding(owners))
    child = os.fork()
    if not child:
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert [owner.rested for owner in owners] == [0] * 3


def test_threads_that_ask_at_the_same_time_get_the_same() -> None:
    made, got = [], []
    owned, begin = PerProcess[object](), threading.Barrier(8)

    def make() -> object:
        made.append(object())
        return made[-1]

    def ask() -> None:
        begin.wait()
        got.append(owned.get(make))

    in_threads([ask] * 8)
    assert len(made) == 1
    assert got == made * 8
    assert owned.made is made[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_makes_its_own_and_leaves_the_parents_alone() -> None:
    owned = PerProcess[Connection]()
    parents = owned.get(Connection)
    number = id(parents)
    del parents
    held = owned._lock
    held.acquire()  # as another thread of the parent might, at the moment of the fork
    try:
        child = os.fork()
        if not child:
            first_none = owned.made is None
            own = owned.get(Connection)
            gc.collect()
            fine = first_none and id(own) != number and owned.get(Connection) is own and not Connection.closed
            os._exit(0 if fine else 1)
    finally:
        held.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert id(owned.made) == number


def test_an_owner_that_is_dropped_goes_at_once_with_what_it_made() -> None:
    """No cycle may hold it: a client that nobody closed lets go of its sockets when it is collected."""
    owned = PerProcess[Connection]()
    gone = weakref.ref(owned.get(Connection))
    gc.disable()
    try:
        del owned
        assert gone() is None
    finally:
        gc.enable()


LOCKED: dict[str, Callable[[], tuple[ForkSafeLock, Callable[[], object]]]] = {
    "catalog": lambda: (load._in_force.lock, lambda: load.use_catalog(None)),
    "cards": lambda: ((catalog := load.load_catalog())._lock, catalog.entries),
    "default client": lambda: (observer._lock, observer.default_client),
    "prices": lambda: ((book := PriceBook([]))._snapshot._lock, lambda: book.choose(make_usage())),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("place", list(LOCKED))
def test_a_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held(place: str) -> None:
    lock, use = LOCKED[place]()
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.held:
            held.set()
            assert go_on.wait(MAX_WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(MAX_WAIT)
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends it where it hangs
        failed = 1
        try:
            use()
            failed = 0
        finally:
            os._exit(failed)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
