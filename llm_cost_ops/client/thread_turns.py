"""Threads that wait for what another thread brings. Each wakes the next two."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["ThreadTurn", "Waking"]

_NOTHING = object()
_AT_A_TIME = 2


class Waking:
    """Wakes threads two by two: each that is awake wakes the next two, and the last one calls `end`.

    All at once they would stand in the way of each other, since only one of them can run: with 64 threads a
    call took a third longer. One by one they wait for each other beside threads that compute: what gives the
    interpreter up gets it back some milliseconds later. A thread that gave up waiting meanwhile is passed
    over. Every step may be interrupted, as by KeyboardInterrupt, and is taken again then.
    """

    __slots__ = ("_asleep", "_end", "_lock", "_next", "_turns")

    def __init__(self, turns: Iterable[ThreadTurn], end: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._turns = tuple(turns)
        self._next = 0
        self._asleep: set[ThreadTurn] = set()  # of those that were called
        self._end: Callable[[], None] | None = end

    def go_on(self) -> None:
        """Wake the next two threads."""
        with self._lock:
            called = 0
            while self._next < len(self._turns) and called < _AT_A_TIME:
                turn = self._turns[self._next]
                self._asleep.add(turn)
                if turn.call():
                    called += 1
                else:
                    self._asleep.discard(turn)
                self._next += 1
            if self._asleep:
                return
            end, self._end = self._end, None
        if end is not None:
            end()

    def is_awake(self, turn: ThreadTurn) -> None:
        """A thread wakes: the next ones' turn, if it was called."""
        with self._lock:
            called = turn.wake()
            self._asleep.discard(turn)
        if called:
            self.go_on()


class ThreadTurn:
    """What comes to a thread that waits. The condition of a Future takes several times as long."""

    __slots__ = ("_awake", "_called", "_lock", "_outcome", "_waking")

    def __init__(self) -> None:
        self._outcome: Any = _NOTHING
        self._waking: Waking | None = None
        self._awake = self._called = False
        self._lock = threading.Lock()
        self._lock.acquire()

    @property
    def outcome(self) -> Any:
        """What came, without waking anybody."""
        return self._outcome

    def done(self) -> bool:
        """Whether it came. Its thread may still sleep."""
        return self._outcome is not _NOTHING

    def set_result(self, outcome: Any) -> None:
        """Bring it, and wake the thread. What came before stays. May be called again."""
        if self._outcome is _NOTHING or self._outcome is outcome:
            self._outcome = outcome
            self._awake = True  # for a batch that brings something as well
            with contextlib.suppress(RuntimeError):  # it was woken already
                self._lock.release()

    def set_result_of(self, outcome: Any, waking: Waking) -> None:
        """Bring it; the thread is woken when it is its turn among others. What came before stays.

        Who waited has to call `result`, or `wake_next` where that was interrupted.
        """
        if self._outcome is _NOTHING:
            self._waking = waking
            self._outcome = outcome

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it. Raises TimeoutError when it does not come within `timeout` seconds."""
        try:
            if self._outcome is _NOTHING:
                self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            # It is looked for first, since it is there only after what else is to be woken.
            outcome = self._outcome
            if outcome is not _NOTHING and self._waking is not None:
                self.wake_next()
        if outcome is _NOTHING:
            raise TimeoutError
        return outcome

    def wake_next(self) -> None:
        """Say that this thread is awake. May be called again."""
        if self._waking is not None:
            self._waking.is_awake(self)
            self._waking = None

    def call(self) -> bool:
        """Wake its thread, which then has to wake the next ones; False where that is awake."""
        if self._awake:
            return False
        if not self._called:
            self._called = True
            self._lock.release()
        return True

    def wake(self) -> bool:
        """Whether its thread, which is awake now, was called."""
        self._awake = True
        return self._called
