"""Kept sums of days beside a ledger in dicts: whatever is kept, late or priced anew, answers are the same."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from llm_cost_ops._gen.messages import (
    CostStatus,
    ModalityTokens,
    Rate,
    RateCard,
    RevisionKind,
    UsageRecord,
)
from llm_cost_ops.ledger import day_spans
from llm_cost_ops.ledger.day_spans import DAY
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.sqlite import day_sums, summaries
from llm_cost_ops.ledger.sqlite import ledger as sqlite_ledger
from llm_cost_ops.ledger.sqlite import sums as rollups
from llm_cost_ops.ledger.sqlite.ledger import SqliteSums
from llm_cost_ops.ledger.types import Entry, Filter, Revision
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rules.times import buckets_between
from tests.dict_ledger import DictLedger
from tests.life_suite import faults, remove
from tests.unit.ledger.making import START, TAKEN, Sync, entry

DIMENSIONS = (
    "organization",
    "provider",
    "model",
    "project",
    "status",
    "user",
    "tag",
    "label:team",
    "label:x",
)


def book(price: int) -> PriceBook:
    """Prices by a card whose prices follow from a number; model c has none, and b one for each token."""
    cards = [
        RateCard(
            id=f"card-{model}-{price}",
            provider="openai",
            model_id=model,
            currency=currency,
            version=price + 1,
            rates=[
                Rate(meter="INPUT", price=Decimal(price), per=1000),
                Rate(meter="OUTPUT", price=Decimal(7), per=[3, 1000][price % 2]),
                *([Rate(meter="CACHE_READ", price=Decimal(2), per=1000)] if model == "b" else []),
                Rate(meter="WEB_SEARCHES", price=Decimal("0.01"), per=1),
            ],
        )
        for model, currency in (("a", "USD"), ("b", "EUR"))
    ]
    return PriceBook(cards=cards)


def some(chance: random.Random) -> dict[str, Any]:
    """The fields of a record: many of few days, and some of any moment."""
    moment = START + timedelta(
        days=chance.randrange(6), microseconds=chance.choice([0, 1, 10**9, 864 * 10**8 - 1])
    )
    if chance.random() < 0.1:
        moment = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    cached = chance.choice([0, 200])
    return {
        "organization_id": chance.choice(["acme", "globex"]),
        "model_id": chance.choice(["a", "b", "c"]),
        "timestamp": moment,
        "input_tokens": chance.choice([0, None, 600, 2500]),
        "output_tokens": chance.choice([0, None, 100, 2500]),
        "cached_tokens": cached,
        "cache_write_tokens": chance.choice([0, 0, 0, cached // 2]),
        "reasoning_tokens": chance.choice([0, 0, 0, 50]),
        "project_id": chance.choice(["", "p"]),
        "user_id": chance.choice(["", "u", "v"]),
        "tags": chance.choice([[], ["x"], ["y", "x", "y"], ["x,y"]]),
        "labels": chance.choice([{}, {"team": "red"}, {"team": "", "x": "ブルー"}, {"x": "red"}]),
        "meters": chance.choice([{}, {}, {"web_searches": 2}, {"unheard_of": 1}]),
        "request_count": chance.choice([None, 1, 3]),
        "modality": chance.choice([None, None, ModalityTokens()]),
    }


def of_days(first: int, last: int) -> Filter:
    return Filter(start=START + timedelta(days=first), end=START + timedelta(days=last))


FILTERS = [
    *[Filter()] * 6,
    Filter(tags=("x",)),
    Filter(tags=("x", "y")),
    Filter(user_ids=("u", "")),
    Filter(labels={"team": "red"}),
    Filter(labels={"team": ""}),
    Filter(model_ids=("a",), user_ids=("u",)),
    Filter(organization_ids=("acme",)),
    Filter(statuses=("voided", "priced"), user_ids=("u",)),
    Filter(start=START + timedelta(microseconds=1)),
    *[
        Filter(start=START + timedelta(days=first), end=START + timedelta(days=first + 4))
        for first in range(3)
    ],
    Filter(end=START + timedelta(days=3), labels={"team": "red"}),
]
GROUPINGS = [
    (),
    ("user",),
    ("tag",),
    ("label:team",),
    ("label:x", "model"),
    ("user", "model"),
    ("tag", "organization"),
]


def some_entry(chance: random.Random, prices: PriceBook) -> Entry:
    record = UsageRecord(provider="openai", **some(chance))
    if not record.input_tokens:
        record.cached_tokens = record.cache_write_tokens = 0
    if not record.output_tokens:
        record.reasoning_tokens = 0
    record.total_tokens = (record.input_tokens or 0) + (record.output_tokens or 0)
    priced = prices.price(record)
    units = priced.units
    if units is not None and chance.random() < 0.1:
        units += 1  # what was recorded counts, though the card says something else
    return Entry(record, f"key-{chance.random()}", TAKEN, units, priced.by)


async def nothing(*_: object) -> None:
    return None


@pytest.mark.parametrize("seed", range(16))
def test_answers_are_those_of_a_ledger_in_dicts(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes late, is priced anew, cannot be kept or is forgotten in between."""
    chance = random.Random(seed)
    monkeypatch.setattr(day_spans, "MIN_ROWS", chance.choice([1, 2, 5]))
    few = seed % 4 == 3
    monkeypatch.setattr(day_spans, "MIN_ROWS_A_GROUP", 1 if few else 0)
    monkeypatch.setattr(day_sums, "MIN_ROWS_A_GROUP_OF_LONG", 1 if few else 0)
    monkeypatch.setattr(day_spans, "MIN_ROWS_OF_LONG", chance.choice([1, 5, 20]))
    monkeypatch.setattr(day_spans, "MAX_LONG", chance.choice([1, 2, 4]))
    crowded = seed % 4 == 2
    monkeypatch.setattr(day_sums, "MAX_DIMENSIONS", chance.choice([1, 2, 5]) if crowded else 32)
    monkeypatch.setattr(sqlite_ledger, "_DELETED_AT_ONCE", 1 if crowded else 5000)
    monkeypatch.setattr(rollups, "FOLD_EVERY", chance.choice([1, 3, 128]))
    kept, long, prices = 0, 0, book(1)
    path = tmp_path / "costs.db" if seed % 2 else None
    with Sync(path, durability="process") as store, Sync(ledger=DictLedger()) as dicts:
        for number in range(100):
            if crowded and number % 9 == 0:
                store.store._writer.open().execute(AN_HOUR_LATER)
            action = chance.choice(["append", "reprice", "revise", "forget", *["ask"] * 7])
            if action == "append":
                batch = [some_entry(chance, prices) for _ in range(chance.randrange(1, 9))]
                store.append(batch)
                dicts.append(batch)
            elif action == "reprice":
                prices, where = book(chance.randrange(5)), chance.choice(FILTERS)
                for ledger in (store, dicts):
                    ledger.reprice(where, prices.price, None, 1000, dry_run=False)
            elif action == "revise":
                revise(store, dicts, chance, prices)
            elif action == "forget" and chance.random() < 0.3:
                day_sums.forget(store.store._writer.open().cursor(), "acme")
            else:
                ask(store, dicts, chance)
                connection = store.store._writer.open()
                kept += connection.execute("SELECT count(*) FROM day_sum").fetchone()[0]
                long += connection.execute(_LONG).fetchone()[0]
        assert not faults(store)
    assert few or crowded or min(kept, 100 * long) > 100


AN_HOUR_LATER = "UPDATE day_grouping SET used = used - 1 WHERE used > 0"
_LONG = "SELECT count(*) FROM day_span WHERE last > first + 1 AND groups NOTNULL"


def revise(store: Sync, dicts: Sync, chance: random.Random, prices: PriceBook) -> None:
    """Correct or void one of the records."""
    records, _ = dicts.list_usage(Filter(), "ingested_at", False, 1000, None, None)
    if not records:
        return
    chosen = chance.choice(records)
    found = dicts.get_cost(chosen.id, chosen.organization_id)
    by, units, record = Pricing(CostStatus.VOIDED, found.currency), found.units, None
    if chance.random() < 0.7:
        made = some_entry(chance, prices)
        record, units, by = made.record, made.units, made.by
        record.organization_id, record.timestamp = chosen.organization_id, chosen.timestamp
    revision = Revision(
        organization_id=chosen.organization_id,
        usage_id=chosen.id,
        after=found.revision,
        kind=RevisionKind.VOIDED if record is None else RevisionKind.CORRECTED,
        record=record,
        units=units,
        by=by,
        reason="",
        actor="",
        made_at=TAKEN,
    )
    assert store.revise(revision) is dicts.revise(revision) is True


def ask(store: Sync, dicts: Sync, chance: random.Random) -> None:
    where, group_by = chance.choice(FILTERS), chance.choice(GROUPINGS)
    buckets = None
    if chance.random() < 0.4:
        zone = chance.choice(["", "", "Asia/Kathmandu"])
        interval = chance.choice(["day", "week"])
        buckets = buckets_between(START - timedelta(days=1), START + timedelta(days=9), interval, zone)
    if chance.random() < 0.3:
        group_by = (*group_by, "meter")
    # As where somebody else holds the file: what is kept stays as old as it is.
    with nullcontext() if chance.random() < 0.5 else patch.object(SqliteSums, "_fold", nothing):
        found = store.summarize(where, group_by, buckets)
    assert found == dicts.summarize(where, group_by, buckets)
    assert store.count(where) == dicts.count(where)


def test_days_with_as_many_groups_as_records_are_found_out_one_query_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each reads the rows of some days twice, until enough were tried, and writes no group of them."""
    monkeypatch.setattr(day_spans, "MIN_ROWS", 2)
    monkeypatch.setattr(sqlite_ledger, "_FOLD_ROWS", 1)
    prices, days = book(1), 5
    batch = []
    for number in range(10 * days):
        record = UsageRecord(
            organization_id="acme",
            provider="openai",
            model_id="a",
            timestamp=START + timedelta(days=number % days),
            input_tokens=number,
            user_id=f"user-{number}",
        )
        priced = prices.price(record)
        batch.append(Entry(record, f"key-{number}", TAKEN, priced.units, priced.by))
    with Sync(durability="process") as store:
        store.append(batch)
        connection = store.store._writer.open()
        for tried in (1, 2, 3, 3):
            found = store.summarize(Filter(), ("user",), None)
            assert sorted(amounts.input_tokens for _, _, amounts in found) == list(range(10 * days))
            states = connection.execute("SELECT groups FROM day_span").fetchall()
            assert states == [(None,)] * tried
            assert connection.execute("SELECT count(*) FROM day_group").fetchone() == (0,)
        monkeypatch.setattr(day_spans, "MIN_ROWS_OF_LONG", 2)
        for first in (0, 1, 2):
            # The second and third have as many groups as the first.
            store.summarize(of_days(first, days), ("user",), None)
            spans = connection.execute("SELECT groups FROM day_span WHERE last > first + 1").fetchall()
            assert spans == [(None,)]


_PAIRS = ("user", "model")


def fill(store: Sync, dicts: Sync, days: int, first: int = 0) -> None:
    """Two records of each of three users a day: days of as few rows a group save nothing."""
    batch = [
        entry(day * 86_400 + at, user_id=f"user-{at % 3}", model_id=f"model-{at % 2}", input_tokens=at + day)
        for day in range(first, days)
        for at in range(6)
    ]
    for ledger in (store, dicts):
        ledger.append(list(batch))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which days are read from rows, counted from START; single days and pairs of them are worth keeping."""
    days: list[int] = []

    def load_rests(connection: Any, rests: Any) -> None:
        for _, low, high, *_ in rests:
            days.extend(range(low // DAY - to_micros(START) // DAY, high // DAY - to_micros(START) // DAY))
        sums_load_rests(connection, rests)

    sums_load_rests = summaries.load_rests
    monkeypatch.setattr(summaries, "load_rests", load_rests)
    monkeypatch.setattr(day_spans, "MIN_ROWS_OF_LONG", 7)
    return days


def test_the_days_of_another_interval_are_those_of_a_kept_one_and_what_differs(read: list[int]) -> None:
    with Sync(durability="process") as store, Sync(ledger=DictLedger()) as dicts:
        fill(store, dicts, 20)
        for first, last, differing in ((0, 10, []), (0, 10, []), (1, 11, [0, 10]), (1, 11, []), (2, 11, [1])):
            read.clear()
            where = of_days(first, last)
            assert store.summarize(where, _PAIRS, None) == dicts.summarize(where, _PAIRS, None)
            assert sorted({*read}) == differing
        assert store.store._writer.open().execute(_LONG).fetchone() == (2,)


def test_a_kept_span_is_calculated_anew_once_one_of_its_days_is_priced_anew(read: list[int]) -> None:
    with Sync(durability="process") as store, Sync(ledger=DictLedger()) as dicts:
        fill(store, dicts, 10)
        store.summarize(of_days(0, 10), _PAIRS, None)
        for ledger in (store, dicts):
            ledger.reprice(of_days(4, 5), book(3).price, None, 1000, dry_run=False)
        where = of_days(0, 9)
        assert store.summarize(where, _PAIRS, None) == dicts.summarize(where, _PAIRS, None)
        # The span of which nothing can be read any more is gone.
        assert store.store._writer.open().execute(_LONG).fetchone() == (1,)


def test_what_retention_removed_of_a_day_is_in_no_kept_span(read: list[int]) -> None:
    with Sync(durability="process") as store, Sync(ledger=DictLedger()) as dicts:
        fill(store, dicts, 10)
        store.summarize(of_days(2, 10), _PAIRS, None)
        assert store.store._writer.open().execute(_LONG).fetchone() == (1,)
        for ledger in (store, dicts):
            ledger.set_retention("acme", 30)
            remove(ledger, START + timedelta(days=2, seconds=3))
        where = of_days(3, 10)
        assert store.summarize(where, _PAIRS, None) == dicts.summarize(where, _PAIRS, None)


def test_the_last_spans_of_several_days_are_kept(read: list[int]) -> None:
    with Sync(durability="process") as store, Sync(ledger=DictLedger()) as dicts:
        fill(store, dicts, 60)
        for first in range(0, 60, 10):
            store.summarize(of_days(first, first + 10), _PAIRS, None)
        connection = store.store._writer.open()
        assert connection.execute(_LONG).fetchone() == (day_spans.MAX_LONG,)
        store.summarize(of_days(50, 60), _PAIRS, None)
        assert not [day for day in read[-10:] if day < 50]


class Groupings(NamedTuple):
    """A ledger that keeps sums, beside one in dicts, and by what it does."""

    store: Sync
    dicts: Sync
    kept: Callable[[], list[str]]
    pass_an_hour: Callable[[], None]

    def ask(self, *names: str) -> None:
        for name in names:
            group_by = tuple(name.split())
            assert self.store.summarize(Filter(), group_by, None) == self.dicts.summarize(
                Filter(), group_by, None
            )


@pytest.fixture
def kept() -> Iterator[Groupings]:
    """A ledger that keeps sums by three groupings."""
    with Sync(durability="process") as store, Sync(ledger=DictLedger()) as dicts:
        fill(store, dicts, 10)

        def groupings() -> list[str]:
            rows = store.store._writer.open().execute(
                "SELECT dimensions FROM day_grouping WHERE id IN (SELECT grouping FROM day_span) ORDER BY 1"
            )
            return [text for (text,) in rows]

        def pass_an_hour() -> None:
            store.store._writer.open().execute(AN_HOUR_LATER)

        least = {"MIN_ROWS": 2, "MIN_ROWS_A_GROUP": 1, "MIN_ROWS_OF_LONG": 7}
        with patch.object(day_sums, "MAX_DIMENSIONS", 3), patch.multiple(day_spans, **least):
            yield Groupings(store, dicts, groupings, pass_an_hour)
        connection = store.store._writer.open()
        left = "SELECT count(*) FROM day_sum WHERE span NOT IN (SELECT id FROM day_span)"
        assert connection.execute(left).fetchone() == (0,)
        left = "SELECT count(*) FROM day_group WHERE grouping NOT IN (SELECT id FROM day_grouping)"
        assert connection.execute(left).fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM day_grouping").fetchone() == (3,)


def check_groupings(groupings: Groupings) -> None:
    """What is used stays; of what is not, the last used; and labels that nobody has give way at once."""
    groupings.ask("user", "user model", "user provider")
    groupings.pass_an_hour()
    groupings.ask("user model", "user project")
    assert groupings.kept() == ['["model","user"]', '["project","user"]', '["user"]']
    # Of those that were used in one hour, the newest gives way.
    groupings.ask("user", "user operation")
    assert groupings.kept() == ['["model","user"]', '["operation","user"]', '["user"]']
    groupings.pass_an_hour()
    groupings.ask("user", "label:a", "label:b", "label:c", "label:c model", "label:c user")
    assert groupings.kept() == ['["label:c","user"]', '["model","user"]', '["user"]']
    groupings.pass_an_hour()
    groupings.ask("label:c user", "user status", "user provider")
    assert groupings.kept() == ['["provider","user"]', '["status","user"]', '["user"]']
    groupings.pass_an_hour()
    groupings.ask("user", "user model")
    assert groupings.kept() == ['["model","user"]', '["status","user"]', '["user"]']


def test_what_was_used_longest_ago_gives_way(kept: Groupings) -> None:
    check_groupings(kept)


def test_who_asks_uses_nothing_of_other_organizations() -> None:
    with Sync(durability="process") as store, patch.multiple(day_spans, MIN_ROWS=2, MIN_ROWS_A_GROUP=1):
        store.append([entry(at, organization_id=name) for name in ("acme", "globex") for at in range(5)])
        store.summarize(Filter(), ("user",), None)
        connection = store.store._writer.open()
        connection.execute(AN_HOUR_LATER)
        store.summarize(Filter(organization_ids=("globex",)), ("user",), None)
        used = dict(
            connection.execute(
                "SELECT o.name, g.used FROM day_grouping g JOIN organization o ON o.id = g.org"
            )
        )
        assert used["acme"] < used["globex"]


def test_what_gives_way_is_deleted_some_rows_at_a_time(
    kept: Groupings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_ledger, "_DELETED_AT_ONCE", 4)
    connection = kept.store.store._writer.open()
    changed: list[int] = []
    delete_some = day_sums.delete_some

    def noted(cursor: Any, most: int) -> bool:
        before = connection.total_changes
        is_left = delete_some(cursor, most)
        changed.append(connection.total_changes - before)
        return is_left

    monkeypatch.setattr(day_sums, "delete_some", noted)
    check_groupings(kept)
    # With each of the last a row of another table.
    assert len(changed) > 10
    assert max(changed) <= 8


def test_what_was_not_deleted_to_the_end_is_deleted_by_the_next(
    kept: Groupings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_ledger, "_DELETED_AT_ONCE", 4)
    delete_some, busy = day_sums.delete_some, iter([False, True, False, True])

    def sometimes(cursor: Any, most: int) -> bool:
        if next(busy, False):
            raise sqlite3.DataError("cannot be done now")
        return delete_some(cursor, most)

    monkeypatch.setattr(day_sums, "delete_some", sometimes)
    kept.ask("user", "user model", "user provider", "user project", "user operation", "user status")
    kept.pass_an_hour()
    kept.ask("user", "user")
    assert not faults(kept.store)


def test_no_query_indexes_the_whole_table() -> None:
    """As SQLite does by itself for a condition on a user, whatever the interval."""
    statements: list[str] = []
    with Sync(durability="process") as store:
        store.append([entry(at, user_id=f"user-{at % 3}") for at in range(9)])
        connection = store.store._writer.open()
        connection.set_trace_callback(statements.append)
        for where in FILTERS:
            for group_by in GROUPINGS:
                store.summarize(where, group_by, None)
            store.summarize(where, ("meter",), None)
            store.count(where)
            store.list_usage(where, "timestamp", True, 10, None, None)
        connection.set_trace_callback(None)
        plans = [
            plan[3]
            for statement in {*statements}
            if statement.startswith("SELECT")
            for plan in connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]
    assert any("usage_time" in plan for plan in plans)
    assert not [plan for plan in plans if "AUTOMATIC" in plan]


def check_many_groups(store: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of more groups than one may have is refused, from rows, sums and what is kept of days."""
    monkeypatch.setattr(day_spans, "MIN_ROWS", 2)
    monkeypatch.setattr(day_spans, "MIN_ROWS_A_GROUP", 1)
    store.append([entry(at, user_id=f"user {at}", model_id=f"model {at}") for at in range(8)])
    for group_by in (("user",), ("user",), ("model",), ("meter", "user"), ("user", "model")):
        monkeypatch.setattr(day_spans, "MAX_GROUPS", 7)
        with pytest.raises(RpcError, match="group_by gives more than 7 groups") as refused:
            store.summarize(Filter(), group_by, None)
        assert refused.value.code == StatusCode.INVALID_ARGUMENT
        monkeypatch.setattr(day_spans, "MAX_GROUPS", 8 * 4)  # of meters, four
        assert len(store.summarize(Filter(), group_by, None)) >= 8


def test_an_answer_has_so_many_groups_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sync(durability="process") as store:
        check_many_groups(store, monkeypatch)
