"""Stops calling a service that keeps failing, and tries it again with one call at a time."""

from __future__ import annotations

import enum
import threading

from llm_cost_ops.config import CircuitBreakerConfig
from llm_cost_ops.exceptions import CostOpsError, NetworkError, ServerError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import Req, Res, UnaryContinuation
from llm_cost_ops.rpc.status import OVERLOADED, StatusCode
from llm_cost_ops.rpc.streams import AroundStart

__all__ = ["Breaker", "BreakerState", "CircuitBreaker", "verdict"]


class BreakerState(enum.Enum):
    """What the breaker does with calls: lets them through, refuses them, or waits for one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The state and its transitions; no clock. Safe to call from many threads.

    CLOSED -> OPEN after `threshold` failures in a row. OPEN -> HALF_OPEN when a call asks
    `recovery` seconds later: that one is the probe. Its success closes the breaker, its failure
    opens it again, and a probe that ends without a verdict makes room for another.

    Every change of state starts a new generation. The ticket of a call is the generation that let
    it through, and what is told of calls of an older one changes nothing.
    """

    def __init__(self, threshold: int, recovery: float) -> None:
        self.state = BreakerState.CLOSED
        self._threshold = threshold
        self._recovery = recovery
        self._failures = 0
        self._generation = 0
        self._opened_at = 0.0
        self._lock = threading.RLock()

    def admit(self, now: float) -> int | None:
        """A ticket for a call, or None to refuse it.

        Each ticket goes back through exactly one of `succeeded`, `failed` and `released`.
        """
        if self.state is BreakerState.CLOSED:
            return self._generation
        with self._lock:
            state = BreakerState(self.state)  # another thread may have changed it since
            if state is BreakerState.CLOSED:
                return self._generation
            if state is BreakerState.HALF_OPEN or now < self._opened_at + self._recovery:
                return None
            return self._become(BreakerState.HALF_OPEN)

    def retry_in(self, now: float) -> float:
        """The seconds until the next probe may be made."""
        return max(0.0, self._opened_at + self._recovery - now)

    def succeeded(self, ticket: int) -> None:
        """The service answered."""
        if self.state is BreakerState.CLOSED and not self._failures:
            return
        with self._lock:
            if ticket != self._generation or self.state is BreakerState.OPEN:
                return
            self._failures = 0
            if self.state is BreakerState.HALF_OPEN:
                self._become(BreakerState.CLOSED)

    def failed(self, ticket: int, now: float) -> None:
        """The service failed."""
        with self._lock:
            if ticket != self._generation or self.state is BreakerState.OPEN:
                return
            self._failures += 1
            if self.state is BreakerState.HALF_OPEN or self._failures >= self._threshold:
                self._opened_at = now
                self._become(BreakerState.OPEN)

    def released(self, ticket: int) -> None:
        """The call ended without showing whether the service works, as when it was cancelled."""
        with self._lock:
            if ticket == self._generation and self.state is BreakerState.HALF_OPEN:
                self._become(BreakerState.OPEN)

    def forget(self) -> None:
        """Start again without a probe under way."""
        self._lock = threading.RLock()
        self.released(self._generation)

    def _become(self, state: BreakerState) -> int:
        self.state = state
        self._failures = 0
        self._generation += 1
        return self._generation


def verdict(error: CostOpsError) -> bool | None:
    """Whether an error shows a service that works: False when it failed, None when it was not asked.

    A service that refuses a call since it has too many works: to stop calling it would turn a short queue
    into an outage.
    """
    if error.code == OVERLOADED:
        return True
    if isinstance(error, NetworkError):
        return False
    if error.status_code is None:
        return None
    return not isinstance(error, ServerError) or error.status_code == 501


class CircuitBreaker(AroundStart):
    """Refuses calls while the breaker is open: ServerError UNAVAILABLE with `retry_after`.

    A stream counts by how it begins.
    """

    def __init__(self, config: CircuitBreakerConfig) -> None:
        self.breaker = Breaker(config.failure_threshold, config.recovery_time)
        forget_in_children(self)

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        now = context.runtime.monotonic()
        if context.deadline is not None and context.deadline <= now:
            return await continuation(request, context)  # it is refused before anything is sent
        breaker = self.breaker
        ticket = breaker.admit(now)
        if ticket is None:
            raise self._refusal(now, context)
        try:
            response = await continuation(request, context)
        except CostOpsError as error:
            # One of several servers failed, and is avoided: the service as a whole still works.
            elsewhere = context.route is not None and context.route.elsewhere
            works = None if elsewhere else verdict(error)
            if works is None:
                breaker.released(ticket)
            elif works:
                breaker.succeeded(ticket)
            else:
                breaker.failed(ticket, context.runtime.monotonic())
            raise
        except BaseException:
            breaker.released(ticket)
            raise
        breaker.succeeded(ticket)
        return response

    def _refusal(self, now: float, context: CallContext) -> ServerError:
        wait = self.breaker.retry_in(now)
        until = f"for another {wait:.1f} s" if wait else "until the probe under way succeeds"
        return ServerError(
            f"the circuit breaker is open {until}: the last calls all failed",
            code="CIRCUIT_OPEN",
            attempts=context.attempt - 1,
            waited=context.waited,
            retryable=True,
            retry_after=wait,
            grpc_code=StatusCode.UNAVAILABLE,
        )

    def forget(self) -> None:
        """In a forked child: the probe under way is the parent's."""
        self.breaker.forget()
