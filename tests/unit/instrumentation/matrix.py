"""The matrix of instrumentation: each way to call an SDK's client leaves the records that it should.

A way is written once and tried with the sync and the async client: `settle` awaits what is to be awaited.
What is expected of it is "usage" (what the stub sent), "input" (the same, without output), "units" (a search
unit), "unknown" (the call is there, its usage is not), or nothing, with `records=0`.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageQuality, UsageRecord
from tests.sdk_stub import INPUT, OUTPUT, Stub
from tests.waiting import MAX_WAIT

Call = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Way:
    """A way to call an SDK's client."""

    style: str
    call: Call
    expected: str = "usage"
    records: int = 1
    modes: tuple[str, ...] = ("sync", "async")


class Ways(list[Way]):
    """The ways of an SDK; called with what a way is, it takes a function into them."""

    def __call__(self, style: str, expected: str = "usage", **how: Any) -> Callable[[Call], Call]:
        def take(call: Call) -> Call:
            self.append(Way(style, call, expected, **how))
            return call

        return take


@dataclass(frozen=True)
class Column:
    """An SDK's client: how it is made, and the ways to call it."""

    name: str
    package: str
    provider: str
    open: Callable[[Stub, bool], Any]
    ways: list[Way]
    without: frozenset[str] = field(default=frozenset())
    modes: tuple[str, ...] = ("sync", "async")

    def cases(self) -> list[tuple[Way, str]]:
        """Each way in each mode."""
        return [
            (way, mode)
            for way in self.ways
            if way.style not in self.without
            for mode in way.modes
            if mode in self.modes
        ]


def is_async(sdk_client: Any) -> bool:
    return type(sdk_client).__name__.startswith("Async")


async def settle(value: Any) -> Any:
    """What comes of it."""
    return await value if inspect.isawaitable(value) else value


async def items(stream: Any) -> list[Any]:
    """All of a stream."""
    if hasattr(stream, "__aiter__"):
        return [item async for item in stream]
    return list(stream)


async def first(stream: Any) -> Any:
    """The next of a stream."""
    if hasattr(stream, "__anext__"):
        return await anext(stream)
    if hasattr(stream, "__aiter__"):
        return await anext(aiter(stream))
    return next(stream) if hasattr(stream, "__next__") else next(iter(stream))


async def cancel_reading(stream: Any) -> None:
    """Read the first of a stream that stalls, and be cancelled while the next does not come."""
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in stream:
            begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), MAX_WAIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def fail_reading(stream: Any) -> None:
    """Read the first of a stream, and fail; what an SDK leaves to the collector goes in several turns."""
    try:
        if hasattr(stream, "__aiter__"):
            async for _ in stream:
                raise ZeroDivisionError
        for _ in stream:
            raise ZeroDivisionError
    except ZeroDivisionError:
        del stream
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0.01)


async def time_out(stream: Any) -> None:
    """Read a stream that stalls for longer than the caller waits."""
    try:
        await items(stream)
    except Exception as error:  # noqa: BLE001  # each SDK and each version has its own
        assert "Timeout" in type(error).__name__  # noqa: PT017  # as above
    else:
        pytest.fail("it did not time out")


async def close(stream: Any) -> None:
    """Close a stream; the first of openai's are closed by their responses."""
    stream = stream if hasattr(stream, "aclose") or hasattr(stream, "close") else stream.response
    await settle(stream.aclose() if hasattr(stream, "aclose") else stream.close())


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """What either kind of context manager gives; a generator is closed."""
    if hasattr(manager, "__aenter__"):
        async with manager as inside:
            yield inside
    elif hasattr(manager, "__enter__"):
        with manager as inside:
            yield inside
    else:
        yield manager
        await close(manager)


def records_of(client: CostOpsClient) -> list[UsageRecord]:
    """What was recorded. Nothing may be refused on the way."""
    report = client.flush(10)
    assert report.rejected == []
    assert report.pending == report.dropped == 0
    return list(client.usage.list(organization_id="acme"))


def only_record(client: CostOpsClient, expected: str) -> UsageRecord:
    """The one record there is, which must be as is expected."""
    records = records_of(client)
    assert len(records) == 1, records
    check(records[0], expected)
    return records[0]


def check(record: UsageRecord, expected: str) -> None:
    """A record must be as is expected."""
    assert record.observation
    assert record.model_id not in ("", "unknown")
    if expected == "unknown":
        assert record.quality == UsageQuality.UNKNOWN
        assert record.estimated_cost is None
        return
    assert record.quality != UsageQuality.UNKNOWN
    if expected == "units":
        assert record.meters == {"search_units": 1}
        return
    assert record.input_tokens == INPUT
    assert record.output_tokens == (0 if expected == "input" else OUTPUT)
