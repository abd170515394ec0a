"""Items that come one by one, in batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["IdleTimeout", "batches_in_asyncio", "batches_inline"]

T = TypeVar("T")

IdleTimeout = Callable[[], float | None]


async def batches_inline(
    items: AsyncIterator[T], most: int, seconds: float, now: Callable[[], float]
) -> AsyncGenerator[list[T], None]:
    """Batches of what never suspends; see Runtime.batches."""
    batch: list[T] = []
    since = 0.0
    async for item in items:
        if not batch:
            since = now()
        batch.append(item)
        if len(batch) >= most or now() - since >= seconds:
            yield batch
            batch = []
    if batch:
        yield batch


async def batches_in_asyncio(
    items: AsyncIterator[T], most: int, seconds: float, idle_timeout: IdleTimeout
) -> AsyncGenerator[list[T], None]:
    """Batches of what comes in asyncio; see Runtime.batches."""
    import asyncio

    basket: _Basket[T] = _Basket(most)
    filling = asyncio.create_task(basket.fill(items))
    try:
        while True:
            async with asyncio.timeout(idle_timeout()):
                await basket.holds(1)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await basket.holds(most)
            batch = basket.emptied()
            if batch:
                yield batch
            elif basket.ended:
                break
        if basket.failure is not None:
            raise basket.failure
    finally:
        filling.cancel()
        await asyncio.wait([filling])


class _Basket(Generic[T]):
    """Items between two tasks, at most `most` of them. Who takes them is woken for a whole batch."""

    def __init__(self, most: int) -> None:
        import asyncio

        self.ended = False
        self.failure: Exception | None = None
        self._most = most
        self._items: list[T] = []
        self._wanted = 0
        self._enough = asyncio.Event()
        self._room = asyncio.Event()

    async def fill(self, items: AsyncIterator[T]) -> None:
        try:
            async for item in items:
                self._items.append(item)
                if len(self._items) >= self._wanted:
                    self._enough.set()
                while len(self._items) >= self._most:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001  # raised again by who takes the batches
            self.failure = error
        self.ended = True
        self._enough.set()

    async def holds(self, count: int) -> None:
        """Wait until there are so many items, or no more to come."""
        self._wanted = count
        while len(self._items) < count and not self.ended:
            self._enough.clear()
            await self._enough.wait()

    def emptied(self) -> list[T]:
        items, self._items = self._items, []
        self._room.set()
        return items
