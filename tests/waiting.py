"""Waiting for what another thread, task or process does, on a machine that may be slow.

A test waits for the event itself; a bound is there for what would hang, and no machine comes near it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["MAX_WAIT", "in_threads", "until", "until_async"]

T = TypeVar("T")

# Seconds: longer than any machine takes for what a test waits for.
MAX_WAIT = 60.0


def until(condition: Callable[[], T], seconds: float = MAX_WAIT) -> T:
    """Wait until a condition holds; what it gave. AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "what is waited for does not come"
        time.sleep(0.002)
    return found


async def until_async(condition: Callable[[], T], seconds: float = MAX_WAIT) -> T:
    """As `until`, where an event loop goes on meanwhile."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "what is waited for does not come"
        await asyncio.sleep(0.002)
    return found


def in_threads(calls: Iterable[Callable[[], object]]) -> None:
    """Run each call in a thread of its own, all at the same time, and wait until every one has ended."""
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(MAX_WAIT)
        assert not thread.is_alive(), "a call does not end"
