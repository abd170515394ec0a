"""The queue in front of a pool of connections."""

from __future__ import annotations

import asyncio
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
    """At most `limit` calls in flight; the others wait their turn, first come, first served."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._free = limit
        self._waiting: deque[_ThreadWaiter | _TaskWaiter] = deque()

    def enter(self, seconds: float | None) -> bool:
        """Wait for a turn by blocking the thread; False when `seconds` pass first."""
        waiter = _ThreadWaiter()
        if self._joined(waiter):
            waiter.wait(seconds)
            return self._done(waiter)
        return True

    async def enter_async(self) -> None:
        """Wait for a turn in asyncio. A wait that is cancelled leaves the queue."""
        waiter = _TaskWaiter()
        if self._joined(waiter):
            try:
                await waiter.turn
            except asyncio.CancelledError:
                if self._done(waiter):
                    self.leave()
                raise

    def leave(self) -> None:
        """Give the turn to who waits longest."""
        with self._lock:
            while self._waiting:
                if self._waiting.popleft().grant():
                    return
            self._free += 1

    def _joined(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        with self._lock:
            if self._free:
                self._free -= 1
                return False
            self._waiting.append(waiter)
            return True

    def _done(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        with self._lock:
            if not waiter.granted and waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.granted
