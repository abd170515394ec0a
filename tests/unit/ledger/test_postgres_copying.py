"""Many rows are copied into PostgreSQL, few are inserted: what became of them is the same."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from random import Random
from typing import Any, cast
from unittest.mock import patch

import psycopg
import pytest
from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus, UsageQuality
from llm_cost_ops.ledger import Entry, Filter, open_ledger
from llm_cost_ops.ledger.postgres import workers, writing
from llm_cost_ops.ledger.postgres.append import _MIN_ROWS, PostgresBatch
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.rows import prepare
from llm_cost_ops.ledger.postgres.url import database
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError
from tests.ledger_suite import card, revise
from tests.unit.ledger.making import START, Sync, context, entry, pricing
from tests.waiting import MAX_WAIT, until

ODD_TEXTS = [
    "",
    "\\",
    "\\N",
    "\\.",
    "\\\\N",
    "a\tb",
    "a\nb",
    "a\r\nb",
    "NULL",
    '"',
    "{a,b}",
    "'",
    "é 日本 🙂",
    "%s",
    "\b",
]


def odd(at: int, text: str) -> Entry:
    return entry(
        at,
        idempotency_key=f"{at} {text}",
        user_id=text,
        model_id=text or "m",
        tags=[text, "x"],
        labels={text or "l": text},
        units=at or None,
    )


def everything(ledger: Sync) -> tuple[Any, ...]:
    """All that a ledger says, but for the ids that it makes."""
    records, _ = ledger.list_usage(Filter(), "ingested_at", False, 500, None, None)
    groups = [("user",), ("model",), ("tag",), ("label:l",)]
    return records, [ledger.summarize(Filter(), group, None) for group in groups]


def test_rows_of_one_write_and_of_many_are_the_same(postgres: Any) -> None:
    entries = [odd(at, text) for at, text in enumerate(ODD_TEXTS)]
    said = []
    for together in (1, 1000):
        with Sync(ledger=open_ledger(postgres.new_database())) as ledger:
            sent = [*entries, entry(99, organization_id="globex")]
            done = [
                each
                for at in range(0, len(sent), together)
                for each in ledger.append(sent[at : at + together])
            ]
            assert [each.status for each in done] == ["created"] * len(done)
            again = ledger.append(entries)
            assert [each.status for each in again] == ["duplicate"] * len(again)
            assert ledger.find_faults() == []
            records, sums = everything(ledger)
            records[-1].id = ""
            said.append((records, sums))
    assert said[0] == said[1]
    assert [record.user_id for record in said[0][0][:-1]] == ODD_TEXTS


def test_entries_that_are_alike_share_their_series() -> None:
    """Priced alike or not: the series says in which currency, and whether at all."""
    batch, alike = PostgresBatch(cast("Any", None), ""), {}
    priced, unpriced = pricing(), pricing(CostStatus.UNPRICED)
    made = []
    for n, by in enumerate([priced, unpriced, priced, unpriced]):
        sent = entry(n, idempotency_key=str(n))
        made.append(prepare(Entry(sent.record, sent.key, sent.ingested_at, sent.units, by)))
        batch.add(sent.record, sent.key, sent.ingested_at, sent.units, by, alike)
    assert batch.rows == made
    assert batch.rows[0].series is batch.rows[2].series
    assert batch.rows[1].series is batch.rows[3].series


def test_numbers_of_rows_take_one_round_trip_and_nobody_else_has_them(postgres_url: str) -> None:
    asked: list[str] = []
    rows = Session.rows

    def counted(self: Session, sql: str, *values: object, **named: object) -> list[tuple[Any, ...]]:
        asked.append(sql)
        return rows(self, sql, *values, **named)

    taken: list[list[int]] = [[], []]
    connect = database(postgres_url).connect
    with closing(connect()) as one, closing(connect()) as other, patch.object(Session, "rows", counted):
        for count in (1, 1000, 2999, 1, 9500, 0, 500):
            for session, numbers in zip((one, other), taken, strict=True):
                asked.clear()
                found = session.numbers(count)
                assert len(found) == count
                assert len(asked) <= 1
                numbers += found
    assert taken == [sorted(numbers) for numbers in taken]
    assert len({*taken[0], *taken[1]}) == len(taken[0]) + len(taken[1])


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_there_already_is_found_by_the_copy(postgres_url: str, times: int) -> None:
    """That of one more caller after the look, which the first copy that failed led to, as well."""
    first = [entry(n, idempotency_key=str(n)) for n in range(3)]
    others = [entry(7, idempotency_key="1"), entry(8, idempotency_key="0")][:times]
    copy, copied = Session.copy, []
    with Sync(ledger=open_ledger(postgres_url)) as ledger, Sync(ledger=open_ledger(postgres_url)) as other:

        def late(self: Session, statements: list[str], copies: list[str], lines: Any) -> bool:
            def after_the_look(said: Any) -> Any:
                if others:
                    with patch.object(Session, "copy", copy):
                        assert [each.status for each in other.append([others.pop(0)])] == ["created"]
                return lines(said)

            copied.append(copies)
            return copy(self, statements, copies, after_the_look)

        with patch.object(Session, "copy", late):
            done = ledger.append(first)
        assert [each.status for each in done] == [
            "created" if times == 1 else "conflict",
            "conflict",
            "created",
        ]
        assert len(copied) == times + 1
        assert ledger.count(Filter()) == 3
        assert ledger.find_faults() == []


def test_rows_are_looked_for_while_some_are_sent_again(postgres_url: str) -> None:
    """A copy in vain costs more than to look, and most callers send nothing twice."""
    sent = iter(range(10**6))
    looks, vain = [], []
    look, roll_back = writing._Sent.look, Session.roll_back

    def looking(self: writing._Sent) -> str:
        looks.append(True)
        return look(self)

    def rolling_back(self: Session) -> None:
        vain.append(True)
        roll_back(self)

    def write(*, again: bool) -> None:
        new = [entry(idempotency_key=str(next(sent))) for _ in range(3)]
        expected = ["created"] * 3
        if again:
            new, expected = [new[0], first, new[2]], ["created", "duplicate", "created"]
        assert [each.status for each in ledger.append(new)] == expected

    with (
        patch.object(writing._Sent, "look", looking),
        patch.object(Session, "roll_back", rolling_back),
        Sync(ledger=open_ledger(postgres_url)) as ledger,
    ):
        first = entry(idempotency_key="first")
        ledger.append([first])
        write(again=False)
        assert not looks
        for _ in range(3):
            write(again=True)
            write(again=False)
        assert len(looks) == 6
        for _ in range(writing._LOOKS):
            write(again=False)
        assert len(looks) == 5 + writing._LOOKS
        assert len(vain) == 1
        assert ledger.find_faults() == []


@pytest.mark.parametrize("servers", [1, 2])
def test_the_same_batches_at_once_count_once(postgres_url: str, servers: int) -> None:
    """Through two connections of one server, or those of two; some callers have another order."""
    batches = [[entry(n, idempotency_key=f"{batch} {n}") for n in range(150)] for batch in range(6)]
    sent = [batches[at // 2][:: 1 if at % 4 < 2 else -1] for at in range(12)]
    with (
        Sync(ledger=open_ledger(postgres_url)) as one,
        Sync(ledger=open_ledger(postgres_url)) as two,
        ThreadPoolExecutor(12) as pool,
    ):
        used = (one, two)[:servers]
        answers = list(pool.map(lambda at: used[at % servers].append(sent[at]), range(12)))
        created = [each for answer in answers for each in answer if each.status == "created"]
        assert len(created) == len({each.usage_id for each in created}) == one.count(Filter()) == 900
        assert one.find_faults() == []


def test_many_rows_do_not_wait_for_another_commit(postgres_url: str) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def write_later(session: Session, rows: list[Any], revision: int | None) -> Any:
        if rows[0].key == "first":
            begun.set()
            assert goes_on.wait(MAX_WAIT)
        return writing.write(session, rows, revision)

    with (
        patch("llm_cost_ops.ledger.postgres.append.write", write_later),
        Sync(ledger=open_ledger(postgres_url)) as ledger,
        ThreadPoolExecutor(2) as pool,
    ):
        try:
            pool.submit(ledger.append, [entry(idempotency_key="first")])
            assert begun.wait(MAX_WAIT)
            one = pool.submit(ledger.append, [entry(idempotency_key="one")])
            until(lambda: ledger.figures().queued == 1)
            ledger.timeout = 10.0
            assert len(ledger.append([entry(n) for n in range(_MIN_ROWS)])) == _MIN_ROWS
            assert [each.status for each in one.result(MAX_WAIT)] == ["created"]
            # The one row waited, and shared the second's.
            assert ledger.figures().commits == 1
        finally:
            goes_on.set()


def test_nothing_is_copied_that_was_priced_with_other_cards(postgres_url: str) -> None:
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        ledger.add_card(card(), "k", b"1" * 16)
        assert drive(ledger.store.append([entry()], context(), 0)) is None
        assert ledger.count(Filter()) == 0
        assert drive(ledger.store.append([entry()], context(), ledger.cards_revision())) is not None
        assert ledger.count(Filter()) == 1


def test_nothing_of_a_batch_is_written_when_cards_are_added_before_it_supersedes(postgres_url: str) -> None:
    """Not even an entry that is to be written again, since its id is taken by another key."""
    seen = {"observation": True, "quality": UsageQuality.UNKNOWN, "input_tokens": None}

    async def write(batch: PostgresBatch) -> Any:
        return await batch.write(context(MAX_WAIT), 0)

    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        other, _ = ledger.append([entry(idempotency_key="l"), entry(units=None, idempotency_key="k", **seen)])
        batch = cast("PostgresBatch", ledger.store.batch())
        for key in ("m", "k"):
            sent = entry(1, idempotency_key=key)
            batch.add(sent.record, sent.key, sent.ingested_at, sent.units, sent.by)
        batch.rows[0] = replace(batch.rows[0], id=other.usage_id)
        with patch("llm_cost_ops.ledger.postgres.append.cards.revision", return_value=7):
            assert drive(write(batch)) is None
        assert (ledger.count(Filter()), ledger.find_faults()) == (2, [])


_FULL = """
    INSERT INTO llm_cost_ops.usage (org, id, seq, series, pricing, ingested, ts, requests, input, output,
        cached, cost, record)
    SELECT org, gen_random_uuid(), seq - n, series, pricing, ingested, ts + n, 1, 0, 0, 0, 1, record
    FROM llm_cost_ops.usage u CROSS JOIN generate_series(1, 20000) n WHERE u.key = 'first'
"""
_READ = (
    "SELECT sum(seq_tup_read)::int, (SELECT sum(idx_tup_read)::int FROM pg_stat_user_indexes "
    "WHERE relname = 'usage') FROM pg_stat_user_tables WHERE relname = 'usage'"
)
_OTHERS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def test_plans_that_were_made_while_tables_were_empty_do_not_read_all_of_them_later(
    postgres_url: str,
) -> None:
    """A server keeps the plan of a statement; nobody may have analyzed the table before it is full."""

    def use(ledger: Sync, number: int) -> None:
        for at in range(number, number + 12):
            [done, _] = ledger.append([entry(idempotency_key="first"), entry(idempotency_key=f"{at}")])
            ledger.get_cost(done.usage_id)
            revise(ledger, done.usage_id, at + 1, entry(input_tokens=at).record)

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        with Sync(ledger=open_ledger(postgres_url)) as ledger:
            use(ledger, 0)
            connection.execute(_FULL)
            connection.execute("SELECT pg_stat_force_next_flush()")
            before = connection.execute(_READ).fetchone()
            use(ledger, 12)
        # A session says what it has read when it ends.
        until(lambda: not connection.execute(_OTHERS).fetchall())
        after = connection.execute(_READ).fetchone()
    assert before is not None
    assert after is not None
    assert after[0] - before[0] < 20_000
    assert after[1] - before[1] < 20_000


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_batch_that_is_sent_again_reads_its_own_rows_alone(postgres_url: str, *, analyzed: bool) -> None:
    """As after a time-out, however many records the organization has."""
    batch = [entry(number, idempotency_key=f"{number}") for number in range(500)]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        with Sync(ledger=open_ledger(postgres_url)) as ledger:
            ledger.append([entry(idempotency_key="first")])
            connection.execute(_FULL)
            ledger.append(batch)
            if analyzed:
                connection.execute("ANALYZE")
        until(lambda: not connection.execute(_OTHERS).fetchall())
        connection.execute("SELECT pg_stat_force_next_flush()")
        before = connection.execute(_READ).fetchone()
        with Sync(ledger=open_ledger(postgres_url)) as ledger:
            assert {done.status for done in ledger.append(batch)} == {"duplicate"}
        until(lambda: not connection.execute(_OTHERS).fetchall())
        after = connection.execute(_READ).fetchone()
    assert before is not None
    assert after is not None
    # To look for them, to find what they are, and to open the ledger.
    assert after[0] == before[0]
    assert after[1] - before[1] < 3 * len(batch)


def test_a_sum_reads_the_rows_of_its_edges_and_no_others(postgres_url: str) -> None:
    """The planner takes an interval that comes from a parameter for a ninth of the table."""
    where = Filter(
        organization_ids=("acme",),
        start=START + timedelta(minutes=7),
        end=START + timedelta(days=3, minutes=7),
    )
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        # As a table looks that is too large for a test.
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET random_page_cost = 1000".encode())
        with Sync(ledger=open_ledger(postgres_url)) as ledger:
            ledger.append([entry(idempotency_key="first")])
            connection.execute(_FULL.replace("ts + n", "ts + n * 7919 % 20000 * 15000000::bigint").encode())
            connection.execute("ANALYZE; SELECT pg_stat_force_next_flush()")
            before = connection.execute(_READ).fetchone()
            ledger.summarize(where, ("model",), None)
        until(lambda: not connection.execute(_OTHERS).fetchall())
        after = connection.execute(_READ).fetchone()
    assert before is not None
    assert after is not None
    assert after[0] == before[0]
    assert 0 < after[1] - before[1] < 200


def test_folding_waits_for_no_disk_and_appends_do(postgres_url: str) -> None:
    said: list[tuple[str, str]] = []
    run, copy, asked = Session.run, Session.copy, "SELECT current_setting('synchronous_commit')"

    def running(self: Session, sql: str, *values: object, **named: object) -> Any:
        if "DELETE FROM llm_cost_ops.delta" in sql:
            [(commit,)] = run(self, asked).fetchall()
            said.append(("delta", commit))
        return run(self, sql, *values, **named)

    def copying(self: Session, statements: list[str], copies: list[str], lines: Any) -> bool:
        def answered(found: Any) -> Any:
            said.append(("usage", found[0][0].decode()))
            return lines(found[1:])

        return copy(self, [asked, *statements], copies, answered)

    with (
        patch("llm_cost_ops.ledger.postgres.ledger.FOLD_EVERY", 1),
        patch.object(Session, "run", running),
        patch.object(Session, "copy", copying),
        Sync(ledger=open_ledger(postgres_url)) as ledger,
    ):
        ledger.append([entry()])
    assert said == [("usage", "on"), ("delta", "off")]


def test_a_copy_whose_connection_is_lost_is_done_again(postgres_url: str) -> None:
    copy, lost = Session.copy, []

    def losing(self: Session, statements: list[str], copies: list[str], lines: Any) -> bool:
        if not lost:
            lost.append(self.connection.info.backend_pid)
            with psycopg.connect(postgres_url, autocommit=True) as killing:
                # Waits until it is gone.
                killing.execute("SELECT pg_terminate_backend(%s, 60000)", lost)
        return copy(self, statements, copies, lines)

    with (
        patch.object(Session, "copy", losing),
        Sync(ledger=open_ledger(postgres_url)) as ledger,
    ):
        done = ledger.append([entry(n) for n in range(300)])
        assert [each.status for each in done] == ["created"] * 300
        assert len(lost) == 1
        assert ledger.count(Filter()) == 300
        assert ledger.find_faults() == []


def test_what_may_be_applied_is_said_and_nothing_else_is(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are lost before COMMIT is sent, and after it was done, when nobody sees the answer."""
    chance = Random(1)

    def lose(session: Session, then: Any) -> None:
        if chance.random() < 0.3:
            session.close()
            raise psycopg.OperationalError("server closed the connection")
        then(session)

    expect, end = Session._expect_commit, Session.end_commit
    acknowledged = unsure = 0
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        ledger.check()
        monkeypatch.setattr(Session, "_expect_commit", lambda self: lose(self, expect))
        monkeypatch.setattr(Session, "end_commit", lambda self: lose(self, end))
        for number in range(48):
            # With keys and without, tried again and not.
            size, keyed = (1, 150)[number % 2], number // 2 % 2
            monkeypatch.setattr(workers, "_RECONNECTING", 60.0 if number // 4 % 2 else 0.0)
            made = [entry(n, idempotency_key=f"{number}.{n}" if keyed else "") for n in range(size)]
            try:
                acknowledged += len(ledger.append(made))
            except RpcError as error:
                unsure += size * error.maybe_applied
        monkeypatch.undo()
        assert unsure > 0
        assert 0 <= ledger.count(Filter()) - acknowledged <= unsure
        assert ledger.find_faults() == []
