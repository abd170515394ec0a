"""Waiting: for one's turn with a connection, and for other processes to let go of the file."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from llm_cost_ops.stores.failures import busy_error

if TYPE_CHECKING:
    from llm_cost_ops.rpc.context import CallContext

__all__ = ["Patience", "Turn"]

_LONGEST = 30.0
_MARGIN = 0.01


class Patience:
    """How long a call may wait for the file: until just before its deadline, or 30 seconds without one."""

    __slots__ = ("_context", "_delay", "_name", "_until")

    def __init__(self, context: CallContext, name: str) -> None:
        self._context = context
        self._name = name
        self._until = context.runtime.monotonic() + self.allowed(context)
        self._delay = 0.001

    @staticmethod
    def allowed(context: CallContext | None) -> float:
        """Seconds that a call may wait, from now."""
        remaining = None if context is None else context.remaining()
        return _LONGEST if remaining is None else remaining - min(_MARGIN, remaining / 10)

    def left(self) -> float:
        """Seconds that may still be waited; UNAVAILABLE when there are none."""
        left = self._until - self._context.runtime.monotonic()
        if left <= 0:
            self._context.check_deadline()
            raise busy_error(self._name)
        return left

    async def pause(self) -> None:
        """Wait a little longer than before; UNAVAILABLE when that was too long."""
        runtime = self._context.runtime
        left = self.left()
        await runtime.sleep(min(self._delay * (0.5 + runtime.random()), left))
        self._delay = min(self._delay * 2, 0.05)


class Turn:
    """A lock that threads and tasks queue for, first come, first served, each within its patience."""

    __slots__ = ("_held", "_waiting", "try_take")

    def __init__(self) -> None:
        self._held = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self.try_take: Callable[[], bool] = partial(self._held.acquire, False)
        """Take the turn if it is free."""

    async def take(self, context: CallContext, name: str) -> None:
        """Wait for the turn as the runtime waits; UNAVAILABLE just before the deadline."""
        place = self._queue()
        if place is None:
            return
        try:
            await context.runtime.wait(place, Patience(context, name).left())
        except TimeoutError:
            if place.cancel():
                raise busy_error(name) from None
        except BaseException:
            if not place.cancel():
                self.give_back()
            raise

    def take_blocking(self, timeout: float, name: str) -> None:
        """Wait for the turn by blocking the thread; UNAVAILABLE after `timeout` seconds."""
        place = self._queue()
        if place is None:
            return
        try:
            place.result(timeout)
        except TimeoutError:
            if place.cancel():
                raise busy_error(name) from None
        except BaseException:
            if not place.cancel():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Hand the turn to whoever has waited longest."""
        if not self._waiting:
            self._held.release()
            # Somebody may have queued between the look and the release.
            if not self._waiting or not self.try_take():
                return
        while True:
            while self._waiting:
                place = self._waiting.popleft()
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self._held.release()
            if not self._waiting or not self.try_take():
                return

    def _queue(self) -> Future[None] | None:
        place: Future[None] = Future()
        self._waiting.append(place)
        if self.try_take():
            place.cancel()
            return None
        return place
