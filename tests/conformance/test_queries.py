"""Costs, analytics, prices and health: the same over every transport, in both colours."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops import ConflictError, UsageRecord, ValidationError
from llm_cost_ops.types import (
    CostStatus,
    HealthStatus,
    Operation,
    PriceMultiplier,
    PriceOrigin,
    PriceTier,
    Rate,
    TimeWindow,
)

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)


def record(organization: str, **fields: Any) -> UsageRecord:
    call: dict[str, Any] = {
        "provider": "openai",
        "model_id": "gpt-4o",
        "input_tokens": 1000,
        "output_tokens": 500,
    }
    return UsageRecord(organization_id=organization, **{**call, "timestamp": AT, **fields})


async def test_breakdown(client: Any, organization: str) -> None:
    await client.usage.submit_batch(
        [
            record(organization),
            record(organization, cached_tokens=1000),
            record(
                organization,
                provider="anthropic",
                model_id="claude-opus-4-5",
                timestamp=AT + timedelta(days=1),
            ),
        ]
    )
    summary = await client.costs.get(
        organization_id=organization,
        start_date=datetime(2026, 11, 1),
        end_date=date(2026, 11, 30),
        group_by="provider",
    )
    # 0.0075 + 0.00625, and 1000 x 5 + 500 x 25 per million.
    assert summary.total_cost == Decimal("0.03125")
    assert (summary.total_requests, summary.total_tokens, summary.unpriced_requests) == (3, 4500, 0)
    assert summary.period_start == datetime(2026, 11, 1, tzinfo=UTC)
    assert summary.period_end == datetime(2026, 12, 1, tzinfo=UTC)
    assert [(group.dimension, group.value, group.cost, group.requests) for group in summary.breakdown] == [
        ("provider", "anthropic", Decimal("0.0175"), 1),
        ("provider", "openai", Decimal("0.01375"), 2),
    ]
    assert summary.breakdown[1].cached_tokens == 1000
    by_day = await client.costs.get(organization_id=organization, group_by=["day", "model"])
    assert [(group.value, group.cost) for group in by_day.breakdown] == [
        ("2026-11-20,gpt-4o", Decimal("0.01375")),
        ("2026-11-21,claude-opus-4-5", Decimal("0.0175")),
    ]
    assert [(key.dimension, key.value) for key in by_day.breakdown[0].keys] == [
        ("day", "2026-11-20"),
        ("model", "gpt-4o"),
    ]


@pytest.mark.parametrize(
    ("group_by", "value"),
    [
        ("organization", None),
        ("model", "gpt-4o"),
        ("project", "p"),
        ("user", "u"),
        ("label:team", "t"),
        ("operation", "chat"),
        ("service_tier", ""),
        ("status", "priced"),
        ("day", "2026-11-20"),
        ("week", "2026-11-16"),
        ("month", "2026-11"),
    ],
)
async def test_every_dimension(client: Any, organization: str, group_by: str, value: str | None) -> None:
    await client.usage.submit(
        record(organization, project_id="p", user_id="u", labels={"team": "t"}, operation=Operation.CHAT)
    )
    summary = await client.costs.get(organization_id=organization, group_by=group_by)
    [group] = summary.breakdown
    assert group.value == (organization if value is None else value)
    assert group.cost == summary.total_cost == Decimal("0.0075")


async def test_a_day_in_a_zone(client: Any, organization: str) -> None:
    night = datetime(2026, 11, 20, 19, 45, tzinfo=UTC)
    await client.usage.submit_batch([record(organization), record(organization, timestamp=night)])
    query = {"organization_id": organization, "group_by": "day"}
    utc = await client.costs.get(**query)
    assert [group.value for group in utc.breakdown] == ["2026-11-20"]
    kathmandu = await client.costs.get(**query, time_zone="Asia/Kathmandu")  # +05:45
    assert [(group.value, group.requests) for group in kathmandu.breakdown] == [
        ("2026-11-20", 1),
        ("2026-11-21", 1),
    ]
    friday = await client.costs.get(
        organization_id=organization,
        start_date="2026-11-20",
        end_date="2026-11-20",
        time_zone="Asia/Kathmandu",
    )
    assert friday.total_requests == 1


async def test_tags_are_not_additive(client: Any, organization: str) -> None:
    await client.usage.submit_batch([record(organization, tags=["a", "b"]), record(organization, tags=["a"])])
    summary = await client.costs.get(organization_id=organization, group_by="tag")
    assert summary.additive is False
    assert summary.total_requests == 2
    assert {group.value: group.requests for group in summary.breakdown} == {"a": 2, "b": 1}


async def test_nothing_is_zero(client: Any, organization: str) -> None:
    summary = await client.costs.get(organization_id=organization, group_by="day")
    assert (summary.total_cost, summary.total_requests, summary.breakdown) == (Decimal(0), 0, [])


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        ("costs", {"group_by": "colour"}),
        ("costs", {"group_by": ["day", "week"]}),
        ("costs", {"group_by": ["provider"] * 5}),
        ("costs", {"start_date": "2026-11-21", "end_date": "2026-11-19"}),
        ("costs", {"time_zone": "Nowhere"}),
        ("costs", {"currency": "usd"}),
        ("analytics", {"start_date": "2026-11-20", "currency": "XXQ"}),
        ("analytics", {"start_date": ""}),
        ("analytics", {"start_date": "2016-11-20", "interval": "hour"}),
        ("analytics", {"start_date": "2026-11-20", "interval": "fortnight"}),
        ("analytics", {"start_date": "2026-11-20", "metrics": "happiness"}),
        ("analytics", {"start_date": "2026-11-20", "group_by": "day"}),
    ],
)
async def test_bad_queries_are_refused(client: Any, method: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        await getattr(client, method).get(**bad)
    assert any(
        name in violation.field for violation in caught.value.violations for name in (*bad, "end_date")
    )


async def test_analytics(client: Any, organization: str) -> None:
    await client.usage.submit_batch(
        [record(organization), record(organization), record(organization, timestamp=AT + timedelta(hours=2))]
    )
    series = await client.analytics.get(
        organization_id=organization,
        start_date=AT,
        end_date=AT + timedelta(hours=3),
        interval="hour",
        metrics=["total_cost", "total_requests", "average_cost_per_request"],
    )
    assert [point.timestamp for point in series.time_series] == [AT + timedelta(hours=n) for n in range(3)]
    assert [point.metrics.total_requests for point in series.time_series] == [2, 0, 1]
    assert [point.metrics.total_cost for point in series.time_series] == [
        Decimal("0.015"),
        Decimal(0),
        Decimal("0.0075"),
    ]
    assert [point.metrics.average_cost_per_request for point in series.time_series] == [
        Decimal("0.0075"),
        None,
        Decimal("0.0075"),
    ]
    assert series.time_series[0].metrics.total_tokens is None, "not asked for"
    assert series.summary.total_cost == Decimal("0.0225")
    assert series.summary.average_tokens_per_request == 1500


async def test_prices(client: Any, organization: str) -> None:
    provider = f"p-{organization[-12:]}"
    card = await client.pricing.create(
        provider=provider,
        model_id="m",
        input_price_per_1k="0.0015",
        output_price_per_1k=Decimal("0.002"),
        currency="USD",
        effective_date=date(2026, 1, 1),
    )
    assert card.origin == PriceOrigin.MANUAL
    assert (card.input_price_per_1k, card.output_price_per_1k) == (Decimal("0.0015"), Decimal("0.002"))
    assert (card.input_price_per_million, card.output_price_per_million) == (Decimal("1.5"), Decimal(2))
    assert card.effective_from == datetime(2026, 1, 1, tzinfo=UTC)
    assert await client.pricing.get(card.id) == card
    listed = await client.pricing.list(provider=provider)
    assert listed.data == [card]
    call = {"provider": provider, "model_id": "m"}
    priced = await client.usage.submit(record(organization, **call))
    assert (priced.estimated_cost, priced.cost_status) == (Decimal("0.0025"), CostStatus.PRICED)
    # A new version from today: what was recorded keeps its price.
    newer = await client.pricing.create(
        provider=provider,
        model_id="m",
        rates=[Rate(meter="INPUT", price=Decimal(3)), Rate(meter="OUTPUT", price=Decimal(4))],
        effective_date="2026-11-20",
    )
    assert newer.id != card.id
    assert (await client.usage.submit(record(organization, **call))).estimated_cost == Decimal("0.005")
    early = await client.usage.submit(record(organization, **call, timestamp=AT - timedelta(days=1)))
    assert early.estimated_cost == Decimal("0.0025")
    unknown = await client.usage.submit(record(organization, **call, timestamp=datetime(2025, 1, 1)))
    assert unknown.cost_status == CostStatus.UNPRICED, "before the first price there is none"
    assert (await client.costs.get(organization_id=organization)).total_cost == Decimal("0.01")


async def test_a_price_is_created_once(client: Any, organization: str) -> None:
    price = {
        "provider": f"p-{organization[-12:]}",
        "model_id": "m",
        "input_price_per_1k": 1,
        "output_price_per_1k": 2,
    }
    first = await client.pricing.create(idempotency_key=organization, **price)
    assert await client.pricing.create(idempotency_key=organization, **price) == first
    with pytest.raises(ConflictError):
        await client.pricing.create(idempotency_key=organization, **{**price, "input_price_per_1k": 3})


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"input_price_per_1k": "-1"}, "input_price_per_1k"),
        ({"input_price_per_1k": 0.1}, "input_price_per_1k"),
        ({"input_price_per_1k": "1e5"}, "input_price_per_1k"),
        ({"currency": "XXQ"}, "currency"),
        ({"effective_date": "2026-02-01", "end_date": "2026-01-01"}, "end_date"),
        ({"rates": [{"meter": "INPUT"}]}, "rates"),
        ({"model_id": "a*b"}, "model_id"),
        ({"input_price_per_1k": "9" * 30}, "input_price_per_1k"),
        ({"input_price_per_1k": "9" * 16}, "input_price_per_1k"),
        ({"effective_date": "2026-02-30"}, "effective_date"),
        ({"input_price_per_1k": "0." + "1" * 19}, "input_price_per_1k"),
        ({"multipliers": [PriceMultiplier(kind="margin", value=Decimal(0))]}, "multipliers[0].value"),
        ({"multipliers": [PriceMultiplier(kind="a", value=Decimal("1.0000000001"))] * 2}, "multipliers"),
        ({"windows": [TimeWindow(start="09:00", end="17:00")]}, "windows[0].time_zone"),
        ({"windows": [TimeWindow(start="09:00", end="17:00", time_zone="Mars")]}, "windows[0].time_zone"),
        (
            {
                "rates": [
                    Rate(
                        meter="PAGES",
                        per=1,
                        tiers=[PriceTier(above=2, price=Decimal(1)), PriceTier(above=1, price=Decimal(1))],
                    )
                ]
            },
            "rates[0].tiers[1].above",
        ),
        ({"input_price_per_1k": None, "output_price_per_1k": None}, "rates"),
        ({"input_price_per_million": "1"}, "input_price_per_million"),
    ],
)
async def test_bad_prices(client: Any, bad: dict[str, Any], field: str) -> None:
    price = {"provider": "p", "model_id": "m", "input_price_per_1k": "1", "output_price_per_1k": "2"}
    with pytest.raises(ValidationError) as caught:
        await client.pricing.create(**{**price, **bad})
    assert any(violation.field.startswith(field) for violation in caught.value.violations)


@pytest.mark.parametrize(
    ("rate", "per_1k"),
    [
        (Rate(meter="INPUT", price=Decimal(1), per=3), None),
        (Rate(meter="INPUT", price=Decimal("9" * 18), per=1), None),
        (Rate(meter="INPUT", price=Decimal("1e-18"), per=1_000_000), None),
        (Rate(meter="INPUT", price=Decimal("2.50"), per=1_000_000), Decimal("0.0025")),
        (Rate(meter="INPUT", price=Decimal(0), per=1), Decimal(0)),
    ],
)
async def test_prices_that_no_price_per_1k_says(
    client: Any, organization: str, rate: Rate, per_1k: Decimal | None
) -> None:
    card = await client.pricing.create(provider="p", model_id="m", organization_id=organization, rates=[rate])
    assert card.input_price_per_1k == per_1k
    assert await client.pricing.get(card.id) == card


async def test_prices_read_the_same_everywhere(client: Any, organization: str) -> None:
    card = await client.pricing.create(
        provider="p",
        model_id="m",
        organization_id=organization,
        input_price_per_1k=1,
        output_price_per_1k="0",
    )
    assert [str(rate.price) for rate in card.rates] == ["1000", "0"]


async def test_overlapping_prices_are_refused(client: Any, organization: str) -> None:
    async def create(effective_date: str, end_date: str = "", **fields: Any) -> Any:
        price = {"provider": f"p-{organization[-12:]}", "model_id": "m", "input_price_per_1k": "1"}
        return await client.pricing.create(
            **{**price, **fields}, effective_date=effective_date, end_date=end_date or None
        )

    first = await create("2026-03-01", "2026-05-31")
    for dates, field in (
        (("2026-04-01",), "effective_date"),
        (("2026-05-31",), "effective_date"),
        (("2026-01-01", "2026-03-01"), "end_date"),
    ):
        with pytest.raises(ValidationError, match=first.id) as caught:
            await create(*dates)
        assert [violation.field for violation in caught.value.violations] == [field]
    # Side by side, another key, another window, or a correction of the card itself.
    await create("2026-01-01", "2026-02-28")
    await create("2026-06-01")
    await create("2026-04-01", region="eu")
    window = TimeWindow(start="00:00", end="06:00", time_zone="Europe/Berlin")
    await create("2026-04-01", windows=[window])
    corrected = await create("2026-03-01", "2026-05-30", input_price_per_1k="2")
    assert corrected.version > first.version
    await create("2026-05-31", input_price_per_1k="3")
    assert (await client.pricing.list(provider=f"p-{organization[-12:]}")).pagination.total_items == 7


async def test_bundled_prices_are_listed(client: Any) -> None:
    page = await client.pricing.list(provider="openai", model_id="gpt-4o", active_at=AT, page_size=5)
    assert page.data
    card = page.data[0]
    assert card.origin == PriceOrigin.CATALOG
    assert card.input_price_per_1k == Decimal("0.0025")
    assert await client.pricing.get(card.id) == card


async def test_health(client: Any) -> None:
    health = await client.health()
    assert health.status == HealthStatus.HEALTHY
    assert [component.name for component in health.components] == ["store"]
    assert health.version
    assert health.uptime_seconds >= 0
    assert (await client.ready()).status == HealthStatus.HEALTHY


async def test_a_price_per_million_is_the_price_per_1k_times_a_thousand(
    client: Any, organization: str
) -> None:
    price = {"provider": f"p-{organization[-12:]}", "effective_date": "2026-01-01"}
    card = await client.pricing.create(
        model_id="m", input_price_per_million="2.50", output_price_per_million=10, **price
    )
    assert (card.input_price_per_million, card.output_price_per_million) == (Decimal("2.5"), Decimal(10))
    assert (card.input_price_per_1k, card.output_price_per_1k) == (Decimal("0.0025"), Decimal("0.01"))
    assert await client.pricing.get(card.id) == card
    sent = await client.usage.submit(
        record(organization, provider=price["provider"], model_id="m"), input_tokens=1_000_000
    )
    assert sent.estimated_cost == Decimal("2.505"), "what stands beside a record wins"
    both = {"input_price_per_million": "1", "input_price_per_1k": "1"}
    with pytest.raises(ValidationError) as caught:
        await client.pricing.create(model_id="n", **both, **price)
    assert {violation.field for violation in caught.value.violations} == set(both)
