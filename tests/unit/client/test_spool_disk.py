"""The spool on a disk: what is promised of fsync, and what happens when a call to the system fails."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

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


def test_the_names_of_new_folders_are_on_disk_before_a_record_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    Spool(tmp_path / "a" / "b", durability="disk").close()
    assert {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino} <= synced
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    synced.clear()
    Spool(tmp_path / "c", durability="process").close()
    assert not synced
    # It may have been made by somebody who did not sync its name.
    Spool(tmp_path / "c", durability="disk").close()
    assert tmp_path.stat().st_ino in synced


def test_a_spool_below_a_folder_that_can_not_be_read_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def opened(path: Any, *arguments: Any, **options: Any) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    spool = Spool(tmp_path / "spool", durability="disk")
    spool.append(b"{}")
    assert spool.status().records == 1
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
    # Once, though a batch was delivered after each.
    assert caplog.text.count("can't be synced: No space left") == 1


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


def segments_open_in(folder: Path) -> list[str]:
    return [link for link in opened_files() if link.startswith(f"{folder}/")]


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
    assert segments_open_in(folder) == []
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


def left_by_another_process(folder: Path, *payloads: bytes) -> None:
    spool = Spool(folder)
    for payload in payloads:
        spool.append(payload)
    spool.close()


def exit_status_of_a_child(check: Callable[[], bool]) -> int:
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_while_another_thread_opens_the_spool_keeps_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_another_process(tmp_path, b"left")
    taken, go_on, take_over = threading.Event(), threading.Event(), Spool.take_over

    def slowly(self: Spool) -> int:
        found = take_over(self)
        taken.set()
        assert go_on.wait(MAX_WAIT)
        return found

    monkeypatch.setattr(Spool, "take_over", slowly)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(Spool, tmp_path)
        assert taken.wait(MAX_WAIT)
        assert exit_status_of_a_child(lambda: segments_open_in(tmp_path) == []) == 0
        go_on.set()
        spool = opened.result(MAX_WAIT)
    assert drained(spool) == [b"left"]
    spool.close()


class Announced:
    """The spool's lock, which says when a fork waits for it."""

    def __init__(self, lock: AbstractContextManager[bool], asked: threading.Event) -> None:
        self.lock: Any = lock
        self.asked = asked

    def acquire(self, timeout: float) -> bool:
        self.asked.set()
        return bool(self.lock.acquire(timeout=timeout))

    def release(self) -> None:
        self.lock.release()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@pytest.mark.parametrize("of_whom", ["of another process", "of its own"])
def test_a_fork_while_another_thread_opens_a_segment_keeps_no_lock(
    of_whom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    if of_whom == "of another process":
        left_by_another_process(tmp_path, b"record")
    opened, go_on, real = threading.Event(), threading.Event(), os.open
    monkeypatch.setattr(spool, "_opening", Announced(spool._opening, go_on))

    def slowly(*arguments: Any, **keywords: Any) -> int:
        descriptor = real(*arguments, **keywords)
        opened.set()
        assert go_on.wait(MAX_WAIT)
        return descriptor

    monkeypatch.setattr(os, "open", slowly)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: spool.take_over() or spool.append(b"record"))
        assert opened.wait(MAX_WAIT)
        assert exit_status_of_a_child(lambda: segments_open_in(tmp_path) == []) == 0
        go_on.set()
        done.result(MAX_WAIT)
    assert drained(spool) == [b"record"]
    spool.close()


def test_a_child_keeps_no_file_of_a_segment_that_is_still_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, durability="disk")
    begun, go_on = threading.Event(), threading.Event()

    def fdatasync(_: int) -> None:
        begun.set()
        assert go_on.wait(MAX_WAIT)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(spool.append, b"record")
        assert begun.wait(MAX_WAIT)
        assert drained(spool) == [b"record"]
        assert len(segments_open_in(tmp_path)) == 1
        assert exit_status_of_a_child(lambda: segments_open_in(tmp_path) == []) == 0
        go_on.set()
        done.result(MAX_WAIT)
    assert segments_open_in(tmp_path) == []
    spool.close()


@pytest.mark.parametrize("at", ["the start", "a later look"])
def test_a_segment_that_can_not_be_read_for_a_while_is_found_later(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path) if at == "a later look" else None
    left_by_another_process(tmp_path, b"left")
    left_by_another_process(tmp_path, b"left")
    assert len(files(tmp_path)) == 2
    real, read = os.pread, set()

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if offset:
            read.add(descriptor)
        if len(read) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, length, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", pread)
        with pytest.raises(OSError, match="Input/output"):
            spool.take_over() if spool else Spool(tmp_path)
    assert len(segments_open_in(tmp_path)) == (1 if spool else 0)
    after = spool or Spool(tmp_path)
    after.take_over()
    assert drained(after) == [b"left", b"left"]
    after.close()


def test_what_a_process_left_before_it_named_its_segment_is_swept(tmp_path: Path) -> None:
    """It ended between two system calls; another that is between them now is not disturbed."""
    left, begun = tmp_path / "left.segment.new", tmp_path / "begun.segment.new"
    left.touch()
    begun.touch()
    os.utime(left, (0, 0))
    spool = Spool(str(tmp_path), durability="process", max_bytes=1 << 20)
    assert spool.take_over() == 0
    assert list(tmp_path.iterdir()) == [begun]
    spool.close()
