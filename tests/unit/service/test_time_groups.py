"""Costs by hour, day, week and month: only of the time that holds records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from llm_cost_ops import CostOpsClient, UsageRecord, ValidationError
from llm_cost_ops.testing import VirtualRuntime

MOMENTS = [
    datetime(2000, 1, 1, tzinfo=UTC),
    datetime(2026, 3, 1, 23, 30, tzinfo=UTC),
    datetime(2026, 3, 2, 0, 15, tzinfo=UTC),
    datetime(2100, 12, 31, 23, 59, tzinfo=UTC),
]


def with_records(moments: list[datetime]) -> CostOpsClient:
    client = CostOpsClient(base_url="sqlite://", runtime=VirtualRuntime(now=4_200_000_000.0))
    numbers = count()
    records = [
        UsageRecord(
            organization_id="acme",
            provider="openai",
            model_id="gpt-4o",
            input_tokens=1000,
            timestamp=moment,
            idempotency_key=f"k{next(numbers)}",
        )
        for moment in moments
    ]
    assert client.usage.submit_batch(records).created == len(moments)
    return client


@pytest.mark.parametrize(
    ("time", "labels"),
    [
        ("hour", [f"{moment:%Y-%m-%dT%H}:00:00+00:00" for moment in MOMENTS]),
        ("day", ["2000-01-01", "2026-03-01", "2026-03-02", "2100-12-31"]),
        ("week", ["1999-12-27", "2026-02-23", "2026-03-02", "2100-12-27"]),
        ("month", ["2000-01", "2026-03", "2100-12"]),
    ],
)
def test_a_record_a_century_away_leaves_the_others_to_be_grouped(time: str, labels: list[str]) -> None:
    with with_records(MOMENTS) as client:
        everything = client.costs.get(group_by=time)
        assert [group.value for group in everything.breakdown] == labels
        assert sum(group.requests for group in everything.breakdown) == everything.total_requests == 4
        # As well where the dates are given.
        dated = client.costs.get(group_by=time, start_date="2000-01-01", end_date="2100-12-31")
        assert dated.breakdown == everything.breakdown
        one = client.costs.get(group_by=time, start_date="2026-03-01", end_date="2026-03-01")
        assert [group.requests for group in one.breakdown] == [1]


def test_the_hour_that_comes_twice_in_autumn_comes_in_its_order() -> None:
    hours = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in range(3)]
    with with_records(hours) as client:
        for dimensions in (["hour"], ["hour", "model"]):
            found = client.costs.get(group_by=dimensions, time_zone="Europe/Berlin").breakdown
            assert [group.keys[0].value[10:] for group in found] == [
                "T02:00:00+02:00",
                "T02:00:00+01:00",
                "T03:00:00+01:00",
            ]


def test_groups_by_time_and_another_dimension_are_sparse_too() -> None:
    with with_records(MOMENTS) as client:
        groups = client.costs.get(group_by=["model", "day"]).breakdown
        assert [group.value for group in groups] == [
            "2000-01-01,gpt-4o",
            "2026-03-01,gpt-4o",
            "2026-03-02,gpt-4o",
            "2100-12-31,gpt-4o",
        ]


def test_a_window_that_ends_before_it_starts_is_refused_everywhere() -> None:
    window = {"start_date": "2026-11-02", "end_date": "2026-11-01"}
    with with_records(MOMENTS) as client:
        for call in (client.costs.get, client.usage.get_history, client.costs.reprice, client.analytics.get):
            with pytest.raises(ValidationError, match="end_date must not be before start_date"):
                call(**window)
        with pytest.raises(ValidationError, match="end_date must not be before start_date"):
            list(client.usage.export(**window))


@pytest.mark.parametrize("group_by", ["", "model", "tag", "meter", ["tag", "region"]])
def test_a_summary_is_of_the_series_however_far_records_are_ahead(group_by: str | list[str]) -> None:
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    runtime = VirtualRuntime(now=midnight.timestamp() - 60)
    with CostOpsClient(base_url="sqlite://", runtime=runtime) as client:
        for minutes in (-9, 0.5, 3):
            moment = midnight + timedelta(minutes=minutes)
            client.usage.submit(
                organization_id="acme",
                provider="openai",
                model_id="gpt-4o",
                input_tokens=1000,
                timestamp=moment,
            )
        series = client.analytics.get("2026-03-01", group_by=group_by, interval="day")
        assert sum(point.metrics.total_requests for point in series.time_series) == 1
        assert series.summary.total_requests == 1
        assert client.costs.get(group_by=group_by).total_requests == 3
