"""The ledger in PostgreSQL: the suite of every ledger, the model, and what is its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from llm_cost_ops._gen.messages import SubmitStatus, UsageQuality
from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.pricing.types import Priced
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.ledger_suite import LedgerSuite, card, revise
from tests.life_suite import LifeSuite, erase, remove
from tests.unit.ledger.making import Sync, context, entry, pricing
from tests.unit.ledger.test_revisions import RepricedBesideModel
from tests.waiting import MAX_WAIT, until


class TestPostgres(LedgerSuite, LifeSuite):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


class TestPostgres15(LedgerSuite, LifeSuite):
    @pytest.fixture
    def url(self, postgres_15: Any) -> Iterator[str]:
        url = postgres_15.new_database()
        yield url
        postgres_15.drop(url)


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
            self.patches = ExitStack()
            self.patches.enter_context(patch("llm_cost_ops.ledger.postgres.ledger.FOLD_EVERY", every))
            self.url = postgres.new_database()
            self.store = Sync(ledger=open_ledger(self.url))

        def teardown(self) -> None:
            faults = self.store.find_faults()
            self.store.aclose()
            self.patches.close()
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


_OF_ORGANIZATIONS = "series|usage|first_record|erased|revision|rollup|delta|day_grouping|day_span|removed_sum"
_TABLE = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE|COPY) llm_cost_ops\.({_OF_ORGANIZATIONS})\b(?: AS)? ?(\w+)?")


def without_organization(sql: str) -> list[str]:
    """The tables in a statement of which rows are read or changed whatever organization they are of."""
    sql = " ".join(sql.split())
    found = []
    for verb, table, alias in _TABLE.findall(sql):
        name = r"(?<![.\w])org" if alias in ("", "WHERE", "SELECT", "SET") else rf"\b{alias}\.org"
        if verb in ("INTO", "COPY"):
            # Each row says whose it is: in its first column.
            given = rf"{verb} llm_cost_ops\.{table}( AS \w+)? (\(org,|SELECT (%\(org\)s|\w+\.org),)"
            if not re.search(given, sql):
                found.append(table)
        elif not re.search(rf"{name} = (ANY\()?('\{{\d|%|\w+\.org\b|o\.id\b)|\w+\.org = {alias}\.org\b", sql):
            found.append(table)
    return found


def test_a_statement_without_an_organization_is_seen() -> None:
    assert without_organization("SELECT 1 FROM llm_cost_ops.usage u WHERE u.id = %s") == ["usage"]
    assert without_organization("DELETE FROM llm_cost_ops.delta WHERE bucket = 1") == ["delta"]
    assert without_organization("INSERT INTO llm_cost_ops.rollup (level) VALUES (1)") == ["rollup"]
    assert without_organization("COPY llm_cost_ops.delta FROM STDIN") == ["delta"]
    joined = (
        "SELECT 1 FROM llm_cost_ops.usage u JOIN llm_cost_ops.series s ON s.id = u.series WHERE u.org = %s"
    )
    assert without_organization(joined) == ["series"]


def test_every_statement_names_the_organization(postgres_url: str) -> None:
    """So that no query reads another's rows by mistake, and all of them can be routed by organization."""
    seen: set[str] = set()
    run, each, run_planned, copy = Session.run, Session.each, Session.run_planned, Session.copy

    def running(self: Session, sql: str, *values: object, **named: object) -> Any:
        seen.add(sql)
        return run(self, sql, *values, **named)

    def reading(self: Session, sql: str, named: dict[str, object]) -> Any:
        seen.add(sql)
        return each(self, sql, named)

    def planning(self: Session, sql: str, **named: object) -> Any:
        seen.add(sql)
        return run_planned(self, sql, **named)

    def copying(self: Session, statements: list[str], copies: list[str], lines: Any) -> bool:
        seen.update(statements, copies)
        return copy(self, statements, copies, lines)

    with (
        patch.object(Session, "run", running),
        patch.object(Session, "copy", copying),
        patch.object(Session, "run_planned", planning),
        patch.object(Session, "each", reading),
        patch("llm_cost_ops.ledger.postgres.ledger.FOLD_EVERY", 1),
        patch.multiple("llm_cost_ops.ledger.day_spans", MIN_ROWS=1, MIN_ROWS_OF_LONG=1, MIN_ROWS_A_GROUP=0),
        Sync(ledger=open_ledger(postgres_url)) as ledger,
    ):
        for price in (3, 4):
            use_everything(ledger, price)
        remove_everything(ledger)
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
            ledger.summarize(where, ("meter", *group_by), None)
        for dry_run in (True, False):
            ledger.reprice(where, lambda _: Priced(price, pricing()), None, 2, dry_run=dry_run)
    _, position = ledger.committed(None, 2)
    ledger.move_consumer("c", position)
    ledger.consumer_position("c")
    assert ledger.find_faults() == []


def remove_everything(ledger: Sync) -> None:
    assert erase(ledger, "u", "acme") > 0
    ledger.set_retention("acme", 1)
    everything = datetime(2100, 1, 1, tzinfo=UTC)
    assert ledger.remove_older("acme", everything, dry_run=True) > 0
    assert remove(ledger, everything) > 0
    assert ledger.find_faults() == []


FORKING = """
import os, sys
from llm_cost_ops.ledger import Filter, open_ledger
from tests.unit.ledger.making import Sync, entry
ledger = Sync(ledger=open_ledger(sys.argv[1]))
for n in range(3):
    ledger.append([entry(n)])
    ledger.count(Filter())
    child = os.fork()
    if not child:
        ledger.append([entry(n, model_id="of-the-child")])
        assert ledger.count(Filter()) == 2 * n + 2
        ledger.aclose()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.count(Filter()) == 2 * n + 2
ledger.aclose()
"""


def test_a_child_has_connections_of_its_own(postgres_url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", FORKING, postgres_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * MAX_WAIT)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_one_call_breaks_harms_none_that_commits_with_it(postgres_url: str) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        good, bad = entry(idempotency_key="k"), entry(idempotency_key="l", user_id="\ud800")
        with ThreadPoolExecutor(16) as pool:
            tried = [pool.submit(ledger.append, [bad if n % 4 == 1 else good]) for n in range(64)]
        errors = [each.exception() for each in tried]
        assert [error is None for error in errors] == [n % 4 != 1 for n in range(64)]
        assert ledger.count(Filter()) == 1
        ledger.append([entry()])


def test_calls_are_refused_or_wait_when_every_connection_is_in_use(postgres_url: str) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        ledger.check()
        size = ledger.store._workers._size

        begun, go_on = threading.Semaphore(0), threading.Event()

        def held(session: Session) -> None:
            session.run("SELECT 1")
            begun.release()
            assert go_on.wait(MAX_WAIT)

        with ThreadPoolExecutor(40) as pool:
            calls = [pool.submit(drive, ledger.store._workers.run(held, context())) for _ in range(size)]
            for _ in range(size):
                assert begun.acquire(timeout=MAX_WAIT)
            with pytest.raises(RpcError, match="busy with other calls") as caught:
                drive(ledger.store.keys.any(context(0.2)))
            assert caught.value.code is StatusCode.UNAVAILABLE
            waiting = [pool.submit(ledger.count, Filter()) for _ in range(20)]
            go_on.set()
            assert [each.result() for each in waiting] == [0] * 20
            assert [each.result() for each in calls] == [None] * size
        assert len(ledger.store._workers._threads) <= size


def test_a_query_ends_at_its_deadline_in_the_server_too(postgres_url: str, postgres: Any) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        ledger.check()

        def slow(session: Session) -> None:
            session.run("SELECT pg_sleep(1000)")

        for within in (slow, lambda session: in_snapshot(session, slow)):
            with pytest.raises(RpcError) as caught:
                drive(ledger.store._workers.run(within, context(0.5)))
            assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
        running = "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1000)' AND state = 'active'"
        until(lambda: not postgres.execute(running))


def in_snapshot(session: Session, query: Any) -> None:
    with session.snapshot():
        query(session)


def test_a_card_waits_for_appends_that_were_priced_without_it(postgres_url: str, postgres: Any) -> None:
    """Else they could be committed after it, and after a repricing that did not see them."""
    with (
        Sync(ledger=open_ledger(postgres_url)) as ledger,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(postgres_url) as appending,
    ):
        ledger.check()
        appending.execute("SELECT pg_advisory_xact_lock_shared(%s)", [schema.LOCK_CARDS])
        adding = pool.submit(ledger.add_card, card(), "k", b"1" * 16)
        until(lambda: adding.done() or postgres.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
        assert not adding.done()
        appending.rollback()
        assert adding.result()[1] == "created"
        assert drive(ledger.store.append([entry()], context(), 0)) is None


_ODD = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "client_encoding": "latin1",
    "client_min_messages": "error",
    "datestyle": "German",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "intervalstyle": "sql_standard",
    "row_security": "off",
    "search_path": "nowhere",
    "standard_conforming_strings": "off",
    "synchronous_commit": "off",
    "timezone": "Pacific/Chatham",
    "transform_null_equals": "on",
}


def test_settings_of_a_role_or_database_change_nothing(postgres_url: str, postgres: Any) -> None:
    for setting, value in _ODD.items():
        name = postgres_url.partition("?")[0].rpartition("/")[2]
        postgres.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    odd = 'é "\\" \' {NULL,} \\n \n\t'
    made = [entry(0, user_id=odd, tags=[odd], labels={odd: odd}, idempotency_key=odd), entry(1, units=None)]
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        ids = [done.usage_id for done in ledger.append(made)]
        assert revise(ledger, ids[1], 1, entry(1, user_id="NULL").record, units=None)
        found, _ = ledger.list_usage(Filter(), "timestamp", False, 9, None, None)
        assert [(each.id, each.user_id) for each in found] == [(ids[0], odd), (ids[1], "NULL")]
        assert (found[0].tags, found[0].labels, found[0].idempotency_key) == ([odd], {odd: odd}, odd)
        assert ledger.count(Filter(user_ids=(odd,), tags=(odd,), labels={odd: odd})) == 1
        assert ledger.find_faults() == []


def test_a_write_that_failed_leaves_no_connection_on_which_others_fail(postgres_url: str) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger, psycopg.connect(postgres_url) as other:
        for _ in range(2):
            ledger.append([entry(idempotency_key="first")])
        for n in range(5):
            ledger.append([entry(idempotency_key=f"before {n}")])
        other.execute("ALTER TABLE llm_cost_ops.usage RENAME TO away")
        other.commit()
        with pytest.raises(RpcError, match="lost a table") as caught:
            ledger.append([entry(idempotency_key="after 0")])
        assert not caught.value.maybe_applied
        other.execute("ALTER TABLE llm_cost_ops.away RENAME TO usage")
        other.commit()
        for n in range(3):
            [done] = ledger.append([entry(idempotency_key=f"after {n}")])
            assert done.status is SubmitStatus.CREATED
