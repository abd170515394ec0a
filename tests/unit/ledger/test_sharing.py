"""Threads, tasks, processes and forks on one store, deadlines, and group commit."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.sqlite.connection import FifoLock
from llm_cost_ops.ledger.sqlite.ledger import AppendOne
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.runtime import AsyncRuntime, SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.unit.ledger.making import Sync, context, entry
from tests.waiting import MAX_WAIT, until
from tests.wakes import Wakes

CREATED, DUPLICATE = SubmitStatus.CREATED, SubmitStatus.DUPLICATE


@pytest.fixture(params=["memory", "process", "disk", "group"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sync]:
    kind = request.param
    path = None if kind == "memory" else tmp_path / "costs.db"
    durability = "process" if kind == "process" else "disk"
    with Sync(path, durability=durability, group_commit=kind == "group") as made:
        yield made


def test_32_threads_post_one_key(store: Sync) -> None:
    barrier = threading.Barrier(32)

    def post(_: int) -> tuple[SubmitStatus, str]:
        barrier.wait()
        [done] = store.append([entry(idempotency_key="one")])
        return done.status, done.usage_id

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(post, range(32)))
    assert Counter(status for status, _ in found) == {CREATED: 1, DUPLICATE: 31}
    assert len({usage_id for _, usage_id in found}) == 1
    assert store.count(Filter()) == 1


def test_threads_write_and_read_at_once(store: Sync) -> None:
    def work(n: int) -> None:
        for i in range(10):
            store.append([entry(i, project_id=str(n)) for _ in range(2)])
            [(_, _, sums)] = store.summarize(Filter(project_ids=(str(n),)), (), None)
            assert sums.requests == 2 * (i + 1)
            assert len(
                store.list_usage(Filter(project_ids=(str(n),)), "timestamp", True, 5, None, None)[0]
            ) == min(5, 2 * (i + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert store.count(Filter()) == 160


async def test_tasks_write_and_read_at_once(store: Sync) -> None:
    runtime = AsyncRuntime()

    async def work(n: int) -> None:
        for i in range(5):
            await store.store.append([entry(i, project_id=str(n))], context(runtime=runtime))
            found = await store.store.sums.summarize(
                Filter(project_ids=(str(n),)), (), None, context(runtime=runtime)
            )
            assert [sums.requests for _, _, sums in found] == [i + 1]

    await asyncio.gather(*(work(n) for n in range(20)))
    assert await store.store.sums.count(Filter(), context(runtime=runtime)) == 100


async def test_tasks_that_share_a_commit_are_woken_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "costs.db"
    with Sync(path, durability="disk", group_commit=True) as store:
        store.append([entry()])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        wakes = Wakes(monkeypatch)
        tasks = [
            asyncio.create_task(store.store.append([entry(n)], context(runtime=AsyncRuntime())))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        other.execute("ROLLBACK")
        other.close()
        found = await asyncio.gather(*tasks)
        assert [done.status for [done] in found] == [CREATED] * 50
        # Who came first waited for the other connection, alone perhaps, and all others behind it.
        assert wakes.count <= 2


PROCESS = """
import sys
from tests.unit.ledger.making import Sync, entry
with Sync(sys.argv[1], timeout=60) as store:
    found = [store.append([entry(n, idempotency_key=str(n))])[0] for n in range(60)]
print(",".join(done.status.value for done in found))
"""


def test_two_processes_on_one_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    command = [sys.executable, "-c", PROCESS, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0].strip().split(",") for process in running]
    # Each key was created by exactly one of the two.
    assert [set(pair) for pair in zip(*told, strict=True)] == [{"created", "duplicate"}] * 60
    with Sync(path) as store:
        assert store.count(Filter()) == 60
        assert sum(s.requests for _, _, s in store.summarize(Filter(), ("label:x",), None)) == 60


@pytest.fixture
def other_writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection that holds the write lock of costs.db."""
    with Sync(tmp_path / "costs.db") as store:
        store.append([entry()])
    connection = sqlite3.connect(tmp_path / "costs.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


@pytest.mark.parametrize("group", [False, True])
def test_a_busy_file_is_waited_for_until_just_before_the_deadline(
    tmp_path: Path, other_writer: sqlite3.Connection, group: bool
) -> None:
    with Sync(tmp_path / "costs.db", timeout=0.2, group_commit=group) as store:
        # A machine that has no time for it when the moment comes says that the deadline passed.
        for _ in range(20):
            began = time.monotonic()
            with pytest.raises(RpcError) as caught:
                store.append([entry()])
            assert 0.1 < time.monotonic() - began < MAX_WAIT
            assert not caught.value.maybe_applied
            if caught.value.code is not StatusCode.DEADLINE_EXCEEDED:
                break
        assert caught.value.code is StatusCode.UNAVAILABLE
        assert caught.value.retry_after is not None
        store.timeout = MAX_WAIT
        assert store.count(Filter()) == 1  # readers do not wait
        other_writer.execute("ROLLBACK")
        assert [done.status for done in store.append([entry()])] == [CREATED]
        assert store.count(Filter()) == 2


@pytest.mark.parametrize("group", [False, True])
async def test_a_busy_file_holds_up_no_loop(
    tmp_path: Path, other_writer: sqlite3.Connection, group: bool
) -> None:
    store = SqliteLedger(str(tmp_path / "costs.db"), group_commit=group)
    calls = [store.append([entry()], context(runtime=AsyncRuntime())) for _ in range(3)]
    waiting = [asyncio.create_task(call) for call in calls]
    for _ in range(10):
        await asyncio.sleep(0.01)
    # A loop that was held would go on when they have waited in vain.
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    other_writer.execute("ROLLBACK")
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert [done.status for answers in found[1:] for done in answers] == [CREATED, CREATED]
    assert await store.sums.count(Filter(), context(runtime=AsyncRuntime())) in (3, 4)
    await store.aclose()


async def test_no_loop_waits_while_a_reader_opens_the_file(tmp_path: Path) -> None:
    with Sync(tmp_path / "costs.db") as made:
        made.append([entry()])
    store = SqliteLedger(str(tmp_path / "costs.db"), group_commit=True)
    connect, threads = store._database.connect, []

    def opened(*arguments: object) -> sqlite3.Connection:
        threads.append(threading.current_thread())
        return connect(*arguments)

    with patch.object(store._database, "connect", opened):
        for _ in range(2):
            asked = context(runtime=AsyncRuntime())
            records, _ = await store.list_usage(Filter(), "timestamp", True, 5, None, None, asked)
            assert len(records) == 1
            assert await store.cards_revision(context(runtime=AsyncRuntime())) == 0
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    await store.aclose()


def test_a_deadline_that_has_passed_writes_nothing(tmp_path: Path, other_writer: sqlite3.Connection) -> None:
    for group in (False, True):
        with Sync(tmp_path / "costs.db", timeout=-1.0, group_commit=group) as store:
            with pytest.raises(RpcError) as caught:
                store.append([entry()])
            assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
            assert not caught.value.maybe_applied


def test_a_long_query_stops_at_its_deadline(store: Sync) -> None:
    store.append([entry(n, user_id=str(n)) for n in range(5_000)])

    def slow(connection: sqlite3.Connection) -> object:
        return connection.execute(
            "SELECT count(*) FROM usage a, usage b, usage c WHERE a.ts <> b.ts + c.ts"
        ).fetchone()

    with pytest.raises(RpcError) as caught:
        drive(store.store._readers.read(slow, context(0.1)))
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
    assert store.count(Filter()) == 5_000
    assert [done.status for done in store.append([entry()])] == [CREATED]


def test_group_commit_shares_transactions(tmp_path: Path) -> None:
    with Sync(tmp_path / "costs.db", group_commit=True) as store:
        store.append([entry()])
        group, writer = store.store._group, store.store._writer
        commits = 0
        transact = writer.transact

        def counted(job: object, **options: object) -> object:
            nonlocal commits
            commits += 1
            return transact(job, **options)

        writer.transact = counted
        with ThreadPoolExecutor(17) as pool:
            for number in range(1, 6):
                blocked = Blocked(group, pool)
                calls = [pool.submit(store.append, [entry(n)]) for n in range(16)]
                until(lambda: group.waiting == 16)
                blocked.end()
                assert [call.result()[0].status for call in calls] == [CREATED] * 16
                # That of who was first, and that of all who came meanwhile.
                assert commits == 2 * number


class Blocked:
    """A job that is being committed, and has the group's thread until `end`."""

    def __init__(self, group: Any, pool: ThreadPoolExecutor) -> None:
        self._begun, self._gate = threading.Event(), threading.Event()
        self._call = pool.submit(drive, group.run(self._job, 1, context()))
        assert self._begun.wait(MAX_WAIT)

    def _job(self, *_: object) -> bool:
        self._begun.set()
        return self._gate.wait(MAX_WAIT)

    def end(self) -> None:
        self._gate.set()
        assert self._call.result() is True


def test_in_a_group_that_failed_each_waits_for_a_busy_file(tmp_path: Path) -> None:
    with Sync(tmp_path / "costs.db", group_commit=True) as store:
        store.append([entry()])
        group, writer = store.store._group, store.store._writer
        transact, busy = writer.transact, [3]

        def sometimes(job: object, **options: object) -> object:
            if busy[0] and isinstance(job, AppendOne):
                busy[0] -= 1
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error
            return transact(job, **options)

        def fail(*_: object) -> None:
            raise OverflowError("too large")

        with ThreadPoolExecutor(4) as pool, patch.object(writer, "transact", sometimes):
            blocked = Blocked(group, pool)
            good = pool.submit(lambda: store.append([entry(1)])[0].status)
            bad = pool.submit(drive, group.run(fail, 1, context()))
            until(lambda: group.waiting == 2)
            blocked.end()
            assert good.result() == CREATED
            with pytest.raises(RpcError, match="too large to be summed"):
                bad.result()
        assert busy == [0]


def test_in_a_group_a_failure_is_its_own(tmp_path: Path) -> None:
    with Sync(tmp_path / "costs.db", group_commit=True) as store:
        store.append([entry()])
        group = store.store._group
        pool = ThreadPoolExecutor(8)
        blocked = Blocked(group, pool)

        def fail(*_: object) -> None:
            raise OverflowError("too large")

        def append(n: int) -> object:
            return store.append([entry(n, idempotency_key=str(n))])[0].status

        good = [pool.submit(append, n) for n in range(4)]
        bad = pool.submit(drive, group.run(fail, 1, context()))
        until(lambda: group.waiting == 5)
        blocked.end()
        assert [future.result() for future in good] == [CREATED] * 4
        with pytest.raises(RpcError, match="too large to be summed"):
            bad.result()
        assert store.count(Filter()) == 5
        pool.shutdown()


def test_close_finishes_what_was_begun(tmp_path: Path) -> None:
    store = Sync(tmp_path / "costs.db", group_commit=True)
    done: list[object] = []
    refused: list[StatusCode] = []

    def work(n: int) -> None:
        try:
            for i in range(100_000):
                done.extend(store.append([entry(i, idempotency_key=f"{n}-{i}")]))
        except RpcError as error:
            refused.append(error.code)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(done) > 20)
    store.aclose()
    for thread in threads:
        thread.join(MAX_WAIT)
        assert not thread.is_alive()
    with Sync(tmp_path / "costs.db") as again:
        assert again.count(Filter()) == len(done) > 0
    assert refused == [StatusCode.FAILED_PRECONDITION] * 4
    assert "llm-cost-ops-commit" not in {thread.name for thread in threading.enumerate()}


def test_a_turn_goes_round_in_order() -> None:
    turn, order = FifoLock(), []
    assert turn.try_acquire("first")
    assert not turn.try_acquire("second")
    began = []

    def wait(n: int) -> None:
        began.append(n)
        turn.take_blocking(n, MAX_WAIT, "it")
        order.append(n)
        turn.release(n)

    threads = []
    for n in range(5):
        threads.append(threading.Thread(target=wait, args=(n,)))
        threads[-1].start()
        until(lambda n=n: turn._end.before.owner == n)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RpcError, match="busy"):
        pool.submit(turn.take_blocking, "late", 0.01, "it").result(MAX_WAIT)
    turn.release("first")
    for thread in threads:
        thread.join()
    assert order == list(range(5))
    assert turn.try_acquire("last")


async def test_who_gives_up_loses_no_turn() -> None:
    turn, runtime = FifoLock(), AsyncRuntime()
    loop = asyncio.get_running_loop()

    async def elsewhere(call: Callable[..., Any], *arguments: object) -> Any:
        return await loop.run_in_executor(None, call, *arguments)

    for _ in range(50):
        assert await elsewhere(turn.try_acquire, "first")
        waiting = [asyncio.create_task(turn.acquire(n, runtime, MAX_WAIT, "it")) for n in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        turn.release("first")
        waiting[0].cancel()  # after it was handed the turn, perhaps
        await asyncio.gather(*waiting[:2], return_exceptions=True)
        if not waiting[0].cancelled():
            turn.release(0)
        await waiting[2]
        turn.release(2)
    assert await elsewhere(turn.try_acquire, "first")
    with pytest.raises(RpcError, match="busy"):
        await turn.acquire("late", runtime, 0.02, "it")


def test_a_thread_that_has_the_turn_is_told_at_once_that_it_waits_for_itself() -> None:
    turn = FifoLock()
    assert turn.try_acquire("call")
    with pytest.raises(RpcError, match="signal handler"):
        turn.take_blocking("call within the call", MAX_WAIT, "it")
    turn.release("call")
    assert turn.is_free


@pytest.mark.filterwarnings("error")
def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for group in (False, True):
        with Sync(tmp_path / "costs.db", group_commit=group) as store:
            store.append([entry()])
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda _, s=store: s.count(Filter()), range(12)))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_sync_runtime_never_suspends(store: Sync) -> None:
    assert isinstance(context().runtime, SyncRuntime)
    store.check()
    store.check()
