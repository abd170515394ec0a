"""Keeps a client under a rate: calls beyond it wait their turn."""

from __future__ import annotations

import threading
from typing import Any

from llm_cost_ops.config import RateLimitConfig
from llm_cost_ops.exceptions import CostOpsError, RateLimitError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation

__all__ = ["RateLimit", "TokenBucket"]


class TokenBucket:
    """A bucket of `capacity` tokens that fills at `rate` a second.

    It decides and never waits: `reserve` hands out places in line, so callers who wait for what
    they are told are served in the order in which they asked. Safe to call from many threads.
    """

    __slots__ = ("_at", "_capacity", "_lock", "_rate", "_tokens")

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self._capacity = capacity
        self._rate = rate
        self._tokens = capacity
        self._at = now
        self._lock = threading.Lock()

    def reserve(self, now: float, longest: float | None = None) -> tuple[bool, float]:
        """Take a token, from the future if need be: (True, seconds until it is there).

        When that would be more than `longest` seconds, nothing is taken: (False, the seconds).
        """
        with self._lock:
            self._fill(now)
            wait = max(0.0, (1 - self._tokens) / self._rate, self._at - now)
            if longest is not None and wait > longest:
                return False, wait
            self._tokens -= 1
            return True, wait

    def give_back(self) -> None:
        """Return a token whose call never went out."""
        with self._lock:
            self._tokens = min(self._capacity, self._tokens + 1)

    def pause(self, now: float, seconds: float) -> None:
        """Hand out nothing for some seconds, and start from an empty bucket after them."""
        with self._lock:
            self._fill(now)
            self._tokens = min(self._tokens, 0.0)
            self._at = max(self._at, now + seconds)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
            self._at = now


class RateLimit:
    """Makes each attempt wait for its token; RateLimitError at once when the deadline is sooner."""

    # The longest pause that a server's hint can cause, in seconds.
    LONGEST_PAUSE = 300.0

    def __init__(self, config: RateLimitConfig) -> None:
        self._config = config
        self._bucket: TokenBucket | None = None
        self._lock = threading.Lock()

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        now = context.runtime.monotonic()
        bucket = self._bucket or self._make(now)
        remaining = context.remaining()
        taken, wait = bucket.reserve(now, remaining)
        if not taken:
            raise RateLimitError(
                f"the client's own rate limit would hold the call for {wait:.1f} s, "
                f"but its deadline is in {max(0.0, remaining or 0.0):.1f} s",
                limit=self._config.max_requests,
                attempts=context.attempt,
                retry_after=wait,
            )
        if wait > 0:
            context.waited += wait
            try:
                await context.runtime.sleep(wait)
            except BaseException:
                bucket.give_back()
                raise
        if not self._config.adaptive:
            return await continuation(request, context)
        return await self._adapting(bucket, continuation, request, context)

    def _make(self, now: float) -> TokenBucket:
        # The bucket starts with the first call, on the clock of the client's runtime.
        with self._lock:
            if self._bucket is None:
                config = self._config
                rate = config.max_requests / config.time_window
                self._bucket = TokenBucket(config.max_requests, rate, now)
            return self._bucket

    async def _adapting(
        self, bucket: TokenBucket, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        try:
            response = await continuation(request, context)
        except CostOpsError as error:
            if isinstance(error, RateLimitError) and error.retry_after:
                seconds = min(max(0.0, error.retry_after), self.LONGEST_PAUSE)
                bucket.pause(context.runtime.monotonic(), seconds)
            raise
        told = context.response_metadata
        if told is not None and told.get("x-ratelimit-remaining") == "0":
            reset = _seconds(told.get("x-ratelimit-reset"), context.runtime.now())
            if reset is not None:
                bucket.pause(context.runtime.monotonic(), min(reset, self.LONGEST_PAUSE))
        return response


def _seconds(text: str, now: float) -> float | None:
    """X-RateLimit-Reset as seconds from now: servers send either that or a time since 1970."""
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        return None
    value = float(text)
    return max(0.0, value - now) if value > 1e9 else value
