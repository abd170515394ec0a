"""A database that is restored in its place, under ledgers that have it open."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from llm_cost_ops.ledger import open_ledger
from llm_cost_ops.ledger.types import Filter
from tests.unit.ledger.making import Sync, entry

_EMPTIED = """
    DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'llm_cost_ops' AND tablename <> 'audit'
    LOOP EXECUTE 'TRUNCATE llm_cost_ops.' || name || ' CASCADE'; END LOOP; END $$
"""
_ANEW = "DROP SCHEMA llm_cost_ops CASCADE"
_WAYS = {"tables made anew": (_ANEW, ()), "tables emptied": (_EMPTIED, ("--data-only", "-T", "*.audit"))}


def append(ledger: Sync, *models: str) -> None:
    ledger.append([entry(model_id=model, idempotency_key=f"{model} {at}") for at, model in enumerate(models)])


def models(ledger: Sync) -> dict[str, int]:
    return {keys[0]: amounts.requests for keys, _, amounts in ledger.summarize(Filter(), ("model",), None)}


def listed(ledger: Sync) -> list[str]:
    records, _ = ledger.list_usage(Filter(), "ingested_at", False, 100, None, None)
    return sorted(record.model_id for record in records)


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("newer", [False, True])
def test_a_server_goes_on_with_what_was_restored(
    postgres: Any, postgres_url: str, way: str, *, newer: bool
) -> None:
    """And gives no record the series that has the number of its own by now."""
    first, options = _WAYS[way]
    source = postgres.new_database() if newer else postgres_url
    with Sync(ledger=open_ledger(postgres_url)) as living, Sync(ledger=open_ledger(postgres_url)) as other:
        with Sync(ledger=open_ledger(source)) as ledger:
            append(ledger, "old", *[f"of {number}" for number in range(9) if newer])
        dump = postgres.run("pg_dump", "-d", source, *options)
        append(living, "mine", "late")
        append(other, "theirs")
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(first.encode())
        script = postgres.folder / "dump.sql"
        script.write_text(dump)
        postgres.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", postgres_url, "-f", str(script))
        # With the numbers that the living one's had.
        append(other, "new", "newer")
        append(living, "mine", "late", "newest")
        expected = ["old", "new", "newer", "mine", "late", "newest"]
        expected += [f"of {number}" for number in range(9) if newer]
        assert models(living) == models(other) == dict.fromkeys(expected, 1)
        assert listed(living) == sorted(expected)
        assert living.find_faults() == []
    if newer:
        postgres.drop(source)
