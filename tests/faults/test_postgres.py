"""Several servers over one database in PostgreSQL, and a primary that goes away under them."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, CostOpsError
from llm_cost_ops.cli import main
from llm_cost_ops.ledger import open_ledger
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.faults.shared_database import Load, check_kept, execute, servers, submit
from tests.postgres_server import PostgresServer
from tests.unit.ledger.making import Sync, context, entry
from tests.waiting import MAX_WAIT, until

pytestmark = pytest.mark.slow


def test_three_servers_count_a_key_once(postgres_url: str) -> None:
    with servers(postgres_url) as running, ExitStack() as stack:
        clients = [stack.enter_context(CostOpsClient(base_url=server.url)) for server in running]
        with ThreadPoolExecutor(32) as pool:
            for round_ in range(5):
                ids = list(pool.map(lambda n, r=round_: submit(clients[n % 3], f"k{r}"), range(32)))
                assert len(set(ids)) == 1
        totals = {client.costs.get(organization_id="acme").total_requests for client in clients}
        assert totals == {5}
        # Whichever is killed, the others know everything, and go on.
        running[0].kill()
        submit(clients[1], "after")
        assert clients[2].costs.get(organization_id="acme").total_requests == 6
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        assert ledger.find_faults() == []


def test_a_key_that_is_revoked_holds_at_once_on_every_server(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", "--db", postgres_url, "--organization", "acme"]) == 0
    text = capsys.readouterr().out.strip()
    with servers(postgres_url, 2) as running:
        for server in running:
            with CostOpsClient(base_url=server.url, api_key=text) as client:
                client.costs.get(organization_id="acme")
        [(key_id,)] = execute(postgres_url, "SELECT id FROM llm_cost_ops.api_key")
        assert main(["keys", "revoke", key_id, "--db", postgres_url]) == 0
        for server in running:
            with (
                CostOpsClient(base_url=server.url, api_key=text) as client,
                pytest.raises(CostOpsError, match="key"),
            ):
                client.costs.get(organization_id="acme")


def test_connections_that_are_ended_at_random_lose_and_double_nothing(postgres: Any) -> None:
    url = postgres.new_database()
    name = url.partition("?")[0].rpartition("/")[2]
    with servers(url, 2) as running:
        with Load([server.url for server in running]) as load:
            for _ in range(25):
                load.wait_for(7)
                postgres.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    f"WHERE datname = '{name}' AND random() < 0.7"
                )
        assert load.failed == []
        check_kept(url, load)
    postgres.drop(url)


def test_a_server_that_stands_still_is_waited_for_until_the_deadline(postgres: Any) -> None:
    url = postgres.new_database()
    with CostOpsClient(base_url=url, timeout=1.0) as client:
        submit(client, "before")
        postgres.pause()
        try:
            for call in (lambda: submit(client, "during"), client.costs.get):
                began = time.monotonic()
                with pytest.raises(CostOpsError) as caught:
                    call()
                assert caught.value.status_code is None or caught.value.retryable
                assert time.monotonic() - began < MAX_WAIT
        finally:
            postgres.pause(resume=True)
        with CostOpsClient(base_url=url, timeout=MAX_WAIT) as later:
            submit(later, "during")
            assert later.costs.get().total_requests == 2
    postgres.drop(url)


def test_no_acknowledged_record_is_lost_with_the_primary() -> None:
    """As it would be with `disk` and no standby, and as `replicated` promises it."""
    with PostgresServer() as primary:
        name = primary.new_database().partition("?")[0].rpartition("/")[2]
        standby = primary.standby()
        try:
            follow(primary, standby)
            hosts, ports = f"{primary.folder},{standby.folder}", f"{primary.port},{standby.port}"
            url = f"postgresql://postgres@/{name}?host={hosts}&port={ports}&durability=replicated"
            with servers(url) as running:
                with Load([server.url for server in running], timeout=MAX_WAIT) as load:
                    load.wait_for(200)
                    primary.stop(signal.SIGKILL)
                    before = len(load.acknowledged)
                    standby.promote()
                    load.wait_for(200)
                assert load.failed == []
                assert len(load.acknowledged) > before
            check_kept(standby.url(name), load)
        finally:
            standby.__exit__()


def test_a_commit_that_no_standby_confirmed_is_not_acknowledged() -> None:
    with PostgresServer() as primary:
        url = primary.new_database()
        name = url.partition("?")[0].rpartition("/")[2]
        # As if nobody wanted to be warned.
        primary.execute(f"ALTER DATABASE {name} SET client_min_messages = error")
        standby = primary.standby()
        try:
            follow(primary, standby)
            with Sync(ledger=open_ledger(url, durability="replicated"), timeout=3.0) as ledger:
                assert len(ledger.append([entry()])) == 1
                standby.stop(signal.SIGKILL)
                check_nothing_is_acknowledged(ledger)
                with pytest.raises(RpcError) as caught:
                    ledger.append([entry(idempotency_key="k")])
                assert caught.value.maybe_applied
                assert caught.value.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE)
                # Somebody ends the wait: PostgreSQL says that it is committed, and warns.
                ended = threading.Timer(0.5, cancel_what_waits, [primary])
                ended.start()
                with pytest.raises(RpcError) as caught:
                    ledger.append([entry(idempotency_key="l")])
                assert caught.value.maybe_applied
                ended.join()
                standby.start()
                [again] = ledger.append([entry(idempotency_key="l")])
                assert again.status == "duplicate"
        finally:
            standby.__exit__()


def check_nothing_is_acknowledged(ledger: Sync) -> None:
    """Nor what is found when it is sent again: at the deadline, PostgreSQL commits it without the standby."""
    few, many = ([entry(n, idempotency_key=f"{count}.{n}") for n in range(count)] for count in (2, 150))
    for call in (
        lambda: ledger.store.append(few, context(0.5)),
        lambda: ledger.store.append(many, context(0.5)),
        lambda: ledger.store.set_retention("acme", 9, context(0.5)),
    ):
        for _ in range(2):
            with pytest.raises(RpcError) as caught:
                drive(call())
            assert caught.value.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE)


def follow(primary: PostgresServer, standby: PostgresServer) -> None:
    """Have commits wait for the standby, and wait until it is there."""
    standby.start()
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.execute("SELECT pg_reload_conf()")
    until(lambda: primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))


def cancel_what_waits(server: PostgresServer) -> None:
    until(
        lambda: server.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
    )
