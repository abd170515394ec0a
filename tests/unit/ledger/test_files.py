"""What a file may be when it is opened, and what becomes of it when things go wrong."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.sqlite import schema
from llm_cost_ops.ledger.sqlite.connection import Database
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.unit.ledger.making import START, Sync, check_structure, entry

ROOT = Path(__file__).parents[3]


def refusal(path: Path) -> RpcError:
    with Sync(path) as store:
        for method, arguments in (("append", [[entry()]]), ("count", [Filter()]), ("check", [])):
            with pytest.raises(RpcError) as caught:
                getattr(store, method)(*arguments)
    return caught.value


def test_nothing_is_opened_before_the_first_call(tmp_path: Path) -> None:
    store = Sync(tmp_path / "costs.db")
    assert not list(tmp_path.iterdir())
    assert store.count(Filter()) == 0
    assert (tmp_path / "costs.db").exists()
    store.aclose()
    store.aclose()
    assert [path.name for path in tmp_path.iterdir()] == ["costs.db"]


def test_calls_on_a_closed_store_say_so(tmp_path: Path) -> None:
    for path in (None, tmp_path / "costs.db"):
        for group in (False, True):
            store = Sync(path, group_commit=group)
            store.append([entry()])
            store.count(Filter())
            store.aclose()
            for call in (
                lambda s: s.append([entry()]),
                lambda s: s.count(Filter()),
                lambda s: s.check(),
            ):
                with pytest.raises(RpcError, match="the store is closed"):
                    call(store)


def test_the_schema_is_a_resource_of_the_package() -> None:
    """So that it is found wherever the package is installed, from an archive too."""
    text = resources.files("llm_cost_ops.ledger.sqlite").joinpath("schema.sql").read_text(encoding="utf-8")
    made = sqlite3.connect(":memory:")
    made.executescript(text)
    opened = Database(None, "disk").connect()
    tables = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
    assert made.execute(tables).fetchall() == opened.execute(tables).fetchall() != []
    made.close()
    opened.close()
    # The wheel takes every file of the package, whatever its suffix.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["llm_cost_ops"]


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store:
        store.append([entry()])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    error = refusal(path)
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert "newer llm-cost-ops: its schema is version 99" in error.message
    assert path.read_bytes() == before


def test_somebody_elses_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    assert "is the database of another application" in refusal(path).message
    assert path.read_bytes() == before


def test_a_file_that_another_process_makes_meanwhile_is_no_stranger(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"

    class Interrupted(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if sql == "PRAGMA user_version":
                other = sqlite3.connect(path, timeout=0, isolation_level=None)
                with contextlib.suppress(sqlite3.OperationalError):  # it may have to wait for us
                    schema.migrate(other, "the file")
                other.close()
            return super().execute(sql, *values)

    connection = sqlite3.connect(path, isolation_level=None, factory=Interrupted)
    assert schema.identify(connection, "the file") in (0, schema.VERSION)
    connection.close()
    with Sync(path) as store:
        assert store.count(Filter()) == 0


@pytest.mark.parametrize("content", [b"date,tokens\n" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "usage.csv"
    path.write_bytes(content)
    error = refusal(path)
    assert error.code in (StatusCode.FAILED_PRECONDITION, StatusCode.DATA_LOSS)
    assert str(path) not in error.message
    assert str(path) in error.local_detail
    assert path.read_bytes() == content


def test_where_no_file_can_be_is_told(tmp_path: Path) -> None:
    error = refusal(tmp_path / "missing" / "costs.db")
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert "is its folder there, and may this process write to it?" in error.message


def test_what_is_no_file_is_refused_as_that(tmp_path: Path) -> None:
    """A pipe or a device was told as a disk that fails, and tried again."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path(os.devnull)):
        error = refusal(path)
        assert error.code is StatusCode.FAILED_PRECONDITION
        assert "leads to a folder, a pipe or a device" in error.message


@pytest.mark.parametrize("path", ["loop.db", "file/costs.db", "none/costs.db", f"{'n' * 300}.db"])
def test_a_path_that_leads_nowhere_is_refused_as_that(path: str, tmp_path: Path) -> None:
    (tmp_path / "loop.db").symlink_to(tmp_path / "loop.db")
    (tmp_path / "file").touch()
    error = refusal(tmp_path / path)
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert "is its folder there" in error.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    assert refusal(folder / "costs.db").code is StatusCode.FAILED_PRECONDITION


def test_a_migration_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store:
        store.append([entry()])
    known = schema.MIGRATIONS
    step = ("ALTER TABLE usage ADD COLUMN extra TEXT", "this is no SQL")
    monkeypatch.setattr(schema, "MIGRATIONS", (*known, step))
    monkeypatch.setattr(schema, "VERSION", 2)
    with Sync(path) as store, pytest.raises(RpcError):
        store.count(Filter())
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert "extra" not in {row[1] for row in connection.execute("PRAGMA table_info(usage)")}
    connection.close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*known, step[:1]))
    with Sync(path) as store:
        assert store.count(Filter()) == 1
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_a_file_from_before_the_first_release_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE usage (seq)")
    connection.execute("PRAGMA application_id = 0x4C434F50")
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    before = path.read_bytes()
    error = refusal(path)
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert "from before the first release" in error.message
    assert "export its records" in error.message
    assert path.read_bytes() == before


def test_a_migration_leads_from_the_schema_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sync(tmp_path / "old.db") as store:
        store.append([entry()])
    step = (
        "ALTER TABLE health ADD COLUMN note TEXT",
        lambda c: c.execute("UPDATE health SET note = 'moved'"),
    )
    monkeypatch.setattr(schema, "MIGRATIONS", (step,))
    monkeypatch.setattr(schema, "VERSION", 2)
    with Sync(tmp_path / "old.db") as store:
        assert store.count(Filter()) == 1
    connection = sqlite3.connect(tmp_path / "old.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT note FROM health").fetchone() == ("moved",)
    connection.close()


def test_a_read_only_database_is_unavailable(tmp_path: Path) -> None:
    with Sync(tmp_path / "costs.db") as store:
        store.append([entry()])
        store.store._writer._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(RpcError, match="is read-only; nothing was written") as caught:
            store.append([entry()])
        assert (caught.value.code, caught.value.error_code) == (StatusCode.UNAVAILABLE, "STORAGE_READ_ONLY")


@pytest.mark.parametrize("call", ["append", "group", "count"])
def test_a_long_migration_stops_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as store:
        store.append([entry()])
    known = schema.MIGRATIONS
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000000)"
    slow = (
        "ALTER TABLE usage ADD COLUMN extra TEXT",
        f"CREATE TABLE slow AS {numbers} SELECT max(i) FROM n",
    )
    monkeypatch.setattr(schema, "MIGRATIONS", (*known, slow))
    monkeypatch.setattr(schema, "VERSION", len(known) + 2)
    with Sync(path, timeout=1.0, group_commit=call == "group") as store:
        with pytest.raises(RpcError) as caught:
            store.count(Filter()) if call == "count" else store.append([entry()])
        if call == "group":
            # Who waits for the thread that opens it gives up just before; the thread may still be faster.
            assert caught.value.code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
            assert not caught.value.maybe_applied
        else:
            assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
            assert (
                "the deadline passed while the database was brought to this version" in caught.value.message
            )
    monkeypatch.undo()
    with Sync(path) as store:
        assert store.count(Filter()) == 1


def test_durability_is_what_was_asked_for(tmp_path: Path) -> None:
    for durability, level in (("disk", 2), ("process", 1)):
        connection = Database(str(tmp_path / "costs.db"), durability).connect()
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (0,)
        connection.close()
    with pytest.raises(ValueError, match="durability must be one of disk, process, not 'none'"):
        Sync(None, durability="none")


def fill(store: Sync, size: int) -> None:
    for _ in range(100):
        store.append([entry(metadata={"text": "x" * 9000}) for _ in range(size)])


@pytest.mark.parametrize("group", [False, True])
def test_a_full_disk_acknowledges_nothing(tmp_path: Path, group: bool) -> None:
    with Sync(tmp_path / "costs.db", group_commit=group) as store:
        store.append([entry()])
        pages = store.store._writer._connection.execute("PRAGMA page_count").fetchone()[0]
        store.store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")
        for size in (1, 50):
            with pytest.raises(RpcError) as caught:
                fill(store, size)
            assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
        before = store.count(Filter())
        store.store._writer._connection.execute("PRAGMA max_page_count = 1000000")
        assert [done.status for done in store.append([entry()])] == [SubmitStatus.CREATED]
        assert store.count(Filter()) == before + 1
        assert sum(s.requests for _, _, s in store.summarize(Filter(), ("label:x",), None)) == before + 1


LIMITED = """
import resource, sys
from tests.unit.ledger.making import Sync, entry
from llm_cost_ops.rpc.status import RpcError
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Sync(sys.argv[1])
store.append([entry()])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept = 1
try:
    while True:
        store.append([entry(metadata={"text": "x" * 3000})])
        kept += 1
except RpcError as error:
    print(kept, error.code.name)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.append([entry()])
store.aclose()
"""


def test_a_write_that_fails_is_not_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept, code = done.stdout.split()
    assert code == "RESOURCE_EXHAUSTED"
    with Sync(path) as store:
        assert store.count(Filter()) == int(kept) + 1


KILLED = """
import sys
from concurrent.futures import ThreadPoolExecutor
from tests.unit.ledger.making import Sync, entry
store = Sync(sys.argv[1], group_commit=sys.argv[2] == "group")
def work(n):
    for i in range(100_000):
        keys = [f"{n}-{i}-{j}" for j in range(1 + i % 3)]
        store.append([entry(i, idempotency_key=key, project_id=str(n)) for key in keys])
        sys.stdout.write("".join(f"{key}\\n" for key in keys))
        sys.stdout.flush()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(4)))
"""


@pytest.mark.parametrize("mode", ["inline", "group"])
def test_kill_9_under_load_loses_nothing_acknowledged(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "costs.db"
    process = subprocess.Popen([sys.executable, "-c", KILLED, path, mode], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(100)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    keys = {line.decode().strip() for line in told if line.endswith(b"\n")}
    with Sync(path) as store:
        total = store.count(Filter())
        found = store.append([entry(int(k.split("-")[1]), idempotency_key=k, project_id=k[0]) for k in keys])
        assert {done.status for done in found} == {SubmitStatus.DUPLICATE}
        assert total >= len(keys) >= 100
        assert store.count(Filter()) == total
        for group_by in (("project",), ("project", "user"), ("project", "label:x")):
            assert sum(s.requests for _, _, s in store.summarize(Filter(), group_by, None)) == total
    check_structure(path)


def test_a_store_may_be_read_after_start(tmp_path: Path) -> None:
    with Sync(tmp_path / "costs.db") as writer, Sync(tmp_path / "costs.db") as reader:
        assert reader.count(Filter()) == 0
        writer.append([entry()])
        assert reader.count(Filter()) == 1
        assert reader.occupied(Filter(), 1) == [to_micros(START)]


@pytest.mark.parametrize("group", [False, True])
def test_a_commit_that_fails_on_the_disk_may_have_been_applied(tmp_path: Path, group: bool) -> None:
    class Failing(sqlite3.Cursor):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            alone = sql.startswith("INSERT INTO usage") and not self.connection.in_transaction
            if sql == "COMMIT" or alone:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR | (4 << 8)
                raise error
            return super().execute(sql, *values)

    with Sync(tmp_path / "costs.db", group_commit=group) as store:
        store.append([entry()])
        writer = store.store._writer
        writer._cursor = writer._connection.cursor(Failing)
        with pytest.raises(RpcError) as caught:
            store.append([entry(idempotency_key="k")])
        assert (caught.value.code, caught.value.maybe_applied) == (StatusCode.INTERNAL, True)
        # The connection is not trusted any more, and the next call has a new one.
        assert writer._connection is None
        assert [done.status for done in store.append([entry(idempotency_key="k")])] == [SubmitStatus.CREATED]
        assert store.count(Filter()) == 2


def test_a_sqlite_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with Sync() as store, pytest.raises(RpcError, match=r"the store needs 3\.37 or newer"):
        store.check()


@pytest.mark.parametrize("path", [None, "", ":memory:"])
def test_memory_is_private(path: str | None) -> None:
    with Sync(path, group_commit=True) as one, Sync(path) as other:
        one.append([entry()])
        assert (one.count(Filter()), other.count(Filter())) == (1, 0)
    assert not Path(":memory:").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_that_nobody_closed_leaves_no_descriptor(tmp_path: Path) -> None:
    client = CostOpsClient(base_url=f"sqlite:///{tmp_path}/costs.db")
    client.usage.submit(organization_id="o", provider="openai", model_id="gpt-4o", input_tokens=1)
    assert _open_below(tmp_path)
    del client
    gc.collect()
    assert _open_below(tmp_path) == []


def _open_below(folder: Path) -> list[str]:
    """The files of a folder that this process has open, those that are removed included."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one of this list
            found.append(str(descriptor.readlink()))
    return [path for path in found if path.startswith(str(folder))]
