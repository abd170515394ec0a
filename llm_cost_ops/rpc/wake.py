"""How an event loop learns that another thread has done what its tasks wait for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures

__all__ = ["Bell", "arrival", "waking_once"]


class Bell:
    """Wakes one thread: `wait` returns once `ring` was called, if only before it, and takes that back.

    An Event's `set` has a lock: a signal handler or finalizer that came into it would wait for ever in one of
    its own.
    """

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Have the thread go on."""
        with contextlib.suppress(RuntimeError):  # it was rung already
            self._silent.release()

    def silence(self) -> None:
        """Take back what was rung."""
        self._silent.acquire(False)

    def wait(self, seconds: float) -> bool:
        """Wait for at most so many seconds; whether it was rung."""
        return self._silent.acquire(timeout=max(0.0, seconds))


class _Gathered(threading.local):
    """What arrived in this thread within `waking_once`; None outside of it."""

    arrived: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] | None = None


_gathered = _Gathered()


async def arrival(future: concurrent.futures.Future[Any], timeout: float | None) -> None:
    """Wait until a future is done, whatever came of it, or `timeout` seconds have passed."""
    import asyncio

    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    future.add_done_callback(_waking(loop, waiter))
    if timeout is None:
        await waiter
        return
    # Not asyncio.timeout, which takes twice as long.
    timer = loop.call_later(timeout, _set_done, [waiter])
    try:
        await waiter
    finally:
        timer.cancel()


@contextlib.contextmanager
def waking_once() -> Iterator[None]:
    """For a thread that sets the results of many futures: it wakes each event loop once, after the last.

    To wake a loop takes a call to the system, in which this thread lets the loop's go on, and then waits for
    it with every further result.
    """
    arrived = _gathered.arrived = {}
    try:
        yield
    finally:
        _gathered.arrived = None
        for loop, waiters in arrived.items():
            _wake(loop, waiters)


def _waking(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> Callable[[object], None]:
    def wake(_: object) -> None:
        arrived = _gathered.arrived
        if arrived is None:
            _wake(loop, [waiter])
        else:
            arrived.setdefault(loop, []).append(waiter)

    return wake


def _wake(loop: asyncio.AbstractEventLoop, waiters: list[asyncio.Future[None]]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
        loop.call_soon_threadsafe(_set_done, waiters)


def _set_done(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
