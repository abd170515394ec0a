"""A recorder that has no thread, as in an interpreter that is ending, and callbacks that end a thread."""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig
from llm_cost_ops.client.attribution import Attributes
from llm_cost_ops.client.recorder import FlushReport, Recorder
from tests.unit.client.test_recorder import Ledger, build, recording
from tests.unit.ledger.test_no_threads import no_threads
from tests.waiting import MAX_WAIT, until

_CALL: dict[str, Any] = {"organization_id": "o", "provider": "openai", "model_id": "gpt-4o"}


def once(act: Callable[[], object]) -> Callable[..., None]:
    """A callback that does something the first time that it is called."""
    left = [act]

    def callback(*_: object) -> None:
        if left:
            left.pop()()

    return callback


def interrupt() -> None:
    raise KeyboardInterrupt


def counts(report: FlushReport) -> tuple[int, int, int, int]:
    return report.delivered, report.duplicates, report.dropped, report.pending


@pytest.mark.parametrize("told", ["on_result", "on_error"])
def test_a_callback_that_ends_its_thread_ends_no_recorder(
    told: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    with recording(ledger, **{told: once(sys.exit)}) as recorder:
        recorder.record(None, {"model_id": "m", "input_tokens": 1 if told == "on_result" else "one"})
        until(lambda: caplog.records)
        recorder.record(None, {"model_id": "m"})
        until(lambda: recorder.report().pending == 0)  # nobody flushes
        report = recorder.report()
    assert (report.recorded, report.duplicates, report.dropped) == (2, 0, 0)
    assert report.delivered == len(ledger.keys)
    assert caplog.messages == ["a callback of the recorder failed"]


def test_what_a_callback_interrupts_was_counted() -> None:
    ledger = Ledger()
    with no_threads(), recording(ledger, on_result=once(interrupt)) as recorder:
        recorder.record(None, {"model_id": "m"})
        with pytest.raises(KeyboardInterrupt):
            recorder.flush(MAX_WAIT)
        assert counts(recorder.report()) == (1, 0, 0, 0)
        recorder.record(None, {"model_id": "m"})
        assert counts(recorder.flush(MAX_WAIT)) == (2, 0, 0, 0)
    assert ledger.batches == [1, 1]


def test_what_waits_behind_a_record_whose_callback_interrupts_is_sent_later() -> None:
    with no_threads(), recording(Ledger(), on_error=once(interrupt)) as recorder:
        for number in ("one", 2, 3):
            recorder.record(None, {"model_id": "m", "input_tokens": number})
        with pytest.raises(KeyboardInterrupt):
            recorder.flush(MAX_WAIT)
        assert counts(recorder.report()) == (0, 0, 0, 2)
        report = recorder.flush(MAX_WAIT / 20)
    assert (counts(report), report.rejected_count) == ((2, 0, 0, 0), 1)


def test_a_flush_may_take_for_ever() -> None:
    with no_threads(), recording(Ledger()) as recorder:
        recorder.record(None, {"model_id": "m"})
        assert recorder.flush(math.inf).delivered == 1


def test_what_another_thread_records_at_the_end_is_its_own_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording(Ledger(), shutdown_timeout=MAX_WAIT) as recorder:
        flush = recorder.flush

        def flush_as_another_records(timeout: float | None = None) -> FlushReport:
            report = flush(timeout)
            recorder._queue.append((None, {"model_id": "m"}, Attributes(), time.time_ns(), 0))
            return report

        monkeypatch.setattr(recorder, "flush", flush_as_another_records)
        recorder.close_at_exit(time.monotonic())
        monkeypatch.undo()
        assert counts(recorder.flush(MAX_WAIT)) == (1, 0, 0, 0)


def test_what_a_spool_can_not_take_at_the_end_is_sent_at_once(tmp_path: Path) -> None:
    with recording(Ledger(), spool=str(tmp_path), spool_bytes=1, shutdown_timeout=MAX_WAIT) as recorder:
        recorder.close_at_exit(time.monotonic())
        with no_threads():
            recorder.record(None, {"model_id": "m"})
            assert counts(recorder.report()) == (1, 0, 0, 0)


def test_who_closes_at_the_end_waits_no_second_time(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.allowed.clear()
    recorder = Recorder(RecorderConfig(spool=str(tmp_path), shutdown_timeout=MAX_WAIT), build, lambda: ledger)
    recorder.record(None, {"model_id": "m"})
    recorder.close_at_exit(time.monotonic() - MAX_WAIT)
    began = time.monotonic()
    recorder.close()
    assert time.monotonic() - began < MAX_WAIT
    ledger.allowed.set()


def test_who_closes_lets_the_batch_of_another_thread_end() -> None:
    """Also of an async client: its event loop runs in that thread."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = AsyncCostOpsClient(base_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        recorder = client._recording.recorder
        sending = threading.Thread(target=recorder.flush, args=(1.0,))
        start = threading.Thread.start
        with no_threads():
            recorder.record(None, dict(_CALL))
            start(sending)
            until(lambda: recorder._sender)
            report = recorder.close(0)
            sending.join(MAX_WAIT)
    assert counts(report) == (0, 0, 1, 0)
    assert recorder._line._connection is None, "nothing of it stays open"


def test_who_closes_as_the_thread_is_about_to_start() -> None:
    with no_threads(), recording(Ledger()) as recorder:
        recorder._thread = threading.Thread(target=recorder._work)
        recorder.close(0)


def test_a_batch_takes_no_longer_than_the_clients_calls(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with CostOpsClient(config=ClientConfig(base_url=url, timeout=0.1)) as client, no_threads():
            client.usage.record(**_CALL)
            client._recording.recorder._send_here(time.monotonic() + MAX_WAIT, batches=1)
            assert "the deadline of BatchSubmitUsage passed" in caplog.text
            client._recording.recorder.close(0)
