"""Which submits leave together, and when: the policy, without a clock, a lock, or anything that waits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["HALVED", "Gatherer"]

T = TypeVar("T", bound=Hashable)

HALVED = 256
"""From so many items on, sent or waiting, two sendings share them: one is made while another is answered."""


class Gatherer(Generic[T]):
    """At most `max_in_flight` sendings at a time; items that find no turn wait, and leave together.

    An item asks for a turn with `enter`, and waits with `add` where there is none. Who has a turn gives it
    back with `leave`, exactly once, with the number of its items, and is given those that leave next: each
    list of them has a turn.

    At most `max_records` items leave together, and `max_bytes` of them, but always one; first come, first
    served. A sending costs far more than an item in it. So while more wait than could be under way alone,
    there is one sending at a time, or two of many items, each with half of all: few large ones serve
    everybody sooner than many small ones. When nothing waits any more, there may be one more at a time with
    each that ends.
    """

    __slots__ = (
        "_bytes",
        "_limit",
        "_max_bytes",
        "_max_in_flight",
        "_max_records",
        "_waiting",
        "in_flight",
        "sent",
    )

    def __init__(self, max_records: int, max_bytes: int, max_in_flight: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._max_in_flight = max_in_flight
        self._limit = max_in_flight
        self._waiting: OrderedDict[T, int] = OrderedDict()
        self._bytes = 0  # of what waits
        self.sent = 0  # items of the sendings in flight
        self.in_flight = 0

    def __len__(self) -> int:
        """How many items wait; none do where nothing is in flight."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """The items that wait, first come, first."""
        return iter(self._waiting)

    def enter(self) -> bool:
        """Take a turn, if there is one; False when the item has to wait."""
        if self._waiting or self.in_flight >= self._limit:
            return False
        self.in_flight += 1
        self.sent += 1
        return True

    def add(self, item: T, size: int) -> None:
        """Have an item of so many bytes wait. Only after `enter` refused it: nothing else would send it."""
        self._waiting[item] = size
        self._bytes += size

    def remove(self, item: T) -> bool:
        """Take an item back; False when it does not wait any more."""
        size = self._waiting.pop(item, None)
        self._bytes -= size or 0
        return size is not None

    def lose(self, items: int) -> None:
        """So many items of a sending are not in it any more; it keeps its turn."""
        self.sent -= items

    def leave(self, items: int = 1) -> list[list[T]]:
        """Give the turn of so many items back. The items that leave next, each list of them with a turn."""
        self.in_flight -= 1
        self.sent -= items
        if not self._waiting:
            self._limit = min(self._max_in_flight, self._limit + 1)
            return []
        most = self._share()
        leaving = []
        while self._waiting and self.in_flight < self._limit:
            leaving.append(self._taken(min(most, self._max_records)))
            self.in_flight += 1
        return leaving

    def _share(self) -> int:
        """How many items may leave together now that some wait; sets how many sendings there may be."""
        waiting = len(self._waiting)
        if waiting <= self._max_in_flight:
            self._limit = self._max_in_flight
            return waiting
        total = waiting + self.sent
        if total < HALVED or self._max_in_flight == 1:
            self._limit = 1
            return waiting
        # Half of all, and not of those that wait: the sendings would become ever smaller, or all but one
        # would wait for the answer to a single one.
        self._limit = 2
        return (total + 1) // 2

    def _taken(self, most: int) -> list[T]:
        if len(self._waiting) <= most and self._bytes <= self._max_bytes:
            taken = list(self._waiting)
            self._waiting.clear()
            self._bytes = 0
        else:
            taken = self._first(most)
        self.sent += len(taken)
        return taken

    def _first(self, most: int) -> list[T]:
        taken: list[T] = []
        left = self._max_bytes
        while self._waiting and len(taken) < most:
            item, size = next(iter(self._waiting.items()))
            if taken and size > left:
                break
            left -= size
            taken.append(item)
            del self._waiting[item]
        self._bytes -= self._max_bytes - left
        return taken
