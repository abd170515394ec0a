"""Receipts, estimates and repricing: the same over every transport, in both colours."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops import NotFoundError, UsageRecord, ValidationError
from llm_cost_ops.types import CostStatus, Rate, UsageQuality

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)
CALL: dict[str, Any] = {
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "cached_tokens": 200,
    "output_tokens": 500,
    "timestamp": AT,
}


def unheard_of(organization: str) -> dict[str, Any]:
    """A call of a model that nobody has a price for."""
    return {**CALL, "provider": f"p-{organization[-12:]}", "model_id": "m"}


async def make_price(client: Any, organization: str, **fields: Any) -> Any:
    price = {"input_price_per_1k": "1", "output_price_per_1k": "2", "effective_date": "2020-01-01"}
    return await client.pricing.create(
        provider=f"p-{organization[-12:]}", model_id="m", **{**price, **fields}
    )


async def test_a_receipt_has_its_lines(client: Any, organization: str) -> None:
    sent = await client.usage.submit(organization_id=organization, **CALL)
    cost = await client.costs.get_record(sent.usage_id, organization_id=organization)
    assert cost.usage_id == sent.usage_id
    assert cost.revision == 1
    assert cost.id
    assert (cost.status, cost.currency, cost.total_cost) == (CostStatus.PRICED, "USD", sent.estimated_cost)
    assert [(line.meter, line.quantity, line.unit_price, line.per, line.cost) for line in cost.lines] == [
        ("INPUT", 800, Decimal("2.5"), 1_000_000, Decimal("0.002")),
        ("CACHE_READ", 200, Decimal("1.25"), 1_000_000, Decimal("0.00025")),
        ("OUTPUT", 500, Decimal(10), 1_000_000, Decimal("0.005")),
    ]
    assert sum(line.cost for line in cost.lines) == cost.total_cost == Decimal("0.00725")
    assert (cost.input_cost, cost.output_cost, cost.other_cost) == (
        Decimal("0.00225"),
        Decimal("0.005"),
        Decimal(0),
    )
    assert cost.cache_savings == Decimal("0.00025")
    assert cost.rate_card_id == "openai/gpt-4o"
    assert cost.rate_card_version == 1
    assert cost.origin_version.startswith("genai-prices ")
    assert cost.calculated_at == sent.processed_at


async def test_a_receipt_is_verified(client: Any, organization: str) -> None:
    calls = [
        CALL,
        {**CALL, "service_tier": "nobody-has-it"},
        {**CALL, "meters": {"unheard_of": 3}},
        {**CALL, "quality": UsageQuality.UNKNOWN},
        {**CALL, "quality": UsageQuality.ESTIMATED},
        {**CALL, "request_count": 7},
        unheard_of(organization),
    ]
    records = [UsageRecord(organization_id=organization, **call) for call in calls]
    done = await client.usage.submit_batch(records)
    statuses = []
    for result in done.results:
        found = await client.costs.verify(result.usage.usage_id, organization_id=organization)
        assert found.matches, found.reason
        assert found.reason == ""
        assert found.recorded == found.recomputed
        assert found.recorded.total_cost == result.usage.estimated_cost
        statuses.append(found.recorded.status.value)
    assert statuses == ["priced", "estimated", "partial", "unpriced", "estimated", "priced", "unpriced"]


async def test_a_manual_card_and_its_versions(client: Any, organization: str) -> None:
    first = await make_price(client, organization)
    early = await client.usage.submit(organization_id=organization, **unheard_of(organization))
    second = await make_price(client, organization, effective_date="2021-01-01", output_price_per_1k="3")
    late = await client.usage.submit(organization_id=organization, **unheard_of(organization))
    for sent, card, total in ((early, first, Decimal(2)), (late, second, Decimal("2.5"))):
        cost = await client.costs.get_record(sent.usage_id, organization_id=organization)
        assert (cost.rate_card_id, cost.rate_card_version, cost.total_cost) == (card.id, card.version, total)
        assert (await client.costs.verify(sent.usage_id, organization_id=organization)).matches


@pytest.mark.parametrize("usage_id", ["no-such-id", "01a20359-ab54-7000-bc5b-ba4c242805a1", "a b/c?d%2F"])
async def test_there_is_no_such_record(client: Any, usage_id: str) -> None:
    for call in (client.costs.get_record, client.costs.verify):
        with pytest.raises(NotFoundError, match="no usage record"):
            await call(usage_id, organization_id="acme")


async def test_a_record_is_looked_up_in_one_organization(client: Any, organization: str) -> None:
    sent = await client.usage.submit(organization_id=organization, **CALL)
    for call in (client.costs.get_record, client.costs.verify):
        with pytest.raises(NotFoundError, match="no usage record"):
            await call(sent.usage_id, organization_id=f"{organization}-b")
        with pytest.raises(ValidationError, match="must be given") as caught:
            await call(sent.usage_id)
        assert [violation.field for violation in caught.value.violations] == ["organization_id"]


@pytest.mark.parametrize("usage_id", ["", "x" * 65, "a\r\nb", "nul\0"])
async def test_bad_ids_are_refused(client: Any, usage_id: str) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.costs.get_record(usage_id)
    assert [violation.field for violation in caught.value.violations] == ["usage_id"]


async def test_an_estimate_writes_nothing(client: Any, organization: str) -> None:
    call = {name: value for name, value in CALL.items() if name != "timestamp"}
    cost = await client.costs.estimate(**call)
    assert (cost.total_cost, cost.status, cost.currency) == (Decimal("0.00725"), CostStatus.PRICED, "USD")
    assert [line.meter for line in cost.lines] == ["INPUT", "CACHE_READ", "OUTPUT"]
    assert (cost.id, cost.usage_id, cost.revision) == ("", "", 0)
    assert abs(cost.calculated_at - datetime.now(UTC)) < timedelta(minutes=1)
    ready = UsageRecord(organization_id=organization, id="made-up", **CALL)
    same = await client.costs.estimate(ready)
    assert (same.lines, same.usage_id, ready.id) == (cost.lines, "", "made-up")
    assert (await client.costs.get(organization_id=organization)).total_requests == 0


async def test_an_estimate_takes_contract_prices_and_the_future(client: Any, organization: str) -> None:
    await make_price(client, organization, organization_id=organization, effective_date="2019-01-01")
    await make_price(client, organization, effective_date="2100-01-01", currency="EUR")
    call = unheard_of(organization)
    assert (await client.costs.estimate(**call)).status == CostStatus.UNPRICED
    mine = await client.costs.estimate(organization_id=organization, **call)
    assert (mine.total_cost, mine.currency) == (Decimal(2), "USD")
    later = await client.costs.estimate(**{**call, "timestamp": datetime(2100, 6, 1)})
    assert (later.total_cost, later.currency) == (Decimal(2), "EUR")


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"provider": ""}, "provider"),
        ({"cached_tokens": 1001}, "cached_tokens"),
        ({"input_tokens": -1}, "input_tokens"),
        ({"total_tokens": 3}, "total_tokens"),
        ({"timestamp": datetime(1999, 1, 1)}, "timestamp"),
        ({"meters": {"a b": 1}}, "meters"),
        ({"input_tokens": 10**12 + 1, "cached_tokens": 0}, "input_tokens"),
    ],
)
async def test_bad_estimates(client: Any, bad: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.costs.estimate(**{**CALL, **bad})
    assert any(violation.field.startswith(field) for violation in caught.value.violations)


async def test_a_record_that_stops_a_repricing_is_named(client: Any, organization: str) -> None:
    call = {"provider": f"dear-{organization}", "model_id": "m", "timestamp": "2026-11-01T01:02:03.5Z"}
    await client.usage.submit(organization_id=organization, input_tokens=1000, **call)
    where = {"provider": call["provider"], "model_id": "m", "organization_id": organization}
    dear = await client.pricing.create(**where, input_price_per_1k="1000001", effective_date="2026-01-01")
    for dry_run in (True, False):
        with pytest.raises(ValidationError) as caught:
            await client.costs.reprice(organization_id=organization, dry_run=dry_run)
        for named in (
            organization,
            f"{call['provider']}/m",
            "2026-11-01T01:02:03.5",
            dear.id,
            "1,000,000 USD",
        ):
            assert named in caught.value.message


async def test_a_later_card_prices_what_had_no_price(client: Any, organization: str) -> None:
    call = unheard_of(organization)
    first = await client.usage.submit(organization_id=organization, idempotency_key="k", **call)
    await client.usage.submit(organization_id=organization, **CALL)
    assert first.cost_status == CostStatus.UNPRICED
    before = await client.costs.get(organization_id=organization)
    assert (before.unpriced_requests, before.priced_fraction) == (1, Decimal("0.5"))
    await make_price(client, organization)
    where = {"organization_id": organization}
    planned = await client.costs.reprice(**where, dry_run=True)
    assert await client.costs.get(**where) == before, "a dry run writes nothing"
    done = await client.costs.reprice(**where)
    assert (planned.dry_run, done.dry_run) == (True, False)
    assert (planned.examined, planned.changed, planned.differences) == (2, 1, done.differences)
    [difference] = done.differences
    assert (difference.provider, difference.model_id, difference.currency) == (call["provider"], "m", "USD")
    assert (difference.records, difference.before, difference.after, difference.difference) == (1, 0, 2, 2)
    assert (difference.unpriced_before, difference.unpriced_after) == (1, 0)
    after = await client.costs.get(**where, group_by="provider")
    assert (after.total_cost, after.unpriced_requests, after.priced_fraction) == (Decimal("2.00725"), 0, 1)
    assert [(group.value, group.cost) for group in after.breakdown] == [
        (call["provider"], Decimal(2)),
        ("openai", Decimal("0.00725")),
    ]
    by_user = await client.costs.get(**where, group_by="user")
    assert (by_user.total_cost, by_user.unpriced_requests) == (after.total_cost, 0)
    [listed] = await client_list(client, **where, status="estimated", provider=call["provider"])
    assert (listed.estimated_cost, listed.cost_status) == (Decimal(2), CostStatus.ESTIMATED)
    cost = await client.costs.get_record(first.usage_id, organization_id=organization)
    assert (cost.revision, cost.total_cost) == (2, Decimal(2))
    assert cost.calculated_at >= first.processed_at
    assert (await client.costs.verify(first.usage_id, organization_id=organization)).matches
    again = await client.costs.reprice(**where)
    assert (again.examined, again.changed, again.differences) == (2, 0, [])
    # The first answer to a key stays the first answer.
    repeated = await client.usage.submit(organization_id=organization, idempotency_key="k", **call)
    assert (repeated.duplicate, repeated.estimated_cost) == (True, None)


async def client_list(client: Any, **where: Any) -> list[UsageRecord]:
    page = await client.usage.get_history(**where)
    return list(page.data)


async def test_repricing_as_of_a_moment(client: Any, organization: str) -> None:
    await client.usage.submit(organization_id=organization, **unheard_of(organization))
    card = await make_price(client, organization)
    where = {"organization_id": organization, "dry_run": True}
    earlier = card.created_at - timedelta(microseconds=1)
    assert (await client.costs.reprice(**where, as_of=earlier)).changed == 0
    assert (await client.costs.reprice(**where, as_of=card.created_at)).changed == 1
    assert (await client.costs.reprice(**where, as_of=card.created_at.date())).changed == 1
    assert (await client.costs.reprice(**where, as_of="2020-01-01")).changed == 0


async def test_repricing_keeps_to_its_filter(client: Any, organization: str) -> None:
    for day, project in ((1, "a"), (2, "a"), (3, "b")):
        call = {**unheard_of(organization), "timestamp": datetime(2026, 11, day), "project_id": project}
        await client.usage.submit(organization_id=organization, **call)
    await make_price(client, organization)
    where = {"organization_id": organization}
    assert (await client.costs.reprice(**where, project_id="a", end_date=date(2026, 11, 1))).changed == 1
    assert (await client.costs.reprice(**where, status="unpriced")).examined == 2
    assert (await client.costs.get(**where)).unpriced_requests == 0
    assert (await client.costs.reprice(organization_id=f"{organization}-b")).examined == 0


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"as_of": "yesterday"}, "as_of"),
        ({"start_date": "2026-02-01", "end_date": "2026-01-01"}, "end_date"),
        ({"time_zone": "Mars"}, "time_zone"),
        ({"status": "cheap"}, "status"),
    ],
)
async def test_bad_repricing(client: Any, organization: str, bad: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.costs.reprice(organization_id=organization, dry_run=True, **bad)
    assert any(field in violation.field for violation in caught.value.violations)


async def test_a_currency_may_change(client: Any, organization: str) -> None:
    await make_price(client, organization)
    await client.usage.submit(organization_id=organization, **unheard_of(organization))
    await make_price(client, organization, currency="EUR", effective_date="2021-01-01")
    report = await client.costs.reprice(organization_id=organization)
    assert [(d.currency, d.records, d.before, d.after, d.difference) for d in report.differences] == [
        ("EUR", 1, 0, 2, 2),
        ("USD", 1, 2, 0, -2),
    ]
    summary = await client.costs.get(organization_id=organization)
    assert (summary.total_cost, summary.other_currencies[0].cost) == (0, 2)


async def test_by_meter(client: Any, organization: str) -> None:
    provider = f"p-{organization[-12:]}"
    rates = [
        Rate(meter="INPUT", price=Decimal(3), per=1_000_000),
        Rate(meter="OUTPUT", price=Decimal(15), per=1_000_000),
        Rate(meter="WEB_SEARCHES", price=Decimal("0.01"), per=1),
    ]
    await client.pricing.create(provider=provider, model_id="m", rates=rates, effective_date="2020-01-01")
    where: dict[str, Any] = {"organization_id": organization}
    base = {**CALL, "provider": provider, "model_id": "m"}
    await client.usage.submit_batch(
        [
            UsageRecord(**where, **base),
            UsageRecord(**where, **{**base, "cached_tokens": 0, "meters": {"web_searches": 2, "pages": 1}}),
            UsageRecord(**where, **{**base, "provider": f"{provider}-b"}),
        ]
    )
    summary = await client.costs.get(**where, group_by="meter")
    found = {group.value: group for group in summary.breakdown}
    assert {name: group.cost for name, group in found.items()} == {
        "INPUT": Decimal("0.0054"),
        "CACHE_READ": Decimal("0.0006"),
        "OUTPUT": Decimal("0.015"),
        "WEB_SEARCHES": Decimal("0.02"),
        "PAGES": Decimal(0),
    }
    assert {name: (g.requests, g.tokens, g.unpriced_requests) for name, g in found.items()} == {
        "INPUT": (3, 2600, 1),
        "CACHE_READ": (2, 400, 1),
        "OUTPUT": (3, 1500, 1),
        "WEB_SEARCHES": (1, 0, 0),
        "PAGES": (1, 0, 1),
    }
    assert sum(group.cost for group in summary.breakdown) == summary.total_cost
    assert sum(group.tokens for group in summary.breakdown) == summary.total_tokens
    assert summary.total_requests == 3
    by_day = await client.analytics.get(
        **where, start_date=AT, end_date=AT + timedelta(days=1), group_by="meter"
    )
    assert sum(point.metrics.total_cost for point in by_day.time_series) == summary.total_cost
