from __future__ import annotations

from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, RetryConfig, ServerError
from llm_cost_ops.testing import Fault, ScriptedTransport, VirtualRuntime, async_memory_client, memory_client
from llm_cost_ops.types import ListUsageResponse, Pagination, RateCard, UsageRecord

ORGANIZATION = {"organization_id": "acme"}


def records(count: int) -> list[UsageRecord]:
    return [
        UsageRecord(organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=n)
        for n in range(count)
    ]


def page(numbers: range, **pagination: Any) -> ListUsageResponse:
    data = [UsageRecord(organization_id="acme", input_tokens=n) for n in numbers]
    return ListUsageResponse(data=data, pagination=Pagination(**pagination))


def scripted(*script: Any) -> tuple[CostOpsClient, ScriptedTransport]:
    transport = ScriptedTransport(script)
    return CostOpsClient(base_url="http://test", transport=transport, runtime=VirtualRuntime()), transport


def test_a_loop_sees_every_record_once() -> None:
    with memory_client() as client:
        client.usage.submit_batch(records(53))
        history = client.usage.list(**ORGANIZATION, page_size=10)
        assert len(history.data) == 10
        assert history.pagination.has_next
        assert sorted(record.input_tokens for record in history) == list(range(53))
        assert len(list(history)) == 53, "each loop starts again"
        assert [len(page.data) for page in history.pages()] == [10] * 5 + [3]


def test_it_goes_on_from_a_cursor() -> None:
    with memory_client() as client:
        client.usage.submit_batch(records(25))
        pages = client.usage.list(**ORGANIZATION, page_size=10).pages()
        first = next(pages)
        assert first.pagination is not None
        rest = client.usage.list(**ORGANIZATION, page_size=10, cursor=first.pagination.next_cursor)
        seen = [record.input_tokens for record in (*first.data, *rest)]
        assert sorted(seen) == list(range(25))


async def test_async_lists_are_awaited_or_looped_over() -> None:
    async with async_memory_client() as client:
        await client.usage.submit_batch(records(25))
        history = client.usage.list(**ORGANIZATION, page_size=10)
        with pytest.raises(AttributeError, match="awaited"):
            _ = history.data
        assert (await history) is history
        assert len(history.data) == 10
        assert sorted([record.input_tokens async for record in history]) == list(range(25))
        again = client.usage.list(**ORGANIZATION, page_size=10)
        assert sorted([record.input_tokens async for record in again]) == list(range(25))
        assert [len(page.data) async for page in again.pages()] == [10, 10, 5]
        assert "AsyncPager" in repr(again)


def test_prices_go_on_too() -> None:
    with memory_client() as client:
        listed = client.pricing.list(provider="openai", page_size=3)
        cards = [card for _, card in zip(range(10), listed, strict=False)]
        assert len({card.id for card in cards}) == 10
        assert all(isinstance(card, RateCard) for card in cards)


def test_numbered_pages_of_other_servers_are_followed() -> None:
    client, transport = scripted(
        page(range(3), page=1, has_next=True),
        page(range(3, 6), page=2, has_next=True),
        page(range(6, 7), page=3, has_next=False),
    )
    assert [record.input_tokens for record in client.usage.list(page_size=3)] == list(range(7))
    assert [(request.page, request.cursor) for request in transport.requests] == [(0, ""), (2, ""), (3, "")]


def test_a_page_without_pagination_is_the_last() -> None:
    client, transport = scripted(ListUsageResponse(data=[UsageRecord()]), page(range(1), has_next=True))
    assert len(list(client.usage.list())) == 1
    assert len(list(client.usage.list())) == 1, "has_next alone leads nowhere"
    assert len(transport.calls) == 2


def test_a_repeated_cursor_is_no_endless_loop() -> None:
    client, _ = scripted(page(range(1), next_cursor="c"), page(range(1), next_cursor="c"))
    with pytest.raises(ServerError, match="repeats a cursor"):
        list(client.usage.list())


def test_each_page_is_a_call_with_its_options() -> None:
    client, transport = scripted(page(range(1), next_cursor="c"), Fault(503), page(range(1)))
    looped = client.usage.list(headers={"x-a": "b"}, retry=RetryConfig(max_retries=1), timeout=9)
    assert len(list(looped)) == 2
    assert [call.headers.get("x-a") for call in transport.calls] == ["b"] * 3
    assert [call.attempt for call in transport.calls] == [1, 1, 2]
    client, _ = scripted(page(range(1), next_cursor="c"), Fault(503), page(range(1)))
    with pytest.raises(ServerError):
        list(client.usage.list(retry=None))
