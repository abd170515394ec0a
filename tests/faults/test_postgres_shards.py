"""Organizations spread over three PostgreSQL servers: the same statements, each on the one that has them.

It stands in for a database that is sharded by organization: every statement names its organizations, so that
it can be sent to where they are, and what is asked of all is the answers of all of them together.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from zlib import crc32

import pytest

from llm_cost_ops.ledger import Entry, Filter, open_ledger
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.ledger_suite import priced, revise
from tests.postgres_server import FAST, PostgresServer, why_there_is_none
from tests.unit.ledger.making import Sync, entry

pytestmark = pytest.mark.slow

ORGANIZATIONS = [f"org-{n}" for n in range(12)]


class Shards:
    """Three servers, and a ledger on each of them."""

    def __init__(self, servers: list[PostgresServer], ledgers: list[Sync]) -> None:
        self.servers = servers
        self.ledgers = ledgers

    def number_of(self, organization: str) -> int:
        return crc32(organization.encode()) % len(self.ledgers)

    def of(self, organization: str) -> Sync:
        return self.ledgers[self.number_of(organization)]

    def append(self, entries: list[Entry]) -> list[Any]:
        """As `append`: the entries of each server together, and the answers in the order of the entries."""
        answers: dict[int, Any] = {}
        for number, ledger in enumerate(self.ledgers):
            mine = [
                at for at, each in enumerate(entries) if self.number_of(each.record.organization_id) == number
            ]
            answers |= dict(zip(mine, ledger.append([entries[at] for at in mine]), strict=True))
        return [answers[at] for at in range(len(entries))]

    def summarize(self, where: Filter, group_by: tuple[str, ...]) -> list[Any]:
        """As `summarize`, where every group is of one organization."""
        assert "organization" in group_by
        return sorted(
            (group for ledger in self.ledgers for group in ledger.summarize(where, group_by, None)),
            key=lambda group: (group[1], group[0]),
        )


@pytest.fixture(scope="module")
def shards() -> Iterator[Shards]:
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    if why_there_is_none():
        pytest.skip(why_there_is_none())
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        servers = [PostgresServer(*FAST) for _ in range(3)]
        list(pool.map(stack.enter_context, servers))
        urls = list(pool.map(lambda server: server.new_database(), servers))
        yield Shards(servers, [stack.enter_context(Sync(ledger=open_ledger(url))) for url in urls])


def test_shards_answer_as_one_database(shards: Shards, postgres_url: str) -> None:
    assert {shards.number_of(name) for name in ORGANIZATIONS} == {0, 1, 2}
    batch = [
        entry(
            n * 700,
            organization_id=ORGANIZATIONS[n * n % 12],
            idempotency_key=f"k{n % 50}",
            user_id=f"u{n % 3}",
            tags=[f"t{n % 2}"],
            units=None if n % 7 == 0 else n,
        )
        for n in range(120)
    ]
    with Sync(ledger=open_ledger(postgres_url)) as whole:
        answers = whole.append(batch)
        # Ids follow from organization and key, and so does what became of each: wherever it is kept.
        assert shards.append(batch) == answers
        assert {answer.status for answer in answers} == {"created", "conflict"}
        first = {entry_.record.organization_id: answer for entry_, answer in zip(batch, answers, strict=True)}
        for name, answer in first.items():
            for ledger in (whole, shards.of(name)):
                assert revise(ledger, answer.usage_id, 1, organization_id=name)
        for ledger in (whole, *shards.ledgers):
            while ledger.reprice(
                Filter(providers=("openai",)), lambda _: priced(7), None, 500, dry_run=False
            ).changes:
                pass
        for where in (
            Filter(),
            Filter(user_ids=("u1",)),
            Filter(tags=("t1",), statuses=("voided", "priced")),
        ):
            for group_by in (("organization",), ("organization", "model", "user"), ("organization", "tag")):
                asked = whole.summarize(where, group_by, None)
                assert shards.summarize(where, group_by) == sorted(
                    asked, key=lambda group: (group[1], group[0])
                )
            assert sum(ledger.count(where) for ledger in shards.ledgers) == whole.count(where)
        for name in ORGANIZATIONS:
            asked = Filter(organization_ids=(name,))
            pages = [
                ledger.list_usage(asked, "timestamp", True, 100, None, None)[0]
                for ledger in (whole, shards.of(name))
            ]
            assert [record.id for record in pages[0]] == [record.id for record in pages[1]]
            assert all(ledger.count(asked) == 0 for ledger in shards.ledgers if ledger is not shards.of(name))
        assert [ledger.find_faults() for ledger in shards.ledgers] == [[], [], []]


def test_a_shard_that_is_lost_stops_its_own_organizations_only(shards: Shards) -> None:
    lost = shards.number_of("org-0")
    shards.servers[lost].stop(signal.SIGKILL)
    try:
        for name in ORGANIZATIONS:
            made = entry(idempotency_key="while one is lost", organization_id=name)
            if shards.number_of(name) != lost:
                assert len(shards.of(name).append([made])) == 1
        with pytest.raises(RpcError) as caught:
            shards.of("org-0").append([entry(idempotency_key="lost", organization_id="org-0")])
        assert caught.value.code is StatusCode.UNAVAILABLE
    finally:
        shards.servers[lost].start()
    assert shards.of("org-0").append([entry(idempotency_key="lost", organization_id="org-0")])
