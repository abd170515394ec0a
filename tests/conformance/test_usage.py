"""Recording usage and reading it back: the same over every transport, in both colours."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from llm_cost_ops import ConflictError, UsageRecord, ValidationError
from llm_cost_ops.types import CostStatus, ModalityTokens, Operation, SubmitStatus
from llm_cost_ops.wire.unknown import Unknown

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)
CALL = {
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
    "timestamp": AT,
}
# gpt-4o: 2.50 per million in, 1.25 cached, 10.00 out.
COST = Decimal("0.0075")


async def test_submit_prices_the_call(client: Any, organization: str) -> None:
    receipt = await client.usage.submit(organization_id=organization, **CALL, total_tokens=1500)
    assert receipt.organization_id == organization
    assert receipt.estimated_cost == COST
    assert type(receipt.estimated_cost) is Decimal
    assert receipt.currency == "USD"
    assert receipt.cost_status == CostStatus.PRICED
    assert receipt.duplicate is False
    assert receipt.usage_id
    assert abs(receipt.processed_at - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_key_counts_once(client: Any, organization: str) -> None:
    first = await client.usage.submit(organization_id=organization, idempotency_key="k", **CALL)
    again = await client.usage.submit(organization_id=organization, idempotency_key="k", **CALL)
    assert again.duplicate is True
    assert again.usage_id == first.usage_id
    assert again.estimated_cost == first.estimated_cost
    assert again.processed_at == first.processed_at
    other = await client.usage.submit(organization_id=f"{organization}-b", idempotency_key="k", **CALL)
    assert other.duplicate is False
    assert other.usage_id != first.usage_id
    summary = await client.costs.get(organization_id=organization)
    assert (summary.total_requests, summary.total_cost) == (1, COST)


async def test_a_key_with_other_content_is_a_conflict(client: Any, organization: str) -> None:
    await client.usage.submit(organization_id=organization, idempotency_key="k", **CALL)
    with pytest.raises(ConflictError) as caught:
        await client.usage.submit(
            organization_id=organization, idempotency_key="k", **{**CALL, "input_tokens": 1001}
        )
    assert caught.value.status_code == 409
    assert caught.value.code == "ALREADY_EXISTS"
    assert "idempotency key" in caught.value.message
    summary = await client.costs.get(organization_id=organization)
    assert summary.total_tokens == 1500


async def test_calls_without_a_key_all_count(client: Any, organization: str) -> None:
    record = UsageRecord(organization_id=organization, **CALL)
    first = await client.usage.submit(record)
    second = await client.usage.submit(record)
    assert first.usage_id != second.usage_id
    assert record.idempotency_key == "", "the caller's record is not changed"
    assert (await client.costs.get(organization_id=organization)).total_requests == 2


async def test_the_order_of_maps_and_a_default_time_are_no_content(client: Any, organization: str) -> None:
    call = {name: value for name, value in CALL.items() if name != "timestamp"}
    one = await client.usage.submit(
        organization_id=organization, idempotency_key="k", labels={"a": "1", "b": "2"}, **call
    )
    two = await client.usage.submit(
        organization_id=organization, idempotency_key="k", labels={"b": "2", "a": "1"}, **call
    )
    assert two.duplicate
    assert two.usage_id == one.usage_id


async def test_every_field_comes_back(client: Any, organization: str) -> None:
    sent = UsageRecord(
        organization_id=organization,
        idempotency_key="everything",
        provider="openai",
        model_id="gpt-4o",
        input_tokens=1000,
        output_tokens=500,
        cached_tokens=300,
        cache_write_tokens=20,
        cache_write_extended_tokens=10,
        reasoning_tokens=100,
        timestamp=AT + timedelta(microseconds=123456),
        service_tier="flex",
        region="eu",
        modality=ModalityTokens(input_audio_tokens=10, cached_audio_tokens=5, output_audio_tokens=7),
        meters={"web_searches": 2, "audio_ms": 3500},
        request_count=1,
        operation=Operation.CHAT,
        requested_model_id="gpt-4o-latest",
        project_id="проект",
        user_id="u-1",
        tags=["a", "b,c"],
        labels={"team": "search", "environment": "prod"},
        session_id="s",
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        latency_ms=0,
        time_to_first_token_ms=12,
        reported_cost=Decimal("0.0000000011"),
        reported_currency="USD",
        metadata={"nested": {"list": [1, 2.5, None, True]}, "text": "línea\n"},
        source="test",
    )
    receipt = await client.usage.submit(sent)
    [found] = (await client.usage.get_history(organization_id=organization)).data
    assert found.id == receipt.usage_id
    assert found.total_tokens == 1500
    assert found.estimated_cost == receipt.estimated_cost
    assert found.cost_status == receipt.cost_status
    for name in UsageRecord.__struct_fields__:
        if name not in ("id", "ingested_at", "total_tokens", "estimated_cost", "currency", "cost_status"):
            assert getattr(found, name) == getattr(sent, name), name


async def test_fields_of_a_newer_version_are_part_of_a_record(client: Any, organization: str) -> None:
    # Field 1000, a varint. JSON has no place for it; test_unknown_fields.py has what JSON may carry.
    newer = Unknown(binary=b"\xc0\x3e\x05", json={})
    sent = UsageRecord(organization_id=organization, idempotency_key="k", **CALL, unknown_=newer)
    receipt = await client.usage.submit(sent)
    assert (receipt.duplicate, receipt.estimated_cost) == (False, COST)
    assert (await client.usage.submit(sent)).duplicate
    batch = await client.usage.submit_batch([sent, UsageRecord(organization_id=organization, **CALL)])
    assert [result.status for result in batch.results] == [SubmitStatus.DUPLICATE, SubmitStatus.CREATED]
    if client.config.base_url.startswith("http"):
        return
    other = Unknown(binary=b"\xc0\x3e\x06", json={})
    with pytest.raises(ConflictError):
        await client.usage.submit(msgspec.structs.replace(sent, unknown_=other))
    oldest = (await client.usage.get_history(organization_id=organization)).data[-1]
    assert oldest.unknown_.binary == newer.binary


async def test_unknown_models_are_unpriced_and_counted(client: Any, organization: str) -> None:
    receipt = await client.usage.submit(
        organization_id=organization, provider="nobody", model_id="nothing-1", input_tokens=10, timestamp=AT
    )
    assert receipt.estimated_cost is None
    assert receipt.cost_status == CostStatus.UNPRICED
    await client.usage.submit(organization_id=organization, **CALL)
    summary = await client.costs.get(organization_id=organization, group_by="provider")
    assert (summary.total_requests, summary.unpriced_requests) == (2, 1)
    assert summary.total_cost == COST
    assert {group.value: group.unpriced_requests for group in summary.breakdown} == {"openai": 0, "nobody": 1}


@pytest.mark.parametrize(
    ("moment", "stored"),
    [
        (datetime(2026, 11, 20, 15), datetime(2026, 11, 20, 15, tzinfo=UTC)),
        (date(2026, 11, 20), datetime(2026, 11, 20, tzinfo=UTC)),
        (
            datetime(2026, 11, 20, 15, tzinfo=timezone(timedelta(hours=5.5))),
            datetime(2026, 11, 20, 9, 30, tzinfo=UTC),
        ),
        ("2026-11-20T15:00:00.000001Z", datetime(2026, 11, 20, 15, 0, 0, 1, tzinfo=UTC)),
    ],
)
async def test_times(client: Any, organization: str, moment: Any, stored: datetime) -> None:
    await client.usage.submit(organization_id=organization, **{**CALL, "timestamp": moment})
    [found] = (await client.usage.get_history(organization_id=organization)).data
    assert found.timestamp == stored


async def test_batch_is_itemised(client: Any, organization: str) -> None:
    def record(key: str, **changes: Any) -> UsageRecord:
        return UsageRecord(organization_id=organization, idempotency_key=key, **{**CALL, **changes})

    await client.usage.submit(record("old"))
    receipt = await client.usage.submit_batch(
        [
            record("new"),
            record("old"),
            record("old", input_tokens=7),
            record("bad", input_tokens=-1, cached_tokens=5),
            record("new"),
            record("last", model_id="nothing-1"),
        ]
    )
    assert [result.status for result in receipt.results] == [
        SubmitStatus.CREATED,
        SubmitStatus.DUPLICATE,
        SubmitStatus.CONFLICT,
        SubmitStatus.INVALID,
        SubmitStatus.DUPLICATE,
        SubmitStatus.CREATED,
    ]
    assert (receipt.created, receipt.duplicates, receipt.conflicts, receipt.invalid) == (2, 2, 1, 1)
    assert receipt.results[4].usage.usage_id == receipt.results[0].usage.usage_id
    assert receipt.results[5].usage.estimated_cost is None
    broken = receipt.results[3].error
    assert broken.code == "INVALID_ARGUMENT"
    assert "records[3].input_tokens" in [violation.field for violation in broken.violations]
    assert (await client.costs.get(organization_id=organization)).total_requests == 3


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"tags": "solo"}, "tags"),
        ({"reported_cost": 0.1}, "reported_cost"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
        ({"input_tokens": 2**70}, "input_tokens"),
        ({"input_tokens": "x"}, "input_tokens"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"operation": "chat"}, "operation"),
        ({"timestamp": "2026-11-20T15:00:00Z"}, "timestamp"),
    ],
)
async def test_what_no_codec_can_carry_harms_only_itself(
    client: Any, organization: str, bad: dict[str, Any], field: str
) -> None:
    def record(**changes: Any) -> UsageRecord:
        return UsageRecord(**{"organization_id": organization, **CALL, **changes})

    receipt = await client.usage.submit_batch([record(), record(**bad), record(), record(organization_id="")])
    assert (receipt.created, receipt.invalid) == (2, 2)
    created, invalid = SubmitStatus.CREATED, SubmitStatus.INVALID
    assert [result.status for result in receipt.results] == [created, invalid, created, invalid]
    assert receipt.results[1].error.violations[0].field.startswith(f"records[1].{field}")
    assert receipt.results[3].error.violations[0].field == "records[3].organization_id"
    only_bad = await client.usage.submit_batch([record(**bad)])
    assert (only_bad.created, only_bad.invalid) == (0, 1)
    assert (await client.costs.get(organization_id=organization)).total_requests == 2


async def test_a_batch_of_nothing_is_refused(client: Any) -> None:
    with pytest.raises(ValidationError, match="records"):
        await client.usage.submit_batch([])


async def test_pages(client: Any, organization: str) -> None:
    await client.usage.submit_batch(
        [
            UsageRecord(
                organization_id=organization,
                **{**CALL, "timestamp": AT + timedelta(seconds=n // 2), "input_tokens": n},
            )
            for n in range(25)
        ]
    )
    seen, cursor = [], ""
    for _ in range(10):
        page = await client.usage.get_history(organization_id=organization, page_size=7, cursor=cursor)
        seen += [record.input_tokens for record in page.data]
        cursor = page.pagination.next_cursor
        assert page.pagination.has_next is bool(cursor)
        if not cursor:
            break
    assert sorted(seen) == list(range(25))
    assert [n // 2 for n in seen] == sorted((n // 2 for n in range(25)), reverse=True)
    numbered = await client.usage.get_history(organization_id=organization, page=3, page_size=10)
    assert len(numbered.data) == 5
    pagination = numbered.pagination
    assert (pagination.page, pagination.page_size, pagination.per_page) == (3, 10, 10)
    assert (pagination.total_items, pagination.total_pages) == (25, 3)
    assert (pagination.has_next, pagination.has_prev) == (False, True)
    oldest = await client.usage.get_history(organization_id=organization, page_size=1, order="asc")
    assert oldest.data[0].timestamp == AT


@pytest.mark.parametrize(
    "bad",
    [
        {"cursor": "nonsense"},
        {"cursor": "WyJ4Il0"},
        {"page": 1, "cursor": "x"},
        {"page_size": 1001},
        {"page_size": -1},
        {"sort": "cost"},
        {"order": "up"},
        {"start_date": "yesterday"},
        {"start_date": "2026-02-30"},
        {"time_zone": "Mars/Olympus", "start_date": "2026-01-01"},
    ],
)
async def test_bad_lists_are_refused(client: Any, organization: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.usage.get_history(organization_id=organization, **bad)
    assert any(name in violation.field for violation in caught.value.violations for name in bad), (
        caught.value.violations
    )


async def test_filters(client: Any, organization: str) -> None:
    def record(**fields: Any) -> UsageRecord:
        return UsageRecord(organization_id=organization, **{**CALL, **fields})

    await client.usage.submit_batch(
        [
            record(input_tokens=1, project_id="p", tags=["x"], labels={"team": "a"}),
            record(input_tokens=2, project_id="q", tags=["x", "y"], labels={"team": "b", "env": "c"}),
            record(input_tokens=3, provider="vertex", model_id="gemini-2.5-pro", user_id="u"),
            record(input_tokens=4, timestamp=AT + timedelta(days=1)),
        ]
    )

    async def found(**filters: Any) -> set[int]:
        page = await client.usage.get_history(organization_id=organization, **filters)
        return {record.input_tokens for record in page.data}

    assert await found(project_id="p") == {1}
    assert await found(project_id=["p", "q"]) == {1, 2}
    assert await found(tag=["y", "nope"]) == {2}
    assert await found(label={"team": "b", "env": "c"}) == {2}
    assert await found(label={"team": "b", "env": "d"}) == set()
    assert await found(provider="gemini") == {3}, "an alias of the provider"
    assert await found(user_id="u", model_id="gemini-2.5-pro") == {3}
    assert await found(end_date="2026-11-20") == {1, 2, 3}, "through that day"
    assert await found(start_date=date(2026, 11, 21)) == {4}
    assert await found(start_date=AT, end_date=AT) == set(), "half-open"
    assert await found(start_date=AT, end_date=AT + timedelta(microseconds=1)) == {1, 2, 3}


async def test_the_status_tells_a_repeat(client: Any, organization: str) -> None:
    raw = client.with_raw_response
    call = {"organization_id": organization, "idempotency_key": "k", **CALL}
    assert [(await raw.usage.submit(**call)).status for _ in range(2)] == [201, 200]
    price = {"provider": f"p-{organization[-12:]}", "model_id": "m", "input_price_per_1k": "1"}
    made = [await raw.pricing.create(**price, idempotency_key=organization) for _ in range(2)]
    assert [answer.status for answer in made] == [201, 200]
    assert made[0].parsed.id == made[1].parsed.id
