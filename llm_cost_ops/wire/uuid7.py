"""UUID version 7 (RFC 9562): ids that sort by the time they were made."""

from __future__ import annotations

import os
import random
import threading
import time

__all__ = ["uuid7"]


class _Generator:
    """The ids of one process: each is greater than the one before.

    48 bits of milliseconds, 12 bits that count within the millisecond (RFC 9562, method 1), 62
    random bits from a generator of its own, so that seeding Python's changes nothing.
    """

    __slots__ = ("_last", "_lock", "_prefix", "_random")

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Start with a free lock and other random bits."""
        self._lock = threading.Lock()
        self._last = 0
        self._random = random.Random().getrandbits  # seeded by the operating system
        # The milliseconds and their text: one object, so that threads see them together.
        self._prefix = (-1, "")

    def tick(self) -> int:
        """Milliseconds and count, as one number."""
        with self._lock:
            tick = (time.time_ns() // 1_000_000) << 12
            if tick <= self._last:
                tick = self._last + 1
            self._last = tick
        return tick

    def text(self) -> str:
        tick = self.tick()
        millis = tick >> 12
        prefix = self._prefix
        if prefix[0] != millis:
            self._prefix = prefix = (millis, f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-7")
        tail = self._random(62)
        return f"{prefix[1]}{tick & 0xFFF:03x}-{0x8000 | tail >> 48:04x}-{tail & 0xFFFF_FFFF_FFFF:012x}"


_generator = _Generator()

# A child must not repeat its parent's random bits, nor wait for a lock that a thread of it held.
os.register_at_fork(after_in_child=_generator.begin_anew)


def uuid7() -> str:
    """A new id in its canonical text form."""
    return _generator.text()
