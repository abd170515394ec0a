"""Kept sums of days in PostgreSQL beside a ledger in dicts, whatever happens while they are kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from threading import Event
from typing import Any
from unittest.mock import patch

import psycopg
import pytest

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.ledger import day_spans, open_ledger
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.postgres import connection as sessions
from llm_cost_ops.ledger.postgres import day_sums, meter_sums, schema, summaries, sums
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.day_sums import Kept
from llm_cost_ops.ledger.postgres.errors import DeadlinePassedError
from llm_cost_ops.ledger.postgres.summaries import _Query
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.pricing.types import Priced, Pricing
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.rules.times import buckets_between
from tests.dict_ledger import DictLedger
from tests.life_suite import erase, remove
from tests.unit.ledger.making import START, Sync, entry
from tests.unit.ledger.test_day_sums import (
    FILTERS,
    GROUPINGS,
    Groupings,
    book,
    check_groupings,
    check_many_groups,
    fill,
    of_days,
    revise,
    some_entry,
)
from tests.waiting import MAX_WAIT

_PAIRS = ("user", "model")
_WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
_AN_HOUR_LATER = "UPDATE llm_cost_ops.day_grouping SET used = used - 1 WHERE used > 0"
_LONG = "SELECT count(*) FROM llm_cost_ops.day_span WHERE last > first + 1 AND groups IS NOT NULL"


@pytest.fixture
def servers(postgres_url: str) -> Iterator[list[Sync]]:
    """Two servers with one database."""
    with Sync(ledger=open_ledger(postgres_url)) as one, Sync(ledger=open_ledger(postgres_url)) as other:
        yield [one, other]


@pytest.fixture
def connection(postgres_url: str, servers: list[Sync]) -> Iterator[psycopg.Connection[Any]]:
    servers[0].check()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single days are worth keeping from two rows on, and spans of some of them."""
    monkeypatch.setattr(day_spans, "MIN_ROWS", 2)
    monkeypatch.setattr(day_spans, "MIN_ROWS_OF_LONG", 7)
    monkeypatch.setattr(day_spans, "MIN_ROWS_A_GROUP", 1)


def keeping_nothing() -> Any:
    """What is kept stays as old as it is."""
    return patch.object(_Query, "keep", lambda *_: False)


def answer(ledger: Sync, *question: Any) -> Any:
    """The sums, or why there are none."""
    try:
        return ledger.summarize(*question)
    except RpcError as error:
        return error.code


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_those_of_a_ledger_in_dicts(
    seed: int, servers: list[Sync], connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(day_spans, "MIN_ROWS", chance.choice([1, 2, 5]))
    few = seed % 4 == 3
    monkeypatch.setattr(day_spans, "MIN_ROWS_A_GROUP", 1 if few else 0)
    monkeypatch.setattr(day_spans, "MIN_ROWS_OF_LONG", chance.choice([1, 5, 20]))
    monkeypatch.setattr(day_spans, "MAX_LONG", chance.choice([1, 2, 4]))
    crowded = seed % 4 == 2
    monkeypatch.setattr(day_sums, "MAX_DIMENSIONS", chance.choice([1, 2, 5]) if crowded else 32)
    monkeypatch.setattr(summaries, "_FOLD_ROWS", chance.choice([1, 20, 1000]))
    monkeypatch.setattr(sums, "MAX_JOINED", chance.choice([0, 16]))
    monkeypatch.setattr("llm_cost_ops.ledger.postgres.ledger.FOLD_EVERY", chance.choice([1, 7, 500]))
    kept, long, prices = 0, 0, book(1)
    with Sync(ledger=DictLedger()) as dicts:
        for number in range(100):
            if crowded and number % 9 == 0:
                connection.execute(_AN_HOUR_LATER)
            ledger = chance.choice(servers)
            action = chance.choice(["append", "reprice", "revise", "live", *["ask"] * 7])
            if action == "append":
                batch = [some_entry(chance, prices) for _ in range(chance.randrange(1, 9))]
                for each in (ledger, dicts):
                    each.append(batch)
            elif action == "reprice":
                prices, where = book(chance.randrange(5)), chance.choice(FILTERS)
                for each in (ledger, dicts):
                    each.reprice(where, prices.price, None, 1000, dry_run=False)
            elif action == "revise":
                revise(ledger, dicts, chance, prices)
            elif action == "live":
                live(ledger, dicts, chance, number)
            else:
                ask(ledger, dicts, chance)
                kept += connection.execute(
                    "SELECT coalesce(sum(groups), 0) FROM llm_cost_ops.day_span"
                ).fetchone()[0]
                long += connection.execute(_LONG).fetchone()[0]
        assert servers[0].find_faults() == []
    assert few or crowded or min(kept, 30 * long) > 60


def live(ledger: Sync, dicts: Sync, chance: random.Random, number: int) -> None:
    """Erase a user, or late in the life of a ledger remove what is older than a moment."""
    if chance.random() < 0.2:
        user = chance.choice(["u", "v"])
        assert erase(ledger, user) == erase(dicts, user)
    elif number > 80:
        moment = START + timedelta(days=chance.randrange(2), seconds=chance.choice([0, 1000]))
        organization = chance.choice(["acme", "globex"])
        for each in (ledger, dicts):
            each.set_retention(organization, 30)
            remove(each, moment, organization)


def ask(ledger: Sync, dicts: Sync, chance: random.Random) -> None:
    where, group_by = chance.choice(FILTERS), chance.choice(GROUPINGS)
    buckets = None
    if chance.random() < 0.4:
        zone, interval = chance.choice(["", "", "Asia/Kathmandu"]), chance.choice(["day", "week"])
        buckets = buckets_between(START - timedelta(days=1), START + timedelta(days=9), interval, zone)
    if chance.random() < 0.3:
        group_by = (*group_by, "meter")
    with nullcontext() if chance.random() < 0.5 else keeping_nothing():
        found = answer(ledger, where, group_by, buckets)
    assert found == answer(dicts, where, group_by, buckets)
    assert ledger.count(where) == dicts.count(where)


class Held:
    """The first commit of an append from here on, held up until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = Event(), Event()
        expect = Session._expect_commit

        def held(session: Session) -> None:
            if not self.begun.is_set():
                self.begun.set()
                assert self.let_go.wait(MAX_WAIT)
            expect(session)

        self.patch = patch.object(Session, "_expect_commit", held)


@pytest.mark.parametrize("again", [True, False])
def test_a_transaction_that_was_open_while_days_were_kept_is_in_later_answers(
    servers: list[Sync], again: bool
) -> None:
    """Its rows have lower numbers than others that the kept sums hold."""
    one, other = servers
    held = Held()
    late = [entry(day * 86_400 + 7, user_id="late", input_tokens=7) for day in (2, 3, 12)]
    with Sync(ledger=DictLedger()) as dicts, ThreadPoolExecutor() as pool:
        fill(other, dicts, 10)
        with held.patch:
            call = pool.submit(one.append, late)
            assert held.begun.wait(MAX_WAIT)
            newer = [entry(day * 86_400 + 9, user_id="newer") for day in (3, 4)]
            for ledger in (other, dicts):
                ledger.append(newer)
            for group_by in (("user",), _PAIRS, ("meter", "user")):
                for where in (of_days(0, 10), Filter()):
                    assert other.summarize(where, group_by, None) == dicts.summarize(where, group_by, None)
            held.let_go.set()
            call.result(MAX_WAIT)
        dicts.append(late)
        with nullcontext() if again else keeping_nothing():
            for group_by in (("user",), _PAIRS, ("meter", "user")):
                for where in (of_days(0, 10), of_days(3, 4), Filter(), Filter(user_ids=("late",))):
                    for ledger in servers:
                        assert ledger.summarize(where, group_by, None) == dicts.summarize(
                            where, group_by, None
                        )
        assert one.find_faults() == []


def test_kept_sums_are_read_in_place_of_rows(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    """Of what was kept not one row is read again, by any server; those of a day that is priced anew are."""
    one, other = servers
    groupings = (_PAIRS, ("label:team",), ("tag", "user"), ("meter",))
    cheap = Pricing(CostStatus.PRICED, "USD", "c", 1)
    with Sync(ledger=DictLedger()) as dicts:
        fill(one, dicts, 20)
        for group_by in groupings:
            one.summarize(of_days(0, 10), group_by, None)
        # Whoever reads rows now finds others.
        connection.execute(
            "UPDATE llm_cost_ops.usage SET input = 0, usr = 'x', record = '{}' WHERE ts < %s",
            [to_micros(START + timedelta(days=10))],
        )
        for group_by in groupings:
            for where in (of_days(0, 10), of_days(0, 9)):
                assert other.summarize(where, group_by, None) == dicts.summarize(where, group_by, None)
        for day in (12, 19):
            other.summarize(of_days(10, 20), _PAIRS, None)
            for ledger in (one, dicts):
                ledger.reprice(of_days(day, 20), lambda _: Priced(1, cheap), None, 1000, dry_run=False)
            where = of_days(10, 20)
            assert other.summarize(where, _PAIRS, None) == dicts.summarize(where, _PAIRS, None)


def test_a_record_that_came_later_may_change_where_a_span_has_none_of_its_day(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    one, other = servers
    late = entry(6 * 86_400, user_id="late", model_id="late")
    with Sync(ledger=DictLedger()) as dicts:
        for days in ((0, 6), (7, 10)):
            fill(one, dicts, days[1], days[0])
        one.summarize(of_days(0, 10), _PAIRS, None)
        connection.execute("DELETE FROM llm_cost_ops.day_span WHERE last = first + 1")
        assert connection.execute(_LONG).fetchone() == (1,)
        cheap = Pricing(CostStatus.PRICED, "USD", "c", 1)
        for ledger in (one, dicts):
            ledger.append([late])
            ledger.reprice(Filter(user_ids=("late",)), lambda _: Priced(1, cheap), None, 9, dry_run=False)
        connection.execute("UPDATE llm_cost_ops.usage SET input = 0 WHERE usr <> 'late'")
        with keeping_nothing():
            found = other.summarize(of_days(0, 10), _PAIRS, None)
        assert found == dicts.summarize(of_days(0, 10), _PAIRS, None)


def named(connection: psycopg.Connection[Any], user: str) -> int:
    """How many of the kept sums, and of what they are by, name a user."""
    [(count,)] = connection.execute(
        "SELECT (SELECT count(*) FROM llm_cost_ops.day_span WHERE strpos(sums, %(user)s) > 0) "
        "+ (SELECT count(*) FROM llm_cost_ops.day_grouping WHERE strpos(dimensions, %(user)s) > 0)",
        {"user": user},
    )
    return int(count)


def test_sums_by_a_label_that_is_named_as_a_user_go_with_them(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 3)
        servers[0].append([entry(labels={"user-1": "x"})])
        servers[0].summarize(Filter(), ("label:user-1",), None)
        assert named(connection, "user-1") == 1
        assert erase(servers[1], "user-1") == 7
        assert named(connection, "user-1") == 0


@pytest.mark.parametrize("committed", [True, False])
def test_sums_that_were_added_up_before_an_erasure_are_not_kept_after_it(
    servers: list[Sync], connection: psycopg.Connection[Any], committed: bool
) -> None:
    one, other = servers
    store, raced = Kept.store, []
    with Sync(ledger=DictLedger()) as dicts, ThreadPoolExecutor() as pool:
        fill(one, dicts, 5)
        expected = dicts.summarize(Filter(), ("user",), None)
        held = Held()

        def erase_first(kept: Kept, *arguments: Any) -> bool:
            if not raced:
                raced.append(pool.submit(erase, other, "user-1"))
                if committed:
                    raced[0].result(MAX_WAIT)
                else:
                    assert held.begun.wait(MAX_WAIT)
            return store(kept, *arguments)

        with patch.object(Kept, "store", erase_first), nullcontext() if committed else held.patch:
            assert one.summarize(Filter(), ("user",), None) in (
                expected,
                dicts.summarize(Filter(), ("user",), None) if not committed else after_erasure(dicts),
            )
            held.let_go.set()
            raced[0].result(MAX_WAIT)
        assert named(connection, "user-1") == 0
        if not committed:
            after_erasure(dicts)
        assert other.summarize(Filter(), ("user",), None) == dicts.summarize(Filter(), ("user",), None)
        assert connection.execute("SELECT count(*) FROM llm_cost_ops.day_span").fetchone() != (0,)
        assert named(connection, "user-1") == 0


def after_erasure(dicts: Sync) -> Any:
    erase(dicts, "user-1")
    return dicts.summarize(Filter(), ("user",), None)


def test_an_erasure_waits_for_sums_that_are_being_kept(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    one, other = servers
    store, calls = Kept.store, []
    with Sync(ledger=DictLedger()) as dicts, ThreadPoolExecutor() as pool:
        fill(one, dicts, 5)

        def erase_then(kept: Kept, *arguments: Any) -> bool:
            kept_it = store(kept, *arguments)
            if not calls:
                calls.append(pool.submit(erase, other, "user-1"))
                while not connection.execute(_WAITS).fetchall():
                    assert not calls[0].done()
            return kept_it

        with patch.object(Kept, "store", erase_then):
            one.summarize(Filter(), ("user",), None)
        calls[0].result(MAX_WAIT)
        erase(one, "user-1")
        assert named(connection, "user-1") == 0
        assert other.summarize(Filter(), ("user",), None) == after_erasure(dicts)


def test_what_retention_removed_is_in_no_kept_span(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    one, other = servers
    with Sync(ledger=DictLedger()) as dicts:
        fill(one, dicts, 10)
        one.summarize(of_days(2, 10), _PAIRS, None)
        assert connection.execute(_LONG).fetchone() == (1,)
        for ledger in (other, dicts):
            ledger.set_retention("acme", 30)
            remove(ledger, START + timedelta(days=2, seconds=3))
        assert connection.execute(_LONG).fetchone() == (0,)
        for where in (of_days(3, 10), of_days(2, 10)):
            for ledger in servers:
                assert answer(ledger, where, _PAIRS, None) == answer(dicts, where, _PAIRS, None)


def test_the_last_spans_of_several_days_are_kept(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 60)
        for first in range(0, 60, 10):
            servers[first // 10 % 2].summarize(of_days(first, first + 10), _PAIRS, None)
    rows = connection.execute("SELECT first FROM llm_cost_ops.day_span WHERE last > first + 1 ORDER BY first")
    start = (START - START.fromtimestamp(0, START.tzinfo)).days
    assert [first - start for (first,) in rows] == [20, 30, 40, 50]


def test_what_was_used_longest_ago_gives_way(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    def kept() -> list[str]:
        rows = connection.execute(
            "SELECT dimensions FROM llm_cost_ops.day_grouping "
            "WHERE id IN (SELECT grouping FROM llm_cost_ops.day_span) ORDER BY 1"
        )
        return [text for (text,) in rows]

    def pass_an_hour() -> None:
        connection.execute(_AN_HOUR_LATER)

    with Sync(ledger=DictLedger()) as dicts, patch.object(day_sums, "MAX_DIMENSIONS", 3):
        fill(servers[0], dicts, 10)
        check_groupings(Groupings(servers[0], dicts, kept, pass_an_hour))
    assert len(kept()) == 3


def test_what_others_delete_or_note_at_the_moment_keeps_nobody_waiting(
    servers: list[Sync], connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who waits waits until the deadline.
    begin = f"{sessions._KEEPING_SNAPSHOT}; SET LOCAL lock_timeout = 0"
    monkeypatch.setattr(sessions, "_KEEPING_SNAPSHOT", begin)
    with Sync(ledger=DictLedger()) as dicts, patch.object(day_sums, "MAX_DIMENSIONS", 1):
        fill(servers[0], dicts, 10)
        groupings = Groupings(servers[0], dicts, list, list)
        groupings.ask("user")
        connection.execute(_AN_HOUR_LATER)
        for statement in (_AN_HOUR_LATER, "DELETE FROM llm_cost_ops.day_grouping"):
            with connection.transaction():
                connection.execute(statement)
                groupings.ask("user", "user model")
                if statement != _AN_HOUR_LATER:
                    raise psycopg.Rollback
    assert servers[0].find_faults() == []


def statements(ledger: Sync, *question: Any) -> list[str]:
    """What a query has the database do."""
    run, found = Session.run, []

    def noted(session: Session, sql: str, *values: Any, **named: Any) -> Any:
        found.append(sql)
        return run(session, sql, *values, **named)

    with patch.object(Session, "run", noted):
        ledger.summarize(*question)
    return found


def test_sums_whose_dimensions_no_index_takes_are_not_added_up_in_vain(servers: list[Sync]) -> None:
    chance = random.Random(1)
    labels = {"".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200)): "x" for _ in range(30)}
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 5)
    rows = [sql for sql in statements(servers[0], Filter(labels=labels), (), None) if "usage u" in sql]
    assert len(rows) == 1


def test_where_nothing_is_to_be_kept_nothing_is_asked_for_it(
    servers: list[Sync], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(day_spans, "MIN_ROWS", 1000)
    monkeypatch.setattr(day_spans, "MIN_ROWS_OF_LONG", 1000)
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 5)
    asked = [sql for sql in statements(servers[0], Filter(), ("user",), None) if "day_" in sql]
    assert len(asked) == 1


_NO_INSERT = (
    "CREATE FUNCTION llm_cost_ops.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$; "
    "CREATE TRIGGER no BEFORE INSERT ON llm_cost_ops.day_span EXECUTE FUNCTION llm_cost_ops.no()"
)


@pytest.mark.parametrize(
    "refusal",
    [
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        _NO_INSERT,
    ],
)
def test_who_can_write_nothing_answers_from_rows(
    refusal: str, postgres_url: str, servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 5)
        expected = dicts.summarize(Filter(), ("user",), None)
    connection.execute(refusal.format(connection.info.dbname).encode())
    with Sync(
        ledger=open_ledger(f"{postgres_url}{'&' if '?' in postgres_url else '?'}target_session_attrs=any")
    ) as ledger:
        for _ in range(2):
            assert ledger.summarize(Filter(), ("user",), None) == expected
        # It does not ask for each day anew.
        asked = [sql for sql in statements(ledger, Filter(), ("user",), None) if "read_only" in sql]
    assert len(asked) == 1
    assert connection.execute("SELECT count(*) FROM llm_cost_ops.day_span").fetchone() == (0,)


def test_two_that_ask_the_same_do_not_wait_for_each_other(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    one, other = servers
    store, answers = Kept.store, []
    with Sync(ledger=DictLedger()) as dicts:
        fill(one, dicts, 5)
        expected = dicts.summarize(Filter(), ("user",), None)

        def ask_first(kept: Kept, *arguments: Any) -> bool:
            if not answers:
                answers.append(None)
                answers.append(other.summarize(Filter(), ("user",), None))
            return store(kept, *arguments)

        with patch.object(Kept, "store", ask_first):
            assert one.summarize(Filter(), ("user",), None) == expected
        assert answers == [None, expected]
    days = "SELECT count(*), count(DISTINCT (first, last)) FROM llm_cost_ops.day_span"
    [(number, distinct)] = connection.execute(days)
    assert number == distinct > 0


def test_a_query_that_ends_at_its_deadline_leaves_what_it_has_added_up(
    servers: list[Sync], connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "_FOLD_ROWS", 1)
    add_up, calls = summaries.add_up, []

    def ends(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise DeadlinePassedError
        return add_up(*arguments)

    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 5)
        with patch.object(summaries, "add_up", ends), pytest.raises(RpcError):
            servers[0].summarize(Filter(), ("user",), None)
        assert connection.execute("SELECT count(*) FROM llm_cost_ops.day_span").fetchone() == (2,)
        assert servers[1].summarize(Filter(), ("user",), None) == dicts.summarize(Filter(), ("user",), None)


def test_a_cursor_that_is_left_half_read_is_closed_by_the_query(
    servers: list[Sync], connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by the garbage collector, which nobody hears of a connection that is lost."""
    monkeypatch.setattr(meter_sums, "add_amounts", lost := Lost(connection, meter_sums.add_amounts))
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 5)
        by = ("meter", "user")
        assert servers[0].summarize(Filter(), by, None) == dicts.summarize(Filter(), by, None)
    assert lost.done


class Lost:
    """Adds amounts; the first time the connections are ended, and there are too many groups."""

    def __init__(self, connection: psycopg.Connection[Any], add_amounts: Any) -> None:
        self.connection, self.add_amounts, self.done = connection, add_amounts, False

    def __call__(self, *arguments: Any) -> None:
        if not self.done:
            self.done = True
            self.connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            raise day_spans.TooManyGroupsError
        self.add_amounts(*arguments)


def test_a_check_finds_kept_sums_that_are_wrong(
    servers: list[Sync], connection: psycopg.Connection[Any]
) -> None:
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 5)
    servers[0].summarize(Filter(), ("user",), None)
    assert servers[0].find_faults() == []
    connection.execute("UPDATE llm_cost_ops.day_span SET sums = replace(sums, 'user-1', 'user-9')")
    [fault] = servers[0].find_faults()
    assert fault.startswith("acme: the sums of ")
    assert fault.endswith("kept days are not those of the rows")


def test_kept_sums_of_another_server_are_deleted_by_a_migration(
    servers: list[Sync], connection: psycopg.Connection[Any], postgres_url: str
) -> None:
    """Their snapshot would be taken for one that saw rows which are still to come."""
    with Sync(ledger=DictLedger()) as dicts:
        fill(servers[0], dicts, 5)
    servers[0].summarize(Filter(), ("user",), None)
    connection.execute("UPDATE llm_cost_ops.day_span SET seen = '9000000000:9000000000:'")
    with Sync(ledger=open_ledger(postgres_url)) as ledger, pytest.raises(RpcError, match="db migrate"):
        ledger.count(Filter())
    session = servers[0].store._database.connect(prepare=False)
    assert schema.adopt(session)
    session.close()
    assert connection.execute("SELECT count(*) FROM llm_cost_ops.day_span").fetchone() == (0,)


def test_an_answer_has_so_many_groups_at_most(servers: list[Sync], monkeypatch: pytest.MonkeyPatch) -> None:
    check_many_groups(servers[0], monkeypatch)
