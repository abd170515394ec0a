"""Whoever locks several rows does so in one order, so that no two wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.ledger.encoding import usage_id
from llm_cost_ops.ledger.retention import REMOVED_AT
from llm_cost_ops.ledger.transfer import open_transfer
from llm_cost_ops.pricing.types import Priced, Pricing
from tests.ledger_suite import priced
from tests.life_suite import erase, remove
from tests.unit.ledger.making import Sync, entry
from tests.waiting import MAX_WAIT, until

EVERYTHING = datetime(2100, 1, 1, tzinfo=UTC)
QUARTER = 900


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Sync]:
    with Sync(ledger=open_ledger(postgres_url)) as made:
        yield made


@pytest.fixture
def other(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A session beside the ledger's, in a transaction that waits for no lock."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("SET lock_timeout = '100ms'")
        yield connection


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def until_blocked(other: psycopg.Connection[Any], call: Future[Any]) -> None:
    """Wait until the call waits for a lock of `other`."""
    blocked = "SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    until(lambda: call.done() or other.execute(blocked).fetchall())
    assert not call.done(), call.result()


def ordered_keys(count: int) -> list[str]:
    """Keys in the order of the ids of records that have them."""
    return sorted((f"k{n}" for n in range(count)), key=lambda key: usage_id("acme", key)[0])


def append(ledger: Sync, count: int) -> list[str]:
    """The ids, in their order, of records of which each is older, and counts earlier, than the one before."""
    keys = ordered_keys(count)
    made = [entry(-at, idempotency_key=key, user_id="ann") for at, key in enumerate(keys)]
    return sorted(done.usage_id for done in ledger.append(made[::-1]))


def lock_usage(other: psycopg.Connection[Any], made: str) -> None:
    other.execute("SELECT 1 FROM llm_cost_ops.usage WHERE id = %s FOR UPDATE", [made])


def reprice(ledger: Sync, price: Callable[[Any], Priced] = lambda _: priced(9)) -> Any:
    return ledger.reprice(Filter(), price, None, 10, dry_run=False)


@pytest.mark.parametrize(
    "change",
    [lambda ledger: remove(ledger, EVERYTHING), lambda ledger: erase(ledger, "ann"), reprice],
    ids=["retention", "erasure", "repricing"],
)
def test_records_are_locked_by_their_ids(
    ledger: Sync, other: psycopg.Connection[Any], pool: ThreadPoolExecutor, change: Callable[[Sync], Any]
) -> None:
    first, *rest = append(ledger, 5)
    lock_usage(other, first)
    call = pool.submit(change, ledger)
    until_blocked(other, call)
    for made in rest:
        lock_usage(other, made)
    other.rollback()
    assert call.result(MAX_WAIT)
    assert ledger.find_faults() == []


def test_a_copy_locks_records_by_their_ids(
    ledger: Sync,
    other: psycopg.Connection[Any],
    pool: ThreadPoolExecutor,
    postgres: Any,
    postgres_url: str,
) -> None:
    source_url = postgres.new_database()
    with Sync(ledger=open_ledger(source_url)) as source:
        first, *rest = append(source, 5)
        reading, adding = open_transfer(source_url, make=False), open_transfer(postgres_url, make=False)
        adding.add(reading.read(None, 9)[0])
        reprice(source)
        moved, _ = reading.read(None, 9)
    assert [each.usage_id for each in moved] == [*reversed(rest), first]
    lock_usage(other, first)
    call = pool.submit(adding.add, moved)
    until_blocked(other, call)
    for made in rest:
        lock_usage(other, made)
    other.rollback()
    assert call.result(MAX_WAIT).revisions == 5
    for transfer in (reading, adding):
        transfer.close()
    postgres.drop(source_url)


def test_records_that_another_retention_removed_are_not_removed_again(
    ledger: Sync, other: psycopg.Connection[Any], pool: ThreadPoolExecutor, postgres_url: str
) -> None:
    append(ledger, 5)
    other.execute("SELECT 1 FROM llm_cost_ops.usage FOR UPDATE")
    call = pool.submit(remove, ledger, EVERYTHING)
    until_blocked(other, call)
    with Sync(ledger=open_ledger(postgres_url)) as second, ThreadPoolExecutor(1) as more:
        beside = more.submit(remove, second, EVERYTHING)
        until(lambda: len(other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()) > 1)
        other.rollback()
        assert call.result(MAX_WAIT) + beside.result(MAX_WAIT) == 5
    assert ledger.find_faults() == []


def test_a_retention_that_finds_all_removed_by_another_takes_the_next(
    ledger: Sync,
    other: psycopg.Connection[Any],
    pool: ThreadPoolExecutor,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing removed would say that nothing is left."""
    monkeypatch.setattr("llm_cost_ops.ledger.postgres.ledger._REMOVED_AT_ONCE", 2)
    append(ledger, 5)
    other.execute("SELECT 1 FROM llm_cost_ops.usage FOR UPDATE")
    call = pool.submit(ledger.remove_older, "acme", EVERYTHING, dry_run=False)
    until_blocked(other, call)
    with Sync(ledger=open_ledger(postgres_url)) as second, ThreadPoolExecutor(1) as more:
        beside = more.submit(second.remove_older, "acme", EVERYTHING, dry_run=False)
        until(lambda: len(other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()) > 1)
        other.rollback()
        assert (call.result(MAX_WAIT), beside.result(MAX_WAIT)) == (2, 2)


def test_a_retention_holds_nothing_of_what_another_removed(
    ledger: Sync,
    other: psycopg.Connection[Any],
    pool: ThreadPoolExecutor,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would wait for the next records with them, against the order."""
    monkeypatch.setattr("llm_cost_ops.ledger.postgres.ledger._REMOVED_AT_ONCE", 2)
    *_, first, second = append(ledger, 4)
    removed = f"UPDATE llm_cost_ops.usage SET series = 0, ts = {REMOVED_AT} WHERE id IN (%s, %s)"
    other.execute(removed, [first, second])
    call = pool.submit(ledger.remove_older, "acme", EVERYTHING, dry_run=False)
    until_blocked(other, call)
    with psycopg.connect(postgres_url) as holder:
        holder.execute("SELECT 1 FROM llm_cost_ops.usage WHERE series > 0 FOR UPDATE SKIP LOCKED")
        other.commit()
        until_blocked(holder, call)
        for made in (first, second):
            lock_usage(other, made)
        other.rollback()
    assert call.result(MAX_WAIT) == 2


def test_sums_of_what_is_removed_are_locked_by_their_quarters(
    ledger: Sync, other: psycopg.Connection[Any], pool: ThreadPoolExecutor
) -> None:
    # As the planner groups many rows: in no order.
    other.execute(f"ALTER DATABASE {other.info.dbname} SET enable_sort = off")
    other.commit()
    ledger.append([entry(QUARTER * n) for n in range(9)])
    assert remove(ledger, EVERYTHING) == 9
    sums = "SELECT bucket FROM llm_cost_ops.removed_sum ORDER BY bucket"
    first, *rest = [bucket for (bucket,) in other.execute(sums)]
    ledger.append([entry(QUARTER * n) for n in range(9)])
    lock_sum = "SELECT 1 FROM llm_cost_ops.removed_sum WHERE bucket = %s FOR UPDATE"
    other.execute(lock_sum, [first])
    call = pool.submit(remove, ledger, EVERYTHING)
    until_blocked(other, call)
    for bucket in rest:
        other.execute(lock_sum, [bucket])
    other.rollback()
    assert call.result(MAX_WAIT) == 9
    assert ledger.find_faults() == []


def test_what_prices_records_is_added_in_one_order(
    ledger: Sync, other: psycopg.Connection[Any], pool: ThreadPoolExecutor
) -> None:
    append(ledger, 3)
    cards = [f"card-{name}" for name in "cba"]
    add = (
        "INSERT INTO llm_cost_ops.pricing (card_id, card_version, origin_version, fallbacks, digest) "
        "VALUES (%s, 1, '', '', '') ON CONFLICT DO NOTHING"
    )
    *rest, first = cards
    other.execute(add, [first])
    by = iter([Pricing(CostStatus.PRICED, "USD", name, 1) for name in cards])
    call = pool.submit(reprice, ledger, lambda _: Priced(9, next(by)))
    until_blocked(other, call)
    for name in rest:
        other.execute(add, [name])
    other.rollback()
    assert len(call.result(MAX_WAIT).changes) == 3
    assert ledger.find_faults() == []
