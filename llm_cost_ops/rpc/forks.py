"""What happens around `os.fork`: the one place where the package hooks into it.

Owners are kept by weak reference, so that a client or a store that is gone is not asked.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

__all__ = [
    "FORK_WAIT",
    "CachedProperty",
    "Forgetful",
    "ForkSafeLock",
    "PerProcess",
    "Quiescent",
    "forget_in_children",
    "living",
    "quiesce_for_forks",
]

FORK_WAIT = 5.0
"""Seconds that a fork waits at most, in all, for what is under way in other threads."""


T = TypeVar("T")


class Forgetful(Protocol):
    """Something that knows of calls under way."""

    def forget(self) -> None:
        """Start again without calls under way, and with locks that nobody holds."""


class Quiescent(Protocol):
    """Something that must not be in use while the process is forked, such as a connection to a database."""

    def before_fork(self, until: float) -> None:
        """Come to rest, at the latest at `until` of time.monotonic()."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Start again; no other thread is there."""


_forgetful: WeakSet[Forgetful] = WeakSet()
_quiescent: WeakSet[Quiescent] = WeakSet()
_forking = threading.Lock()
_resting: list[Quiescent] = []


def forget_in_children(owner: Forgetful) -> None:
    """Have `owner.forget()` called in every child that this process forks, while it lives."""
    _forgetful.add(owner)


def quiesce_for_forks(owner: Quiescent) -> None:
    """Have `owner` come to rest before every fork of this process, while it lives."""
    _quiescent.add(owner)


def living(owners: Iterable[T]) -> list[T]:
    """Those of a WeakSet, to which other threads may add at any moment."""
    while True:
        try:
            return list(owners)
        except RuntimeError:  # one did in the middle of it
            continue


class ForkSafeLock:
    """A lock that nobody holds in a forked child, whichever thread of the parent did: `with lock.held:`.

    For what is whole at any moment, as something that is set once it is made. Not to be held over a fork. A
    signal handler or a finalizer may take it within its own thread's block.
    """

    def __init__(self) -> None:
        self.forget()
        forget_in_children(self)

    def forget(self) -> None:
        """In a forked child: the thread that may hold the lock is not there."""
        # Not an `__enter__` of our own, which may be interrupted once it has the lock.
        self.held = threading.RLock()


class PerProcess(Generic[T]):
    """Something that each process makes for itself when it is first asked for, such as connections.

    What a parent made is neither used nor closed in a child, only kept from collection: that would close
    its sockets in an orderly way, in the middle of what the parent says on them.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._made: T | None = None
        self._of_parents: list[T] = []
        forget_in_children(self)

    @property
    def made(self) -> T | None:
        """What this process made, if it did."""
        return self._made

    def get(self, make: Callable[[], T]) -> T:
        """What this process made, or makes now; threads that ask at the same time get the same."""
        made = self._made
        if made is None:
            with self._lock:
                made = self._made
                if made is None:
                    made = self._made = make()
        return made

    def forget(self) -> None:
        """In a forked child: leave alone what the parent made."""
        self._lock = threading.RLock()
        if self._made is not None:
            self._of_parents.append(self._made)
            self._made = None


class CachedProperty(cached_property[T]):
    """A cached property that takes no lock; two threads that read it first may each make its value.

    Python 3.11 holds one lock for all instances while a value is made: a child that is forked then would
    wait for it for ever. From 3.12 on there is none.
    """

    def __init__(self, func: Callable[[Any], T]) -> None:
        super().__init__(func)
        self.lock = nullcontext()


_Owner = TypeVar("_Owner")


def _each(owners: list[_Owner], call: Callable[[_Owner], None]) -> None:
    """Call for every owner, although one fails: a hook that raises would leave the others at rest."""
    failed: BaseException | None = None
    for owner in owners:
        try:
            call(owner)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed = error
    if failed is not None:
        raise failed


def _before() -> None:
    # Two threads may fork at the same time.
    _forking.acquire()
    _resting.extend(living(_quiescent))
    until = time.monotonic() + FORK_WAIT
    _each(_resting, lambda owner: owner.before_fork(until))


def _after_in_parent() -> None:
    resting = _resting[:]
    _resting.clear()
    try:
        _each(resting, lambda owner: owner.after_fork_in_parent())
    finally:
        _forking.release()


def _after_in_child() -> None:
    global _forking  # noqa: PLW0603 - whoever else waits for it is in the parent
    _forking = threading.Lock()
    resting = _resting[:]
    _resting.clear()
    try:
        _each(living(_forgetful), lambda owner: owner.forget())
    finally:
        _each(resting, lambda owner: owner.after_fork_in_child())


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
