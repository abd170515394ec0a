"""From the filter of a request to that of a store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, ValidationError
from llm_cost_ops._gen.codecs import EXPORT_USAGE_REQUEST, GET_COST_SUMMARY_REQUEST
from llm_cost_ops._gen.messages import Filter, GetAnalyticsRequest, GetCostSummaryRequest
from llm_cost_ops._gen.validators import validate_get_analytics_request, validate_get_cost_summary_request
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.pages import filter_of


def test_every_field_of_the_message_is_used() -> None:
    values: dict[str, Any] = {
        name: {"a": "b"} if name == "label" else ["chat"] if name == "operation" else ["priced"]
        for name in Filter.__struct_fields__
        if name not in ("unknown_", "start_date", "end_date", "time_zone")
    }
    where = filter_of(Filter(**values, start_date="2026-01-01", end_date="2026-01-01"))
    assert where.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert where.end == datetime(2026, 1, 2, tzinfo=UTC)
    assert all(getattr(where, name) for name in where.__struct_fields__)
    assert filter_of(Filter(start_date="2026-01-01", time_zone="Asia/Tokyo")).start == datetime(
        2025, 12, 31, 15, tzinfo=UTC
    )


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x04\xf2\x07\x01x", b"\xf2\x07\x01x"],
    ids=["in the filter", "beside it"],
)
def test_a_field_of_a_newer_version_does_not_widen_a_query(data: bytes) -> None:
    for codec in (EXPORT_USAGE_REQUEST, GET_COST_SUMMARY_REQUEST):
        with pytest.raises(RpcError, match="does not know") as caught:
            filter_of(codec.decode(data))
        assert caught.value.code is StatusCode.INVALID_ARGUMENT


def test_more_values_than_a_query_of_sqlite_takes_are_the_callers_fault() -> None:
    """Its limit is a setting of who built it: 250,000 with Debian, 32,766 elsewhere."""
    names = [f"name-{number}" for number in range(251_000)]
    with CostOpsClient(base_url="sqlite://") as client:
        client.usage.submit(organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=1)
        asked: list[Callable[[], object]] = [
            lambda: list(client.usage.get_history(organization_id=names)),
            lambda: list(client.usage.get_history(tag=names)),
            lambda: client.costs.get(model_id=names),
            lambda: list(client.audit.list(actor=names)),
        ]
        for ask in asked:
            with pytest.raises(ValidationError) as caught:
                ask()
            assert [violation.field for violation in caught.value.violations] == ["filter"]


def test_analytics_need_a_start_and_the_others_do_not() -> None:
    found: list[Any] = []
    validate_get_analytics_request(GetAnalyticsRequest(), "", found)
    assert [violation.field for violation in found] == ["start_date"]
    found.clear()
    validate_get_cost_summary_request(GetCostSummaryRequest(), "", found)
    assert not found
