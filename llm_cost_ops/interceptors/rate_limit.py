"""Keeps a client under a rate: calls beyond it wait their turn."""

from __future__ import annotations

import threading

from llm_cost_ops.config import RateLimitConfig
from llm_cost_ops.exceptions import CostOpsError, RateLimitError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.fifo import Fifo, RuntimeTurn
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import Req, Res, UnaryContinuation
from llm_cost_ops.rpc.streams import AroundStart

__all__ = ["RateLimit", "TokenBucket"]

# The part of a token that rounding may take; without it a caller could wait for ever smaller rests.
_ROUNDING = 1e-6


class TokenBucket:
    """A bucket of `capacity` tokens that fills at `rate` a second. No clock, no lock, no waiting.

    In any `t` seconds it hands out at most `capacity + rate * t` tokens.
    """

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self._capacity = float(capacity)
        self._rate = rate
        self._tokens = self._capacity
        self._at = now
        self._from = now

    def take(self, now: float) -> float:
        """0.0 when a token was there and is taken, else the seconds until one will be."""
        wait = self.seconds_until(1, now)
        if not wait:
            self._tokens -= 1
        return wait

    def seconds_until(self, tokens: int, now: float) -> float:
        """The seconds until the bucket has so many tokens, if none is taken meanwhile."""
        now = self._fill(now)
        closed = max(0.0, self._from - now)
        missing = tokens - self._tokens
        return closed + (missing / self._rate if missing > _ROUNDING else 0.0)

    def pause(self, now: float, seconds: float) -> None:
        """Hand out nothing for some seconds, and start from an empty bucket after them."""
        self._from = max(self._from, self._fill(now) + seconds)
        self._tokens = 0.0

    def _fill(self, now: float) -> float:
        now = max(now, self._at)  # threads may read the clock in another order than they come here
        start = max(self._at, self._from)
        if now > start:
            self._tokens = min(self._capacity, self._tokens + (now - start) * self._rate)
        self._at = now
        return now


class RateLimit(AroundStart):
    """Makes each attempt wait for its token; RateLimitError at once when the deadline is sooner.

    Callers stand in a line in the order in which they came. Only the first watches the clock; who
    leaves, with a token or because it gave up, lets the next one know.
    """

    # The longest pause that a server's hint can cause, in seconds.
    MAX_PAUSE = 300.0

    def __init__(self, config: RateLimitConfig) -> None:
        self._config = config
        self._bucket: TokenBucket | None = None
        # Who watches the clock is no more in the line.
        self._line = Fifo[RuntimeTurn]()
        self._watched = False
        self._lock = threading.RLock()
        forget_in_children(self)

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        if context.admitted:
            context.admitted = False
        else:
            await self.admit(context)
        if not self._config.adaptive:
            return await continuation(request, context)
        return await self._adapting(continuation, request, context)

    async def admit(self, context: CallContext) -> None:
        """Take a token, and wait for it where there is none."""
        now = context.runtime.monotonic()
        turn = self._enter(now, context)
        if turn is not None:
            try:
                await self._wait(turn, context)
            finally:
                self._leave(turn)
                context.waited += context.runtime.monotonic() - now

    def _enter(self, now: float, context: CallContext) -> RuntimeTurn | None:
        """Take a token, or else a place in the line, whose turn to watch the clock is granted at its head."""
        with self._lock:
            bucket = self._bucket
            if bucket is None:
                # The bucket starts with the first call, on the clock of the client's runtime.
                rate = self._config.max_requests / self._config.time_window
                bucket = self._bucket = TokenBucket(self._config.max_requests, rate, now)
            if not self._watched and not bucket.take(now):
                return None
            wait = bucket.seconds_until(len(self._line) + self._watched + 1, now)
            self._refuse_if_late(wait, context)
            turn = RuntimeTurn()
            self._line.join(turn)
            if not self._watched:
                self._watched = self._line.grant_next()
            return turn

    async def _wait(self, turn: RuntimeTurn, context: CallContext) -> None:
        runtime = context.runtime
        if not turn.granted:
            try:
                await runtime.wait(turn.future, context.remaining())
            except TimeoutError:
                self._refuse_if_late(float("inf"), context)
        while wait := self._take(runtime.monotonic()):
            self._refuse_if_late(wait, context)
            await runtime.sleep(wait)

    def _take(self, now: float) -> float:
        with self._lock:
            assert self._bucket is not None
            return self._bucket.take(now)

    def _leave(self, turn: RuntimeTurn) -> None:
        with self._lock:
            if self._line.withdraw(turn):
                self._watched = self._line.grant_next()

    def _refuse_if_late(self, wait: float, context: CallContext) -> None:
        remaining = context.remaining()
        if remaining is None or wait <= remaining:
            return
        raise RateLimitError(
            f"the client's own rate limit ({self._config.max_requests} calls in "
            f"{self._config.time_window:g} s) would hold the call beyond its deadline",
            code="RATE_LIMITED",
            limit=self._config.max_requests,
            attempts=context.attempt - 1,
            waited=context.waited,
            retryable=True,
            retry_after=None if wait == float("inf") else wait,
        )

    async def _adapting(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        try:
            response = await continuation(request, context)
        except CostOpsError as error:
            if isinstance(error, RateLimitError) and error.retry_after:
                self._pause(error.retry_after, context)
            raise
        answered = context.response_metadata
        if answered is not None and answered.get("x-ratelimit-remaining") == "0":
            reset = _seconds(answered.get("x-ratelimit-reset"), context.runtime.now())
            if reset is not None:
                self._pause(reset, context)
        return response

    def _pause(self, seconds: float, context: CallContext) -> None:
        if seconds > 0:
            with self._lock:
                assert self._bucket is not None
                self._bucket.pause(context.runtime.monotonic(), min(seconds, self.MAX_PAUSE))

    def forget(self) -> None:
        """In a forked child: forget the calls that wait in the parent."""
        self._line, self._watched = Fifo[RuntimeTurn](), False
        self._lock = threading.RLock()


def _seconds(text: str, now: float) -> float | None:
    """X-RateLimit-Reset as seconds from now: servers send either that or a time since 1970."""
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        return None
    value = float(text)
    return max(0.0, value - now) if value > 1e9 else value
