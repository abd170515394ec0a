"""Streams of usage, in and out: the same over every transport, in both colours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_cost_ops import CostOpsError, UsageRecord, ValidationError, exceptions
from llm_cost_ops.types import StreamUsageRequest, SubmitStatus
from tests.conformance.clients import each

AT = datetime(2026, 11, 1, tzinfo=UTC)


def record(organization: str, number: int = 0, **fields: Any) -> UsageRecord:
    call: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "output_tokens": 1}
    at = AT + timedelta(seconds=number)
    return UsageRecord(
        organization_id=organization, **{**call, "input_tokens": number, "timestamp": at, **fields}
    )


async def exported(client: Any, **filters: Any) -> list[UsageRecord]:
    return [found async for found in each(client.usage.export(**filters))]


async def test_ten_thousand_records_with_problems_in_the_middle(client: Any, organization: str) -> None:
    bad: dict[int, dict[str, Any]] = {
        1234: {"input_tokens": -1},
        5000: {"model_id": ""},
        5001: {"input_tokens": "many"},
        9999: {"tags": 7},
    }
    taken: list[int] = []
    seen: list[int] = []

    def records() -> Iterator[UsageRecord]:
        for number in range(10_000):
            taken.append(number)
            yield record(organization, number, **bad.get(number, {}))

    receipt = await client.usage.stream(
        records(), on_progress=lambda progress: seen.append(len(taken) - progress.records)
    )
    assert (receipt.records, receipt.created, receipt.invalid) == (10_000, 9_996, 4)
    assert [problem.index for problem in receipt.problems] == sorted(bad)
    assert {problem.status for problem in receipt.problems} == {SubmitStatus.INVALID}
    assert "input_tokens" in receipt.problems[0].error.message
    assert max(seen) <= 500, "no more records are taken than a segment holds"
    assert (await client.costs.get(organization_id=organization)).total_requests == 9_996


async def test_a_key_counts_once_within_streams_and_between_them(client: Any, organization: str) -> None:
    records = [
        record(organization, 1, idempotency_key="one"),
        record(organization, 2),
        record(organization, 1, idempotency_key="one"),
        record(organization, 3, idempotency_key="one"),
    ]
    first = await client.usage.stream(records, idempotency_key="file-7")
    assert (first.created, first.duplicates, first.conflicts) == (2, 1, 1)
    assert [(problem.index, problem.status) for problem in first.problems] == [(3, SubmitStatus.CONFLICT)]
    again = await client.usage.stream(iter(records), idempotency_key="file-7", segment=1)
    assert (again.created, again.duplicates, again.conflicts) == (0, 3, 1)
    assert records[1].idempotency_key == "", "the caller's record is not changed"
    other = await client.usage.stream(records[1:2])
    assert other.created == 1, "another stream makes other keys"


async def test_nothing_to_send(client: Any) -> None:
    receipt = await client.usage.stream([])
    assert (receipt.records, receipt.problems) == (0, [])


async def test_progress_can_be_iterated(client: Any, organization: str) -> None:
    stream = client.usage.stream_progress((record(organization, n) for n in range(100)), segment=30)
    seen = [progress.records async for progress in each(stream)]
    assert seen == sorted(seen)
    assert seen[-1] == 100


async def test_an_async_source(client: Any, organization: str, way: tuple[str, str]) -> None:
    if way[1] == "sync":
        pytest.skip("sync clients take iterables")

    async def records() -> AsyncIterator[UsageRecord]:
        for number in range(25):
            await asyncio.sleep(0)
            yield record(organization, number)

    assert (await client.usage.stream(records(), segment=10)).created == 25


async def test_the_callers_own_error_comes_out(client: Any, organization: str) -> None:
    closed = []

    def records() -> Iterator[UsageRecord]:
        try:
            yield record(organization, 1)
            raise LookupError("mine")
        finally:
            closed.append(True)

    with pytest.raises(LookupError, match="mine"):
        await client.usage.stream(records(), segment=1)
    requests = (StreamUsageRequest(records=[found]) for found in records())
    with pytest.raises(LookupError, match="mine"):
        async for _ in each(client.usage.stream_requests(requests)):
            pass
    assert closed == [True, True]


@pytest.mark.parametrize(
    ("records", "options", "field"),
    [
        (7, {}, "records"),
        ([1], {}, "records"),
        ([], {"segment": 0}, "segment"),
        ([], {"timeout": -1}, "timeout"),
    ],
)
async def test_wrong_arguments(client: Any, records: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        await client.usage.stream(records, **options)


async def test_acknowledgements_say_what_is_durable(client: Any, organization: str) -> None:
    requests = [StreamUsageRequest(records=[record(organization, n - 1)]) for n in range(2500)]
    answers = [answer async for answer in each(client.usage.stream_requests(requests))]
    assert [answer.durable for answer in answers] == sorted(answer.durable for answer in answers)
    assert (answers[-1].durable, answers[-1].created) == (2500, 2499)
    assert [problem.index for answer in answers for problem in answer.problems] == [0]
    assert len(answers) >= 3, "no batch is larger than 1,000"
    assert (await client.costs.get(organization_id=organization)).total_requests == 2499


async def test_an_export_is_the_history(client: Any, organization: str) -> None:
    await client.usage.submit_batch(
        [record(organization, n // 3, input_tokens=n, tags=["x"] if n % 2 else []) for n in range(1700)]
    )
    history: list[UsageRecord] = []
    cursor = ""
    while True:
        page = await client.usage.get_history(
            organization_id=organization, order="asc", page_size=1000, cursor=cursor
        )
        history += page.data
        cursor = page.pagination.next_cursor
        if not cursor:
            break
    assert await exported(client, organization_id=organization) == history
    assert await exported(client, organization_id=organization, order="desc") == history[::-1]
    odd = await exported(client, organization_id=organization, tag="x", start_date=AT, end_date="2026-11-01")
    assert [found.input_tokens for found in odd] == list(range(1, 1700, 2))
    assert await exported(client, organization_id=f"{organization}-none") == []


async def test_an_export_is_not_disturbed_by_inserts(client: Any, organization: str) -> None:
    await client.usage.submit_batch([record(organization, 2 * n) for n in range(3000)])
    seen: list[int] = []
    async for found in each(client.usage.export(organization_id=organization)):
        seen.append(found.input_tokens)
        if len(seen) in (1, 1000, 2000):
            at = seen[-1]
            more = [record(organization, at + 1), record(organization, 100_001 + at)]
            await client.usage.submit_batch(more)
    assert [number for number in seen if number % 2 == 0] == list(range(0, 6000, 2))
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)


async def test_an_export_that_is_left_early_ends(client: Any, organization: str) -> None:
    await client.usage.submit_batch([record(organization, n) for n in range(2000)])
    for _ in range(3):
        async with aclosing(each(client.usage.export(organization_id=organization))) as stream:
            found = await anext(stream)
        assert found.input_tokens == 0
    assert (await client.costs.get(organization_id=organization)).total_requests == 2000


@pytest.mark.parametrize(
    "bad",
    [
        {"order": "up"},
        {"start_date": "yesterday"},
        {"time_zone": "Mars/Olympus", "start_date": "2026-01-01"},
    ],
)
async def test_a_bad_export_is_refused(client: Any, organization: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        await exported(client, organization_id=organization, **bad)


async def test_the_deadline_passes_in_the_middle_of_an_export(client: Any, organization: str) -> None:
    await client.usage.submit_batch([record(organization, n) for n in range(3000)])
    seen = 0

    async def read_slowly() -> None:
        nonlocal seen
        async for _ in each(client.usage.export(organization_id=organization, timeout=0.4)):
            seen += 1
            if seen % 100 == 0:
                await asyncio.sleep(0.05)

    with pytest.raises(exceptions.TimeoutError):
        await read_slowly()
    assert seen < 3000
    assert len(await exported(client, organization_id=organization, timeout=None)) == 3000


async def test_the_deadline_passes_while_records_are_waited_for(
    client: Any, organization: str, way: tuple[str, str]
) -> None:
    def slow() -> Iterator[StreamUsageRequest]:
        for number in range(1000):
            time.sleep(0.02)
            yield StreamUsageRequest(records=[record(organization, number)])

    async def stuck() -> AsyncIterator[StreamUsageRequest]:
        yield StreamUsageRequest(records=[record(organization)])
        await asyncio.sleep(1000)

    requests: Any = slow() if way[1] == "sync" else stuck()
    with pytest.raises(exceptions.TimeoutError):
        async for _ in each(client.usage.stream_requests(requests, timeout=0.3)):
            pass


async def test_no_time_is_no_time(client: Any, organization: str) -> None:
    with pytest.raises(exceptions.TimeoutError):
        await exported(client, organization_id=organization, timeout=0)
    with pytest.raises(CostOpsError):
        await client.usage.stream([record(organization)], timeout=0)
    assert (await client.costs.get(organization_id=organization)).total_requests == 0
