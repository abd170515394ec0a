"""Forks with a warm store: nothing acknowledged is lost, nobody hangs, and memory stays with its process."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient, CostOpsError
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc import forks
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.unit.ledger.making import Sync, check_structure, context, entry
from tests.waiting import MAX_WAIT, until

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class Child:
    """A forked process that runs a function; its lines come back through a pipe."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.close(read)
                work(lambda text: os.write(write, f"{text}\n".encode()) and None)
                status = 0
            except BaseException:  # noqa: BLE001 - the child must not go on in the test runner
                os.write(write, traceback.format_exc().encode())
            finally:
                os._exit(status)
        os.close(write)
        self._read = os.fdopen(read, "rb", buffering=0)

    def line(self) -> str:
        """The next line; it is waited for."""
        text = bytearray()
        while not text.endswith(b"\n"):
            text += self._read.read(1)
        return text.decode().strip()

    def join(self) -> list[str]:
        """The lines that are left, once the child has ended well."""
        lines = self._read.readall().decode().splitlines()
        self._read.close()
        assert os.waitpid(self.pid, 0)[1] == 0, lines
        return lines


def submit(store: Sync, keys: list[str]) -> None:
    for key in keys:
        store.append([entry(idempotency_key=key)])


def check_file(path: Path, acknowledged: set[str]) -> None:
    """What was acknowledged is there, and sums are what the rows are."""
    with Sync(path) as store:
        records, _ = store.list_usage(Filter(), "timestamp", False, 100_000, None, None)
        assert acknowledged <= {record.idempotency_key for record in records}
        for group_by in ((), ("label:x",)):
            assert sum(s.requests for _, _, s in store.summarize(Filter(), group_by, None)) == len(records)
    check_structure(path)


@pytest.fixture(params=[False, True], ids=["inline", "group"])
def group(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("own", [False, True], ids=["inherited", "own"])
def test_what_a_child_writes_outlives_its_parents_store(tmp_path: Path, group: bool, own: bool) -> None:
    path = tmp_path / "costs.db"
    store = Sync(path, group_commit=group)
    submit(store, ["parent"])
    store.count(Filter())
    go_read, go_write = os.pipe()

    def work(say: Callable[[str], None]) -> None:
        mine = Sync(path, group_commit=group) if own else store
        submit(mine, [f"early-{n}" for n in range(5)])
        say("written")
        os.read(go_read, 1)
        submit(mine, [f"late-{n}" for n in range(10)])
        say("written")
        # Without closing: as a worker that is killed.

    child = Child(work)
    assert child.line() == "written"
    store.aclose()
    os.write(go_write, b"x")
    assert child.join() == ["written"]
    os.close(go_read)
    os.close(go_write)
    check_file(path, {"parent", *(f"early-{n}" for n in range(5)), *(f"late-{n}" for n in range(10))})


@pytest.fixture
def writing(tmp_path: Path, group: bool) -> Iterator[tuple[Path, Sync, list[str]]]:
    """A store that threads write to and read from."""
    path = tmp_path / "costs.db"
    store = Sync(path, group_commit=group)
    acknowledged: list[str] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def write(n: int) -> None:
        try:
            for i in range(1_000_000):
                submit(store, [f"parent-{n}-{i}"])
                acknowledged.append(f"parent-{n}-{i}")
                if i % 5 == 0:
                    store.summarize(Filter(), ("label:x",), None)
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: failures or len(acknowledged) >= 10)
    yield path, store, acknowledged
    stop.set()
    for thread in threads:
        thread.join(MAX_WAIT)
        assert not thread.is_alive()
    store.aclose()
    assert not failures, failures
    check_file(path, set(acknowledged))


def test_20_children_while_threads_write(
    writing: tuple[Path, Sync, list[str]], group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fork waits for what is under way, and no transaction takes so long.
    monkeypatch.setattr(forks, "FORK_WAIT", MAX_WAIT)
    path, store, acknowledged = writing
    children: list[Child] = []

    def work(say: Callable[[str], None]) -> None:
        number = len(children)
        mine = store if number % 2 else Sync(path, group_commit=group)
        for i in range(5):
            submit(mine, [f"child-{number}-{i}"])
            say(f"child-{number}-{i}")
        assert mine.count(Filter()) >= 5
        if number % 3:
            mine.aclose()

    for _ in range(20):
        children.append(Child(work))  # noqa: PERF401  # each is numbered by those before it
    for child in children:
        told = child.join()
        assert len(told) == 5
        acknowledged.extend(told)


def test_a_query_under_way_is_run_again_after_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "FORK_WAIT", 2 * MAX_WAIT)
    with Sync(tmp_path / "costs.db") as store:
        store.append([entry(n, user_id=str(n)) for n in range(2_000)])
        began = threading.Event()
        runs: list[int] = []

        def slow(connection: sqlite3.Connection) -> object:
            runs.append(1)
            if len(runs) > 1:
                return "answered"
            # It says itself that it is under way.
            connection.create_function("begun", 0, lambda: began.set() or 1)
            sql = "SELECT count(*) FROM usage a, usage b, usage c WHERE a.ts <> b.ts + c.ts AND begun()"
            return connection.execute(sql).fetchone()

        answers: list[object] = []
        asking = threading.Thread(
            target=lambda: answers.append(drive(store.store._readers.read(slow, context(1000))))
        )
        asking.start()
        assert began.wait(MAX_WAIT)
        forked = time.monotonic()
        child = Child(lambda say: say(str(store.count(Filter()))))
        assert time.monotonic() - forked < MAX_WAIT, "the fork waited for the query"
        assert child.join() == ["2000"]
        asking.join(MAX_WAIT)
        assert answers == ["answered"]


def test_who_forks_inside_a_transaction_has_a_child_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "FORK_WAIT", 0.2)
    path = tmp_path / "costs.db"

    def work(say: Callable[[str], None]) -> None:
        for mine in (store, Sync(path), Sync(tmp_path / "." / "costs.db")):
            for call in (lambda s: s.append([entry()]), lambda s: s.count(Filter())):
                with pytest.raises(RpcError, match="was in use when this process was forked") as caught:
                    call(mine)
                assert caught.value.code is StatusCode.FAILED_PRECONDITION
        Sync(tmp_path / "other.db").append([entry()])
        say("refused")

    with Sync(path) as store:
        store.append([entry()])
        children: list[Child] = []
        drive(store.store._writer.run(lambda *_: children.append(Child(work)), context()))
        assert children[0].join() == ["refused"]
        store.append([entry()])
        assert store.count(Filter()) == 2


def test_no_connection_is_open_across_a_fork(tmp_path: Path, group: bool) -> None:
    def work(say: Callable[[str], None]) -> None:
        for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
            try:
                target = str(Path(f"/proc/self/fd/{fd}").readlink())
            except FileNotFoundError:
                continue
            if str(tmp_path) in target:
                say(target)

    with Sync(tmp_path / "costs.db", group_commit=group) as store:
        store.append([entry()])
        store.count(Filter())
        assert Child(work).join() == []
        store.append([entry()])
        assert store.count(Filter()) == 2


@pytest.mark.parametrize("warm", [False, True])
def test_memory_stays_with_its_process(warm: bool) -> None:
    def work(say: Callable[[str], None]) -> None:
        for call in (lambda s: s.append([entry()]), lambda s: s.count(Filter()), lambda s: s.check()):
            with pytest.raises(RpcError, match="give each process a client of its own, or use a file"):
                call(store)
        with Sync() as own:
            own.append([entry()])
        say("refused")

    with Sync() as store:
        if warm:
            store.append([entry()])
        assert Child(work).join() == ["refused"]
        store.append([entry()])
        assert store.count(Filter()) == 1 + warm


def test_a_client_in_memory_tells_a_child_what_to_do() -> None:
    def work(say: Callable[[str], None]) -> None:
        try:
            client.usage.submit(provider="openai", model_id="gpt-4o", organization_id="acme", input_tokens=1)
        except CostOpsError as error:
            say(f"{type(error).__name__} {error.retryable} {error.message}")

    with CostOpsClient(base_url="sqlite://") as client:
        [told] = Child(work).join()
    assert told.startswith("ServerError False the ledger in memory belongs to the process that made it")


def _in_pool(key: str) -> str:
    assert _pooled is not None
    submit(_pooled, [key])
    return key


_pooled: Sync | None = None


def test_multiprocessing_pools_share_a_warm_store(tmp_path: Path, group: bool) -> None:
    global _pooled  # noqa: PLW0603 - workers find it as preloaded applications find their client
    with Sync(tmp_path / "costs.db", group_commit=group) as store:
        submit(store, ["parent"])
        _pooled = store
        with multiprocessing.get_context("fork").Pool(4) as pool:
            told = pool.map_async(_in_pool, [f"pooled-{n}" for n in range(100)])
            submit(store, [f"beside-{n}" for n in range(50)])
            keys = told.get(MAX_WAIT)
            pool.close()
            pool.join()
        _pooled = None
    check_file(tmp_path / "costs.db", {"parent", *keys, *(f"beside-{n}" for n in range(50))})
