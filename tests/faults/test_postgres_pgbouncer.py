"""A ledger through pgbouncer in transaction mode: any transaction may go over another connection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.url import database
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.faults.shared_database import Load, check_kept, servers
from tests.ledger_suite import LedgerSuite
from tests.pgbouncer import pgbouncer
from tests.unit.ledger.making import Sync, context, entry

pytestmark = pytest.mark.slow

# Of the databases of tests.
_IN_TRANSACTION = (
    "SELECT pid FROM pg_stat_activity WHERE datname LIKE 'test%' AND pid <> pg_backend_pid() "
    "AND (state = 'idle in transaction' OR query LIKE '%COPY %' AND state = 'active')"
)


@pytest.fixture(scope="module")
def bouncer(postgres: Any) -> Iterator[Path]:
    with pgbouncer(postgres) as folder:
        yield folder


@pytest.fixture(name="pooled_url")
def through_pgbouncer(bouncer: Path, postgres_url: str) -> str:
    """The database of `postgres_url`, through pgbouncer."""
    return f"{postgres_url.partition('?')[0]}?host={bouncer}&port=6432"


class TestThroughPgbouncer(LedgerSuite):
    @pytest.fixture
    def url(self, pooled_url: str) -> str:
        return pooled_url


def test_statements_are_not_prepared_behind_a_pooler(pooled_url: str, postgres_url: str) -> None:
    for where, threshold in ((pooled_url, None), (postgres_url, 5)):
        session = database(where).connect()
        assert session.connection.prepare_threshold == threshold
        session.close()


def test_processes_that_share_connections_see_nothing_of_each_other(pooled_url: str) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        ledgers = [stack.enter_context(Sync(ledger=open_ledger(pooled_url))) for _ in range(4)]

        def work(n: int) -> None:
            ledger = ledgers[n % 4]
            ledger.append([entry(n, idempotency_key=f"k{n}", organization_id=f"o{n % 3}")])
            assert ledger.count(Filter(organization_ids=(f"o{n % 3}",))) >= 1
            assert len(ledger.list_usage(Filter(), "timestamp", False, 5, None, None)[0]) >= 1

        list(pool.map(work, range(120)))
        assert [ledger.count(Filter()) for ledger in ledgers] == [120] * 4
        assert ledgers[0].find_faults() == []
        assert len(ledgers[0].committed(None, 500)[0]) == 120


def test_a_query_ends_at_its_deadline_in_the_server_too(pooled_url: str, postgres: Any) -> None:
    def slow(session: Session) -> None:
        session.run("SELECT pg_sleep(600)")

    with Sync(ledger=open_ledger(pooled_url), timeout=60.0) as ledger:
        ledger.check()
        with pytest.raises(RpcError) as caught:
            drive(ledger.store._workers.run(slow, context(0.5)))
        assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
        running = "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
        until = time.monotonic() + 60
        while postgres.execute(running):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert ledger.count(Filter()) == 0


@pytest.mark.parametrize("within", [False, True])
def test_a_copy_whose_connection_is_lost_is_done_again(
    pooled_url: str, postgres: Any, within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, lost = Session.copy, []

    def lose() -> None:
        if not lost:
            lost.extend(pid for (pid,) in postgres.execute(_IN_TRANSACTION))
            assert len(lost) == 1
            # Waits until it is gone.
            postgres.execute(f"SELECT pg_terminate_backend({lost[0]}, 60000)")

    def copying(self: Session, statements: list[str], copies: list[str], lines: Any) -> bool:
        def sent(some: Iterator[str]) -> Iterator[str]:
            for part in some:
                yield part
                lose()

        def losing(said: Any) -> Any:
            if not within:
                lose()
            return [sent(some) for some in lines(said)]

        return copy(self, statements, copies, losing)

    monkeypatch.setattr(Session, "copy", copying)
    with Sync(ledger=open_ledger(pooled_url)) as ledger:
        done = ledger.append([entry(n) for n in range(300)])
        assert [each.status for each in done] == ["created"] * 300
        assert ledger.count(Filter()) == 300


def test_servers_under_load(pooled_url: str, postgres_url: str) -> None:
    with servers(pooled_url, 2) as running:
        with Load([server.url for server in running], timeout=60.0) as load:
            load.wait_for(200)
        assert load.failed == []
    check_kept(postgres_url, load)
