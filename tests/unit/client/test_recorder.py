"""The recorder over a scripted connection: nothing is lost or doubled, every record is accounted for."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops import (
    ClientConfig,
    CostOpsClient,
    RecorderConfig,
    RecorderFullError,
    UsageRecord,
    ValidationError,
)
from llm_cost_ops._gen.messages import SubmitUsageRequest
from llm_cost_ops._gen.resources import UsageResource
from llm_cost_ops.client.attribution import Attributes, Attribution
from llm_cost_ops.client.observer import Observer
from llm_cost_ops.client.recordable import _moment, as_it_is, as_they_are
from llm_cost_ops.client.recorder import MAX_BATCH_RECORDS, Recorder
from llm_cost_ops.client.recording import build_record
from llm_cost_ops.client.spool import Spool, SpoolBatch
from llm_cost_ops.exceptions import AuthenticationError, NetworkError
from llm_cost_ops.rpc.backoff import Backoff
from llm_cost_ops.types import BatchReceipt, RecordError, SubmitResult, SubmitStatus
from tests.waiting import MAX_WAIT, until


class Ledger:
    """What a service does with batches: a key counts once; `script` is what happens to each batch before."""

    def __init__(self, *script: Exception | None) -> None:
        self.script = list(script)
        self.keys: dict[str, UsageRecord] = {}
        self.batches: list[int] = []
        self.allowed = threading.Event()
        self.allowed.set()
        self.closed = 0

    def send(self, records: list[UsageRecord], timeout: float | None = None) -> BatchReceipt:
        self.allowed.wait()
        self.batches.append(len(records))
        failure = self.script.pop(0) if self.script else None
        applied = getattr(failure, "maybe_applied", failure is None)
        results = [self._one(record) for record in records] if applied else []
        if failure is not None:
            raise failure
        return BatchReceipt(results=results)

    def _one(self, record: UsageRecord) -> SubmitResult:
        if record.model_id == "bad":
            return SubmitResult(status=SubmitStatus.INVALID, error=RecordError(message="bad model"))
        if record.idempotency_key in self.keys:
            same = self.keys[record.idempotency_key] == record
            status = SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT
            return SubmitResult(status=status, error=RecordError(message="used before"))
        self.keys[record.idempotency_key] = record
        return SubmitResult(status=SubmitStatus.CREATED)

    def close(self) -> None:
        self.closed += 1


def build(record: UsageRecord | None, fields: dict[str, Any], _: object = None) -> UsageRecord:
    made = record or UsageRecord(organization_id="o", provider="p", **fields)
    if not isinstance(made.input_tokens, int | None):
        raise ValidationError("input_tokens must be a whole number")
    return made


@contextmanager
def recording(ledger: Ledger, **settings: Any) -> Iterator[Recorder]:
    recorder = Recorder(RecorderConfig(**settings), build, lambda: ledger)
    try:
        yield recorder
    finally:
        ledger.allowed.set()
        recorder.close(MAX_WAIT)


def test_records_leave_together_and_each_counts_once() -> None:
    ledger = Ledger()
    with recording(ledger) as recorder:
        ledger.allowed.clear()
        for number in range(2500):
            recorder.record(None, {"model_id": "m", "input_tokens": number})
        ledger.allowed.set()
        report = recorder.flush(MAX_WAIT)
    assert (report.delivered, report.pending, report.dropped, report.recorded) == (2500, 0, 0, 2500)
    assert sorted(record.input_tokens or 0 for record in ledger.keys.values()) == list(range(2500))
    assert max(ledger.batches) <= MAX_BATCH_RECORDS
    assert len(ledger.batches) <= 6
    assert ledger.closed == 1


@pytest.mark.parametrize("applied", [False, True])
def test_an_outage_loses_and_doubles_nothing(applied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.client.recorder._BACKOFF", Backoff(0.001, 5.0))
    failure = NetworkError("gone", maybe_applied=applied)
    ledger = Ledger(*[failure] * 6)
    with recording(ledger) as recorder:
        for number in range(50):
            recorder.record(None, {"model_id": "m", "input_tokens": number})
        report = recorder.flush(MAX_WAIT)
    assert len(ledger.keys) == 50
    assert report.delivered + report.duplicates == 50
    assert (report.duplicates > 0) == applied


def test_a_wrong_key_makes_records_wait(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(*[AuthenticationError("no")] * 3)
    with recording(ledger) as recorder:
        recorder.record(None, {"model_id": "m"})
        report = recorder.flush(MAX_WAIT)
    assert report.delivered == 1
    assert [record.getMessage() for record in caplog.records].count("records can't be sent and wait: no") == 1


def test_a_bad_record_harms_only_itself() -> None:
    errors: list[tuple[Any, str]] = []
    results: list[SubmitStatus] = []
    ledger = Ledger()
    with recording(
        ledger,
        on_error=lambda record, reason: errors.append((record, reason)),
        on_result=lambda _, r: results.append(r.status),
    ) as recorder:
        for model in ("a", "bad", "b"):
            recorder.record(None, {"model_id": model})
        recorder.record(None, {"model_id": "x", "input_tokens": "many"})
        recorder.record(None, {"modle_id": "x"})
        report = recorder.flush(MAX_WAIT)
    assert (report.delivered, report.rejected_count) == (2, 3)
    assert {item.reason for item in report.rejected} >= {"bad model", "input_tokens must be a whole number"}
    assert len(errors) == 3
    assert sorted(results) == ["created", "created", "invalid"]


def test_a_record_of_nobody_is_rejected_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with CostOpsClient(base_url="http://127.0.0.1:1") as client:
        client.usage.record(provider="openai", model_id="gpt-4o", input_tokens=1)
        report = client.flush(MAX_WAIT)
    assert [item.reason for item in report.rejected] == ["organization_id is required"]
    assert "set LLM_COST_OPS_ORGANIZATION_ID" in caplog.text


def test_one_text_is_one_tag_however_it_is_said() -> None:
    call: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}
    with CostOpsClient(base_url="sqlite://") as client:
        with client.attribute(organization_id="a", tags="production"):
            client.usage.submit(**call)
            client.usage.record(**call)
        observer = Observer(client, {"organization_id": "a", "tags": "production"})
        observer.take(lambda: UsageRecord(**call, tags=["seen"]))
        assert client.flush(MAX_WAIT).delivered == 2
        tags = [record.tags for record in client.usage.list(sort="ingested_at", order="asc")]
    assert tags == [["production"], ["production"], ["seen", "production"]]


def test_what_is_nested_in_metadata_is_the_callers_to_change_once_it_was_recorded() -> None:
    metadata: dict[str, Any] = {"steps": [1]}
    fields, record = as_they_are({"metadata": metadata}), as_it_is(UsageRecord(metadata=metadata))
    metadata["steps"].append(2)
    assert isinstance(record, UsageRecord)
    assert fields["metadata"] == record.metadata == {"steps": [1]}
    odd = {"metadata": {"lock": threading.Lock()}}
    assert as_they_are(odd) == odd, "it is rejected when its turn comes"


def test_a_dict_in_the_place_of_a_record_is_refused_by_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    fields: Any = {"organization_id": "a", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}
    with CostOpsClient(base_url="sqlite://") as client:
        for place, call in (
            ("usage", client.usage.submit),
            ("records[0]", lambda record: client.usage.submit_batch([record])),
            ("records[0]", lambda record: list(client.usage.stream([record]))),
        ):
            with pytest.raises(ValidationError, match=re.escape(f"{place} must be a UsageRecord, not dict")):
                call(fields)
        client.usage.record(fields)
        report = client.flush(MAX_WAIT)
    reason = "usage must be a UsageRecord, not dict: UsageRecord(**fields), or usage_from_response(answer)"
    assert [item.reason for item in report.rejected] == [reason]
    assert "a record was rejected: usage must be a UsageRecord, not dict" in caplog.text


def test_a_batch_that_is_refused_as_a_whole_is_halved() -> None:
    ledger = Ledger(ValidationError("too large"), ValidationError("too large"))
    with recording(ledger) as recorder:
        ledger.allowed.clear()
        for number in range(9):
            recorder.record(None, {"model_id": "m", "input_tokens": number})
        time.sleep(0.05)
        ledger.allowed.set()
        report = recorder.flush(MAX_WAIT)
    assert (report.delivered + report.rejected_count, report.pending) == (9, 0)


@pytest.mark.parametrize(("overflow", "kept"), [("drop_newest", [0, 1, 2]), ("drop_oldest", [7, 8, 9])])
def test_what_is_dropped_is_counted(overflow: str, kept: list[int], caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    with recording(ledger, max_records=3, overflow=overflow) as recorder:
        ledger.allowed.clear()
        recorder.record(None, {"model_id": "first"})
        while ledger.batches or recorder.report().pending != 1 or recorder._queue:
            time.sleep(0.001)
        for number in range(10):
            recorder.record(None, {"model_id": "m", "input_tokens": number})
        report = recorder.report()
        # The one on its way counts among those in memory.
        assert report.dropped == 8
        assert report.recorded == 11
        ledger.allowed.set()
        assert recorder.flush(MAX_WAIT).delivered == 3
    sent = sorted(record.input_tokens for record in ledger.keys.values() if record.input_tokens is not None)
    assert sent == kept[-2:] if overflow == "drop_oldest" else sent == kept[:2]
    assert caplog.text.count("records are dropped") == 1


def test_overflow_may_raise_or_block() -> None:
    ledger = Ledger()
    with recording(ledger, max_records=2, overflow="raise") as recorder:
        ledger.allowed.clear()
        refused = 0
        for _ in range(5):
            try:
                recorder.record(None, {"model_id": "m"})
            except RecorderFullError:
                refused += 1
        assert refused >= 3
        ledger.allowed.set()
    with recording(ledger, max_records=2, overflow="block") as recorder:
        ledger.allowed.clear()
        threading.Timer(0.2, ledger.allowed.set).start()
        for _ in range(20):
            recorder.record(None, {"model_id": "m"})
        assert recorder.flush(MAX_WAIT).dropped == 0


def test_closing_is_bounded_and_counts_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    ledger = Ledger(*[NetworkError("down")] * 1000)
    recorder = Recorder(RecorderConfig(shutdown_timeout=0.2), build, lambda: ledger)
    for _ in range(7):
        recorder.record(None, {"model_id": "m"})
    began = time.monotonic()
    report = recorder.close()
    assert time.monotonic() - began < MAX_WAIT, "a thousand failures are waited for much longer"
    assert (report.dropped, report.pending, report.recorded) == (7, 0, 7)
    assert caplog.text.count("7 records were not sent") == 1
    recorder.record(None, {"model_id": "m"})
    assert recorder.report().dropped == 8


@pytest.mark.parametrize("answered", [True, False])
def test_an_answer_that_comes_after_the_close_changes_no_count(answered: bool) -> None:
    ledger = Ledger(None if answered else NetworkError("down"))
    ledger.allowed.clear()
    recorder = Recorder(RecorderConfig(), build, lambda: ledger)
    for _ in range(7):
        recorder.record(None, {"model_id": "m"})
    report = recorder.close(0.1)
    assert (report.dropped, report.pending, report.recorded) == (7, 0, 7)
    ledger.allowed.set()
    until(lambda: ledger.closed)
    assert ledger.closed == 1
    assert recorder.report() == report


@given(
    st.lists(st.sampled_from(["good", "bad", "wrong", "same", "wait"]), max_size=60),
    st.lists(st.sampled_from(["ok", "lost", "applied", "refused"]), max_size=8),
    st.integers(1, 20),
    st.sampled_from(["drop_newest", "drop_oldest", "block"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_record_is_accounted_for_at_any_moment(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[str],
    fates: list[str],
    bound: int,
    overflow: str,
    spooled: bool,
) -> None:
    outcomes: dict[str, Callable[[], Exception | None]] = {
        "ok": lambda: None,
        "lost": lambda: NetworkError("lost", retry_after=0.0),
        "applied": lambda: NetworkError("applied", maybe_applied=True, retry_after=0.0),
        "refused": lambda: ValidationError("refused"),
    }
    ledger = Ledger(*(outcomes[fate]() for fate in fates))
    folder = tmp_path_factory.mktemp("spool") if spooled else None
    spool = {} if folder is None else {"spool": str(folder), "spool_bytes": 400 * bound}
    given_count = 0
    with recording(ledger, max_records=bound, overflow=overflow, **spool) as recorder:
        for step in steps:
            if step == "wait":
                time.sleep(0.001)
                continue
            tokens = "many" if step == "wrong" else 1
            key = {"idempotency_key": "k"} if step == "same" else {}
            recorder.record(
                None, {"model_id": "bad" if step == "bad" else step, "input_tokens": tokens, **key}
            )
            given_count += 1
            assert recorder.report().recorded == given_count
        report = recorder.flush(MAX_WAIT)
        assert report.recorded == given_count
        assert report.pending == report.spooled == 0
    if not (report.dropped or "refused" in fates):
        good = steps.count("good") + ("same" in steps)
        assert len(ledger.keys) == good


def test_a_spool_outlives_the_process_and_is_sent_by_the_next(tmp_path: Path) -> None:
    code = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from tests.unit.client.test_recorder import Ledger, build
        from llm_cost_ops import RecorderConfig
        from llm_cost_ops.client.recorder import Recorder
        ledger = Ledger()
        ledger.allowed.clear()
        recorder = Recorder(RecorderConfig(spool={str(tmp_path / "spool")!r}), build, lambda: ledger)
        for number in range(100):
            recorder.record(None, {{"model_id": "m", "input_tokens": number}})
        os._exit(0)
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    ledger = Ledger()
    with recording(ledger, spool=str(tmp_path / "spool")) as recorder:
        recorder.record(None, {"model_id": "m", "input_tokens": 100})
        report = recorder.flush(MAX_WAIT)
    assert (report.delivered, report.recorded, report.spooled) == (101, 101, 0)
    assert sorted(record.input_tokens or 0 for record in ledger.keys.values()) == list(range(101))
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_forked_child_sends_its_own_and_the_parent_its_own() -> None:
    ledger = Ledger()
    with recording(ledger) as recorder:
        ledger.allowed.clear()
        recorder.record(None, {"model_id": "parent"})
        child = os.fork()
        if child == 0:
            ledger.allowed.set()
            recorder.record(None, {"model_id": "child"})
            report = recorder.flush(MAX_WAIT)
            models = [record.model_id for record in ledger.keys.values()]
            os._exit(0 if (report.delivered, models) == (1, ["child"]) else 1)
        assert os.waitpid(child, 0)[1] == 0
        ledger.allowed.set()
        assert recorder.flush(MAX_WAIT).delivered == 1
    assert [record.model_id for record in ledger.keys.values()] == ["parent"]


@given(st.integers(0, (1 << 32) * 10**9 - 1))
def test_the_moment_of_a_record_is_exact_to_the_microsecond(nanoseconds: int) -> None:
    assert _moment(nanoseconds) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        microseconds=nanoseconds // 1000
    )


def test_a_fork_while_the_first_batch_imports_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_slowly.py").write_text("import time\ntime.sleep(0.3)\nSTATUS = 'created'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    begun = threading.Event()

    class Importing(Ledger):
        def send(self, records: list[UsageRecord], timeout: float | None = None) -> BatchReceipt:
            begun.set()
            assert importlib.import_module("imported_slowly").STATUS == "created"
            return super().send(records)

    with recording(Importing()) as recorder:
        recorder.record(None, {"model_id": "parent"})
        assert begun.wait(MAX_WAIT)
        child = os.fork()
        recorder.record(None, {"model_id": "either"})
        report = recorder.flush(MAX_WAIT)
        if child == 0:
            os._exit(0 if report.delivered == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert report.delivered == 2


def test_the_end_of_the_interpreter_sends_what_is_there(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from tests.unit.client.test_recorder import Ledger, build
        from llm_cost_ops import RecorderConfig
        from llm_cost_ops.client.recorder import Recorder
        class Told(Ledger):
            def send(self, records, timeout=None):
                print(len(records), flush=True)
                return super().send(records)
        recorder = Recorder(RecorderConfig(), build, Told)
        recorder.record(None, {{"model_id": "m"}})
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize("spooled", [False, True])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"model_id": "\ud800"}, "model_id must be Unicode text; it has a lone surrogate"),
        ({"labels": {"a": "\udc80"}}, "labels[a] must be Unicode text; it has a lone surrogate"),
        ({"labels": {"a": object()}}, "labels[a] must be a string, not of type object"),
        ({"labels": [1]}, "labels must be a dict, not of type list"),
        ({"user_id": b"u"}, "user_id must be a string, not of type bytes"),
        ({"input_tokens": 1.5}, "input_tokens must be an integer, not 1.5"),
        ({"input_tokens": float("nan")}, "input_tokens must be an integer, not nan"),
        ({"idempotency_key": 7}, "idempotency_key must be a string, not 7"),
        ({"timestamp": "soon"}, "timestamp must be a datetime, or in a keyword text such as "),
    ],
)
def test_a_record_of_wrong_types_harms_only_itself(
    wrong: dict[str, Any], reason: str, spooled: bool, tmp_path: Path
) -> None:
    recorder = RecorderConfig(spool=str(tmp_path / "spool") if spooled else None)
    config = ClientConfig(base_url="sqlite://", organization_id="o", recorder=recorder)
    right: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}
    with CostOpsClient(config=config) as client:
        client.usage.record(**{**right, **wrong})
        client.usage.record(**right)
        report = client.flush(MAX_WAIT)
    assert (report.delivered, report.rejected_count, report.recorded) == (1, 1, 2)
    assert report.rejected[0].reason.startswith(reason)


TEXTS, COUNTS = st.sampled_from(["", "a", None, 7]), st.sampled_from([0, 3, None, "3", 1.5, False])


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("organization_id", "provider", "user_id", "region", "idempotency_key"), TEXTS)
        | dict.fromkeys(("input_tokens", "cached_tokens", "request_count", "latency_ms"), COUNTS)
        | {
            "observation": st.sampled_from([True, False, 1]),
            "timestamp": st.sampled_from(["2026-01-31", "2026-01-31T10:00:00Z", "soon"]),
            "outcome": st.sampled_from(["error", "of no kind"]),
            "reported_cost": st.sampled_from(["0.5", 2, "much"]),
            "tags": st.sampled_from(["one", ("a", "b"), None]),
            "labels": st.sampled_from([None, {"a": "b"}]),
            "timeout": st.just(1.0),
        },
    )
)
def test_a_record_is_made_of_its_arguments_as_submit_makes_it(fields: dict[str, Any]) -> None:
    sent: list[UsageRecord] = []

    class Sent:
        def unary_unary(self, _method: object, request: SubmitUsageRequest, *_: object) -> None:
            assert request.usage is not None
            sent.append(request.usage)

    channel: Any = Sent()
    UsageResource(channel).submit(**fields)
    [expected] = sent
    if "idempotency_key" in fields:
        expected.idempotency_key = fields["idempotency_key"]
    built = build_record(Attribution(Attributes()), None, fields, Attributes())
    assert repr(built) == repr(expected)


def test_a_record_counts_as_it_was_when_it_was_recorded() -> None:
    ledger = Ledger()
    with recording(ledger) as recorder:
        ledger.allowed.clear()
        labels, tags = {"n": "0"}, ["0"]
        record = UsageRecord(organization_id="o", model_id="whole", labels={"n": "0"})
        for number in range(3):
            labels["n"], tags[0] = str(number), str(number)
            recorder.record(None, {"model_id": "fields", "labels": labels, "tags": tags})
            record.labels["n"], record.input_tokens = str(number), number
            recorder.record(record, {})
        ledger.allowed.set()
        assert recorder.flush(MAX_WAIT).delivered == 6
    found = list(ledger.keys.values())
    assert [(r.labels, r.tags) for r in found if r.model_id == "fields"] == [({"n": n}, [n]) for n in "012"]
    assert [(r.labels, r.input_tokens) for r in found if r.model_id == "whole"] == [
        ({"n": str(n)}, n) for n in range(3)
    ]


def test_what_lies_in_a_spool_and_is_no_record_is_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b'{"model_id":"m","provider":"p","organization_id":"o","idempotency_key":"k"}')
    spool.append(b'{"input_tokens":"many"}')
    spool.close()
    ledger = Ledger(NetworkError("lost", retry_after=0.0))
    with recording(ledger, spool=str(tmp_path)) as recorder:
        recorder.record(None, {"model_id": "m"})
        report = recorder.flush(MAX_WAIT)
    assert (report.delivered, report.rejected_count, report.spooled, report.recorded) == (2, 1, 0, 3)
    assert "can't be read: input_tokens" in report.rejected[0].reason
    [damaged] = tmp_path.iterdir()
    assert damaged.name.endswith(".damaged")
    assert damaged.read_bytes() == b'{"input_tokens":"many"}'


def test_a_spool_that_can_not_be_read_for_a_while_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_cost_ops.client.recorder._BACKOFF", Backoff(0.001, 5.0))
    failures = [OSError(5, "Input/output error")] * 2
    read = Spool.next_batch

    def next_batch(self: Spool, *bounds: int) -> SpoolBatch | None:
        if failures:
            raise failures.pop()
        return read(self, *bounds)

    monkeypatch.setattr(Spool, "next_batch", next_batch)
    with recording(Ledger(), spool=str(tmp_path)) as recorder:
        recorder.record(None, {"model_id": "m"})
        assert recorder.flush(MAX_WAIT).delivered == 1


def test_a_record_that_waits_for_room_when_the_client_is_closed_is_dropped() -> None:
    ledger = Ledger(*[NetworkError("gone")] * 1000)
    with recording(ledger, max_records=1, overflow="block") as recorder:
        recorder.record(None, {"model_id": "m"})
        until(lambda: ledger.batches)
        waiting = threading.Thread(target=recorder.record, args=(None, {"model_id": "m"}))
        waiting.start()
        until(lambda: not recorder._urgent._silent.locked())
        recorder.close(0)
        waiting.join(MAX_WAIT)
        report = recorder.report()
    assert (report.dropped, report.pending) == (2, 0)


def test_a_callback_that_flushes_waits_for_nothing() -> None:
    reports: list[Any] = []
    ledger = Ledger()
    with recording(ledger, on_result=lambda *_: reports.append(recorder.flush(MAX_WAIT))) as recorder:
        ledger.allowed.clear()
        for _ in range(MAX_BATCH_RECORDS + 1):
            recorder.record(None, {"model_id": "m"})
        ledger.allowed.set()
        assert recorder.flush(MAX_WAIT / 2).delivered == MAX_BATCH_RECORDS + 1
    assert min(report.delivered for report in reports) <= MAX_BATCH_RECORDS


def test_a_fork_while_another_thread_makes_the_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    making, allowed, make = threading.Event(), threading.Event(), Recorder.__init__

    def slowly(self: Recorder, *arguments: Any) -> None:
        making.set()
        assert allowed.wait(MAX_WAIT)
        make(self, *arguments)

    monkeypatch.setattr(Recorder, "__init__", slowly)
    call: Any = {"organization_id": "o", "provider": "p", "model_id": "m"}
    config = ClientConfig(base_url="http://127.0.0.1:9", recorder=RecorderConfig(shutdown_timeout=0))
    with CostOpsClient(config=config) as client:
        thread = threading.Thread(target=client.usage.record, kwargs=call)
        thread.start()
        assert making.wait(MAX_WAIT)
        child = os.fork()
        if child == 0:
            signal.alarm(int(MAX_WAIT))
            allowed.set()
            client.usage.record(**call)
            os._exit(0 if client.flush(0).recorded == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        allowed.set()
        thread.join(MAX_WAIT)
