"""The statements and commands in docs/postgresql.md, run as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from llm_cost_ops.cli import main
from llm_cost_ops.ledger import open_ledger
from tests.unit.ledger.making import Sync, entry

TEXT = (Path(__file__).parents[3] / "docs" / "postgresql.md").read_text(encoding="utf-8")
PLACE = "@db.example.com/costs"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def statements(sql: str) -> list[str]:
    return [each for each in re.sub(r"--.*", "", sql).split(";") if each.strip()]


@pytest.fixture
def url(postgres: Any) -> Iterator[str]:
    """An empty database of the role owner, to be served by the role costs."""
    made = postgres.new_database(empty=True)
    name = made.partition("?")[0].rpartition("/")[2]
    for role in ("owner", "costs"):
        postgres.execute(f"CREATE ROLE {role} LOGIN")
    postgres.execute(f"ALTER DATABASE {name} OWNER TO owner")
    yield made
    postgres.drop(made)
    for role in ("owner", "costs"):
        postgres.execute(f"DROP ROLE {role}")


def commands(url: str, source: Path) -> list[list[str]]:
    """The `db` commands of the page, on this database, and with this file for costs.db."""
    found = []
    for line in re.findall(r"^\$ llm-cost-ops (db .*)$", TEXT, re.MULTILINE):
        words = [word.replace("costs.db", str(source)) for word in shlex.split(line)]
        found.append([as_user(url, "owner") if PLACE in word else word for word in words])
    return found


def as_user(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@")


def test_every_table_is_said_to_be_replicated_or_distributed_and_may_be(postgres: Any, url: str) -> None:
    """What a table that is distributed by `org` may have: nothing unique without it, and foreign keys to
    others that are, by `org` first.
    """
    assert main(["db", "init", url]) == 0
    [listed] = re.findall(r"By its documentation (.*?), in one group", TEXT, re.DOTALL)
    replicated, distributed = (
        set(re.findall(r"`(\w+)`", part)) - {"org"} for part in listed.split("reference tables")
    )
    assert not replicated & distributed
    name = url.partition("?")[0].rpartition("/")[2]
    tables = "relnamespace = 'llm_cost_ops'::regnamespace AND relkind = 'r'"
    assert replicated | distributed == {
        table for (table,) in postgres.execute(f"SELECT relname FROM pg_class WHERE {tables}", name)
    }
    foreign = postgres.execute(
        "SELECT c.conrelid::regclass::text, c.confrelid::regclass::text, a.attname, b.attname "
        "FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1] "
        "JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = c.confkey[1] WHERE c.contype = 'f'",
        name,
    )
    for *both, column, other in foreign:
        assert {table.removeprefix("llm_cost_ops.") for table in both} <= distributed
        assert column == other == "org"
    unique = postgres.execute(
        "SELECT c.relname, EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid "
        "AND a.attname = 'org' AND a.atttypid = 'int'::regtype AND a.attnum = ANY(i.indkey)) "
        f"FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid WHERE i.indisunique AND c.{tables}",
        name,
    )
    assert {table for table, has_org in unique if not has_org} <= replicated


def test_what_the_page_says_is_done_as_it_says(url: str, tmp_path: Path) -> None:
    with Sync(tmp_path / "costs.db") as ledger:
        ledger.append([entry(idempotency_key="k")])
    done = [command for command in commands(url, tmp_path / "costs.db") if main(command) == 0]
    assert [command[1] for command in done] == ["init", "check", "copy"]
    [grants, monitoring] = blocks("sql")
    with psycopg.connect(as_user(url, "owner"), autocommit=True) as owner:
        for statement in statements(grants):
            owner.execute(statement.encode())
    # The role that serves can do all but change tables or the audit log.
    with Sync(ledger=open_ledger(as_user(url, "costs"))) as ledger:
        assert ledger.append([entry(idempotency_key="k")])[0].status == "duplicate"
        ledger.append([entry(1, idempotency_key="l")])
        assert ledger.find_faults() == []
    assert main(["keys", "create", "--db", as_user(url, "costs"), "--organization", "acme"]) == 0
    with psycopg.connect(as_user(url, "costs"), autocommit=True) as serving:
        for refused in ("DELETE FROM llm_cost_ops.audit", "DROP TABLE llm_cost_ops.delta"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                serving.execute(refused.encode())
        assert len(statements(monitoring)) == 9
        for statement in statements(monitoring):
            assert serving.execute(statement.encode()).description
