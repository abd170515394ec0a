"""A call that is cancelled at any point leaves nothing behind: no place, probe, question or retry."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_cost_ops import CacheConfig, CircuitBreakerConfig, RateLimitConfig, RetryConfig
from llm_cost_ops.interceptors.auth import Auth
from llm_cost_ops.interceptors.cache import Cache
from llm_cost_ops.interceptors.circuit_breaker import BreakerState, CircuitBreaker
from llm_cost_ops.interceptors.rate_limit import RateLimit
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.testing import Delay, Fault, ScriptedTransport
from tests.calls import async_channel
from tests.tiny_service import GET_NOTE, GetNoteRequest, Note

STEP = 5


@pytest.mark.parametrize("others", [0, 3])
async def test_cancelled_at_every_point(others: int) -> None:
    points = 0
    for turns in range(0, 1000, STEP):
        if await cancelled_after(turns, others):
            points += 1
        else:
            break
    assert points > 20


async def cancelled_after(turns: int, others: int) -> bool:
    """Whether the call was still under way after so many turns of the loop."""
    tokens = iter(range(100))

    async def key() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return f"key-{next(tokens)}"

    retry, limit = Retry(RetryConfig(budget=100)), RateLimit(RateLimitConfig(max_requests=1, time_window=5))
    cache, auth = Cache(CacheConfig()), Auth(key)
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1, recovery_time=0.25))
    script = [Delay(1, Fault(503)), Delay(1, Fault(401)), Delay(1, Fault("network")), Delay(1, Note())]
    channel = async_channel(ScriptedTransport(script, forever=True), cache, retry, breaker, limit, auth)

    def call(name: str) -> Any:
        return asyncio.ensure_future(channel.unary_unary(GET_NOTE, GetNoteRequest(id=name)))

    first = call("a")
    rest = [call("a" if n % 2 else f"b{n}") for n in range(others)]
    for _ in range(turns):
        await asyncio.sleep(0)
    if first.done():
        await asyncio.gather(first, *rest, return_exceptions=True)
        return False
    first.cancel()
    outcome, *_ = await asyncio.gather(first, *rest, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert (len(limit._line), limit._watched) == (0, False)
    assert cache._under_way == {}
    assert auth._asking is None
    assert breaker.breaker.state is not BreakerState.HALF_OPEN
    channel.core.runtime.advance(60)
    assert (await call("c")).id == "", "the next call goes through"
    assert breaker.breaker.state is BreakerState.CLOSED
    return True
