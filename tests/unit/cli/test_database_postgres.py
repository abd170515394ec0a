"""`llm-cost-ops db` with a database in PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops.cli import main
from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.rpc.status import RpcError
from tests.ledger_suite import priced, revise
from tests.unit.ledger.making import Sync, entry


def test_tables_are_made_shown_and_checked(postgres: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url = postgres.new_database(empty=True)
    for action in ("status", "check", "migrate"):
        assert main(["db", action, url]) == 2
        assert "holds no ledger" in capsys.readouterr().err
    assert main(["db", "init", url]) == 0
    assert "were made" in capsys.readouterr().out
    assert main(["db", "init", url]) == 0
    assert "are there" in capsys.readouterr().out
    assert main(["db", "migrate", url]) == 0
    with Sync(ledger=open_ledger(url)) as ledger:
        ledger.append([entry(), entry(1, organization_id="globex")])
    assert main(["db", "status", url]) == 0
    assert "2 organizations" in capsys.readouterr().out
    assert main(["db", "check", url]) == 0
    postgres.drop(url)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("UPDATE llm_cost_ops.delta SET input = input + 1", "acme: 2 sums are not those of the rows"),
        ("DELETE FROM llm_cost_ops.delta", "acme: 2 sums are missing"),
        ("UPDATE llm_cost_ops.usage SET cost = 1", "sums"),
        ("DELETE FROM llm_cost_ops.series", "acme: 1 records are of no series"),
        ("UPDATE llm_cost_ops.usage SET key = 'other'", "acme: 1 ids do not follow from their keys"),
    ],
)
def test_a_check_finds_what_is_wrong(
    postgres: Any, postgres_url: str, capsys: pytest.CaptureFixture[str], damage: str, fault: str
) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        ledger.append([entry(idempotency_key="k")])
    postgres.execute(damage, postgres_url.partition("?")[0].rpartition("/")[2])
    assert main(["db", "check", postgres_url]) == 1
    assert fault in capsys.readouterr().out


def test_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "costs.db")
    assert main(["db", "migrate", path]) == 2
    assert main(["db", "init", path]) == 0
    assert main(["db", "migrate", path]) == 0
    assert main(["db", "status", path]) == 0
    assert "0 records" in capsys.readouterr().out


def test_a_database_that_was_restored_from_a_dump(
    postgres: Any, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        done = ledger.append([entry(n, idempotency_key=f"k{n}") for n in range(30)])
        ledger.reprice(Filter(), lambda _: priced(7), None, 10, dry_run=False)
        assert revise(ledger, done[2].usage_id, 2)
        expected = [(item.record.id, item.revision) for item in ledger.committed(None, 1000)[0]]
        _, position = ledger.committed(None, 10)
        ledger.move_consumer("alerts", position)
    restored = postgres.new_database(empty=True)
    names = [url.partition("?")[0].rpartition("/")[2] for url in (postgres_url, restored)]
    dump = postgres.run("pg_dump", "-d", postgres_url)
    # As if it were of a server that is further ahead.
    (postgres.folder / "dump.sql").write_text(dump)
    postgres.run("psql", "-q", "-d", restored, "-f", str(postgres.folder / "dump.sql"))
    for table in ("usage", "revision", "consumer"):
        ahead = "(xid::text::bigint + 1000000000)::text::xid8"
        postgres.execute(f"UPDATE llm_cost_ops.{table} SET xid = {ahead}", names[1])
    with Sync(ledger=open_ledger(restored)) as ledger, pytest.raises(RpcError, match="restored from a dump"):
        ledger.check()
    assert main(["db", "migrate", restored]) == 0
    assert "follows this server" in capsys.readouterr().out
    with Sync(ledger=open_ledger(restored)) as ledger:
        found = [(item.record.id, item.revision) for item in ledger.committed(None, 1000)[0]]
        assert sorted(found) == sorted(expected)
        left, _ = ledger.committed(ledger.consumer_position("alerts"), 1000)
        assert {(item.record.id, item.revision) for item in left} >= set(expected[10:])
        [new] = ledger.append([entry(77)])
        assert ledger.committed(None, 1000)[0][-1].record.id == new.usage_id
        assert ledger.find_faults() == []
    postgres.drop(restored)
