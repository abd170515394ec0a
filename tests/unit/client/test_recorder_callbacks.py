"""What callers and their callbacks may do to a recorder: it hangs for none, and accounts for every record."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig, UsageRecord
from llm_cost_ops.client.recordable import as_they_are
from llm_cost_ops.client.recorder import Recorder
from llm_cost_ops.exceptions import NetworkError
from tests.unit.client.test_recorder import Ledger, build, recording
from tests.waiting import MAX_WAIT, until

_CALL: dict[str, Any] = {"organization_id": "o", "provider": "openai", "model_id": "gpt-4o"}


class _Odd:
    """As an array, whose truth is not told."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


class _Uncopied(list[str]):
    def copy(self) -> list[str]:
        raise RuntimeError("no copy")


class _SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(MAX_WAIT)
    assert not thread.is_alive(), "it hangs"


@pytest.mark.parametrize("spooled", [False, True])
def test_a_callback_may_record_into_a_full_recorder(spooled: bool, tmp_path: Path) -> None:
    ledger, done = Ledger(), threading.Event()

    def on_result(record: UsageRecord, _: object) -> None:
        if record.model_id == "first":
            for _number in range(5):
                recorder.record(None, {"model_id": "again"})
            done.set()

    spool: dict[str, Any] = {"spool": str(tmp_path), "spool_bytes": 400} if spooled else {}
    with recording(ledger, max_records=3, overflow="block", on_result=on_result, **spool) as recorder:
        recorder.record(None, {"model_id": "first"})
        assert done.wait(MAX_WAIT), "the only thread that makes room waits for room"
        _in_thread(lambda: recorder.record(None, {"model_id": "other"}))
        report = recorder.flush(MAX_WAIT)
    assert (report.recorded, report.pending, report.spooled) == (7, 0, 0)
    assert spooled or report.delivered == 7


@pytest.mark.parametrize("spooled", [False, True])
def test_a_callback_may_close_the_recorder(spooled: bool, tmp_path: Path) -> None:
    ledger, reports, failed = Ledger(), [], []

    def on_result(*_: object) -> None:
        if not reports:
            for _number in range(5):
                recorder.record(None, {"model_id": "again"})
            try:
                reports.append(recorder.close(MAX_WAIT))
            except RuntimeError as error:
                failed.append(error)

    recorder = Recorder(
        RecorderConfig(spool=str(tmp_path) if spooled else None, on_result=on_result), build, lambda: ledger
    )
    recorder.record(None, {"model_id": "first"})
    until(lambda: ledger.closed)
    assert failed == []
    assert [(report.delivered, report.recorded) for report in reports] == [(1, 6)]
    report = recorder.close(MAX_WAIT)
    assert (report.recorded, report.pending, report.dropped) == (6, 0, 0 if spooled else 5)
    if recorder._spool is not None:
        assert recorder._spool._directory == -1, "nothing of it stays open"


def test_what_is_built_after_the_close_was_counted_before() -> None:
    reached, allowed = threading.Event(), threading.Event()

    def on_error(*_: object) -> None:
        reached.set()
        assert allowed.wait(MAX_WAIT)

    ledger = Ledger()
    recorder = Recorder(RecorderConfig(on_error=on_error), build, lambda: ledger)
    with recorder._progress:  # the thread takes all of them at once
        for number in range(10):
            recorder.record(None, {"model_id": "m", "input_tokens": "many" if number % 2 == 0 else number})
    assert reached.wait(MAX_WAIT)
    report = recorder.close(0)
    allowed.set()
    thread = recorder._thread
    assert thread is not None
    thread.join(MAX_WAIT)
    assert recorder.report() == report
    assert (report.recorded, report.pending) == (10, 0)


@pytest.mark.parametrize("spooled", [False, True])
def test_record_raises_nothing_for_what_can_not_be_copied(spooled: bool, tmp_path: Path) -> None:
    spool = str(tmp_path) if spooled else None
    odd: Any = _Odd()
    with CostOpsClient(
        config=ClientConfig(base_url="sqlite://", recorder=RecorderConfig(spool=spool))
    ) as client:
        client.usage.record(UsageRecord(**_CALL, tags=odd))
        client.usage.record(UsageRecord(**_CALL, tags=_Uncopied(["a"])))
        client.usage.record(**_CALL, tags=_Uncopied(["b"]))
        report = client.flush(MAX_WAIT)
    assert (report.recorded, report.pending) == (3, 0)
    assert [rejected.reason for rejected in report.rejected] == ["tags must be a list, not of type _Odd"]


def test_a_failure_that_says_nothing_harms_only_its_record() -> None:
    def made() -> UsageRecord:
        raise _SilentError

    def built(record: Any, fields: Mapping[str, Any], _: object) -> UsageRecord:
        return record() if callable(record) else build(record, dict(fields))

    ledger = Ledger(NetworkError("gone", retry_after=0.5))
    recorder = Recorder(RecorderConfig(), built, lambda: ledger)
    recorder.record(None, {"model_id": "m"})
    until(lambda: ledger.batches)
    recorder.record(made, {})  # built while the thread rests after a failure
    report = recorder.close(MAX_WAIT)
    assert (report.delivered, [rejected.reason for rejected in report.rejected]) == (1, ["_SilentError"])


@pytest.mark.parametrize("record_given", [False, True])
def test_empty_and_unordered_containers_are_the_callers_to_change(record_given: bool) -> None:
    ledger = Ledger()
    labels: dict[str, str] = {}
    with recording(ledger) as recorder:
        ledger.allowed.clear()
        if record_given:
            recorder.record(UsageRecord(organization_id="o", model_id="m", labels=labels), {})
        else:
            recorder.record(None, {"model_id": "m", "labels": labels})
        labels["team"] = "changed"
        ledger.allowed.set()
        assert recorder.flush(MAX_WAIT).delivered == 1
    assert [record.labels for record in ledger.keys.values()] == [{}]


def test_tags_of_any_kind_are_those_of_the_moment() -> None:
    tags = {"x"}
    kept = as_they_are({"tags": tags})
    tags.add("changed")
    assert kept == {"tags": {"x"}}
    given = iter(["a", "b"])
    assert as_they_are({"tags": given}) == {"tags": ["a", "b"]}

    def failing() -> Iterator[str]:
        yield "a"
        raise OSError("cut off")

    later = as_they_are({"tags": failing()})["tags"]
    with pytest.raises(OSError, match="cut off"):
        list(later)


def test_what_a_full_spool_keeps_in_memory_is_the_callers_to_change(tmp_path: Path) -> None:
    ledger = Ledger()
    labels, metadata = {"team": "a"}, {"steps": [1]}
    with recording(ledger, spool=str(tmp_path), spool_bytes=1) as recorder:
        ledger.allowed.clear()
        recorder.record(None, {"model_id": "m", "labels": labels, "metadata": metadata})
        labels["team"] = "changed"
        metadata["steps"].append(2)
        ledger.allowed.set()
        assert recorder.flush(MAX_WAIT).delivered == 1
    assert [(r.labels, r.metadata) for r in ledger.keys.values()] == [({"team": "a"}, {"steps": [1]})]


@pytest.mark.parametrize("spooled", [False, True])
def test_a_record_that_breaks_a_rule_is_told_alike_with_and_without_a_spool(
    spooled: bool, tmp_path: Path
) -> None:
    wrong: list[dict[str, Any]] = [
        {"metadata": {"score": math.nan}},
        {"metadata": {1: "x"}},
        {"input_tokens": -1},
        {"model_id": "\ud800"},
    ]
    results: list[tuple[str, str]] = []
    errors: list[str] = []
    config = RecorderConfig(
        spool=str(tmp_path) if spooled else None,
        on_result=lambda _, result: results.append((result.status.value, result.error.message)),
        on_error=lambda record, reason: errors.append(reason if record is not None else ""),
    )
    with CostOpsClient(config=ClientConfig(base_url="sqlite://", recorder=config)) as client:
        for fields in wrong:
            client.usage.record(**{**_CALL, **fields})
        assert client.flush(MAX_WAIT).rejected_count == 4
    for word in ("metadata must not hold NaN", "metadata must be a JSON object", "input_tokens", "model_id"):
        assert [reason for reason in errors if reason.startswith(word)] != []
    assert len(errors) == len(results) == 4
    assert {status for status, _ in results} == {"invalid"}
