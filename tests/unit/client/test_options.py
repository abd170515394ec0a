"""Per-call options, derived clients and raw responses."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    CacheConfig,
    CircuitBreakerConfig,
    ClientConfig,
    ConfigurationError,
    CostOpsClient,
    RateLimitConfig,
    RetryConfig,
    ServerError,
)
from llm_cost_ops.testing import Fault, ScriptedTransport, VirtualRuntime, async_memory_client, memory_client
from llm_cost_ops.types import CostSummary, GetHealthResponse, UsageReceipt

CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}
RECEIPT = UsageReceipt(usage_id="u-1")


def scripted(*script: Any, forever: bool = False, **options: Any) -> tuple[CostOpsClient, ScriptedTransport]:
    transport = ScriptedTransport(script, forever=forever)
    config = ClientConfig(base_url="http://test", **options)
    return CostOpsClient(config=config, transport=transport, runtime=VirtualRuntime()), transport


def test_a_call_may_switch_retries_off_or_on() -> None:
    client, transport = scripted(Fault(503), RECEIPT, Fault(503), Fault(503), RECEIPT)
    assert client.usage.submit(**CALL) is RECEIPT
    with pytest.raises(ServerError):
        client.usage.submit(**CALL, retry=None)
    quiet = client.with_options(retry=None)
    assert quiet.config.retry.max_retries == 0
    assert quiet.usage.submit(**CALL, retry=RetryConfig(max_retries=1)) is RECEIPT
    assert len(transport.calls) == 5


def test_the_key_of_a_call_travels() -> None:
    client, transport = scripted(RECEIPT, RECEIPT)
    client.usage.submit(**CALL, idempotency_key="k-1", headers={"x-team": "a"}, metadata={"x": 1})
    assert transport.calls[0].idempotency_key == "k-1"
    assert transport.calls[0].headers.get("x-team") == "a"
    assert transport.requests[0].usage.metadata == {"x": 1}


def test_a_derived_client_shares_and_changes() -> None:
    client, transport = scripted(RECEIPT, forever=True, api_key="key-one-1", default_headers={"x-a": "a"})
    client.usage.submit(**CALL)
    derived = client.with_options(timeout=5, headers={"x-b": "b"}, api_key="key-two-2")
    derived.usage.submit(**CALL)
    client.usage.submit(**CALL)
    assert type(derived) is CostOpsClient
    assert derived.config.timeout == 5
    assert derived.config.headers == {"x-a": "a", "x-b": "b"}
    seen = [
        (c.headers.get("authorization"), c.headers.get("x-b"), c.context.deadline) for c in transport.calls
    ]
    assert seen == [
        ("Bearer key-one-1", "", 30.0),
        ("Bearer key-two-2", "b", 5.0),
        ("Bearer key-one-1", "", 30.0),
    ]
    derived.close()
    assert transport.closed == 0
    with derived.with_options(timeout=None) as third:
        third.usage.submit(**CALL)
    assert transport.closed == 0
    client.close()
    assert transport.closed == 1


def test_a_derived_client_counts_with_its_parent() -> None:
    client, transport = scripted(
        RECEIPT, forever=True, rate_limit=RateLimitConfig(max_requests=1, time_window=10)
    )
    client.usage.submit(**CALL)
    client.with_options(timeout=60).usage.submit(**CALL)
    assert client._channel.core.runtime.monotonic() == pytest.approx(10)
    client, transport = scripted(
        Fault(503), forever=True, circuit_breaker=CircuitBreakerConfig(failure_threshold=2)
    )
    derived = client.with_options(retry=None)
    for _ in range(2):
        with pytest.raises(ServerError):
            derived.usage.submit(**CALL)
    with pytest.raises(ServerError, match="circuit breaker"):
        client.usage.submit(**CALL)
    assert len(transport.calls) == 2
    client, transport = scripted(Fault(429), forever=True, retry=RetryConfig(budget=1))
    for each in (client, client.with_options(timeout=None), client.with_options(api_key="other-key")):
        with pytest.raises(Exception, match="scripted"):
            each.usage.submit(**CALL)
    assert len(transport.calls) == 4, "one budget for all"


def test_the_cache_is_shared_by_those_with_the_same_key_only() -> None:
    client, transport = scripted(CostSummary(), forever=True, cache=CacheConfig(), api_key="key-one-1")
    client.costs.get()
    client.with_options(timeout=9).costs.get()
    assert len(transport.calls) == 1
    client.with_options(api_key="key-two-2").costs.get()
    client.with_options(headers={"x-tenant": "b"}).costs.get()
    assert len(transport.calls) == 3


@pytest.mark.parametrize(
    ("option", "parameter"),
    [
        ({"timeout": -1}, "timeout"),
        ({"retry": 3}, "retry"),
        ({"headers": {"a": "\n"}}, "default_headers"),
        ({"api_key": "a b\n"}, "api_key"),
    ],
)
def test_wrong_options_are_named(option: dict[str, Any], parameter: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        scripted()[0].with_options(**option)
    assert caught.value.parameter == parameter


def test_a_raw_response_of_every_method() -> None:
    with memory_client() as client:
        raw = client.with_raw_response.usage.submit(**CALL, input_tokens=1000, idempotency_key="k")
        assert (raw.status, raw.attempts, raw.waited) == (201, 1, 0.0)
        assert raw.request_id
        assert raw.parsed.usage_id == raw.data.usage_id
        again = client.with_raw_response.usage.submit(**CALL, input_tokens=1000, idempotency_key="k")
        assert (again.status, again.parsed.duplicate) == (200, True)
        assert isinstance(client.with_raw_response.health().parsed, GetHealthResponse)
        page = client.with_raw_response.usage.list(page_size=1).parsed
        assert len(page.data) == 1
        assert client.usage.list(page_size=1).data == page.data
        with client.with_raw_response as same:
            assert same.with_options(timeout=None).health().status == 200
        assert client.health().status == "healthy"
        assert not hasattr(client.with_raw_response.usage, "stream")
        assert not hasattr(client.with_raw_response.usage, "export")


def test_a_raw_client_has_every_call_that_answers_once() -> None:
    with memory_client() as client:
        raw = client.with_raw_response
        for name in ("usage", "costs", "pricing", "analytics", "_health"):
            plain = [each for each in dir(getattr(client, name)) if not each.startswith("_")]
            found = [each for each in dir(getattr(raw, name)) if not each.startswith("_")]
            streams = {"export", "record", "stream", "stream_progress", "stream_requests"}
            assert found == [each for each in plain if each not in streams]
            for each in found:
                assert getattr(getattr(raw, name), each).__doc__


async def test_async_raw_responses_and_derived_clients() -> None:
    async with async_memory_client() as client:
        raw = await client.with_raw_response.usage.submit(**CALL, input_tokens=1)
        assert raw.status == 201
        page = await client.with_raw_response.usage.list()
        assert [record.input_tokens for record in page.parsed.data] == [1]
        derived = client.with_options(timeout=9, headers={"x-a": "b"})
        assert isinstance(derived, AsyncCostOpsClient)
        assert (await derived.costs.get()).total_requests == 1
        async with derived:
            pass
        assert (await client.costs.get()).total_requests == 1


def test_subclasses_and_their_attributes_survive() -> None:
    class Mine(CostOpsClient):
        def __init__(self) -> None:
            super().__init__(base_url="sqlite://")
            self.team = "a"

    with Mine() as client:
        _ = client.usage
        derived = client.with_options(timeout=1)
        assert isinstance(derived, Mine)
        assert derived.team == "a"
        assert derived.usage is not client.usage


def test_a_user_interceptor_sees_the_call_as_its_caller_does() -> None:
    seen: list[Any] = []

    class Watching:
        async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
            response = await continuation(request, context)
            seen.append((context.method.name, context.attempt, "authorization" in context.metadata))
            return response

    transport = ScriptedTransport([Fault(503), RECEIPT])
    client = CostOpsClient(
        "a-key", "http://test", interceptors=[Watching()], transport=transport, runtime=VirtualRuntime()
    )
    client.usage.submit(**CALL)
    assert seen == [("SubmitUsage", 2, True)]


def test_threads_of_control_share_one_client() -> None:
    async def many() -> list[str]:
        async with async_memory_client() as client:
            receipts = await asyncio.gather(*(client.usage.submit(**CALL, input_tokens=n) for n in range(50)))
            assert (await client.costs.get()).total_requests == 50
            return [receipt.usage_id for receipt in receipts]

    assert len(set(asyncio.run(many()))) == 50


@pytest.mark.parametrize("kind", [CostOpsClient, AsyncCostOpsClient])
def test_an_http_client_of_the_other_kind_is_refused_before_anything_is_sent(kind: Any) -> None:
    wrong = httpx.AsyncClient() if kind is CostOpsClient else httpx.Client()
    for given in (wrong, object()):
        with pytest.raises(ConfigurationError, match=r"^http_client must be an httpx\.\w+, not ") as caught:
            kind(base_url="http://127.0.0.1:9", http_client=given)
        assert caught.value.parameter == "http_client"


class Passing:
    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        return await continuation(request, context)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (object(), "interceptors must be a list of them"),
        ([print], "interceptors[0] must have the method intercept_unary_unary, and is a builtin"),
        (
            [Passing(), Passing],
            "interceptors[1] must have the method intercept_unary_unary, and is a type",
        ),
    ],
)
def test_what_is_no_interceptor_is_refused_at_once(given: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        CostOpsClient(base_url="sqlite://", interceptors=given)


def test_a_configuration_in_the_place_of_a_key_is_told_its_place() -> None:
    with pytest.raises(ConfigurationError, match="give that as config"):
        CostOpsClient(ClientConfig(base_url="sqlite://"))
