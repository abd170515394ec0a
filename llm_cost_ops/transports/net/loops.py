"""What a transport has for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import TypeVar

__all__ = ["of_running_loop"]

T = TypeVar("T")


def of_running_loop(held: MutableMapping[asyncio.AbstractEventLoop, T], make: Callable[[], T]) -> T:
    """What is held for the running loop, made where there is none yet.

    What was held for loops that are closed is let go then: its sockets hold their loops, so that neither
    would be collected. Loops of several threads may ask at the same time.
    """
    loop = asyncio.get_running_loop()
    found = held.get(loop)
    if found is None:
        for gone in [known for known in list(held) if known.is_closed()]:
            held.pop(gone, None)
        found = held[loop] = make()
    return found
