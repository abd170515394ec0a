"""UUID version 7 (RFC 9562): ids that sort by the time they were made."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["uuid7", "uuid7_bytes"]

# Per process: the fork hook makes a child start from its own random bits.
_lock = threading.Lock()
_last = 0
_random = b""
_at = 0


def _forget() -> None:
    global _lock, _last, _random, _at
    _lock = threading.Lock()
    _last = 0
    _random = b""
    _at = 0


os.register_at_fork(after_in_child=_forget)


def uuid7_int() -> int:
    """A new id as an integer; within a process each is greater than the one before.

    48 bits of milliseconds, 12 bits that count within the millisecond (RFC 9562, method 1), 62
    random bits.
    """
    global _last, _random, _at
    with _lock:
        tick = (time.time_ns() // 1_000_000) << 12
        if tick <= _last:
            tick = _last + 1
        _last = tick
        if _at >= len(_random):
            _random = os.urandom(4096)
            _at = 0
        tail = int.from_bytes(_random[_at : _at + 8], "big") & 0x3FFF_FFFF_FFFF_FFFF
        _at += 8
    return ((tick >> 12) << 80) | 0x7000_0000_0000_0000_0000 | ((tick & 0xFFF) << 64) | (1 << 63) | tail


def uuid7() -> str:
    """A new id in its canonical text form."""
    h = f"{uuid7_int():032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def uuid7_bytes() -> bytes:
    """A new id as its 16 bytes."""
    return uuid7_int().to_bytes(16, "big")
