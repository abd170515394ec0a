"""The generated literals are what the service takes."""

from __future__ import annotations

from typing import get_args

import pytest

from llm_cost_ops import ValidationError
from llm_cost_ops._gen.resources import GroupBy, Metrics, Order, Sort
from llm_cost_ops.service.analytics import _METRICS
from llm_cost_ops.service.sums import DIMENSIONS, TIME_DIMENSIONS
from llm_cost_ops.testing import memory_client


def test_metrics_and_groups_are_those_of_the_service() -> None:
    assert get_args(Metrics) == tuple(_METRICS)
    names, text = get_args(GroupBy)
    assert text is str
    assert get_args(names) == ("none", *DIMENSIONS, *TIME_DIMENSIONS)


def test_sorts_and_orders_are_those_of_the_service() -> None:
    with memory_client() as client:
        for sort in get_args(Sort):
            client.usage.list(sort=sort)
        for order in get_args(Order):
            client.usage.list(order=order)
            list(client.usage.export(order=order))
        for wrong in ({"sort": "newest"}, {"order": "down"}):
            with pytest.raises(ValidationError):
                client.usage.list(**wrong)
