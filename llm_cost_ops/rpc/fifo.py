"""The queue in front of a pool of connections."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque

__all__ = ["CallQueue"]


class _ThreadWaiter:
    def __init__(self) -> None:
        self.granted = False
        self._turn = threading.Lock()
        self._turn.acquire()

    def grant(self) -> bool:
        self.granted = True
        self._turn.release()
        return True

    def wait(self, seconds: float | None) -> None:
        self._turn.acquire(timeout=-1 if seconds is None else max(0.0, seconds))


class _TaskWaiter:
    def __init__(self) -> None:
        self.granted = False
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def grant(self) -> bool:
        if self.turn.done():
            return False
        self.granted = True
        self.turn.set_result(None)
        return True


class CallQueue:
    """At most `limit` calls in flight; the others wait their turn, first come, first served.

    A server that refuses calls, since it has too many, is sent fewer at a time: each round of refusals
    halves how many are let in, down to one, and each call that is not refused adds a part of one, up to
    `limit`. That is the pace that all calls to one server share.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._max = float(limit)
        self._window = float(limit)
        self._in_flight = 0
        # Calls that were in flight when the window was halved: how they end says nothing about the new one.
        self._before_halving = 0
        self._waiting: deque[_ThreadWaiter | _TaskWaiter] = deque()

    @property
    def window(self) -> int:
        """How many calls are let in at a time, now."""
        return int(self._window)

    def enter(self, seconds: float | None) -> bool:
        """Wait for a turn by blocking the thread; False when `seconds` pass first."""
        if self.enter_now():
            return True
        waiter = _ThreadWaiter()
        if self._joined(waiter):
            waiter.wait(seconds)
            return self._done(waiter)
        return True

    async def enter_async(self) -> None:
        """Wait for a turn in asyncio. A wait that is cancelled leaves the queue."""
        if self.enter_now():
            return
        waiter = _TaskWaiter()
        if self._joined(waiter):
            try:
                await waiter.turn
            except asyncio.CancelledError:
                if self._done(waiter):
                    self.leave()
                raise

    def enter_now(self) -> bool:
        """Take a turn, if there is one and nobody waits."""
        with self._lock:
            if self._waiting or self._in_flight + 1 > self._window:
                return False
            self._in_flight += 1
            return True

    def leave(self, *, refused: bool = False) -> None:
        """Give the turn to who waits longest. `refused` says that the server had too many calls."""
        with self._lock:
            self._in_flight -= 1
            if self._before_halving:
                self._before_halving -= 1
            elif refused:
                self._window = max(1.0, self._window / 2)
                self._before_halving = self._in_flight
            elif self._window < self._max:
                self._window = min(self._max, self._window + 1 / self._window)
            while self._waiting and self._in_flight + 1 <= self._window:
                if self._waiting.popleft().grant():
                    self._in_flight += 1

    def close(self) -> None:
        """Let in everyone who waits, now and from now on: they are to find out that all is over."""
        with self._lock:
            self._window = self._max = math.inf
            while self._waiting:
                if self._waiting.popleft().grant():
                    self._in_flight += 1

    def _joined(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        with self._lock:
            if not self._waiting and self._in_flight + 1 <= self._window:
                self._in_flight += 1
                return False
            self._waiting.append(waiter)
            return True

    def _done(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        with self._lock:
            if not waiter.granted and waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.granted
