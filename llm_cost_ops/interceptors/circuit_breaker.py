"""Stops calling a service that keeps failing, and tries it again with one call at a time."""

from __future__ import annotations

import enum
import threading
from typing import Any

from llm_cost_ops.config import CircuitBreakerConfig
from llm_cost_ops.exceptions import CostOpsError, NetworkError, ServerError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation
from llm_cost_ops.rpc.status import StatusCode

__all__ = ["Breaker", "BreakerState", "CircuitBreaker"]


class BreakerState(enum.Enum):
    """What the breaker does with calls: lets them through, refuses them, or lets one through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The state and its transitions; no clock. Safe to call from many threads.

    CLOSED -> OPEN after `threshold` failures in a row. OPEN -> HALF_OPEN `recovery` seconds later,
    when one probe is admitted. Its success closes the breaker, its failure opens it again, and a
    probe that ends without a verdict makes room for another.
    """

    __slots__ = ("_failures", "_lock", "_opened_at", "_probing", "_recovery", "_threshold", "state")

    def __init__(self, threshold: int, recovery: float) -> None:
        self.state = BreakerState.CLOSED
        self._threshold = threshold
        self._recovery = recovery
        self._failures = 0
        self._opened_at = 0.0
        self._probing = False
        self._lock = threading.Lock()

    def admit(self, now: float) -> float | None:
        """None to let a call through, else the seconds until it is worth asking again.

        Each call let through must end in exactly one of `succeeded`, `failed` and `released`.
        """
        if self.state is BreakerState.CLOSED:
            return None
        with self._lock:
            state = BreakerState(self.state)  # another thread may have changed it since
            if state is BreakerState.CLOSED:
                return None
            wait = self._opened_at + self._recovery - now
            if state is BreakerState.OPEN and wait > 0:
                return wait
            if self._probing:
                return max(wait, 0.0)
            self.state = BreakerState.HALF_OPEN
            self._probing = True
            return None

    def succeeded(self) -> None:
        """The service answered."""
        if self.state is BreakerState.CLOSED and not self._failures:
            return
        with self._lock:
            if self.state is BreakerState.OPEN:
                return  # a call from before it opened
            self.state = BreakerState.CLOSED
            self._failures = 0
            self._probing = False

    def failed(self, now: float) -> None:
        """The service failed."""
        with self._lock:
            if self.state is BreakerState.OPEN:
                return
            self._failures += 1
            if self.state is BreakerState.HALF_OPEN or self._failures >= self._threshold:
                self.state = BreakerState.OPEN
                self._opened_at = now
                self._probing = False
                self._failures = 0

    def released(self) -> None:
        """The call ended without telling how the service is, as when it was cancelled."""
        with self._lock:
            self._probing = False


class CircuitBreaker:
    """Refuses calls while the breaker is open: ServerError UNAVAILABLE with `retry_after`."""

    def __init__(self, config: CircuitBreakerConfig) -> None:
        self.breaker = Breaker(config.failure_threshold, config.recovery_time)

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        wait = self.breaker.admit(context.runtime.monotonic())
        if wait is not None:
            raise ServerError(
                f"the circuit breaker is open for another {wait:.1f} s: the last calls all failed",
                code="CIRCUIT_OPEN",
                attempts=context.attempt,
                retryable=True,
                retry_after=wait,
                grpc_code=StatusCode.UNAVAILABLE,
            )
        try:
            response = await continuation(request, context)
        except CostOpsError as error:
            if isinstance(error, ServerError | NetworkError):
                self.breaker.failed(context.runtime.monotonic())
            else:
                self.breaker.succeeded()  # it answered, if with a refusal
            raise
        except BaseException:
            self.breaker.released()
            raise
        self.breaker.succeeded()
        return response
