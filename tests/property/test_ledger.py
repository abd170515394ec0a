"""A random ledger through the client: groups sum to totals, receipts hold, repricing equals a fresh start."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain, combinations
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_cost_ops import CostOpsClient, UsageRecord
from llm_cost_ops.types import (
    CostStatus,
    CostSummary,
    ModalityTokens,
    Operation,
    PriceTier,
    Rate,
    TierMode,
    UsageQuality,
)

START = datetime(2026, 3, 28, tzinfo=UTC)
DIMENSIONS = (
    "provider",
    "model",
    "organization",
    "project",
    "user",
    "label:team",
    "operation",
    "service_tier",
    "processing",
    "region",
    "status",
    "meter",
)
QUALITIES = (*[UsageQuality.UNSPECIFIED] * 3, UsageQuality.ESTIMATED, UsageQuality.UNKNOWN)
TIMES = ("hour", "day", "week", "month")


def some_record(chance: random.Random) -> UsageRecord:
    """Any record; some have a price in dollars, some in euros, some none."""
    put_in, put_out = chance.choice([0, 7, 1000, 300_000]), chance.choice([0, 3, 500])
    cached = chance.choice([0, put_in // 3])
    modality = None
    if chance.random() < 0.3:
        modality = ModalityTokens(input_image_tokens=put_in // 3, output_audio_tokens=put_out // 3)
    return UsageRecord(
        organization_id=chance.choice(["acme", "globex"]),
        provider=chance.choice(["house", "casa", "nobody", "openai"]),
        model_id=chance.choice(["a", "b", "gpt-4o"]),
        input_tokens=put_in,
        output_tokens=put_out,
        cached_tokens=cached,
        cache_write_tokens=chance.choice([0, (put_in - cached) // 5]),
        reasoning_tokens=chance.choice([0, put_out // 2]),
        modality=modality,
        meters=chance.choice([{}, {"web_searches": 2}, {"audio_ms": 1234, "unheard_of": 1}]),
        request_count=chance.choice([None, None, 3]),
        quality=chance.choice(QUALITIES),
        timestamp=START + timedelta(minutes=chance.randrange(60 * 24 * 40)),
        project_id=chance.choice(["", "p"]),
        user_id=chance.choice(["", "u", "v"]),
        tags=chance.choice([[], ["x"], ["x", "y"]]),
        labels=chance.choice([{}, {"team": "red"}]),
        operation=chance.choice([Operation.UNSPECIFIED, Operation.CHAT]),
        service_tier=chance.choice(["", "flex"]),
        processing=chance.choice(["", "batch"]),
        region=chance.choice(["", "eu"]),
    )


def some_card(chance: random.Random, provider: str, currency: str) -> dict[str, Any]:
    def price() -> Decimal:
        # So low that 300,000 tokens cost less than MAX_RECORD_COST.
        return Decimal(chance.randrange(1, 10**7)) / 10**7

    tiers = [PriceTier(above=800, price=price())] if chance.random() < 0.5 else []
    rates = [Rate(meter="INPUT", price=price(), per=chance.choice([7, 1000, 10**6]), tiers=tiers)]
    others = ("OUTPUT", "CACHE_READ", "WEB_SEARCHES", "AUDIO_SECONDS", "REQUESTS", "TOTAL_TOKENS")
    rates += [
        Rate(meter=meter, price=price(), per=chance.choice([1, 1000]), included=chance.choice([0, 2]))
        for meter in others
        if chance.random() < 0.6
    ]
    return {
        "provider": provider,
        "model_id": chance.choice(["a", "b", "*"]),
        "currency": currency,
        "rates": rates,
        "tier_mode": chance.choice([TierMode.WHOLE_REQUEST, TierMode.GRADUATED]),
        "service_tier": chance.choice(["", "", "flex"]),
        "effective_date": START - timedelta(days=1) + timedelta(days=chance.choice([0, 0, 9])),
    }


def fill(client: CostOpsClient, records: list[UsageRecord]) -> list[tuple[str, str]]:
    """The ids of the records, each with its organization."""
    done = client.usage.submit_batch(records)
    assert done.created == len(records)
    return [(result.usage.usage_id, result.usage.organization_id) for result in done.results]


def add_cards(client: CostOpsClient, cards: list[dict[str, Any]]) -> None:
    for card in cards:
        client.pricing.create(**card)


def facts(summary: CostSummary) -> Any:
    return (
        summary.total_cost,
        summary.total_tokens,
        summary.total_requests,
        summary.unpriced_requests,
        summary.priced_fraction,
        [(other.currency, other.cost, other.requests) for other in summary.other_currencies],
        [
            (group.value, group.cost, group.tokens, group.requests, group.unpriced_requests)
            for group in summary.breakdown
        ],
    )


@pytest.fixture(params=["sqlite", "postgres"])
def new_url(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Gives the URL of a ledger that holds nothing, each time that it is called."""
    if request.param == "sqlite":
        yield lambda: "sqlite://"
        return
    # They go with the server: to drop each takes longer than what is done in it.
    yield request.getfixturevalue("postgres").new_database


def test_groups_sum_to_the_total_in_every_combination_of_three(new_url: Callable[[], str]) -> None:
    chance = random.Random(20261122)
    with CostOpsClient(base_url=new_url()) as client:
        add_cards(client, [some_card(chance, *pair) for pair in (("house", "USD"), ("casa", "EUR")) * 3])
        fill(client, [some_record(chance) for _ in range(150)])
        total = {code: client.costs.get(currency=code) for code in ("USD", "EUR")}
        assert total["USD"].total_cost > 0 < total["EUR"].total_cost
        assert total["USD"].other_currencies[0].cost == total["EUR"].total_cost
        assert 0 < total["USD"].priced_fraction < 1
        several = [*chain.from_iterable(combinations(DIMENSIONS, size) for size in (1, 2, 3))]
        several += chance.sample([*combinations(DIMENSIONS, 4)], 100)
        cases = [[*group_by, *([chance.choice(TIMES)] if len(group_by) < 4 else [])] for group_by in several]
        assert len(cases) == 12 + 66 + 220 + 100
        for at, group_by in enumerate(cases):
            zone, currency = ("", "Europe/Berlin")[at % 3 == 0], ("USD", "EUR")[at % 2]
            found = client.costs.get(group_by=group_by, currency=currency, time_zone=zone)
            expected = total[currency]
            assert found.additive
            assert found.total_cost == expected.total_cost
            assert sum(group.cost for group in found.breakdown) == expected.total_cost, group_by
            assert sum(group.tokens for group in found.breakdown) == expected.total_tokens, group_by
            if "meter" not in group_by:
                assert sum(group.requests for group in found.breakdown) == expected.total_requests


@pytest.mark.parametrize("seed", range(3))
def test_filters_are_the_groups(new_url: Callable[[], str], seed: int) -> None:
    chance = random.Random(seed)
    with CostOpsClient(base_url=new_url()) as client:
        add_cards(client, [some_card(chance, *pair) for pair in (("house", "USD"), ("casa", "EUR")) * 2])
        fill(client, [some_record(chance) for _ in range(60)])
        for name in ("provider", "operation", "service_tier", "processing", "region", "status"):
            groups = client.costs.get(group_by=name).breakdown
            for group in groups:
                if not group.value:
                    continue
                found = client.costs.get(**{name: group.value})
                assert (found.total_cost, found.total_requests) == (group.cost, group.requests)
                listed = list(client.usage.get_history(**{name: group.value}, page_size=1000))
                assert sum(record.request_count or 1 for record in listed) == group.requests
                series = client.analytics.get(
                    start_date="2026-01-01", end_date="2026-12-31", **{name: group.value}
                )
                assert series.summary.total_requests == group.requests
            values = [group.value for group in groups if group.value]
            both = client.costs.get(**{name: values})
            assert both.total_requests == sum(group.requests for group in groups if group.value)


SEEDS, COUNTS = st.integers(0, 2**32), st.integers(1, 25)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, count=COUNTS)
@example(seed=15641, count=9)
def test_receipts_hold_and_repricing_equals_a_fresh_start(seed: int, count: int) -> None:
    check_repricing(lambda: "sqlite://", seed, count)


# Two databases are made for each example.
@settings(max_examples=6, deadline=None)
@given(seed=SEEDS, count=COUNTS)
@example(seed=15641, count=9)
def test_receipts_hold_and_repricing_equals_a_fresh_start_in_postgresql(
    postgres: Any, seed: int, count: int
) -> None:
    check_repricing(postgres.new_database, seed, count)


def check_repricing(new_url: Callable[[], str], seed: int, count: int) -> None:
    chance = random.Random(seed)
    records = [some_record(chance) for _ in range(count)]
    first = [some_card(chance, *pair) for pair in (("house", "USD"), ("casa", "EUR"))]
    later = [some_card(chance, chance.choice(["house", "casa", "nobody"]), "USD") for _ in range(3)]
    with CostOpsClient(base_url=new_url()) as client, CostOpsClient(base_url=new_url()) as fresh:
        add_cards(client, first)
        ids = fill(client, records)
        check_receipts(client, ids)
        add_cards(client, later)
        before = facts(client.costs.get(group_by=["provider", "status"]))
        planned = client.costs.reprice(dry_run=True)
        assert facts(client.costs.get(group_by=["provider", "status"])) == before
        done = client.costs.reprice()
        assert (planned.examined, planned.changed, planned.differences) == (
            done.examined,
            done.changed,
            done.differences,
        )
        assert done.examined == count
        again = client.costs.reprice()
        assert (again.changed, again.differences) == (0, [])
        check_receipts(client, ids)
        add_cards(fresh, first + later)
        fresh_ids = fill(fresh, records)
        groupings = [[], ["provider", "status"], ["user", "day"], ["tag"]]
        # A cost that comes out the same by another card stays, with the meters of the card before.
        if [rates_of(client, *each) for each in ids] == [rates_of(fresh, *each) for each in fresh_ids]:
            groupings.append(["meter", "label:team"])
        for group_by in groupings:
            for currency in ("USD", "EUR"):
                old = client.costs.get(group_by=group_by, currency=currency)
                assert facts(old) == facts(fresh.costs.get(group_by=group_by, currency=currency))


def rates_of(client: CostOpsClient, usage_id: str, organization: str) -> list[Any]:
    """The rates of the card that priced a record."""
    card_id = client.costs.get_record(usage_id, organization_id=organization).rate_card_id
    return client.pricing.get(card_id).rates if card_id else []


def check_receipts(client: CostOpsClient, ids: list[tuple[str, str]]) -> None:
    """Every cost is verified, is the sum of its lines, and together they are the summary."""
    totals: dict[str, Decimal] = defaultdict(Decimal)
    unpriced = 0
    for usage_id, organization in ids:
        found = client.costs.verify(usage_id, organization_id=organization)
        assert found.matches, found.reason
        cost = client.costs.get_record(usage_id, organization_id=organization)
        assert cost == found.recorded == found.recomputed
        if cost.total_cost is None:
            assert cost.status == CostStatus.UNPRICED
            unpriced += 1
            continue
        assert sum((line.cost for line in cost.lines), Decimal(0)) == cost.total_cost
        totals[cost.currency] += cost.total_cost
    for currency in ("USD", "EUR"):
        assert client.costs.get(currency=currency).total_cost == totals[currency]
    listed = client.usage.get_history(page_size=1000, status="unpriced")
    assert len(listed.data) == unpriced
