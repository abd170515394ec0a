"""UUID version 7 (RFC 9562): ids that sort by the time they were made."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from time import time_ns

__all__ = ["uuid7"]


def _generator() -> tuple[Callable[[], str], Callable[[], None]]:
    """What makes the ids of a process, and what makes it start anew. A closure: ids are made per call.

    48 bits of milliseconds, and 73 random bits of each new millisecond, from a generator of its own, so
    that seeding Python's changes nothing. Within the millisecond the last 48 bits count on (RFC 9562,
    method 2); they start below 2^47, so that they never run out.
    """
    lock = threading.Lock()
    bits = random.Random().getrandbits  # seeded by the operating system
    stamp, head, count = -1, "", 0

    def begin_anew() -> None:
        nonlocal lock, bits, stamp
        lock = threading.Lock()
        bits = random.Random().getrandbits
        stamp = -1

    def uuid7() -> str:
        """A new id in its canonical text form; within a process each is greater than the one before."""
        nonlocal stamp, head, count
        with lock:
            millis = time_ns() // 1_000_000
            if millis > stamp:
                stamp = millis
                drawn = bits(26)
                time = f"{millis >> 16:08x}-{millis & 0xFFFF:04x}"
                head = f"{time}-7{drawn >> 14:03x}-{0x8000 | drawn & 0x3FFF:04x}-"
                count = bits(47)
            else:
                count += 1
            # An f-string takes longer.
            return "%s%012x" % (head, count)  # noqa: UP031

    return uuid7, begin_anew


uuid7, _begin_anew = _generator()

# A child must not repeat its parent's random bits, nor wait for a lock that a thread of it held.
os.register_at_fork(after_in_child=_begin_anew)
