"""How long to wait before something is tried again. No clock, no randomness and no waiting of its own."""

from __future__ import annotations

__all__ = ["Backoff"]


class Backoff:
    """Exponential back-off with a ceiling, and full jitter on request.

    The wait before retry n (from 1) is `first` x `factor` ** (n - 1) seconds, at most `ceiling`.
    """

    __slots__ = ("_ceiling", "_factor", "_first")

    def __init__(self, first: float, ceiling: float, factor: float = 2.0) -> None:
        self._first = first
        self._ceiling = ceiling
        self._factor = factor

    def seconds(self, retry: int) -> float:
        """Seconds before retry `retry` (from 1), without jitter."""
        if not self._first:
            return 0.0
        try:
            seconds = self._first * self._factor ** (retry - 1)
        except OverflowError:
            return float(self._ceiling)
        return float(min(seconds, self._ceiling))

    def jittered(self, retry: int, draw: float) -> float:
        """A random part of `seconds(retry)` ("full jitter"); `draw` is a random number in [0, 1)."""
        return self.seconds(retry) * draw

    def hinted(self, seconds: float) -> float:
        """What is waited where the server says for how long: that, up to the ceiling."""
        return float(min(max(seconds, 0.0), self._ceiling))
