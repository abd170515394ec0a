"""The runtime: the one place that knows what time it is and how a call waits.

A call is written once as `async def`. Under `SyncRuntime` no await ever suspends, so one
`coroutine.send(None)` runs it to its end; under `AsyncRuntime` the same code runs in asyncio.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from llm_cost_ops.rpc.batches import IdleTimeout, batches_in_asyncio, batches_inline
from llm_cost_ops.rpc.threads import is_ending
from llm_cost_ops.rpc.wake import arrival

if TYPE_CHECKING:
    import concurrent.futures

# asyncio is imported where it is used: it brings ssl, which a sync embedded client has no use for, and a
# fifth of the time that importing this package takes.

__all__ = ["AsyncRuntime", "Runtime", "SyncRuntime"]

T = TypeVar("T")


class Runtime(Protocol):
    """Time and waiting. Interceptors, servicers and stores await nothing else."""

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps; deadlines are points on it."""

    def now(self) -> float:
        """Seconds since 1970 in UTC, as the wall clock has it."""

    def random(self) -> float:
        """A number in [0, 1), for jitter."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def wait(self, future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
        """Wait for another thread's result; builtin TimeoutError when `timeout` seconds pass.

        concurrent.futures.CancelledError where somebody cancelled the future.
        """

    async def within(self, awaitable: Awaitable[T], timeout: float | None = None) -> T:
        """Await somebody else's code; builtin TimeoutError when `timeout` seconds pass, and it is cancelled.

        When sync nothing interrupts it, and it may not suspend.
        """

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        """Run what takes long where it holds nobody up: inline when sync, in a thread under asyncio.

        Inline there too once the interpreter is ending.
        """

    def batches(
        self, items: AsyncIterator[T], most: int, seconds: float, idle_timeout: IdleTimeout
    ) -> AsyncGenerator[list[T], None]:
        """Items in lists of up to `most`; a list goes out at the latest `seconds` after its first item.

        Under asyncio up to `most` further items are taken while a list is being dealt with, and builtin
        TimeoutError is raised when no item comes for `idle_timeout()` seconds. When sync nothing interrupts
        an iterator that is waited for: what came before goes out after it.
        """


class _Clock:
    __slots__ = ()

    # A function of C is called in less time than a method that calls it.
    monotonic = staticmethod(time.monotonic)
    now = staticmethod(time.time)
    random = staticmethod(random.random)


class SyncRuntime(_Clock):
    """Waits by blocking the calling thread."""

    __slots__ = ()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def wait(self, future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
        return future.result(timeout)

    async def within(self, awaitable: Awaitable[T], timeout: float | None = None) -> T:
        return await awaitable

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        return function(*args)

    def batches(
        self, items: AsyncIterator[T], most: int, seconds: float, idle_timeout: IdleTimeout
    ) -> AsyncGenerator[list[T], None]:
        return batches_inline(items, most, seconds, self.monotonic)


class AsyncRuntime(_Clock):
    """Waits in asyncio."""

    __slots__ = ()

    async def sleep(self, seconds: float) -> None:
        import asyncio

        await asyncio.sleep(seconds)

    async def wait(self, future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
        if not future.done():
            # The other thread's work goes on when this is cancelled, and its result is dropped.
            await arrival(future, timeout)
            if not future.done():
                raise TimeoutError
        return future.result()

    async def within(self, awaitable: Awaitable[T], timeout: float | None = None) -> T:
        import asyncio

        async with asyncio.timeout(timeout):
            return await awaitable

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        import asyncio

        if is_ending():  # the pool takes nothing any more
            return function(*args)
        return await asyncio.to_thread(function, *args)

    def batches(
        self, items: AsyncIterator[T], most: int, seconds: float, idle_timeout: IdleTimeout
    ) -> AsyncGenerator[list[T], None]:
        return batches_in_asyncio(items, most, seconds, idle_timeout)
