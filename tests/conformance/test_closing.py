"""A client that was closed says so, in the same way on every transport."""

from __future__ import annotations

from typing import Any

import pytest

from llm_cost_ops import (
    CacheConfig,
    ClientClosedError,
    ClientConfig,
    CostOpsError,
    RateLimitConfig,
    UsageRecord,
)
from tests.conformance.clients import Awaiting, each, open_client

CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}


async def _submit(client: Any) -> None:
    await client.usage.submit(**CALL)


async def _read(client: Any) -> None:
    await client.costs.get()


async def _list(client: Any) -> None:
    async for _ in each(client.usage.list()):
        pass


async def _batch(client: Any) -> None:
    await client.usage.submit_batch([UsageRecord(**CALL)])


async def _export(client: Any) -> None:
    async for _ in each(client.usage.export()):
        pass


async def _stream(client: Any) -> None:
    await client.usage.stream([UsageRecord(**CALL)])


async def _health(client: Any) -> None:
    await client.health()


CALLS = [_submit, _read, _list, _batch, _export, _stream, _health]


async def refused(client: Any) -> None:
    for call in CALLS:
        with pytest.raises(
            ClientClosedError, match="make a new one, or close it after its last call"
        ) as caught:
            await call(client)
        error = caught.value
        assert isinstance(error, RuntimeError)
        assert (error.attempts, error.maybe_applied, error.retryable) == (0, False, False)
        assert error.status_code is None


async def test_a_closed_client_refuses_every_call(client: Any) -> None:
    await client.health()
    await client.close()
    await refused(client)
    await client.close()
    await refused(client)


async def test_one_that_was_never_used_too(client: Any) -> None:
    await client.close()
    await refused(client)


async def test_what_was_derived_is_closed_with_it_and_not_the_other_way_round(
    way: tuple[str, str], base_url: str
) -> None:
    client = open_client(base_url, way[1])
    inner = client._client if way[1] == "sync" else client
    for derived in (inner.with_options(timeout=60), inner.with_raw_response):
        closing = derived.close()
        if closing is not None:
            await closing
    await client.health()
    await client.close()
    for derived in (inner.with_options(timeout=60), inner.with_raw_response):
        with pytest.raises(ClientClosedError):
            await (derived if way[1] == "async" else Awaiting(derived)).costs.get()


async def test_neither_a_cache_nor_a_limit_comes_before_it(way: tuple[str, str], base_url: str) -> None:
    limit = RateLimitConfig(max_requests=1, time_window=3600)
    config = ClientConfig(cache=CacheConfig(), rate_limit=limit, timeout=60)
    client = open_client(base_url, way[1], config=config)
    await client.health()
    await client.close()
    for _ in range(2):
        with pytest.raises(ClientClosedError):
            await client.health()


async def test_a_stream_that_is_open_ends_with_an_error_of_ours(client: Any, organization: str) -> None:
    record = {**CALL, "organization_id": organization}
    await client.usage.submit_batch([UsageRecord(**record) for _ in range(2000)])
    with pytest.raises(CostOpsError):  # noqa: PT012  # it depends on what has come already
        count = 0
        async for _ in each(client.usage.export(organization_id=organization)):
            count += 1
            if count == 1:
                await client.close()
        assert count == 2000
        await client.health()
