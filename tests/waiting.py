"""Waiting for what another thread, task or process does, on a machine that may be slow.

A test waits for the event itself; a bound is there for what would hang, and no machine comes near it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["MAX_WAIT", "until", "until_async"]

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
