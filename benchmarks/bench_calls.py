"""What does a call cost above its transport, through three interceptors, sync and async?

Bare transport calls and whole calls take turns in one run; each figure is the least of its rounds. The
three interceptors do nothing; retry and others are measured beside them.

Run: python benchmarks/bench_calls.py [rounds]
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from llm_cost_ops._gen.messages import (
    GetPriceRequest,
    GetPriceResponse,
    RateCard,
)
from llm_cost_ops._gen.methods import GET_PRICE
from llm_cost_ops.config import CacheConfig, CircuitBreakerConfig, LoggingConfig, RateLimitConfig, RetryConfig
from llm_cost_ops.interceptors.auth import Auth
from llm_cost_ops.interceptors.cache import Cache
from llm_cost_ops.interceptors.circuit_breaker import CircuitBreaker
from llm_cost_ops.interceptors.logging import CallLogging
from llm_cost_ops.interceptors.metrics import CallMetrics
from llm_cost_ops.interceptors.rate_limit import RateLimit
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.rpc.channel import AsyncChannel, Channel
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import AsyncRuntime, SyncRuntime

CALLS = 2_000
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
REQUEST = GetPriceRequest(id="p")
RESPONSE = GetPriceResponse(data=RateCard(id="p"))


class Transport:
    """Answers at once."""

    async def unary_unary(self, request: Any, context: Any) -> Any:
        return RESPONSE

    async def aclose(self) -> None:
        pass


class Passing:
    """Does nothing, as cheaply as an interceptor can."""

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        return await continuation(request, context)


LEAF = Transport()
CHAINS: dict[str, list[Any]] = {
    "no interceptor": [],
    "three that pass": [Passing(), Passing(), Passing()],
    "retry, auth": [Retry(RetryConfig()), Auth("key")],
    "retry, breaker": [Retry(RetryConfig()), CircuitBreaker(CircuitBreakerConfig())],
}
ALONE: dict[str, Any] = {
    "retry": Retry(RetryConfig()),
    "breaker": CircuitBreaker(CircuitBreakerConfig()),
    "rate limit": RateLimit(RateLimitConfig(max_requests=10**9)),
    "auth": Auth("key"),
    "logging (nobody listens)": CallLogging(LoggingConfig(enabled=True, level="DEBUG")),
    "metrics (no exporter)": CallMetrics([]),
    "cache (hit)": Cache(CacheConfig(ttl=3600)),
}


def sync_round(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS * 1e6


async def async_round(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        await call()
    return (time.perf_counter() - started) / CALLS * 1e6


def least(
    calls: dict[str, Callable[[], Any]], measure: Callable[[Callable[[], Any]], float]
) -> dict[str, float]:
    """The least of the rounds of each; the rounds take turns."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name] = min(found[name], measure(call))
    return found


def sync_calls(chains: dict[str, list[Any]]) -> dict[str, Callable[[], Any]]:
    context = CallContext(GET_PRICE, SyncRuntime(), Metadata())
    calls: dict[str, Callable[[], Any]] = {"transport": lambda: drive(LEAF.unary_unary(REQUEST, context))}
    for name, chain in chains.items():
        channel = Channel(LEAF, chain, timeout=30.0)
        calls[name] = lambda channel=channel: channel.unary_unary(GET_PRICE, REQUEST)
    return calls


def async_calls(chains: dict[str, list[Any]]) -> dict[str, Callable[[], Any]]:
    context = CallContext(GET_PRICE, AsyncRuntime(), Metadata())
    calls: dict[str, Callable[[], Any]] = {"transport": lambda: LEAF.unary_unary(REQUEST, context)}
    for name, chain in chains.items():
        channel = AsyncChannel(LEAF, chain, timeout=30.0)
        calls[name] = lambda channel=channel: channel.unary_unary(GET_PRICE, REQUEST)
    return calls


def show(title: str, found: dict[str, float]) -> None:
    transport = found.pop("transport")
    print(f"\n{title:<28}{'µs':>8}{'above':>8}{'ratio':>8}\n{'bare transport':<28}{transport:>8.2f}")
    for name, micros in found.items():
        print(f"{name:<28}{micros:>8.2f}{micros - transport:>8.2f}{micros / transport:>7.1f}x")


def main() -> None:
    loop = asyncio.new_event_loop()

    def measure_async(call: Callable[[], Any]) -> float:
        return loop.run_until_complete(async_round(call))

    print(f"Least of {ROUNDS} rounds of {CALLS} calls, taking turns.")
    print("Target: a call through three interceptors costs <= 2.5 µs above its transport.")
    show("sync", least(sync_calls(CHAINS), sync_round))
    show("async", least(async_calls(CHAINS), measure_async))
    show("one interceptor, sync", least(sync_calls({n: [i] for n, i in ALONE.items()}), sync_round))
    loop.close()


if __name__ == "__main__":
    main()
