"""Runtimes whose time passes only when somebody waits: an hour of back-off takes no time at all."""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import random
import threading
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, TypeVar

from llm_cost_ops.rpc.runtime import AsyncRuntime, SyncRuntime
from llm_cost_ops.rpc.wake import arrival

__all__ = ["AsyncVirtualRuntime", "VirtualRuntime"]

T = TypeVar("T")

# The turns of an event loop in which nothing may happen before time moves on to the next sleeper:
# a result takes some turns through the tasks that wait for each other.
_QUIET_TURNS = 25


class _VirtualClock:
    """Time starts at 0 (`now` at 2026-01-01 UTC), and random numbers come from `seed`.

    `slept` lists what was slept, in seconds, in the order in which it was asked for.
    """

    def __init__(self, seed: int = 0, *, now: float = 1_767_225_600.0) -> None:
        self._elapsed = 0.0
        self._start = now
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """Virtual seconds since this runtime was made."""
        return self._elapsed

    def now(self) -> float:
        """Virtual seconds since 1970."""
        return self._start + self._elapsed

    def random(self) -> float:
        """A number in [0, 1), the same ones in every run."""
        with self._lock:
            return self._random.random()

    def advance(self, seconds: float) -> None:
        """Let time pass, without anybody having waited for it."""
        with self._lock:
            self._elapsed += max(0.0, seconds)


class VirtualRuntime(_VirtualClock, SyncRuntime):
    """A virtual clock for the sync client. Whoever sleeps moves the clock, for all threads.

    Waiting for another thread's result is real, since that thread is: for at most `real_timeout`
    seconds of real time, after which the virtual timeout counts as passed.
    """

    def __init__(self, seed: int = 0, *, now: float = 1_767_225_600.0, real_timeout: float = 5.0) -> None:
        super().__init__(seed, now=now)
        self._real_timeout = real_timeout

    async def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.slept.append(seconds)
        self.advance(seconds)

    async def wait(self, future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
        """The result of a future; builtin TimeoutError when it does not come."""
        if timeout is not None and timeout <= 0 and not future.done():
            raise TimeoutError
        try:
            return future.result(self._real_timeout)
        except concurrent.futures.TimeoutError:
            if not future.done():
                self.advance(timeout or 0.0)
            raise


class AsyncVirtualRuntime(_VirtualClock, AsyncRuntime):
    """A virtual clock for the async client, in one event loop.

    Concurrent sleepers wake in the order of their times, each at its own. Time moves once every
    task waits: it should wait for this runtime, or for another task that does. Work in threads and
    on sockets is not waited for, and how long a batch may wait is counted in real seconds.
    """

    def __init__(self, seed: int = 0, *, now: float = 1_767_225_600.0) -> None:
        super().__init__(seed, now=now)
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()
        self._activity = 0
        self._watching = False

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved so far."""
        self.slept.append(seconds)
        self._activity += 1
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        await self._until(self._elapsed + seconds)

    async def wait(self, future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
        """The result of a future; builtin TimeoutError when `timeout` virtual seconds pass."""
        self._activity += 1
        came = asyncio.ensure_future(arrival(future, None))
        try:
            if timeout is None:
                await came
            else:
                await self._done(came, timeout)
        finally:
            came.cancel()
        return future.result()

    async def within(self, awaitable: Awaitable[T], timeout: float | None = None) -> T:
        """What an awaitable gives; builtin TimeoutError when `timeout` virtual seconds pass."""
        self._activity += 1
        if timeout is None:
            return await awaitable
        work = asyncio.ensure_future(awaitable)
        try:
            await self._done(work, timeout)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        return work.result()

    async def _done(self, future: asyncio.Future[Any], timeout: float) -> None:
        alarm = asyncio.ensure_future(self._until(self._elapsed + timeout))
        try:
            first: set[asyncio.Future[Any]] = {future, alarm}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
            self._activity += 1
        if not future.done():
            raise TimeoutError

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        """Call the function, in this thread."""
        return function(*args)

    async def _until(self, moment: float) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._sleepers, (moment, next(self._order), woken))
        if not self._watching:
            self._watching = True
            loop.call_soon(self._watch, loop, self._activity, 0)
        await woken

    def _watch(self, loop: asyncio.AbstractEventLoop, seen: int, quiet: int) -> None:
        """Called in every turn of the loop while somebody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        if not self._sleepers:
            self._watching = False
            return
        if seen != self._activity:
            quiet = 0
        elif quiet >= _QUIET_TURNS:
            moment, _, woken = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, moment)
            woken.set_result(None)
            quiet = 0
        loop.call_soon(self._watch, loop, self._activity, quiet + 1)
