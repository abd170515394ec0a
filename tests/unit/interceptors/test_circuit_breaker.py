from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llm_cost_ops import (
    AuthenticationError,
    CircuitBreakerConfig,
    NetworkError,
    NotFoundError,
    RateLimitConfig,
    RateLimitError,
    ServerError,
    exceptions,
)
from llm_cost_ops.interceptors.circuit_breaker import Breaker, BreakerState, CircuitBreaker
from llm_cost_ops.interceptors.rate_limit import RateLimit
from llm_cost_ops.testing import Fault, ScriptedTransport
from tests.calls import DONE, async_channel, put, sync_channel
from tests.waiting import in_threads

CONFIG = CircuitBreakerConfig(failure_threshold=3, recovery_time=30)
RECOVERY, THRESHOLD = 10.0, 3


class Model:
    """The breaker in words: who may go, and what a call tells about the service."""

    def __init__(self) -> None:
        self.row = 0
        self.opened: float | None = None
        self.probe: int | None = None
        self.current: set[int] = set()

    def may_access(self, now: float) -> bool:
        return self.opened is None or (self.probe is None and now >= self.opened + RECOVERY)

    def begins(self, call: int) -> None:
        if self.opened is None:
            self.current.add(call)
        else:
            self.probe = call

    def ends(self, call: int, outcome: str, now: float) -> None:
        if call == self.probe:
            self.probe = None
            if outcome == "failed":
                self.opened = now
            elif outcome == "succeeded":
                self.opened, self.row, self.current = None, 0, set()
        elif call in self.current and self.opened is None:
            self.row = self.row + 1 if outcome == "failed" else 0 if outcome == "succeeded" else self.row
            if self.row >= THRESHOLD:
                self.opened, self.current = now, set()


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.model, self.now = Breaker(THRESHOLD, RECOVERY), Model(), 0.0
        self.under_way: dict[int, int] = {}
        self.calls = 0

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.999, 10.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        expected = self.model.may_access(self.now)
        ticket = self.breaker.admit(self.now)
        assert (ticket is not None) == expected
        if ticket is None:
            assert self.breaker.retry_in(self.now) >= 0
            return
        self.calls += 1
        self.model.begins(self.calls)
        self.under_way[self.calls] = ticket

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), outcome=st.sampled_from(["failed", "failed", "succeeded", "released"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        call = data.draw(st.sampled_from(sorted(self.under_way)))
        ticket = self.under_way.pop(call)
        self.model.ends(call, outcome, self.now)
        if outcome == "failed":
            self.breaker.failed(ticket, self.now)
        else:
            getattr(self.breaker, outcome)(ticket)

    @invariant()
    def states_agree(self) -> None:
        model = self.model
        state = "closed" if model.opened is None else "half_open" if model.probe is not None else "open"
        assert self.breaker.state.value == state


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.slow
@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="minutes; set LONG_TESTS=1")
class TestBreakerLong(BreakerMachine.TestCase):
    settings = settings(max_examples=5000, stateful_step_count=60, deadline=None)


def test_it_opens_after_failures_in_a_row_and_probes_with_one_call() -> None:
    breaker = CircuitBreaker(CONFIG)
    channel = sync_channel([Fault(503), DONE, Fault(503), Fault("network"), Fault(500), DONE, DONE], breaker)
    runtime = channel.core.runtime
    for expected in (ServerError, None, ServerError, NetworkError, ServerError):
        if expected is None:
            put(channel)
        else:
            with pytest.raises(expected):
                put(channel)
    with pytest.raises(ServerError, match=r"another 30\.0 s") as caught:
        put(channel)
    error = caught.value
    assert (error.code, error.retry_after, error.attempts, error.retryable) == ("CIRCUIT_OPEN", 30, 0, True)
    assert error.status_code is None
    runtime.advance(30)
    assert put(channel) is DONE
    assert breaker.breaker.state is BreakerState.CLOSED
    assert len(channel.core.transport.calls) == 6


def test_refusals_of_the_server_show_that_it_works() -> None:
    breaker = CircuitBreaker(CONFIG)
    channel = sync_channel([Fault(404), Fault(401), Fault(501), Fault(429)] * 3, breaker)
    for _ in range(3):
        for kind in (NotFoundError, AuthenticationError, ServerError, RateLimitError):
            with pytest.raises(kind):
                put(channel)
    assert breaker.breaker.state is BreakerState.CLOSED


def test_what_the_client_refuses_itself_tells_nothing() -> None:
    breaker = CircuitBreaker(CONFIG)
    channel = sync_channel([Fault(503)] * 3 + [DONE], breaker, RateLimit(RateLimitConfig(max_requests=3)))
    for _ in range(3):
        with pytest.raises(ServerError):
            put(channel)
    channel.core.runtime.advance(30)
    bucket_empty = RateLimit(RateLimitConfig(max_requests=1, time_window=1e6))
    probing = sync_channel([DONE, DONE], breaker, bucket_empty, runtime=channel.core.runtime)
    state = bucket_empty._enter(channel.core.runtime.monotonic(), _context(channel))
    assert state is None, "the only token is taken"
    with pytest.raises(RateLimitError):
        put(probing, timeout=1)
    assert breaker.breaker.state is BreakerState.OPEN, "no verdict: the next call may probe"
    assert put(channel) is DONE


def _context(channel: Any) -> Any:
    return channel.core.transport.calls[0].context


def test_a_deadline_that_has_passed_before_the_call_tells_nothing() -> None:
    breaker = CircuitBreaker(CONFIG)
    channel = sync_channel([DONE] * 9, breaker)
    for _ in range(5):
        with pytest.raises(exceptions.TimeoutError):
            put(channel, timeout=0)
    assert breaker.breaker.state is BreakerState.CLOSED


async def test_one_probe_at_a_time_released_when_cancelled() -> None:
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1, recovery_time=1))
    hanging = asyncio.Event()

    async def hang(request: Any, context: Any) -> None:
        hanging.set()
        await asyncio.Event().wait()

    channel = async_channel(ScriptedTransport([Fault(503), hang, DONE]), breaker)
    with pytest.raises(ServerError):
        await put(channel)
    channel.core.runtime.advance(1)
    probe = asyncio.ensure_future(put(channel))
    await hanging.wait()
    for _ in range(3):
        with pytest.raises(ServerError, match="probe under way"):
            await put(channel)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert await put(channel) is DONE


def test_fifty_threads_get_one_probe() -> None:
    breaker = Breaker(1, 1.0)
    ticket = breaker.admit(0.0)
    assert ticket is not None
    breaker.failed(ticket, 0.0)
    admitted: list[int] = []
    start = threading.Barrier(50)

    def ask() -> None:
        start.wait()
        found = breaker.admit(5.0)
        if found is not None:
            admitted.append(found)

    in_threads([ask] * 50)
    assert len(admitted) == 1


def test_a_forked_child_has_no_probe_of_its_parents() -> None:
    interceptor = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1, recovery_time=1))
    breaker = interceptor.breaker
    breaker.failed(breaker.admit(0.0) or 0, 0.0)
    assert breaker.admit(2.0) is not None
    assert breaker.admit(2.0) is None
    interceptor.forget()
    assert breaker.admit(2.0) is not None


def test_a_server_that_refuses_a_call_since_it_has_too_many_does_not_open_the_breaker() -> None:
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=2, recovery_time=1))
    refusal = Fault(503, error_code="OVERLOADED", retry_after=0.1)
    channel = sync_channel([Fault(503), refusal, refusal, refusal, Fault(503), DONE], breaker)
    for refused in (False, True, True, True):
        with pytest.raises(ServerError) as caught:
            put(channel)
        assert (caught.value.code == "OVERLOADED") is refused
    assert breaker.breaker.state is BreakerState.CLOSED
    with pytest.raises(ServerError):
        put(channel)
    assert breaker.breaker.state is BreakerState.CLOSED, (
        "a refusal ends a row of failures: the server answered"
    )
    assert put(channel) is DONE


def test_a_probe_that_is_refused_since_the_server_has_too_many_calls_closes_the_breaker() -> None:
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1, recovery_time=5))
    refusal = Fault(503, error_code="OVERLOADED", retry_after=0.1)
    channel = sync_channel([Fault(503), refusal, DONE], breaker)
    with pytest.raises(ServerError):
        put(channel)
    assert breaker.breaker.state is BreakerState.OPEN
    channel.core.runtime.advance(5)
    with pytest.raises(ServerError):
        put(channel)
    assert breaker.breaker.state is BreakerState.CLOSED
    assert put(channel) is DONE
