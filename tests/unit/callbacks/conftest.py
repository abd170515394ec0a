from __future__ import annotations

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageRecord
from tests.unit.telemetry.conftest import client, stub

__all__ = ["client", "stub"]

MESSAGES = [{"role": "user", "content": "hi"}]


def recorded(client: CostOpsClient) -> list[UsageRecord]:
    """What was recorded. Nothing may be refused on the way."""
    report = client.flush(10)
    assert report.rejected == []
    assert report.pending == report.dropped == report.conflicts == 0
    return list(client.usage.list(organization_id="acme"))


def check(client: CostOpsClient, expected: object, source: str, provider: str = "openai") -> None:
    """The one record is as expected: its input and output, "unknown", or None where there is none."""
    records = recorded(client)
    if expected is None:
        assert records == []
        return
    [record] = records
    assert (record.source, record.provider, record.observation) == (source, provider, True)
    assert record.model_id not in ("", "unknown")
    if expected == "unknown":
        assert record.quality.value == "unknown"
        assert record.estimated_cost is None
    else:
        assert (record.input_tokens, record.output_tokens) == expected
        assert record.estimated_cost
        assert record.latency_ms is not None
