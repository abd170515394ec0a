"""Ways to call an SDK must leave one record each, with the usage that the stub sent, or UNKNOWN."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageQuality, UsageRecord
from tests.sdk_stub import INPUT, OUTPUT


async def run(way: Callable[[Any], Any], sdk_client: Any) -> None:
    """Run a way to call, which may be a coroutine function."""
    result = way(sdk_client)
    if inspect.isawaitable(result):
        await result


def records_of(client: CostOpsClient) -> list[UsageRecord]:
    """What was recorded. Nothing may be refused on the way."""
    report = client.flush(10)
    assert report.rejected == []
    assert report.pending == report.dropped == 0
    return list(client.usage.list(organization_id="acme"))


def only_record(client: CostOpsClient, expected: str) -> UsageRecord:
    """The one record there is, which must be as is `expected`: "measured", "input", "unknown"."""
    records = records_of(client)
    assert len(records) == 1, records
    record = records[0]
    assert record.observation
    if expected == "unknown":
        assert record.quality == UsageQuality.UNKNOWN
        assert record.estimated_cost is None
    else:
        assert record.quality != UsageQuality.UNKNOWN
        assert record.input_tokens == INPUT
        assert record.output_tokens == (0 if expected == "input" else OUTPUT)
    return record
