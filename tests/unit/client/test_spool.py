"""The spool: what was appended is read again, whatever happened to the process or the file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig, ServerError
from llm_cost_ops.client.spool import MAX_FRAME_BYTES, Spool, SpoolError, SpoolFullError
from tests.waiting import MAX_WAIT, until


def drained(spool: Spool, most: int = 7, size: int = 10_000) -> list[bytes]:
    found: list[bytes] = []
    while (batch := spool.next_batch(most, size)) is not None:
        assert 0 < len(batch.payloads) <= most
        found += batch.payloads
        spool.acknowledge(batch)
    return found


def files(folder: Path, suffix: str = ".segment") -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))


def opened_files() -> list[str]:
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # such as that of the list itself
            found.append(str(each.readlink()))
    return found


@given(st.lists(st.binary(max_size=300), max_size=60), st.integers(1, 20), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_what_is_appended_comes_out_in_order_once(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], most: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, segment_bytes=500)
    for payload in payloads:
        spool.append(payload)
    assert spool.pending == len(payloads)
    assert drained(spool, most, size) == payloads
    assert (spool.pending, spool.status().bytes) == (0, 0)
    spool.close()
    assert files(folder) == []


def test_what_was_not_acknowledged_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = Spool(tmp_path, segment_bytes=200)
    for number in range(20):
        first.append(b"%d" % number * 20)
    batch = first.next_batch(3, 10_000)
    assert batch is not None
    first.acknowledge(batch)
    taken = first.next_batch(2, 10_000)
    assert taken is not None
    first.close()
    second = Spool(tmp_path)
    left = drained(second)
    # Those of a segment that was not done come again: they carry their keys.
    assert left[-15:] == [b"%d" % number * 20 for number in range(5, 20)]
    second.close()


def test_a_batch_that_was_given_back_comes_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b"one")
    batch = spool.next_batch(10, 100)
    assert batch is not None
    assert spool.next_batch(10, 100) is None
    spool.give_back(batch)
    assert drained(spool) == [b"one"]
    spool.close()


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_a_killed_process_loses_nothing_and_a_living_one_keeps_its_own(
    tmp_path: Path, durability: str
) -> None:
    code = f"""
        import sys
        from llm_cost_ops.client.spool import Spool
        spool = Spool({str(tmp_path)!r}, durability={durability!r}, segment_bytes=2000)
        number = 0
        while True:
            spool.append(b"record %d" % number)
            print(number, flush=True)
            number += 1
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(150)]
    beside = Spool(tmp_path)
    assert beside.pending == 0, "the segments of a process that lives are its own"
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    assert beside.take_over() >= len(told)
    assert drained(beside)[: len(told)] == [b"record %d" % number for number in told]
    beside.close()


@pytest.mark.parametrize("deleted", ["files", "folder", "folder and made again"])
def test_what_is_kept_after_the_files_were_deleted_is_there_for_the_next_process(
    tmp_path: Path, deleted: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder)
    spool.append(b"before")
    for path in files(folder):
        path.unlink()
    if deleted != "files":
        folder.rmdir()
    if deleted == "folder and made again":
        folder.mkdir(0o700)
    spool.take_over()
    assert "was deleted" in caplog.text
    spool.append(b"after")
    (kept,) = files(folder)
    assert b"after" in kept.read_bytes()
    assert drained(spool) == [b"before", b"after"]
    spool.append(b"left")
    spool.close()
    following = Spool(folder)
    assert drained(following) == [b"left"]
    following.close()


def test_a_program_that_goes_to_another_folder_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is that of the folder where the client was made: a daemon goes to / after that."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    config = ClientConfig(
        base_url="sqlite:///costs.db", organization_id="o", recorder=RecorderConfig(spool="spool")
    )
    usage: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}
    with CostOpsClient(config=config) as used, CostOpsClient(config=config) as unused:
        used.usage.submit(**usage)
        monkeypatch.chdir(tmp_path / "second")
        for client in (used, unused):
            client.usage.submit(**usage)
            client.usage.record(**usage)
            client.flush(MAX_WAIT)
        assert used.costs.get().total_requests == 5
        assert (tmp_path / "first" / "spool").is_dir()
    assert list((tmp_path / "second").iterdir()) == []


def test_a_client_in_a_folder_that_is_gone_fails_at_its_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    usage: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "organization_id": "o"}
    config = ClientConfig(base_url="sqlite:///costs.db", recorder=RecorderConfig(spool="spool"))
    with CostOpsClient(config=config) as client:
        with pytest.raises(ServerError, match="can't open the database"):
            client.usage.submit(**usage)
        with pytest.raises(SpoolError, match="the spool spool can't be used"):
            client.usage.record(**usage)


def test_many_segments_are_not_as_many_open_files(tmp_path: Path) -> None:
    payloads = [b"record %d" % number for number in range(150)]
    for number, payload in enumerate(payloads):
        dead = Spool(tmp_path / "dead")
        dead.append(payload)
        dead.close()
        # Set aside, so that the next one does not take it over.
        (left,) = files(tmp_path / "dead")
        left.rename(tmp_path / f"{number:03}.segment")
    opened = len(opened_files())
    spool = Spool(tmp_path)
    assert (spool.status().segments, spool.status().records) == (150, 150)
    assert spool.status().bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert len(opened_files()) < opened + 100
    found = []
    while (batch := spool.next_batch(10, 1000)) is not None:
        assert spool.pending, "who waits until nothing is pending must not stop at the first ones"
        assert len(opened_files()) < opened + 100
        found += batch.payloads
        spool.acknowledge(batch)
    assert sorted(found) == sorted(payloads)
    assert (spool.kept, spool.pending, files(tmp_path)) == (150, 0, [])
    spool.close()


def test_a_large_spool_is_not_as_many_open_files(tmp_path: Path) -> None:
    opened = len(opened_files())
    spool = Spool(tmp_path, max_bytes=1024 * 1024 * 1024)
    payload = bytes(MAX_FRAME_BYTES)
    for _ in range(17):
        spool.append(payload)
    assert len(opened_files()) - opened <= 4
    spool.close()


@pytest.mark.parametrize("at", [0, 3, 4, 9, 12, 15, 30])
def test_a_flipped_bit_harms_one_record(tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture) -> None:
    first = Spool(tmp_path)
    for number in range(5):
        first.append(b"payload number %d" % number)
    first.close()
    [file] = files(tmp_path)
    data = bytearray(file.read_bytes())
    data[8 + 2 * 28 + at % 28] ^= 0x40
    file.write_bytes(data)
    second = Spool(tmp_path)
    assert drained(second) == [b"payload number %d" % number for number in (0, 1, 3, 4)]
    assert "damaged" in caplog.text
    assert sum(path.stat().st_size for path in files(tmp_path, ".damaged")) == 28
    second.close()


def test_damage_is_set_aside_once_however_often_its_batch_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once per attempt it would fill the disk while the server is away."""
    first = Spool(tmp_path)
    for number in range(5):
        first.append(b"payload number %d" % number)
    first.close()
    [file] = files(tmp_path)
    data = bytearray(file.read_bytes())
    for record in (1, 3):
        data[8 + record * 28 + 15] ^= 0x40
    file.write_bytes(data)
    second = Spool(tmp_path)
    for most in (1, 2, 5, 5):
        batch = second.next_batch(most, 10_000)
        assert batch is not None
        second.give_back(batch)
    assert drained(second) == [b"payload number %d" % number for number in (0, 2, 4)]
    assert sum(path.stat().st_size for path in files(tmp_path, ".damaged")) == 2 * 28
    assert len(caplog.records) == 2
    second.close()


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_torn_tail_and_any_damage_are_survived(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    first = Spool(folder)
    payloads = [b"%d-" % number + bytes([number]) * data.draw(st.integers(0, 40)) for number in range(12)]
    for payload in payloads:
        first.append(payload)
    first.close()
    [file] = files(folder)
    whole = file.read_bytes()
    start = data.draw(st.integers(8, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    file.write_bytes(whole[:start] + data.draw(st.binary(max_size=60)) + whole[end:])
    second = Spool(folder)
    found = drained(second)
    offsets = [8]
    for payload in payloads:
        offsets.append(offsets[-1] + 12 + len(payload))
    untouched = [p for p, a, b in zip(payloads, offsets, offsets[1:], strict=False) if b <= start or a >= end]
    assert [payload for payload in found if payload in untouched] == untouched
    second.close()


def test_a_newer_segment_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.segment").write_bytes(b"LCOS\x02\0\0\0whatever")
    (tmp_path / "b.segment").write_bytes(b"something else")
    tmp_path.chmod(0o700)
    spool = Spool(tmp_path)
    spool.append(b"mine")
    assert drained(spool) == [b"mine"]
    assert "newer version" in caplog.text
    assert [path.name for path in files(tmp_path, ".damaged")] == ["a.segment.damaged", "b.segment.damaged"]
    spool.close()


def test_bounds(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=300, segment_bytes=100)
    while True:
        try:
            spool.append(b"%03d" % spool.pending * 10)
        except SpoolFullError:
            break
    kept = spool.pending
    assert 3 < kept < 10
    assert spool.status().bytes <= 300
    lost = spool.drop_oldest()
    spool.append(b"last" * 10)
    assert len(drained(spool)) == kept - lost + 1
    with pytest.raises(SpoolError, match="1048577"):
        spool.append(b"x" * (MAX_FRAME_BYTES + 1))
    spool.close()


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    code = f"""
        import resource, signal
        from llm_cost_ops.client.spool import Spool, SpoolFullError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        spool = Spool({str(tmp_path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        kept = 0
        try:
            while True:
                spool.append(b"record %04d" % kept)
                kept += 1
                assert kept < 100
        except SpoolFullError:
            pass
        print(kept)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    spool = Spool(tmp_path)
    assert drained(spool) == [b"record %04d" % number for number in range(int(done.stdout))]
    assert files(tmp_path, ".damaged") == []
    spool.close()


def test_an_interrupt_behind_a_write_harms_no_other_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves behind the segment's size would be read instead of what was written next."""
    spool, write = Spool(tmp_path), os.write

    def interrupted(*arguments: Any) -> int:
        write(*arguments)
        raise KeyboardInterrupt

    spool.append(b"one")
    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spool.append(b"two, interrupted")
    monkeypatch.undo()
    spool.append(b"three")
    assert drained(spool) == [b"one", b"three"]
    assert files(tmp_path, ".damaged") == []
    spool.close()


def test_a_finalizer_that_records_as_a_batch_is_counted_is_counted(tmp_path: Path) -> None:
    """Python makes calls only where the package does: as here, behind that of len()."""
    spool = Spool(tmp_path)
    spool.append(b"one")

    class Payloads(list[bytes]):
        def __len__(self) -> int:
            length = super().__len__()
            spool.append(b"of a finalizer")
            return length

    batch = spool.next_batch(10, 100)
    assert batch is not None
    batch.payloads = Payloads(batch.payloads)
    spool.acknowledge(batch)
    assert spool.pending == 1
    assert drained(spool) == [b"of a finalizer"]
    assert spool.pending == 0
    spool.close()


def test_modes_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "spool"
    spool = Spool(folder)
    spool.append(b"x")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert files(folder)[0].stat().st_mode & 0o777 == 0o600
    spool.close()
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(SpoolError, match="link"):
        Spool(link)
    (folder / "z.segment").symlink_to(tmp_path / "elsewhere")
    spool = Spool(folder)
    assert drained(spool) == [b"x"]
    spool.close()
    folder.chmod(0o777)
    with pytest.raises(SpoolError, match="nobody else"):
        Spool(folder)


def test_a_forked_child_leaves_the_parents_segments_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b"parent")
    child = os.fork()
    if child == 0:
        spool.forget()
        spool.append(b"child")
        os._exit(0 if drained(spool) == [b"child"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert drained(spool) == [b"parent"]
    spool.close()


def test_what_is_delivered_while_it_is_synced_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, durability="disk")
    real, begun, go_on = os.fdatasync, threading.Event(), threading.Event()

    def fdatasync(descriptor: int) -> None:
        begun.set()
        assert go_on.wait(MAX_WAIT)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with ThreadPoolExecutor(2) as pool:
        appended = [pool.submit(spool.append, b"first"), pool.submit(spool.append, b"second")]
        assert begun.wait(MAX_WAIT)
        until(lambda: spool.pending == 2)
        assert sorted(drained(spool)) == [b"first", b"second"]
        go_on.set()
        for each in appended:
            each.result(MAX_WAIT)
    assert files(tmp_path) == []
    assert not [link for link in opened_files() if link.startswith(f"{tmp_path}/")]
    spool.close()
