"""What users may rely on: the names, and that both clients have the same methods."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import llm_cost_ops
from llm_cost_ops import AsyncCostOpsClient, CostOpsClient, config, exceptions, testing, types
from llm_cost_ops.rpc.pager import AsyncPager, Pager

PUBLIC = """
APIError AsyncCostOpsClient AuthenticationError AuthorizationError BatchingConfig CacheConfig
CircuitBreakerConfig ClientClosedError ClientConfig ConfigurationError ConflictError
ConnectionPoolConfig CostOpsClient CostOpsError LoggingConfig MetricsConfig NetworkError NotFoundError
PayloadError PriceQuery RateCard RateLimitConfig RateLimitError RecorderConfig RecorderFullError
RetryConfig ServerError TLSConfig TimeoutError UsageRecord ValidationError __version__ calculate_cost
instrument select_card uninstrument usage_from_response usages_from_response
"""
CONFIG = """
BatchingConfig CacheConfig CircuitBreakerConfig ClientConfig ConnectionPoolConfig LoggingConfig MetricsConfig
RateLimitConfig RecorderConfig RetryConfig TLSConfig
"""
EXCEPTIONS = """
APIError AuthenticationError AuthorizationError ClientClosedError ConfigurationError ConflictError
CostOpsError DeadlineError NetworkError NotFoundError PayloadError RateLimitError RecorderFullError
ServerError TimeoutError ValidationError error_from_rpc
"""
TESTING = """
AsyncVirtualRuntime Delay Fault InterceptorCheckError Received ScriptedTransport VirtualRuntime
async_memory_client check_interceptor memory_client
"""
CLIENT = """
analytics attribute audit close close_on_sigterm config costs flush health instrument pricing privacy ready
retention uninstrument usage with_options with_raw_response
"""
# What was promised; there may be more.
RESOURCES = {
    "usage": "get_history list submit submit_batch",
    "costs": "get",
    "pricing": "create get list",
    "analytics": "get",
    "_health": "get ready",
}


@pytest.mark.parametrize(
    ("module", "names"),
    [(llm_cost_ops, PUBLIC), (config, CONFIG), (exceptions, EXCEPTIONS), (testing, TESTING)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_names_of_a_module_are_pinned(module: Any, names: str) -> None:
    assert sorted(module.__all__) == sorted(names.split())
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_what_methods_return_is_public() -> None:
    client = CostOpsClient(base_url="sqlite://")
    known = {*types.__all__, "Pager", "Generator", "None", "StreamProgress", "StreamReceipt"}
    for resource in RESOURCES:
        for method in _public(getattr(client, resource)):
            returned = inspect.signature(getattr(getattr(client, resource), method)).return_annotation
            assert set(re.findall(r"\w+", returned)) <= known


def _public(value: Any) -> list[str]:
    return sorted(name for name in dir(value) if not name.startswith("_"))


def _parameters(function: Any) -> list[tuple[str, Any, Any, Any]]:
    return [
        (p.name, p.kind, p.default, _without_colour(p.annotation))
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("channel", "self")
    ]


def _without_colour(annotation: str) -> str:
    """An async client takes an Iterable or an AsyncIterable where a sync one takes an Iterable."""
    return " | ".join(dict.fromkeys(annotation.replace("Async", "").split(" | ")))


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    sync, other = CostOpsClient(base_url="sqlite://"), AsyncCostOpsClient(base_url="sqlite://")
    assert _public(sync) == _public(other) == sorted(CLIENT.split())
    for name in ("attribute", "close", "close_on_sigterm", "flush", "health", "ready", "with_options"):
        assert _parameters(getattr(sync, name)) == _parameters(getattr(other, name))
    theirs = [
        (name, *rest, note.replace("AsyncClient", "Client"))
        for name, *rest, note in _parameters(AsyncCostOpsClient)
    ]
    assert _parameters(CostOpsClient) == theirs
    for name, methods in RESOURCES.items():
        ours, theirs = getattr(sync, name), getattr(other, name)
        assert type(theirs).__name__ == f"Async{type(ours).__name__}"
        assert _public(ours) == _public(theirs)
        assert set(_public(ours)) >= set(methods.split())
        for method in _public(ours):
            assert _parameters(getattr(ours, method)) == _parameters(getattr(theirs, method))
            assert getattr(ours, method).__doc__
            assert getattr(theirs, method).__doc__
    assert set(_public(Pager)) == set(_public(AsyncPager))


def test_every_method_takes_the_options_of_a_call() -> None:
    client = CostOpsClient(base_url="sqlite://")
    for name, methods in RESOURCES.items():
        for method in methods.split():
            taken = inspect.signature(getattr(getattr(client, name), method)).parameters
            assert {"timeout", "headers", "retry"} <= set(taken), method
            assert ("idempotency_key" in taken) == (method in ("submit", "submit_batch", "create"))
