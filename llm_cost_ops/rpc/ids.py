"""UUID version 7 (RFC 9562): ids that sort by the time they were made."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import count
from time import time_ns

from llm_cost_ops.rpc.forks import forget_in_children

__all__ = ["uuid7", "uuid7_series"]


def _generator() -> tuple[Callable[[], str], Callable[[], None]]:
    """What makes the ids of a process, and what makes it start anew. A closure: ids are made per call.

    48 bits of milliseconds, and 73 random bits of each new millisecond, from a generator of its own, so
    that seeding Python's changes nothing. Within the millisecond the last 48 bits count on (RFC 9562,
    method 2); they start below 2^47, so that they never run out.
    """
    lock = threading.Lock()
    bits = random.Random().getrandbits  # seeded by the operating system
    # A millisecond, what its ids begin with, and what counts their ends; replaced as a whole.
    current = (-1, "", count().__next__)

    def begin_anew() -> None:
        nonlocal lock, bits, current
        lock = threading.Lock()
        bits = random.Random().getrandbits
        current = (-1, "", count().__next__)

    def next_millisecond(millis: int) -> tuple[int, str, Callable[[], int]]:
        nonlocal current
        with lock:
            if millis > current[0]:
                drawn = bits(26)
                time = f"{millis >> 16:08x}-{millis & 0xFFFF:04x}"
                head = f"{time}-7{drawn >> 14:03x}-{0x8000 | drawn & 0x3FFF:04x}-"
                current = (millis, head, count(bits(47)).__next__)
            return current

    def uuid7() -> str:
        """A new id in its canonical text form; within a thread each is greater than the one before."""
        millis = time_ns() // 1_000_000
        stamp, head, following = current
        if millis > stamp:
            _, head, following = next_millisecond(millis)
        # An f-string takes longer.
        return "%s%012x" % (head, following())  # noqa: UP031

    return uuid7, begin_anew


uuid7, _begin_anew = _generator()


class _InChildren:
    """A child must not repeat its parent's random bits, nor wait for a lock that a thread of it held."""

    def forget(self) -> None:
        _begin_anew()


_in_children = _InChildren()
forget_in_children(_in_children)


def uuid7_series() -> Callable[[int, int], str]:
    """What makes ids of nanoseconds since 1970 and a number that counts up: equal ones of equal arguments.

    For who takes the time now and has the id made later. 73 random bits are the series' own; it must not
    be used on both sides of a fork.
    """
    bits = random.Random().getrandbits
    drawn, start = bits(26), bits(47)
    middle = f"-7{drawn >> 14:03x}-{0x8000 | drawn & 0x3FFF:04x}-"
    # A millisecond, and what its ids begin with; replaced as a whole.
    current = (-1, "")

    def uuid7_at(nanoseconds: int, number: int) -> str:
        nonlocal current
        millis = nanoseconds // 1_000_000
        stamp, head = current
        if millis != stamp:
            head = f"{millis >> 16:08x}-{millis & 0xFFFF:04x}{middle}"
            current = (millis, head)
        return "%s%012x" % (head, start + number)  # noqa: UP031  # faster

    return uuid7_at
