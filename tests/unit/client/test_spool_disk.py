"""The spool on a disk: what is promised of fsync, and what happens when a call to the system fails."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_cost_ops.client.spool import Spool, SpoolSyncError
from tests.unit.client.test_recorder import Ledger, recording
from tests.unit.client.test_spool import drained, files, opened_files
from tests.waiting import MAX_WAIT, until


@pytest.mark.parametrize("sent", [False, True])
def test_each_record_is_synced_whichever_segment_it_is_in(
    sent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A segment ends because it is full, or because all that is in it was sent.
    synced: dict[int, int] = {}
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        real(descriptor)
        facts = os.fstat(descriptor)
        synced[facts.st_ino] = facts.st_size

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    spool = Spool(tmp_path, durability="disk", segment_bytes=200)
    for number in range(40):
        spool.append(b"record %d" % number)
        written = [path.stat() for path in tmp_path.iterdir()]
        assert [synced.get(facts.st_ino) for facts in written] == [facts.st_size for facts in written], number
        if sent and number % 5 == 4:
            assert len(drained(spool)) == 5
    spool.close()


def test_a_failed_fsync_is_told_to_all_who_wait_for_it_and_the_records_are_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def fdatasync(descriptor: int) -> None:
        calls.append(descriptor)
        begun.set()
        assert go_on.wait(MAX_WAIT)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    spool = Spool(tmp_path, durability="disk")
    with ThreadPoolExecutor(2) as pool:
        appended = [pool.submit(spool.append, payload) for payload in (b"first", b"second")]
        assert begun.wait(MAX_WAIT)
        until(lambda: spool.pending == 2)
        go_on.set()
        # The kernel tells of a lost page once: the second fsync of the file would have succeeded.
        for each in appended:
            with pytest.raises(SpoolSyncError, match="Input/output error"):
                each.result(MAX_WAIT)
    assert len(calls) == 1
    spool.append(b"third")
    assert (len(calls), len(files(tmp_path)), spool.pending) == (2, 2, 3)
    assert sorted(drained(spool)) == [b"first", b"second", b"third"]
    spool.close()


def test_a_record_whose_fsync_failed_is_sent_once_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fdatasync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    ledger = Ledger()
    with recording(ledger, spool=str(tmp_path / "spool"), durability="disk", overflow="raise") as recorder:
        for number in range(3):
            recorder.record(None, {"model_id": "m", "input_tokens": number})
        report = recorder.flush(MAX_WAIT)
    assert (report.delivered, report.duplicates, report.spooled, report.pending) == (3, 0, 0, 0)
    assert "can't be synced: No space left" in caplog.text


def test_what_is_set_aside_is_counted_and_its_file_closed_though_it_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(b"no record")
    batch = spool.next_batch(1, 100)
    assert batch is not None
    spool.set_aside(batch, batch.payloads[0])
    assert spool.status().damaged_bytes == len(b"no record")
    [aside] = files(tmp_path, ".damaged")
    aside.unlink()
    aside.symlink_to("/dev/full")
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    spool.set_aside(batch, batch.payloads[0])
    assert "/dev/full" not in opened_files()
    spool.close()


@pytest.mark.parametrize("length", [0, 3, 8])
def test_a_segment_that_lost_its_content_with_the_machine_is_deleted(length: int, tmp_path: Path) -> None:
    (tmp_path / "a.segment").write_bytes(b"LCOS\x01\0\0\0"[:length])
    spool = Spool(tmp_path)
    spool.append(b"mine")
    assert (spool.pending, drained(spool)) == (1, [b"mine"])
    assert list(tmp_path.iterdir()) == []
    assert spool.status().bytes == 0
    spool.close()


def no_unlink(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_batch_whose_segment_can_not_be_deleted_is_told_and_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, told = Ledger(), []
    folder = tmp_path / "spool"
    with recording(
        ledger, spool=str(folder), on_result=lambda _, result: told.append(result.status)
    ) as recorder:
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", no_unlink)
            recorder.record(None, {"model_id": "m"})
            assert recorder.flush(MAX_WAIT).delivered == 1
            until(lambda: told)
        recorder._take_over()
        report = recorder.flush(MAX_WAIT)
    assert (len(told), report.delivered, report.duplicates, report.spooled) == (1, 1, 0, 0)
    assert "can't be deleted" in caplog.text
    assert not [link for link in opened_files() if link.startswith(f"{folder}/")]
    # The next process finds no records in it, and deletes it.
    [left] = files(folder)
    assert left.stat().st_size == 8
    spool = Spool(folder)
    assert (spool.pending, drained(spool), files(folder)) == (0, [], [])
    spool.close()


def test_what_was_dropped_with_a_segment_that_can_not_be_deleted_stays_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(b"record")
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", no_unlink)
        assert spool.drop_oldest() == 1
        assert (spool.take_over(), spool.pending) == (0, 0)
        spool.close()
    after = Spool(tmp_path)
    assert after.pending == 0
    after.close()
