"""Records outlive clocks that were wrong when they were made."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig, UsageRecord
from tests.waiting import MAX_WAIT

_AHEAD = timedelta(hours=2)


@pytest.mark.parametrize("spooled", [False, True])
def test_a_clock_that_is_set_back_loses_no_record(
    spooled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClientConfig(
        base_url="sqlite://",
        organization_id="o",
        recorder=RecorderConfig(spool=str(tmp_path) if spooled else None),
    )
    now = time.time_ns
    with CostOpsClient(config=config) as client:
        for hours in (0, 2, 0):
            monkeypatch.setattr(time, "time_ns", lambda hours=hours: now() + hours * 3600 * 10**9)
            for number in range(5):
                client.usage.record(provider="p", model_id="m", input_tokens=number, output_tokens=1)
        # Stated by the caller, whose clock was wrong as well.
        monkeypatch.setattr(time, "time_ns", lambda: now() + 2 * 3600 * 10**9)
        stated = datetime.now(UTC) + _AHEAD
        client.usage.record(provider="p", model_id="stated", input_tokens=1, timestamp=stated)
        report = client.flush(MAX_WAIT)
        assert (report.delivered, report.rejected_count) == (16, 0)
        times = [record.timestamp for record in client.usage.list()]
    assert len(times) == 16
    assert all(each is not None and each <= datetime.now(UTC) for each in times)


def test_a_time_that_nobody_has_yet_is_rejected() -> None:
    rejected: list[tuple[UsageRecord | None, str]] = []
    recorder = RecorderConfig(on_error=lambda record, reason: rejected.append((record, reason)))
    config = ClientConfig(base_url="sqlite://", organization_id="o", recorder=recorder)
    stated = datetime.now(UTC) + _AHEAD
    with CostOpsClient(config=config) as client:
        for timestamp in (stated, stated.replace(tzinfo=None), None):
            client.usage.record(provider="p", model_id="m", input_tokens=1, timestamp=timestamp)
        report = client.flush(MAX_WAIT)
        assert (report.delivered, report.rejected_count) == (1, 2)
    assert {reason for _, reason in rejected} == {"timestamp must not be more than 5 minutes in the future"}
