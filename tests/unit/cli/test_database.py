"""`llm-cost-ops db`: backups while others write, and checks that find what is wrong."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from datetime import timedelta
from errno import EPERM
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from llm_cost_ops.cli import main
from llm_cost_ops.ledger import day_spans
from llm_cost_ops.ledger.sqlite import sums
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.pricing.types import Priced
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.unit.ledger.making import START, Sync, entry, pricing
from tests.waiting import MAX_WAIT

WRITING = """
import sys, time
from tests.unit.ledger.making import Sync, entry
store = Sync(sys.argv[1], durability="process", timeout=60)
for n in range(1_000_000):
    store.append([entry(n % 9_000, idempotency_key=f"{n}-{i}", user_id=str(i)) for i in range(20)])
    time.sleep(0.002)
    if n == 20:
        print("warm", flush=True)
"""


@pytest.mark.slow
def test_20_backups_while_others_write(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    writing = subprocess.Popen([sys.executable, "-c", WRITING, str(path)], stdout=subprocess.PIPE)
    assert writing.stdout is not None
    writing.stdout.readline()
    counts = []
    for n in range(20):
        target = tmp_path / f"backup-{n}.db"
        assert main(["db", "backup", str(path), str(target)]) == 0
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        with Sync(target) as store:
            counts.append(store.count(Filter()))
            # Whole batches, and none of their keys counts twice.
            assert counts[-1] % 20 == 0
            store.append([entry(n % 9_000, idempotency_key=f"{n}-{i}", user_id=str(i)) for i in range(20)])
            assert store.count(Filter()) == counts[-1]
    writing.kill()
    writing.communicate()
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert main(["db", "check", str(path)]) == 0
    assert not [found.name for found in tmp_path.iterdir() if found.name.startswith(".")]


def filled(path: Path) -> Path:
    with Sync(path) as store, patch.object(sums, "FOLD_EVERY", 100):
        store.append([entry(n * 600, idempotency_key=str(n), user_id=str(n % 3)) for n in range(300)])
        where = Filter(end=START + timedelta(minutes=20))
        again = store.reprice(where, lambda _: Priced(9, pricing()), None, 1000, dry_run=False)
        assert len(again.changes) == 2
        with patch.object(day_spans, "MIN_ROWS", 1):
            assert len(store.summarize(Filter(), ("user",), None)) == 3
    return path


def break_sum(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE rollup SET input = input + 1 WHERE level = 1")


def lose_sum(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM rollup WHERE level = 2")


def break_day(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE day_sum SET reported_picos = reported_picos + 1 WHERE grp = 1")


def lose_rows(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM usage WHERE seq > 250")


def change_id(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE usage SET id = randomblob(16) WHERE seq = 3")


def drop_from_index(connection: sqlite3.Connection) -> None:
    """A row of another moment than its index."""
    connection.execute("PRAGMA writable_schema = ON")
    [[sql]] = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'usage_id'").fetchall()
    connection.execute(
        "UPDATE sqlite_schema SET sql = ? || ' WHERE seq < 299' WHERE name = 'usage_id'", (sql,)
    )
    connection.execute("PRAGMA writable_schema = RESET")
    connection.execute("REINDEX usage_id")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'usage_id'", (sql,))
    connection.execute("PRAGMA writable_schema = RESET")


@pytest.mark.parametrize(
    ("fault", "told", "at_open"),
    [
        (break_sum, "are not those of the rows", False),
        (lose_sum, "are missing", False),
        (break_day, "sums: those of 3 kept days are not those of the rows", False),
        (lose_rows, "sums: they hold rows up to number 300, and the last row is number 250", True),
        (change_id, "ids: 1 do not follow from their keys", False),
        (drop_from_index, "SQLite: ", True),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: object, told: str, at_open: bool
) -> None:
    path = filled(tmp_path / "costs.db")
    assert main(["db", "check", str(path)]) == 0
    assert "ok" in capsys.readouterr().out
    connection = sqlite3.connect(path, isolation_level=None)
    fault(connection)
    connection.close()
    assert main(["db", "check", str(path)]) == 1
    assert told in capsys.readouterr().out
    assert main(["db", "backup", str(path), str(tmp_path / "backup.db")]) == 1
    assert not (tmp_path / "backup.db").exists()
    with Sync(path) as store:
        if at_open:
            with pytest.raises(RpcError) as caught:
                store.append([entry()])
            assert caught.value.code is StatusCode.DATA_LOSS
            assert "`llm-cost-ops db check`" in caught.value.message
        else:
            store.append([entry()])


def test_sums_of_another_moment_are_noticed_when_a_file_is_opened(tmp_path: Path) -> None:
    path = filled(tmp_path / "costs.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE rollup SET records = records - 1 WHERE level = 0")
    connection.close()
    with Sync(path) as store:
        with pytest.raises(RpcError, match="its sums hold 0 of the 1 records of a quarter of an hour"):
            store.check()
        # What can be read is read, so that it can be exported.
        assert store.count(Filter()) == 300


@pytest.mark.slow
def test_no_copy_made_with_cp_passes_for_good_when_it_is_wrong(tmp_path: Path) -> None:
    """What `cp` makes under load may be wrong: then `db check` says so."""
    path = tmp_path / "costs.db"
    writing = subprocess.Popen([sys.executable, "-c", WRITING, str(path)], stdout=subprocess.PIPE)
    assert writing.stdout is not None
    writing.stdout.readline()
    passed = 0
    for n in range(10):
        time.sleep(0.02)
        copy = tmp_path / f"copy-{n}.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
        if main(["db", "check", str(copy)]):
            continue
        passed += 1
        with Sync(copy) as store:
            before = store.count(Filter())
            again = [(key, i) for key in range(before // 20) for i in range(20)]
            store.append(
                [entry(key % 9_000, idempotency_key=f"{key}-{i}", user_id=str(i)) for key, i in again]
            )
            assert store.count(Filter()) == before
    writing.kill()
    writing.communicate()


def test_what_can_not_be_backed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = filled(tmp_path / "costs.db")
    (tmp_path / "notes.txt").write_text("no database")
    for arguments, told in (
        (["backup", tmp_path / "missing.db", tmp_path / "b.db"], "there is no database"),
        (["backup", path, path], "is there already, and is not replaced"),
        (["backup", path, tmp_path / "none" / "b.db"], f"there is no folder {tmp_path / 'none'}\n"),
        (["backup", tmp_path / "notes.txt", tmp_path / "b.db"], "not a SQLite database"),
        (["check", tmp_path / "missing.db"], "there is no database"),
    ):
        assert main(["db", *map(str, arguments)]) in (1, 2)
        found = capsys.readouterr()
        assert told in found.err + found.out
    assert sorted(found.name for found in tmp_path.iterdir()) == ["costs.db", "notes.txt"]


def test_a_database_may_be_named_by_its_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, copy = f"sqlite:///{tmp_path}/a%20b.db", tmp_path / "copy.db"
    for action in (
        ["init", url],
        ["status", url],
        ["check", url],
        ["migrate", url],
        ["backup", url, f"sqlite:///{copy}"],
    ):
        assert main(["db", *action]) == 0, capsys.readouterr().err
    assert (tmp_path / "a b.db").exists()
    assert copy.exists()
    for action in (["init", "sqlite://"], ["status", "sqlite://"], ["backup", "sqlite://", str(copy) + "2"]):
        assert main(["db", *action]) == 2
        assert "name a file" in capsys.readouterr().err


@pytest.mark.parametrize("taken", [False, True])
def test_a_backup_where_the_file_system_has_no_links(
    tmp_path: Path, taken: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "costs.db", tmp_path / "backup.db"
    with Sync(source) as store:
        store.append([entry()])

    def link(*_: object) -> None:
        if taken:
            target.write_text("of another")
        raise OSError(EPERM, "Operation not permitted")

    with patch("os.link", link):
        assert main(["db", "backup", str(source), str(target)]) == (2 if taken else 0)
    if taken:
        assert f"{target}: File exists" in capsys.readouterr().err
        assert target.read_text() == "of another"
    else:
        assert main(["db", "check", str(target)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "costs.db"]


def test_a_backup_names_the_folder_that_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "costs.db", tmp_path / "there" / "backup.db"
    target.parent.mkdir()
    with Sync(source) as store:
        store.append([entry(n, idempotency_key=f"{n}") for n in range(100)])
    connect = sqlite3.connect

    def small(database: str, *arguments: object, **options: Any) -> sqlite3.Connection:
        made = connect(database, *arguments, **options)
        if str(target.parent) in database:
            made.execute("PRAGMA max_page_count = 2")
        return made

    with patch("llm_cost_ops.cli.database.sqlite3.connect", small):
        assert main(["db", "backup", str(source), str(target)]) == 2
    assert f"{target.parent}: No space left on device" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []


def test_a_backup_waits_for_nobody_and_nobody_for_it(tmp_path: Path) -> None:
    path = filled(tmp_path / "costs.db")
    with Sync(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        backing = threading.Thread(target=main, args=(["db", "backup", str(path), str(tmp_path / "b.db")],))
        backing.start()
        backing.join(MAX_WAIT)
        assert not backing.is_alive()
        other.execute("ROLLBACK")
        other.close()
        store.append([entry()])
    assert main(["db", "check", str(tmp_path / "b.db")]) == 0


def test_a_backup_of_postgres_is_refused_and_its_password_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, file = "postgresql://costs:canary@db.example.com/costs", str(tmp_path / "costs.db")
    for source, target in ((url, file), (file, url)):
        assert main(["db", "backup", source, target]) == 2
        said = capsys.readouterr().err
        assert "pg_dump" in said
        assert "canary" not in said
