"""Processes that write to one file: who waits is next, and who commits without pause starves nobody."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import EINVAL
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops.ledger.sqlite import queue
from llm_cost_ops.ledger.sqlite.queue import WriteQueue
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.unit.ledger.making import Sync, entry
from tests.waiting import MAX_WAIT, until

WRITERS = 5
TURN = 3


class File:
    """A file as SQLite locks it, and the processes that write to it: who does what next, the test says.

    Locks of an open file are each queue's own, also in one process.
    """

    def __init__(self, path: str, writers: int) -> None:
        self.log = Path(f"{path}-wal")
        self.log.touch()
        self.written = 0
        self.queues = [WriteQueue(path) for _ in range(writers)]
        self.holder: int | None = None
        self.order: list[int] = []
        self.now = 1000.0
        # What others have committed since a process has its place.
        self.seen: dict[int, Counter[int]] = {}
        self.passes = 0

    def step(self, who: int) -> None:
        """What a process that wants to commit does when it is given the time."""
        place = self.queues[who]._place
        if self.holder == who:
            self._commit(who)
        elif not self.queues[who].must_wait():
            if self.holder is None:
                self.holder = who
                ahead = [n for n, q in enumerate(self.queues) if place and 0 < q._place < place]
                self.passes += bool(ahead)
            else:
                self.queues[who].join()
        if self.queues[who]._place and who not in self.seen:
            self.seen[who] = Counter()

    def give_up(self, who: int) -> None:
        """The deadline of a process passes, unless it has begun."""
        if self.holder != who:
            self.queues[who].leave()
            self.seen.pop(who, None)

    def _commit(self, who: int) -> None:
        self.holder = None
        # No commit takes less than a microsecond, in which a place is.
        self.now += 2e-6
        self.written += 1
        os.utime(self.log, ns=(self.written, self.written))
        self.queues[who].committed()
        self.order.append(who)
        self.seen.pop(who, None)
        for commits in self.seen.values():
            commits[who] += 1


@contextmanager
def file_of(writers: int) -> Iterator[File]:
    with ExitStack() as stack:
        file = File(f"{stack.enter_context(tempfile.TemporaryDirectory())}/costs.db", writers)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(queue, "time", SimpleNamespace(monotonic=lambda: file.now))
        for one in file.queues:
            stack.callback(one.close)
        yield file


def assert_each_has_one_of_13(file: File) -> None:
    assert not file.passes
    for begin in range(len(file.order) - 12):
        assert set(file.order[begin : begin + 13]) == set(range(WRITERS))


STEPS = st.lists(
    st.tuples(
        st.integers(0, WRITERS - 1),
        st.sampled_from([0.0, 0.0, 1e-6, 1e-4]),
        st.sampled_from([False] * 9 + [True]),
    ),
    min_size=50,
    max_size=200,
)


@given(steps=STEPS)
@settings(max_examples=50)
def test_who_waits_sees_three_commits_of_each_other_at_most(steps: list[tuple[int, float, bool]]) -> None:
    # Whoever the machine gives the time to, and for how long it gives none to others.
    with file_of(WRITERS) as file:
        for who, seconds, gives_up in steps:
            file.now += seconds
            if gives_up:
                file.give_up(who)
            else:
                file.step(who)
            assert all(commits[other] <= TURN for commits in file.seen.values() for other in commits)
        assert not file.passes


@given(
    rounds=st.lists(
        st.tuples(st.permutations(range(WRITERS)), st.integers(1, 12), st.floats(0.0, 0.05)),
        min_size=20,
        max_size=40,
    )
)
@settings(max_examples=30)
def test_among_13_commits_each_of_5_that_never_pause_has_one(
    rounds: list[tuple[list[int], int, float]],
) -> None:
    # Commits are slow, as on a busy disk: all wait for longer than a stopped process is waited for.
    with file_of(WRITERS) as file:
        for order, length, seconds in rounds:
            holder = file.holder
            for _ in range(length):
                for who in order:
                    file.now += seconds
                    if who != holder:
                        file.step(who)
            if holder is not None:
                file.step(holder)
        assert_each_has_one_of_13(file)


def test_slow_commits_do_not_change_who_is_next() -> None:
    # Each waits for the turns of the others, which take longer than a stopped process is waited for.
    with file_of(WRITERS) as file:
        for _ in range(60):
            for who in range(WRITERS):
                file.step(who)
            assert file.holder is not None
            file.now += 0.7
            file.step(file.holder)
        assert_each_has_one_of_13(file)


def test_one_that_is_stopped_in_the_queue_is_passed() -> None:
    with file_of(WRITERS) as file:
        file.holder = 0
        file.step(WRITERS - 1)
        file.step(0)
        for _ in range(100):
            for who in range(WRITERS - 1):
                file.now += 0.01
                file.step(who)
        # Each has waited for it for half a second, and does so no more.
        count = len(file.order)
        for _ in range(30):
            for who in range(WRITERS - 1):
                file.now += 0.01
                file.step(who)
        assert len(file.order) - count >= 30 * (WRITERS - 1) // 8
        # Once it goes on it has its turn.
        file.step(WRITERS - 1)
        while file.holder is not None:
            file.step(file.holder)
            file.step(WRITERS - 1)
        assert WRITERS - 1 in file.order


@pytest.mark.parametrize("seed", range(5))
def test_behind_one_that_is_stopped_nobody_starves(seed: int) -> None:
    # Who passed it writes again and again: those that are still behind it never see that nothing is written.
    draw = random.Random(seed)
    with file_of(WRITERS) as file:
        file.queues[WRITERS - 1].join()
        looks, end = [file.now] * (WRITERS - 1), file.now + 30
        while file.now < end:
            file.now = min(looks)
            who = looks.index(file.now)
            file.step(who)
            pause = 0.0005 if file.holder == who or not file.queues[who]._place else draw.uniform(0.005, 0.01)
            looks[who] = file.now + pause
        commits = Counter(file.order[len(file.order) // 2 :])
        assert min(commits[who] for who in range(WRITERS - 1)) > max(commits.values()) / 3, commits


def test_who_waits_while_a_long_transaction_goes_on_is_not_passed() -> None:
    with file_of(3) as file:
        file.step(0)
        file.step(1)
        for _ in range(50):
            file.now += 0.1
            file.step(2)
        assert file.holder == 0
        file.step(0)
        file.step(2)
        assert file.holder is None
        file.step(1)
        assert file.holder == 1
        assert not file.passes


def test_who_comes_anew_goes_behind_those_that_wait() -> None:
    # As many processes that write once: each would find the file free, were it not for the queue.
    with file_of(50) as file:
        file.step(0)
        file.step(1)
        file.step(0)
        for newcomer in range(2, 50):
            file.step(newcomer)
            assert file.holder is None
        file.step(1)
        assert file.holder == 1


def test_two_that_come_in_the_same_microsecond_both_have_a_place() -> None:
    with file_of(3) as file:
        for one in file.queues:
            one.join()
        assert len({one._place for one in file.queues}) == 3


def test_those_that_come_by_a_link_stand_in_the_same_queue(tmp_path: Path) -> None:
    path, link = tmp_path / "costs.db", tmp_path / "link.db"
    (tmp_path / "costs.db-wal").touch()
    link.symlink_to(path)
    waiting, newcomer = WriteQueue(str(link)), WriteQueue(str(path))
    waiting.join()
    assert newcomer.must_wait()
    newcomer.leave()
    waiting.leave()


def test_where_the_file_system_has_no_such_locks_there_is_no_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(EINVAL, "Invalid argument")

    monkeypatch.setattr(queue, "fcntl", SimpleNamespace(**vars(queue.fcntl) | {"fcntl": refuse}))
    path = tmp_path / "costs.db"
    with Sync(path) as store, Sync(path) as hasty:
        for _ in range(5):
            store.append([entry()])
        hasty.timeout = 0.1
        with held(path), pytest.raises(RpcError):
            hasty.append([entry()])
        hasty.timeout = MAX_WAIT
        hasty.append([entry()])
        assert store.count(Filter()) == 6


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another's transaction on a file."""
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()
    finally:
        other.close()


# A process that prints, for each commit that it waited for, the last one in the file when it had its place,
# and its own. Nobody is taken for a stopped one here, however little time the machine has.
WRITING = """
import json, sqlite3, sys
from tests.unit.ledger.making import Sync, entry
from llm_cost_ops.ledger.sqlite import queue

path, name, kind, count = sys.argv[1:]
queue._MAX_WAIT = 600.0
waits = []

class Queue(queue.WriteQueue):
    def join(self):
        had = self._place
        super().join()
        if self._place and not had:
            waits.append([last.execute("SELECT max(seq) FROM usage").fetchone()[0], None])
            print("waits", flush=True)

    def committed(self):
        if self._place:
            waits[-1][1] = last.execute("SELECT max(seq) FROM usage WHERE user = ?", [name]).fetchone()[0]
        super().committed()

store = Sync(path, group_commit=kind == "group", timeout=600)
store.store._writer._queue = Queue(path)
last = sqlite3.connect(path, check_same_thread=False)
print("warm", flush=True)
sys.stdin.readline()
for _ in range(int(count)):
    store.append([entry(user_id=name)])
print(json.dumps(waits), flush=True)
last.close()
store.aclose()
"""


class Writing:
    """A process that runs WRITING."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITING, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{line}\n"

    def begin(self) -> None:
        """Have it write; returns when it waits."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.expect("waits")

    def end(self) -> list[tuple[int, int]]:
        """Where the file was when it began to wait, and its own commit, for each that waited."""
        out = self.process.communicate()[0]
        assert self.process.returncode == 0
        waits: list[tuple[int, int]] = json.loads(out.splitlines()[-1])
        return waits

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def writing(path: Path, kind: str, count: int, writers: int) -> Iterator[list[Writing]]:
    """Processes that have the file open, and are killed in the end."""
    with ExitStack() as stack:
        all_of_them = [Writing(path, n, kind, count) for n in range(writers)]
        for one in all_of_them:
            stack.callback(one.kill)
        for one in all_of_them:
            one.expect("warm")
        yield all_of_them


@pytest.mark.parametrize("kind", ["disk", "group"])
def test_processes_commit_in_the_order_of_their_coming(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store, writing(path, kind, 20, WRITERS) as writers:
        store.append([entry()])
        with held(path):
            for writer in writers:
                writer.begin()
        waits = [writer.end() for writer in writers]
        assert store.count(Filter()) == 1 + 20 * WRITERS
    firsts = [own for (_, own), *_ in waits]
    assert firsts == sorted(firsts)
    assert max(own - at - 1 for one in waits for at, own in one) <= TURN * (WRITERS - 1)


def test_the_places_of_processes_that_are_killed_are_free(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store, writing(path, "group", 10, 3) as writers:
        store.append([entry()])
        with held(path):
            for writer in writers:
                writer.begin()
            for dead in writers[:2]:
                dead.kill()
        # It would wait for ten minutes for those that were the first.
        writers[2].end()
        assert store.count(Filter()) == 11


@pytest.mark.parametrize("group", [False, True])
def test_a_child_has_no_place_of_its_parents(tmp_path: Path, group: bool) -> None:
    path = tmp_path / "costs.db"
    context = multiprocessing.get_context("fork")
    with Sync(path, group_commit=group) as store:
        store.append([entry()])
        mine = store.store._writer._queue
        assert mine is not None
        mine.join()
        stop = context.Event()
        child = context.Process(target=stop.wait)
        child.start()
        try:
            others = WriteQueue(str(path))
            assert others._first(queue._END) is None
            others.close()
            store.append([entry()])
        finally:
            stop.set()
            child.join()
        assert child.exitcode == 0
        assert store.count(Filter()) == 2


@pytest.mark.parametrize("group", [False, True])
def test_who_gives_up_leaves_the_queue(tmp_path: Path, group: bool) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store, Sync(path, group_commit=group) as hasty:
        store.append([entry()])
        hasty.append([entry()])
        hasty.timeout = 0.1
        with held(path), pytest.raises(RpcError) as caught:
            hasty.append([entry()])
        # The second one, where the machine had no time for it before the deadline.
        assert caught.value.code in {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
        assert not caught.value.maybe_applied
        others = WriteQueue(str(path))
        until(lambda: others._first(queue._END) is None)
        others.close()
        store.append([entry()])
        assert store.count(Filter()) == 3


def test_a_process_that_is_stopped_in_the_queue_holds_nobody_up_for_long(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    code = (
        "import sys, time; from llm_cost_ops.ledger.sqlite.queue import WriteQueue\n"
        "queue = WriteQueue(sys.argv[1]); queue.join(); print('waits', flush=True); time.sleep(600)"
    )
    with Sync(path) as store:
        store.append([entry()])
        waiting = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert waiting.stdout is not None
        waiting.stdout.readline()
        os.kill(waiting.pid, signal.SIGSTOP)
        # Who is stopped would be waited for until the deadline of 60 seconds.
        for _ in range(8):
            store.append([entry()])
        waiting.kill()
        waiting.communicate()
        assert store.count(Filter()) == 9
