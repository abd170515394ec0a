"""Items that come one by one, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["Patience", "batches_in_asyncio", "batches_inline"]

T = TypeVar("T")

Patience = Callable[[], float | None]

_END: Any = object()


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
    items: AsyncIterator[T], most: int, seconds: float, patience: Patience
) -> AsyncGenerator[list[T], None]:
    """Batches of what comes in asyncio; see Runtime.batches."""
    queue: asyncio.Queue[Any] = asyncio.Queue(most)
    failure: list[Exception] = []

    async def fill() -> None:
        try:
            async for item in items:
                await queue.put(item)
        except Exception as error:  # noqa: BLE001  # raised again by who takes the batches
            failure.append(error)
        await queue.put(_END)

    filling = asyncio.create_task(fill())
    try:
        ended = False
        while not ended:
            batch = await _batch(queue, most, seconds, patience())
            ended = batch[-1] is _END
            if ended:
                batch.pop()
            if batch:
                yield batch
        if failure:
            raise failure[0]
    finally:
        filling.cancel()
        await asyncio.wait([filling])


async def _batch(queue: asyncio.Queue[Any], most: int, seconds: float, patience: float | None) -> list[Any]:
    async with asyncio.timeout(patience):
        batch = [await queue.get()]
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while len(batch) < most and batch[-1] is not _END:
                batch.append(queue.get_nowait() if queue.qsize() else await queue.get())
    return batch
