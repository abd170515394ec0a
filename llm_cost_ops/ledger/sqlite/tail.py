"""What the newest rows add to the sums, as far as it is known without reading them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

__all__ = ["Added", "Tail"]

Added = tuple[int, int, Sequence[int]]
"""A series, a quarter of an hour, and what rows add there: as in `sums.add`."""


class Tail:
    """What the rows from `first` to `last` add to the sums: those that batches of this process added, one
    behind the other. Whether anybody else wrote in between, the numbers of the rows tell.
    """

    __slots__ = ("_sums", "first", "last")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Know of no rows."""
        self.first, self.last = 1, 0
        self._sums: dict[tuple[int, int], list[int]] = {}

    def add(self, first: int, last: int, added: Iterable[Added]) -> None:
        """Rows of these numbers were added; of those before them only what is known without a gap stays."""
        if first != self.last + 1:
            self.clear()
            self.first = first
        self.last = last
        sums = self._sums
        for series, quarter, amounts in added:
            found = sums.get((series, quarter))
            if found is None:
                sums[series, quarter] = list(amounts)
            else:
                found[:] = map(operator.add, found, amounts)

    def added(self) -> Iterable[Added]:
        """What the rows add."""
        return [(series, quarter, amounts) for (series, quarter), amounts in self._sums.items()]
