"""Tries a failed call again, where that is safe and there is time and budget for it."""

from __future__ import annotations

import threading
from typing import Any

from llm_cost_ops.config import RetryConfig
from llm_cost_ops.exceptions import CostOpsError, NetworkError
from llm_cost_ops.exceptions import TimeoutError as DeadlinePassed
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation
from llm_cost_ops.rpc.method import Idempotency

__all__ = ["Retry", "RetryBudget", "RetryPolicy"]

# Beyond this many doublings every back-off is at its cap; it keeps the power within a float.
_MAX_EXPONENT = 64


class RetryPolicy:
    """Decides whether to try again, and after how long. It knows no clock and waits for nothing."""

    __slots__ = ("_config",)

    def __init__(self, config: RetryConfig) -> None:
        self._config = config

    def backoff(self, retry: int) -> float:
        """Seconds before retry `retry` (from 1), before jitter."""
        config = self._config
        exponent = min(retry - 1, _MAX_EXPONENT)
        return float(min(config.initial_backoff * config.backoff_factor**exponent, config.max_backoff))

    def delay(self, attempt: int, error: CostOpsError, *, repeatable: bool, draw: float) -> float | None:
        """Seconds to wait after attempt `attempt` (from 1) failed so, or None to give up.

        `repeatable` says that a second execution does no harm. `draw` is a random number in [0, 1):
        the wait lies between half the back-off and all of it. A server's hint wins over that, up
        to max_backoff; a negative hint forbids a retry.
        """
        config = self._config
        if attempt > config.max_retries or not self._transient(error):
            return None
        if error.maybe_applied and not repeatable:
            return None
        hint = error.retry_after
        if hint is not None:
            return min(hint, config.max_backoff) if hint >= 0 else None
        backoff = self.backoff(attempt)
        return backoff * (0.5 + 0.5 * draw) if config.jitter else backoff

    def _transient(self, error: CostOpsError) -> bool:
        if error.status_code is not None:
            return error.status_code in self._config.retry_on_status
        return (
            isinstance(error, NetworkError)
            and not isinstance(error, DeadlinePassed)
            and self._config.retry_on_network_error
        )


class RetryBudget:
    """A bucket that retries draw from and successes refill, so that retries cannot storm.

    Shared by all calls of a client, across threads. Starts full with `size`; a retry takes 1, a
    success puts `refill` back.
    """

    __slots__ = ("_lock", "_refill", "_size", "_tokens")

    def __init__(self, size: float, refill: float) -> None:
        self._size = size
        self._refill = refill
        self._tokens = size
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Take one retry, if there is one."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def succeeded(self) -> None:
        """Give back for a success."""
        if self._tokens < self._size:
            with self._lock:
                self._tokens = min(self._size, self._tokens + self._refill)


class Retry:
    """Runs the continuation until it succeeds or the policy, the budget or the deadline says stop."""

    def __init__(self, config: RetryConfig) -> None:
        self._policy = RetryPolicy(config)
        self._budget = RetryBudget(config.budget, config.budget_refill)

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        policy = self._policy if context.retry is None else RetryPolicy(context.retry)
        while True:
            try:
                response = await continuation(request, context)
            except CostOpsError as error:
                await self._wait(policy, error, context)
            else:
                self._budget.succeeded()
                return response

    async def _wait(self, policy: RetryPolicy, error: CostOpsError, context: CallContext) -> None:
        repeatable = bool(context.idempotency_key) or context.method.idempotency is not Idempotency.UNKNOWN
        draw = context.runtime.random()
        delay = policy.delay(context.attempt, error, repeatable=repeatable, draw=draw)
        remaining = context.remaining()
        if delay is None or (remaining is not None and delay >= remaining) or not self._budget.spend():
            raise error
        context.waited += delay
        await context.runtime.sleep(delay)
        context.attempt += 1
