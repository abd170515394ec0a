"""Kept sums of days beside a ledger in dicts: whatever is kept, late or priced anew, answers are the same."""

from __future__ import annotations

import random
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
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
from llm_cost_ops.ledger.sqlite import day_sums
from llm_cost_ops.ledger.sqlite import ledger as sqlite_ledger
from llm_cost_ops.ledger.sqlite import sums as rollups
from llm_cost_ops.ledger.sqlite.ledger import SqliteSums
from llm_cost_ops.ledger.types import Entry, Filter, Revision
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rules.times import buckets_between
from tests.dict_ledger import DictLedger
from tests.unit.ledger.making import START, TAKEN, Sync

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
    """Prices by a card whose prices follow from a number; model c has no price."""
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
                Rate(meter="WEB_SEARCHES", price=Decimal("0.01"), per=1),
            ],
        )
        for model, currency in (("a", "USD"), ("b", "EUR"))
    ]
    return PriceBook(cards=cards)


def some(chance: random.Random) -> dict[str, Any]:
    """The fields of a record: many of few days, and some of any moment."""
    moment = START + timedelta(
        days=chance.randrange(3), microseconds=chance.choice([0, 1, 10**9, 864 * 10**8 - 1])
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


def entry(chance: random.Random, prices: PriceBook) -> Entry:
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


def no_card(*_: object) -> None:
    return None


@pytest.mark.parametrize("seed", range(16))
def test_answers_are_those_of_a_ledger_in_dicts(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes late, is priced anew, cannot be kept or is forgotten in between."""
    chance = random.Random(seed)
    monkeypatch.setattr(day_sums, "MIN_ROWS", chance.choice([1, 2, 5]))
    monkeypatch.setattr(day_sums, "MIN_ROWS_A_GROUP", chance.choice([0, 0, 1]))
    monkeypatch.setattr(rollups, "FOLD_EVERY", chance.choice([1, 3, 128]))
    kept, prices = 0, book(1)
    path = tmp_path / "costs.db" if seed % 2 else None
    with Sync(path, durability="process") as store, Sync(ledger=DictLedger()) as dicts:
        for _ in range(100):
            action = chance.choice(["append", "reprice", "revise", "forget", *["ask"] * 7])
            if action == "append":
                batch = [entry(chance, prices) for _ in range(chance.randrange(1, 9))]
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
                kept += store.store._writer.open().execute("SELECT count(*) FROM day_sum").fetchone()[0]
    assert kept > 100


def revise(store: Sync, dicts: Sync, chance: random.Random, prices: PriceBook) -> None:
    """Correct or void one of the records."""
    records, _ = dicts.list_usage(Filter(), "ingested_at", False, 1000, None, None)
    if not records:
        return
    chosen = chance.choice(records)
    found = dicts.get_cost(chosen.id, chosen.organization_id)
    by, units, record = Pricing(CostStatus.VOIDED, found.currency), found.units, None
    if chance.random() < 0.7:
        made = entry(chance, prices)
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
    name, asked = "summarize", (where, group_by, buckets)
    if chance.random() < 0.3:
        name, asked = "summarize_meters", (where, (*group_by, "meter"), buckets, no_card)
    # As where somebody else holds the file: what is kept stays as old as it is.
    with nullcontext() if chance.random() < 0.5 else patch.object(SqliteSums, "_fold", nothing):
        found = getattr(store, name)(*asked)
    assert found == getattr(dicts, name)(*asked)
    assert store.count(where) == dicts.count(where)


def test_days_with_as_many_groups_as_records_are_found_out_one_query_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A first query reads the rows of some days twice, not of all, and writes no group of them."""
    monkeypatch.setattr(day_sums, "MIN_ROWS", 2)
    monkeypatch.setattr(sqlite_ledger, "_FOLD_RECORDS", 1)
    prices, days = book(1), 3
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
            states = connection.execute("SELECT seq FROM day_state").fetchall()
            assert states == [(None,)] * tried
            assert connection.execute("SELECT count(*) FROM day_group").fetchone() == (0,)
