"""Files that are removed, replaced, cut or damaged under a store that has them open, and their modes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Self, cast

import pytest

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.sqlite.connection import Database
from llm_cost_ops.ledger.sqlite.files import FileWatch
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.unit.ledger.making import Sync, check_structure, context, entry
from tests.waiting import MAX_WAIT

KINDS = ("disk", "group", "process")
CREATED, DUPLICATE = SubmitStatus.CREATED, SubmitStatus.DUPLICATE


def opened(path: Path, kind: str) -> Sync:
    return Sync(path, durability="process" if kind == "process" else "disk", group_commit=kind == "group")


def submit(store: Sync, *keys: str) -> None:
    for key in keys:
        store.append([entry(idempotency_key=key)])


def refused(store: Sync, call: str = "append") -> RpcError:
    """The error of a write; the store looks at its file every now and then."""
    until = time.monotonic() + MAX_WAIT
    while True:
        try:
            submit(store, "refused") if call == "append" else store.check()
        except RpcError as error:
            return error
        assert time.monotonic() < until, "acknowledged although the file is gone"


def check_kept(path: Path, *keys: str) -> None:
    with Sync(path) as store:
        found = store.append([entry(idempotency_key=key) for key in keys])
        assert [done.status for done in found] == [DUPLICATE] * len(keys)
    check_structure(path)


def test_a_connection_that_is_opened_while_the_last_one_is_closed_is_no_change(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "costs.db"), "disk")
    opened_meanwhile: list[sqlite3.Connection] = []

    class Closing:
        """SQLite removes -wal and -shm when the last connection is closed."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self.connection = connection

        def close(self) -> None:
            self.connection.close()
            opened_meanwhile.append(database.connect())

    database.close(cast("sqlite3.Connection", Closing(database.connect())))
    [connection] = opened_meanwhile
    assert database.files is not None
    database.files.look(connection)
    database.close(connection)


def test_a_look_is_due_a_moment_after_one_that_found_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the one behind a commit; and at once where something had changed."""
    path, elsewhere, now = tmp_path / "costs.db", tmp_path / "elsewhere.db", 100.0
    monkeypatch.setattr("llm_cost_ops.ledger.sqlite.files.time", SimpleNamespace(monotonic=lambda: now))
    database = Database(str(path), "disk")
    with closing(database.connect()) as connection:
        assert database.files is not None
        database.files.look(connection)
        path.rename(elsewhere)
        now += 0.0049
        database.files.look_if_due(connection)
        now += 0.0002
        for _ in range(3):
            with pytest.raises(RpcError, match="removed"):
                database.files.look_if_due(connection)
        elsewhere.rename(path)
        database.files.look_if_due(connection)
        path.rename(elsewhere)
        for look in (database.files.look, database.files.look_if_due):
            with pytest.raises(RpcError, match="removed"):
                look(connection)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sync]:
    with opened(tmp_path / "costs.db", request.param) as made:
        submit(made, "a", "b")
        made.count(Filter())
        yield made


@pytest.mark.parametrize("call", ["append", "check"])
def test_a_database_that_was_removed_is_not_written_to(tmp_path: Path, store: Sync, call: str) -> None:
    (tmp_path / "costs.db").rename(tmp_path / "elsewhere.db")
    error = refused(store, call)
    assert error.code is StatusCode.UNAVAILABLE
    assert "the database file was removed while it was in use" in error.message
    assert str(tmp_path) not in error.message
    time.sleep(0.25)
    with pytest.raises(RpcError, match="removed"):
        store.count(Filter())
    assert not (tmp_path / "costs.db").exists()
    # The same file comes back.
    (tmp_path / "elsewhere.db").rename(tmp_path / "costs.db")
    time.sleep(0.25)
    submit(store, "c")
    store.aclose()
    check_kept(tmp_path / "costs.db", "a", "b", "c")


def test_a_database_that_was_replaced_is_left_alone(tmp_path: Path, store: Sync) -> None:
    path = tmp_path / "costs.db"
    with Sync(tmp_path / "other.db") as other:
        submit(other, "of the other")
    path.rename(tmp_path / "elsewhere.db")
    (tmp_path / "other.db").rename(path)
    before = path.read_bytes()
    error = refused(store)
    assert error.code is StatusCode.UNAVAILABLE
    assert "replaced by another" in error.message
    store.aclose()
    assert path.read_bytes() == before
    check_kept(path, "of the other")
    with Sync(path) as again:
        assert again.count(Filter()) == 1
    # What was in the log of the file that was moved went there.
    check_kept(tmp_path / "elsewhere.db", "a", "b")


def test_a_log_that_was_removed_is_saved(tmp_path: Path, store: Sync) -> None:
    (tmp_path / "costs.db-wal").unlink()
    error = refused(store)
    assert error.code is StatusCode.UNAVAILABLE
    assert "write-ahead log was removed or replaced" in error.message
    submit(store, "c")
    store.aclose()
    check_kept(tmp_path / "costs.db", "a", "b", "c")


SERVING = """
import sys
from tests.unit.ledger.making import Sync, entry
from tests.waiting import MAX_WAIT
from llm_cost_ops.rpc.status import RpcError
store = Sync(sys.argv[1], durability=sys.argv[2])
def say(text):
    sys.stdout.write(text + "\\n"); sys.stdout.flush()
for line in sys.stdin:
    for key in line.split():
        try:
            store.append([entry(idempotency_key=key)])
            say(key)
        except RpcError as error:
            say("refused " + error.code.name)
    say("done")
"""


class Serving:
    """A store in another process."""

    def __init__(self, path: Path, durability: str = "disk") -> None:
        command = [sys.executable, "-c", SERVING, str(path), durability]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def submit(self, *keys: str) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(keys) + "\n")
        self.process.stdin.flush()
        told = []
        while (line := self.process.stdout.readline().strip()) != "done":
            assert line, "it ended"
            told.append(line)
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.mark.parametrize("changed", [False, True], ids=["as it was", "changed before the first call"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_files_behind_a_link_are_watched_and_private(tmp_path: Path, kind: str, changed: bool) -> None:
    """SQLite has -wal and -shm beside the file that a link leads to."""
    volume, link = tmp_path / "volume", tmp_path / "costs.db"
    volume.mkdir()
    link.symlink_to(tmp_path / "old.db" if changed else volume / "real.db")
    with opened(link, kind) as store:
        link.unlink()
        link.symlink_to(volume / "real.db")
        submit(store, "a", "b")
        store.count(Filter())
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in volume.iterdir()}
        assert found == dict.fromkeys(("real.db", "real.db-wal", "real.db-shm"), 0o600)
        (volume / "real.db-wal").unlink()
        assert "write-ahead log was removed or replaced" in refused(store).message
        submit(store, "c")
    check_kept(link, "a", "b", "c")


def test_a_log_that_was_removed_before_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Serving(path) as serving:
        told = serving.submit(*(f"early-{n}" for n in range(100)))
        (tmp_path / "costs.db-wal").unlink()
        told += serving.submit(*(f"late-{n}" for n in range(100)))
    kept = [key for key in told if not key.startswith("refused")]
    assert len(kept) >= 199
    check_kept(path, *kept)


def unavailable(store: Sync, key: str) -> bool:
    """Whether a write was refused until something is put right."""
    try:
        submit(store, key)
    except RpcError as error:
        if error.code is not StatusCode.UNAVAILABLE:
            raise
        return True
    return False


def test_a_log_that_was_removed_while_two_use_it(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Serving(path) as serving, Sync(path) as store:
        told = serving.submit(*(f"other-{n}" for n in range(20)))
        submit(store, "a")
        (tmp_path / "costs.db-wal").unlink()
        # Whoever opens it again first must not go on beside one that has the old log.
        for n in range(5):
            told += serving.submit(f"later-{n}")
            if not unavailable(store, f"mine-{n}"):
                told.append(f"mine-{n}")
    check_kept(path, "a", *(key for key in told if not key.startswith("refused")))


def test_what_was_lost_with_a_log_gives_nothing_to_later_records(tmp_path: Path, store: Sync) -> None:
    """Who removes both files under two processes, and kills one, loses records; others get their numbers."""
    path = tmp_path / "costs.db"
    begun = store.store.batch()
    for n in range(3):
        sent = entry(n)
        begun.add(sent.record, f"begun-{n}", sent.ingested_at, sent.units, sent.by)
    with Serving(path) as serving:
        serving.submit("other")
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        refused(store)
    store.append([entry(model_id="another", idempotency_key="x")])
    assert drive(begun.write(context())) == {}
    submit(store, "c", "d")
    found = {keys: sums.requests for keys, _, sums in store.summarize(Filter(), ("model",), None)}
    assert found == {("another",): 1, ("gpt-4o",): 5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_that_was_copied_over_a_database_in_use_is_looked_into(tmp_path: Path, kind: str) -> None:
    """The log that is saved when it is gone from its path belongs to what was there before."""
    path, backup = tmp_path / "costs.db", tmp_path / "backup.db"
    with Sync(path) as first:
        submit(first, "a")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(backup),))
    with opened(path, kind) as store:
        store.append([entry(model_id=model, idempotency_key=model) for model in ("b", "c")])
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(backup.read_bytes())
        for log in ("-wal", "-shm"):
            Path(f"{path}{log}").unlink()
        time.sleep(0.05)  # it looks at its files every now and then
        codes = []
        for _ in range(3):
            with pytest.raises(RpcError) as caught:
                store.append([entry(model_id=model, idempotency_key=model) for model in ("b", "c", "d")])
            codes.append(caught.value.code)
        assert codes == [StatusCode.UNAVAILABLE, StatusCode.DATA_LOSS, StatusCode.DATA_LOSS]


def test_an_index_that_was_removed_while_another_process_writes(tmp_path: Path, store: Sync) -> None:
    path = tmp_path / "costs.db"
    (tmp_path / "costs.db-shm").unlink()
    with Serving(path) as serving:
        told = serving.submit(*(f"other-{n}" for n in range(50)))
        for n in range(50):
            if not unavailable(store, f"mine-{n}"):
                told.append(f"mine-{n}")
            told += serving.submit(f"beside-{n}")
            time.sleep(0.01)
        assert f"mine-{n}" in told
    store.aclose()
    kept = [key for key in told if not key.startswith("refused")]
    assert len(kept) > 100
    check_kept(path, "a", "b", *kept)


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_is_damage(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / "costs.db"
    store = opened(path, kind)
    for n in range(60):
        submit(store, f"{n}")
    if not suffix:
        with Sync(path) as other:
            other.append([entry()])
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            connection.close()
            submit(store, "more")
        time.sleep(0.25)
        submit(store, "and more")
    os.truncate(f"{path}{suffix}", 4096 if not suffix else 0)
    time.sleep(0.025)  # within 20 ms a store that does not wait for the disk does not look again
    error = refused(store, "check")
    assert error.code is StatusCode.DATA_LOSS
    assert "truncated" in error.message
    assert "cannot rollback" not in f"{error.message} {error.local_detail}"
    # It stays so, for readiness too.
    for call in (store.check, lambda: submit(store, "x")):
        with pytest.raises(RpcError) as caught:
            call()
        assert caught.value.code is StatusCode.DATA_LOSS
    store.aclose()


def test_making_a_database_smaller_is_no_damage(tmp_path: Path, store: Sync) -> None:
    path = tmp_path / "costs.db"
    store.append([entry(metadata={"text": "x" * 9000}, idempotency_key=str(n)) for n in range(200)])
    other = sqlite3.connect(path, isolation_level=None, timeout=60)
    for sql in ("CREATE TABLE extra AS SELECT * FROM usage", "PRAGMA wal_checkpoint(TRUNCATE)"):
        other.execute(sql)
    time.sleep(0.25)
    submit(store, "between")
    for sql in ("DROP TABLE extra", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
        other.execute(sql).fetchall()
    other.close()
    time.sleep(0.25)
    submit(store, "after")
    store.check()
    assert store.count(Filter()) == 204


class Raced:
    """A connection; another process writes and empties the log while this one is asked how long it is."""

    in_transaction = False

    def __init__(self, path: Path, moment: str) -> None:
        self.connection, self.other = (sqlite3.connect(path, isolation_level=None) for _ in range(2))
        self.moment = moment

    def write(self) -> None:
        self.other.execute("INSERT INTO t VALUES (zeroblob(100000))")

    def empty(self) -> None:
        assert self.other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)

    def execute(self, asked: str) -> SimpleNamespace:
        if "wal_checkpoint" not in asked:
            return SimpleNamespace(fetchone=self.connection.execute(asked).fetchone)
        moment, self.moment = self.moment, ""
        if moment:
            self.write()
        row = self.connection.execute(asked).fetchone()
        if moment == "written and emptied":
            self.empty()
        return SimpleNamespace(fetchone=lambda: row)


@pytest.mark.parametrize("moment", ["written", "written and emptied"])
def test_a_log_that_another_process_empties_and_writes_is_no_damage(tmp_path: Path, moment: str) -> None:
    """As an erasure does. The size that it had before it was written says nothing."""
    path = tmp_path / "costs.db"
    raced = Raced(path, moment)
    with closing(raced.connection), closing(raced.other):
        raced.connection.execute("PRAGMA journal_mode = WAL")
        raced.connection.execute("CREATE TABLE t (a)")
        raced.write()
        watch = FileWatch(str(path), every_commit=True)
        watch.opened()
        raced.empty()
        watch.look(cast("sqlite3.Connection", raced))
        assert (watch.damage, raced.moment) == ("", "")
        # It goes on to see what is cut.
        raced.write()
        watch.look(cast("sqlite3.Connection", raced))
        os.truncate(f"{path}-wal", 5000)
        with pytest.raises(RpcError, match="write-ahead log of the database was truncated"):
            watch.look(cast("sqlite3.Connection", raced))


def test_pages_that_a_reader_keeps_in_the_log_are_not_missing(tmp_path: Path) -> None:
    """The database became smaller by VACUUM, and grows again in the log alone."""
    path = tmp_path / "costs.db"
    other, reader = (sqlite3.connect(path, isolation_level=None) for _ in range(2))

    def run(*asked: str) -> None:
        for sql in asked:
            other.execute(sql).fetchall()

    numbers = "WITH n AS (SELECT 1 x UNION ALL SELECT x + 1 FROM n LIMIT 300)"
    grow = f"INSERT INTO t {numbers} SELECT zeroblob(3000) FROM n"
    with closing(other), closing(reader):
        run("PRAGMA journal_mode = WAL", "CREATE TABLE t (a)", "CREATE TABLE kept (a)", grow, grow)
        run("PRAGMA wal_checkpoint(TRUNCATE)")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("SELECT * FROM kept").fetchall()
            watch = FileWatch(str(path), every_commit=True)
            watch.opened()
            run("DELETE FROM t", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)")
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM kept").fetchall()
            run(grow)
            watch.look(connection)
            assert watch.damage == ""
            reader.execute("COMMIT")
            watch.look(connection)
            assert watch.damage == ""
            # What is cut is still seen.
            os.truncate(path, 8192)
            with pytest.raises(RpcError, match="the database file was truncated"):
                watch.look(connection)


@pytest.mark.parametrize("answer", [(1, -1, -1), sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED])
def test_a_cut_that_another_process_hides_for_a_moment_is_found_later(
    tmp_path: Path, answer: tuple[int, ...] | int
) -> None:
    path = tmp_path / "costs.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:

        class Asked:
            in_transaction = False
            busy = True

            def execute(self, asked: str) -> SimpleNamespace:
                if "wal_checkpoint" not in asked or not self.busy:
                    return SimpleNamespace(fetchone=connection.execute(asked).fetchone)
                self.busy = False
                if isinstance(answer, int):
                    error = sqlite3.OperationalError("database is locked")
                    error.sqlite_errorcode = answer
                    raise error
                return SimpleNamespace(fetchone=lambda: answer)

        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
        watch = FileWatch(str(path), every_commit=True)
        watch.opened()
        os.truncate(f"{path}-wal", 5000)
        asked = cast("sqlite3.Connection", Asked())
        watch.look(asked)
        assert watch.damage == ""
        with pytest.raises(RpcError, match="write-ahead log of the database was truncated"):
            watch.look(asked)


def test_damaged_pages_are_data_loss(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store:
        store.append([entry(idempotency_key=str(n)) for n in range(2_000)])
    connection = sqlite3.connect(path)
    [root] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'usage_id'").fetchone()
    [size] = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    with Sync(path) as store:
        for call in (lambda: submit(store, "1"), lambda: store.append([entry(), entry()]), store.check):
            with pytest.raises(RpcError) as caught:
                call()
            assert caught.value.code is StatusCode.DATA_LOSS
            assert "llm-cost-ops db check" in caught.value.message


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
def test_only_their_user_can_read_new_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with Sync(tmp_path / "costs.db") as store:
            submit(store, "a")
            found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert found == dict.fromkeys(("costs.db", "costs.db-wal", "costs.db-shm"), 0o600)


def test_the_mode_of_a_file_that_is_there_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store:
        submit(store, "a")
    path.chmod(0o640)
    with Sync(path) as store:
        submit(store, "b")
        assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o640}


def test_a_copy_beside_a_running_store_is_not_taken_for_it(tmp_path: Path, store: Sync) -> None:
    shutil.copy(tmp_path / "costs.db", tmp_path / "copy.db")
    submit(store, "c")
    assert store.count(Filter()) == 3
