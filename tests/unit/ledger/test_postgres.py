"""The ledger in PostgreSQL: the suite of every ledger, the model, and what is its own."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from llm_cost_ops._gen.messages import UsageQuality
from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.pricing.pricebook import Priced
from tests.ledger_suite import LedgerSuite, revise
from tests.unit.ledger.making import Sync, entry, pricing
from tests.unit.ledger.test_revisions import RepricedBesideModel


class TestPostgres(LedgerSuite):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


def test_the_records_of_a_batch_are_in_its_order_whosever_they_are(postgres_url: str) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        names = ["acme", "globex", "acme", "initech", "globex"]
        ids = [done.usage_id for done in ledger.append([entry(organization_id=name) for name in names])]
        for sort in ("timestamp", "ingested_at"):
            found, _ = ledger.list_usage(Filter(), sort, False, 9, None, None)
            assert [record.id for record in found] == ids
        page, _ = ledger.committed(None, 9)
        assert [item.record.id for item in page] == ids


def test_the_ledger_beside_a_model(postgres: Any) -> None:
    class Postgres(RepricedBesideModel):
        @initialize(every=st.sampled_from([1, 2, 7, 500]))
        def open(self, every: int) -> None:
            self.folding = patch("llm_cost_ops.ledger.postgres.ledger.FOLD_EVERY", every)
            self.folding.start()
            self.url = postgres.new_database()
            self.store = Sync(ledger=open_ledger(self.url))

        def teardown(self) -> None:
            faults = self.store.find_faults()
            self.store.aclose()
            self.folding.stop()
            postgres.drop(self.url)
            assert faults == []

    run_state_machine_as_test(
        Postgres,
        settings=settings(
            max_examples=15,
            stateful_step_count=20,
            deadline=None,
            # To make a failure smaller takes minutes with a database for each try.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )


_OF_ORGANIZATIONS = "series|usage|first_record|revision|rollup|delta"
_TABLE = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE) llm_cost_ops\.({_OF_ORGANIZATIONS})\b(?: AS)? ?(\w+)?")


def without_organization(sql: str) -> list[str]:
    """The tables in a statement of which rows are read or changed whatever organization they are of."""
    sql = " ".join(sql.split())
    found = []
    for verb, table, alias in _TABLE.findall(sql):
        name = r"(?<![.\w])org" if alias in ("", "WHERE", "SELECT") else rf"\b{alias}\.org"
        if verb == "INTO":
            # Each row says whose it is: in its first column.
            given = rf"INTO llm_cost_ops\.{table}( AS \w+)? (\(org,|SELECT %\(org\)s,)"
            if not re.search(given, sql):
                found.append(table)
        elif not re.search(rf"{name} = (ANY\()?(%|\w+\.org\b)|\w+\.org = {alias}\.org\b", sql):
            found.append(table)
    return found


def test_a_statement_without_an_organization_is_seen() -> None:
    assert without_organization("SELECT 1 FROM llm_cost_ops.usage u WHERE u.id = %s") == ["usage"]
    assert without_organization("DELETE FROM llm_cost_ops.delta WHERE bucket = 1") == ["delta"]
    assert without_organization("INSERT INTO llm_cost_ops.rollup (level) VALUES (1)") == ["rollup"]
    joined = (
        "SELECT 1 FROM llm_cost_ops.usage u JOIN llm_cost_ops.series s ON s.id = u.series WHERE u.org = %s"
    )
    assert without_organization(joined) == ["series"]


def test_every_statement_names_the_organization(postgres_url: str) -> None:
    """So that no query reads another's rows by mistake, and all of them can be routed by organization."""
    seen: set[str] = set()
    run, each = Session.run, Session.each

    def running(self: Session, sql: str, *values: object, **named: object) -> Any:
        seen.add(sql)
        return run(self, sql, *values, **named)

    def reading(self: Session, sql: str, named: dict[str, object]) -> Any:
        seen.add(sql)
        return each(self, sql, named)

    with (
        patch.object(Session, "run", running),
        patch.object(Session, "each", reading),
        patch("llm_cost_ops.ledger.postgres.ledger.FOLD_EVERY", 1),
        Sync(ledger=open_ledger(postgres_url)) as ledger,
    ):
        for price in (3, 4):
            use_everything(ledger, price)
    assert len([sql for sql in seen if _TABLE.search(" ".join(sql.split()))]) > 25
    seen.discard(schema.RESTORED)
    assert {sql: without_organization(sql) for sql in seen if without_organization(sql)} == {}


def use_everything(ledger: Sync, price: int) -> None:
    batch = [entry(n, units=5, tags=["x"], labels={"a": "b"}, user_id="u") for n in range(3)]
    [first, *_] = ledger.append([*batch, entry(9, idempotency_key="k"), entry(9, idempotency_key="k")])
    ledger.get_cost(first.usage_id)
    number = len(ledger.revisions("acme", first.usage_id))
    assert revise(ledger, first.usage_id, number, entry(tags=["z"]).record)
    unknown = entry(idempotency_key=f"o{price}", observation=True, quality=UsageQuality.UNKNOWN, units=None)
    ledger.append([unknown, entry(idempotency_key=f"o{price}")])
    everything = Filter(user_ids=("u",), tags=("x",), labels={"a": "b"}, providers=("openai",))
    for where in (Filter(), Filter(organization_ids=("acme",)), everything):
        ledger.count(where)
        ledger.occupied(where, 10**9)
        for sort in ("timestamp", "ingested_at"):
            _, position = ledger.list_usage(where, sort, True, 1, None, None)
            ledger.list_usage(where, sort, True, 1, position, None)
        for group_by in ((), ("organization",), ("user",), ("tag",), ("label:a",)):
            ledger.summarize(where, group_by, None)
            ledger.summarize_meters(where, ("meter", *group_by), None, lambda *_: None)
        for dry_run in (True, False):
            ledger.reprice(where, lambda _: Priced(price, pricing()), None, 2, dry_run=dry_run)
    _, position = ledger.committed(None, 2)
    ledger.move_consumer("c", position)
    ledger.consumer_position("c")
    assert ledger.find_faults() == []
