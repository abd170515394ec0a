"""Many submits at once over a real server: they ride together, and each gets its own answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm_cost_ops import AsyncCostOpsClient, ConflictError, CostOpsClient, ValidationError

CALL: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "output_tokens": 1}
CALLERS = 200


def arguments(organization: str) -> list[dict[str, Any]]:
    """Of each ten callers one uses a key again, one contradicts a key, and one is refused by the service."""
    made = []
    for number in range(CALLERS):
        call = {**CALL, "organization_id": organization, "input_tokens": number + 1}
        call["idempotency_key"] = f"key-{number}"
        if number % 10 == 7:
            call.update(idempotency_key=f"key-{number - 1}", input_tokens=number)
        elif number % 10 == 8:
            call["idempotency_key"] = f"key-{number - 2}"
        elif number % 10 == 9:
            # More than a record may cost: only the service, which knows the prices, can tell.
            call["input_tokens"] = 10**12
            call["model_id"] = "o1-pro"
        made.append(call)
    return made


async def in_tasks(url: str, organization: str) -> list[Any]:
    async with AsyncCostOpsClient(base_url=url) as client:
        await client.usage.submit(organization_id="else", **CALL, input_tokens=1)
        usage = client.with_raw_response.usage
        calls = [usage.submit(**call) for call in arguments(organization)]
        return await asyncio.gather(*calls, return_exceptions=True)


def in_threads(url: str, organization: str) -> list[Any]:
    with CostOpsClient(base_url=url) as client, ThreadPoolExecutor(CALLERS) as threads:
        usage = client.with_raw_response.usage
        futures = [threads.submit(usage.submit, **call) for call in arguments(organization)]
        return [future.exception() or future.result() for future in futures]


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_each_caller_gets_its_own(
    transport: str, colour: str, server_urls: dict[str, str], organization: str
) -> None:
    url = server_urls[transport]
    told = in_threads(url, organization) if colour == "sync" else await in_tasks(url, organization)
    batches = {answer.batch for answer in told if not isinstance(answer, Exception)}
    assert any(batches)
    created = 0
    for number, answer in enumerate(told):
        kind = number % 10
        if kind == 9:
            assert type(answer) is ValidationError
            assert (answer.status_code, answer.attempts) == (400, 1)
        elif kind in (6, 7, 8) and isinstance(answer, Exception):
            assert type(answer) is ConflictError  # in threads any of the three may be the first
        else:
            created += not answer.parsed.duplicate
            assert answer.status == (200 if answer.parsed.duplicate else 201)
    assert created == CALLERS * 7 // 10
    if colour == "async":
        for number in range(0, CALLERS, 10):
            assert told[number + 7].parsed.usage_id == told[number + 6].parsed.usage_id
            assert told[number + 7].parsed.duplicate
            assert isinstance(told[number + 8], ConflictError)
    with CostOpsClient(base_url=url) as client:
        assert client.costs.get(organization_id=organization).total_requests == created
