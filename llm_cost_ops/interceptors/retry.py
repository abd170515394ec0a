"""Tries a failed call again, where that is safe and there is time and budget for it."""

from __future__ import annotations

import threading
from typing import NamedTuple

from llm_cost_ops.config import RetryConfig
from llm_cost_ops.exceptions import CostOpsError, NetworkError
from llm_cost_ops.exceptions import TimeoutError as DeadlinePassed
from llm_cost_ops.rpc.backoff import Backoff
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import Req, Res, UnaryContinuation
from llm_cost_ops.rpc.method import Idempotency
from llm_cost_ops.rpc.status import OVERLOADED, RESPONSE_TOO_LARGE, UNTRUSTED_CERTIFICATE
from llm_cost_ops.rpc.streams import AroundStart

__all__ = ["Retry", "RetryBudget", "RetryPolicy"]

# Reasons that do not pass by waiting, whatever status they come with.
_FINAL = frozenset({RESPONSE_TOO_LARGE, UNTRUSTED_CERTIFICATE, "STORAGE_UNUSABLE"})


class RetryPolicy:
    """Decides whether to try again, and after how long. It knows no clock and waits for nothing."""

    def __init__(self, config: RetryConfig) -> None:
        self._config = config
        self._backoff = Backoff(config.initial_backoff, config.max_backoff, config.backoff_factor)

    def delay(self, attempt: int, error: CostOpsError, *, repeatable: bool, draw: float) -> float | None:
        """Seconds to wait after attempt `attempt` (from 1) failed so, or None to give up.

        `repeatable` says that a second execution does no harm. `draw` is a random number in [0, 1):
        with jitter the wait is that part of the back-off ("full jitter"). A server's hint wins over
        that, up to max_backoff; a negative hint forbids a retry, and so does one that is no number.
        """
        config = self._config
        if attempt > config.max_retries or not config.max_retries or not self._transient(error):
            return None
        if error.maybe_applied and not repeatable:
            return None
        hint = error.retry_after
        if hint is not None:
            return self._backoff.hinted(hint) if hint >= 0 else None
        return self._backoff.jittered(attempt, draw) if config.jitter else self._backoff.seconds(attempt)

    def _transient(self, error: CostOpsError) -> bool:
        if error.code in _FINAL:
            return False
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

    def __init__(self, size: float, refill: float) -> None:
        self._size = size
        self._refill = refill
        self._tokens = size
        self._lock = threading.RLock()

    @property
    def left(self) -> float:
        """How many retries there are now."""
        return self._tokens

    def spend(self) -> bool:
        """Take one retry, if there is one."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def succeeded(self) -> None:
        """Put back a part of a retry after a success."""
        if self._tokens < self._size:
            self._add(self._refill)

    def unspent(self) -> None:
        """Give back a retry that was not made, because its call was cancelled."""
        self._add(1)

    def forget(self) -> None:
        """In a forked child: make a new lock, as another thread of the parent may hold the old one."""
        self._lock = threading.RLock()

    def _add(self, tokens: float) -> None:
        with self._lock:
            self._tokens = min(self._size, self._tokens + tokens)


def is_refusal(error: CostOpsError) -> bool:
    """Whether the server had too many calls, did nothing with this one, and says when to come again."""
    return error.code == OVERLOADED and error.retry_after is not None


class Wait(NamedTuple):
    """What is between two attempts: so many seconds, and whether the budget was charged for them."""

    seconds: float
    charged: bool


class Retry(AroundStart):
    """Runs the continuation until it succeeds or the policy, the budget or the deadline says stop.

    What may have been applied once stays so: the last error says `maybe_applied` for all attempts.
    A call's own `retry` takes the policy's place, but draws on the same budget. A stream is tried again
    until its first message came through.

    An attempt that the server refused since it had too many calls counts neither for the policy nor for
    the budget: the transport sends fewer at a time after it (see CallQueue), so that these can't storm.
    Where a server failed while others work, the next attempt goes to one of them without a wait, and not on
    the budget: the server that failed is avoided from then on, so that these can't storm either.
    """

    def __init__(self, config: RetryConfig, budget: RetryBudget | None = None) -> None:
        self._policy = RetryPolicy(config)
        self.budget = budget or RetryBudget(config.budget, config.budget_refill)
        forget_in_children(self)

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        maybe_applied = False
        while True:
            try:
                response = await continuation(request, context)
            except CostOpsError as error:
                maybe_applied = error.maybe_applied = error.maybe_applied or maybe_applied
                wait = self.wait_after(error, context)
                if wait is None:
                    raise
            else:
                self.budget.succeeded()
                return response
            await self.wait(wait, context)

    async def wait(self, wait: Wait, context: CallContext) -> None:
        """Wait before the next attempt."""
        try:
            await context.runtime.sleep(wait.seconds)
        except BaseException:
            if wait.charged:
                self.budget.unspent()
            raise
        context.waited += wait.seconds
        context.attempt += 1

    def wait_after(self, error: CostOpsError, context: CallContext) -> Wait | None:
        """How long to wait after a failure; None to give up."""
        policy = self._policy
        if context.retry is not None:
            if not context.retry:
                return None
            policy = RetryPolicy(context.retry)
        refused = is_refusal(error)
        context.refusals += refused
        repeatable = bool(context.idempotency_key) or context.method.idempotency is not Idempotency.UNKNOWN
        draw = context.runtime.random()
        counted = context.attempt - context.refusals
        delay = policy.delay(counted, error, repeatable=repeatable, draw=draw)
        elsewhere = context.route is not None and context.route.elsewhere
        if delay is not None and elsewhere:
            delay = 0.0
        remaining = context.remaining()
        if delay is None or (remaining is not None and delay >= remaining):
            return None
        charged = not (refused or elsewhere)
        if charged and not self.budget.spend():
            return None
        return Wait(delay, charged)

    def forget(self) -> None:
        """In a forked child: make new locks, as other threads of the parent may hold the old ones."""
        self.budget.forget()
