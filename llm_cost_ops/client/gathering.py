"""Which submits leave together, and when: the policy, without a clock, a lock, or anything that waits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Gatherer"]

T = TypeVar("T", bound=Hashable)

HALVED = 256
"""From so many items that wait on, two sendings share them, so that one is made while another is answered."""


class Gatherer(Generic[T]):
    """At most `max_in_flight` sendings at a time; items that find no turn wait, and leave together.

    An item asks for a turn with `enter`, and waits with `add` where there is none. Who has a turn gives it
    back with `leave`, exactly once, and gets the items that go with it next: then the turn is theirs.

    Only items of one group leave together, at most `max_records` of them and `max_bytes`, but always one;
    first come, first served. Groups take turns.

    A sending costs far more than an item in it. So once more leave together than could have been under way
    alone, there is one sending at a time, or two of many items, until nothing waits any more: few large ones
    serve everybody sooner than many small ones.
    """

    __slots__ = ("_groups", "_limit", "_max_bytes", "_max_in_flight", "_max_records", "in_flight")

    def __init__(self, max_records: int, max_bytes: int, max_in_flight: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._max_in_flight = max_in_flight
        self._groups: OrderedDict[Hashable, OrderedDict[T, int]] = OrderedDict()
        self._limit = max_in_flight
        self.in_flight = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._groups

    def enter(self) -> bool:
        """Take a turn, if there is one; False when the item has to wait."""
        if self.in_flight >= self._limit:
            return False
        self.in_flight += 1
        return True

    def add(self, item: T, group: Hashable, size: int) -> None:
        """Have an item of so many bytes wait. Only after `enter` refused it: nothing else would send it."""
        self._groups.setdefault(group, OrderedDict())[item] = size

    def remove(self, item: T, group: Hashable) -> bool:
        """Take an item back; False when it does not wait any more."""
        waiting = self._groups.get(group)
        if waiting is None or waiting.pop(item, None) is None:
            return False
        if not waiting:
            del self._groups[group]
        return True

    def leave(self) -> list[T]:
        """Give a turn back. What comes back has it next; it is free when nothing does."""
        if not self._groups:
            self._limit = self._max_in_flight
        elif self.in_flight <= self._limit:
            taken = self._taken()
            few = len(taken) <= self._max_in_flight
            self._limit = (
                self._max_in_flight if few else min(self._max_in_flight, self._side_by_side(len(taken)))
            )
            return taken
        self.in_flight -= 1
        return []

    @staticmethod
    def _side_by_side(size: int) -> int:
        """How many sendings of so many items there are at a time."""
        return 2 if size >= HALVED // 2 else 1

    def _taken(self) -> list[T]:
        """The items that leave together next."""
        group, waiting = next(iter(self._groups.items()))
        limit = self._max_records
        if self._max_in_flight > 1 and len(waiting) >= HALVED:
            limit = min(limit, (len(waiting) + 1) // 2)
        taken: list[T] = []
        left = self._max_bytes
        while waiting and len(taken) < limit:
            item, size = next(iter(waiting.items()))
            if taken and size > left:
                break
            left -= size
            taken.append(item)
            del waiting[item]
        if waiting:
            self._groups.move_to_end(group)
        else:
            del self._groups[group]
        return taken
