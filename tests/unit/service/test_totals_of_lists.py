"""The total of a list is given where it is known or cheap to count; whether more follows, always."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm_cost_ops import CostOpsClient, UsageRecord
from llm_cost_ops.service import usage


@pytest.fixture
def client() -> Iterator[CostOpsClient]:
    with CostOpsClient(base_url="sqlite://") as made:
        made.usage.submit_batch(
            [
                UsageRecord(
                    organization_id="acme",
                    provider="openai",
                    model_id="gpt-4o",
                    input_tokens=n,
                    tags=["t"] * (n % 2),
                )
                for n in range(20)
            ]
        )
        yield made


def test_a_total_that_takes_reading_many_records_is_left_out(
    client: CostOpsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.usage.get_history(tag="t", page_size=4).pagination
    assert (first.total_items, first.total_pages, first.has_next) == (10, 3, True)
    monkeypatch.setattr(usage, "MAX_COUNTED", 19)
    first = client.usage.get_history(tag="t", page_size=4).pagination
    assert (first.total_items, first.total_pages, first.has_next) == (None, None, True)
    # The last page says it, and so do sums that are kept anyway.
    last = client.usage.get_history(tag="t", page_size=4, page=3).pagination
    assert (last.total_items, last.total_pages, last.has_next) == (10, 3, False)
    assert client.usage.get_history(page_size=4).pagination.total_items == 20
    assert client.usage.get_history(provider="openai", page_size=4).pagination.total_items == 20


def test_pages_at_any_depth_are_those_of_cursors(client: CostOpsClient) -> None:
    whole = [record.id for record in client.usage.get_history(page_size=3)]
    assert len(set(whole)) == 20
    for page in range(1, 9):
        found = client.usage.get_history(page_size=3, page=page)
        assert [record.id for record in found.data] == whole[3 * page - 3 : 3 * page]
        assert found.pagination.has_next is (3 * page < 20)
        assert found.pagination.total_items == 20
