"""Repricing in the store: revisions beside first costs, and sums that follow them."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from msgspec import structs

from llm_cost_ops._gen.messages import (
    CostStatus,
    Rate,
    RateCard,
    RevisionKind,
    SubmitStatus,
    UsageQuality,
    UsageRecord,
)
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.sqlite.integrity import find_faults
from llm_cost_ops.ledger.types import Entry, Filter, Revision
from llm_cost_ops.pricing.cards import card_digest
from llm_cost_ops.pricing.types import Priced, Pricing
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError
from tests.unit.ledger.making import START, TAKEN, Sync, context, entry
from tests.unit.ledger.test_model import ORGS, Kept, StoreBesideModel, few, filters, money, passes
from tests.waiting import in_threads

GOLDEN = Path(__file__).parents[2] / "golden"
CARD = RateCard(
    id="card-2",
    provider="openai",
    model_id="gpt-4o",
    currency="USD",
    rates=[Rate(meter="INPUT", price=Decimal(2), per=1)],
    version=3,
)


def reprice(store: Sync, price: Any, where: Filter | None = None, *, dry_run: bool = False) -> list[Any]:
    return store.reprice(where or Filter(), price, None, 1000, dry_run=dry_run).changes


def at(units: int | None, currency: str = "USD", status: CostStatus | None = None, **fields: Any) -> Any:
    status = status or (CostStatus.UNPRICED if units is None else CostStatus.PRICED)
    by = Pricing(status, currency, **fields)
    return lambda _record: Priced(units, by)


class Seen(NamedTuple):
    """What the model knows of a key that observers use."""

    first: Entry
    usage_id: str
    units: int | None
    counts: Any
    open: bool


observed = st.fixed_dictionaries(
    {"organization_id": st.sampled_from(ORGS), "idempotency_key": st.sampled_from(["o1", "o2"])},
    optional={
        "input_tokens": st.sampled_from([1, 2]),
        "quality": st.sampled_from([UsageQuality.UNKNOWN, UsageQuality.PROVIDER]),
        **{name: few[name] for name in ("user_id", "labels", "tags", "project_id", "model_id")},
    },
)
picks = st.integers(0, 10**6)
corrections = st.fixed_dictionaries(
    {},
    optional={name: few[name] for name in few if name not in ("organization_id", "idempotency_key")},
)


class RepricedBesideModel(StoreBesideModel):
    """The model follows each revision of the records; every other rule then holds as before."""

    def __init__(self) -> None:
        super().__init__()
        self.voided: list[Kept] = []
        self.seen: dict[tuple[str, str], Seen] = {}

    def revision(self, item: Kept, kind: RevisionKind, **fields: Any) -> Revision:
        number = len(self.store.revisions(item.record.organization_id, item.id))
        for place, seen in self.seen.items():
            if seen.usage_id == item.id:
                self.seen[place] = seen._replace(open=False)
        return Revision(
            organization_id=item.record.organization_id,
            usage_id=item.id,
            after=number,
            kind=kind,
            reason="r",
            actor="a",
            made_at=TAKEN,
            **fields,
        )

    @rule(
        pick=st.integers(0, 10**6), fields=corrections, units=money, currency=st.sampled_from(["USD", "EUR"])
    )
    def correct(self, pick: int, fields: dict[str, Any], units: int | None, currency: str) -> None:
        if not self.kept:
            return
        index = pick % len(self.kept)
        item = self.kept[index]
        record = structs.replace(item.record, **fields)
        record.total_tokens = (record.input_tokens or 0) + (record.output_tokens or 0)
        by = Pricing(CostStatus.UNPRICED if units is None else CostStatus.PRICED, currency, "card-1", 1)
        revision = self.revision(item, RevisionKind.CORRECTED, record=record, units=units, by=by)
        assert self.store.revise(revision)
        assert not self.store.revise(revision), "another revision is in force"
        self.kept[index] = item._replace(record=record, units=units, by=by)

    @rule(pick=picks)
    def void(self, pick: int) -> None:
        if not self.kept:
            return
        item = self.kept.pop(pick % len(self.kept))
        by = structs.replace(item.by, status=CostStatus.VOIDED)
        self.voided.append(item._replace(by=by))
        revision = self.revision(item, RevisionKind.VOIDED, record=None, units=item.units, by=by)
        assert self.store.revise(revision)

    @rule(at=st.integers(0, 2), fields=observed, units=st.integers(0, 9))
    def observe(self, at: int, fields: dict[str, Any], units: int) -> None:
        """Whatever comes first: a call counts once, and with counts where anybody has them."""
        unknown = fields.get("quality") == UsageQuality.UNKNOWN
        item = entry(at, units=None if unknown else units, observation=True, **fields)
        record, place = item.record, (item.record.organization_id, item.key)
        [answer] = self.store.append([item])
        seen, counts = self.seen.get(place), None if unknown else record.input_tokens
        if seen is None:
            status, seen = SubmitStatus.CREATED, Seen(item, answer.usage_id, item.units, counts, unknown)
            self.kept.append(Kept(answer.usage_id, record, item.units, item.by))
        elif unknown:
            status = SubmitStatus.DUPLICATE
        elif seen.open:
            status, seen = SubmitStatus.CREATED, seen._replace(units=item.units, counts=counts, open=False)
            [index] = [at for at, each in enumerate(self.kept) if each.id == seen.usage_id]
            old = self.kept[index].record
            names = ("user_id", "labels", "tags", "project_id")
            kept = {name: getattr(record, name) or getattr(old, name) for name in names}
            new = structs.replace(record, timestamp=old.timestamp, **kept)
            self.kept[index] = Kept(seen.usage_id, new, item.units, item.by)
        else:
            first = seen.first.record.input_tokens if seen.counts is None else seen.counts
            status = SubmitStatus.DUPLICATE if counts == first else SubmitStatus.CONFLICT
        self.seen[place] = seen
        assert (answer.status, answer.usage_id, answer.units) == (status, seen.usage_id, seen.units)

    @invariant()
    def voided_ones_are_summed_where_asked_for(self) -> None:
        for group_by in ((), ("user",), ("label:team",)):
            found = self.store.summarize(Filter(statuses=("voided",)), group_by, None)
            assert sum(s.units for _, _, s in found) == sum(item.units or 0 for item in self.voided)
            counts = [item.record.request_count or 1 for item in self.voided]
            assert sum(s.requests for _, _, s in found) == sum(counts)

    def everything(self) -> list[Kept]:
        return [*self.kept, *self.voided]

    @rule(where=filters, salt=st.integers(0, 3), dry_run=st.booleans())
    def reprice(self, where: Filter, salt: int, dry_run: bool) -> None:
        def price(record: UsageRecord) -> Priced:
            assert record.timestamp is not None
            kind = (len(record.model_id) + (record.input_tokens or 0) + salt) % 4
            units = (
                None if kind == 3 else (record.input_tokens or 0) * 10**6 * kind + (record.output_tokens or 0)
            )
            status = CostStatus.UNPRICED if kind == 3 else CostStatus.ESTIMATED
            return Priced(units, Pricing(status, "EUR" if kind == 2 else "USD", card_id=f"card-{kind}"))

        changes = reprice(self.store, price, where, dry_run=dry_run)
        changed = 0
        for index, item in enumerate(self.kept):
            new = price(item.record)
            before = (item.by.status, item.by.currency, item.units)
            same = (new.by.status, new.by.currency, new.units) == before
            if not passes(item.record, where) or same:
                continue
            changed += 1
            if not dry_run:
                self.kept[index] = item._replace(units=new.units, by=new.by)
        assert len(changes) == changed
        if not dry_run:
            assert reprice(self.store, price, where) == []

    @rule(status=st.sampled_from(list(CostStatus)))
    def by_status(self, status: CostStatus) -> None:
        where = Filter(statuses=(status.value,))
        wanted = [item.id for item in self.everything() if item.by.status == status]
        assert self.store.count(where) == len(wanted)
        found, _ = self.store.list_usage(where, "ingested_at", False, 1000, None, None)
        assert sorted(record.id for record in found) == sorted(wanted)

    @rule()
    def every_cost(self) -> None:
        for item in [*self.kept[:10], *self.voided[:5]]:
            found = self.store.get_cost(item.id, item.record.organization_id)
            expected = (item.by.status, item.by.currency, item.units)
            assert (found.status, found.currency, found.units) == expected


class RepricedFileBesideModel(RepricedBesideModel):
    on_file = True


RepricedBesideModel.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
RepricedFileBesideModel.TestCase.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
TestRepricedBesideModel = RepricedBesideModel.TestCase
TestRepricedFileBesideModel = RepricedFileBesideModel.TestCase


def test_the_first_cost_stays_and_is_the_answer_to_its_key() -> None:
    with Sync() as store:
        [first] = store.append([entry(units=5, idempotency_key="k")])
        for units, number in ((7, 2), (None, 3), (9, 4)):
            assert len(reprice(store, at(units))) == 1
            found = store.get_cost(first.usage_id)
            assert (found.units, found.revision) == (units, number)
        connection = store.store._writer.open()
        assert connection.execute("SELECT cost_micros, cost_picos FROM usage").fetchall() == [(0, 5)]
        rows = connection.execute(
            "SELECT number, cost_micros, cost_picos FROM revision ORDER BY number"
        ).fetchall()
        assert rows == [(2, 0, 7), (3, None, None), (4, 0, 9)]
        [again] = store.append([entry(units=5, idempotency_key="k")])
        assert (again.status, again.units) == (SubmitStatus.DUPLICATE, 5)


def test_a_repricing_is_whole_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sync() as store:
        store.append([entry(n, units=5) for n in range(10)])
        monkeypatch.setattr("llm_cost_ops.ledger.sqlite.sums._ADD", "this is no SQL")
        with pytest.raises(RpcError) as caught:
            reprice(store, at(7))
        assert "syntax" in caught.value.local_detail
        monkeypatch.undo()
        assert (
            store.get_cost(store.list_usage(Filter(), "timestamp", True, 1, None, None)[0][0].id).units == 5
        )
        assert [s.units for _, _, s in store.summarize(Filter(), ("user",), None)] == [50]
        assert len(reprice(store, at(7))) == 10
        for group_by in ((), ("user",), ("provider",), ("label:x",)):
            assert [s.units for _, _, s in store.summarize(Filter(), group_by, None)] == [70]


def test_sums_of_nothing_are_left_out() -> None:
    with Sync() as store:
        store.append([entry(units=5)])
        reprice(store, at(7, "EUR"))
        for group_by in ((), ("status",), ("provider",)):
            assert [s.currency for _, _, s in store.summarize(Filter(), group_by, None)] == ["EUR"]


def test_what_costs_too_much_is_refused_and_a_dry_run_says_so_too() -> None:
    with Sync() as store:
        store.append([entry(units=5)])
        for dry_run in (True, False):
            with pytest.raises(Exception, match="must cost at most"):
                reprice(store, at(10**22), dry_run=dry_run)
        assert (
            store.get_cost(store.list_usage(Filter(), "timestamp", True, 1, None, None)[0][0].id).units == 5
        )


def test_each_card_is_kept_once() -> None:
    catalog = structs.replace(CARD, origin="catalog", aliases=["a"])
    assert card_digest(catalog) == card_digest(structs.replace(catalog, aliases=["b"]))
    assert card_digest(CARD) != card_digest(structs.replace(CARD, version=4))
    assert card_digest(CARD) != card_digest(structs.replace(CARD, aliases=["other"]))
    with Sync() as store:
        for n in range(4):
            by = Pricing(CostStatus.PRICED, "USD", "card-2", 3, card=CARD, digest=card_digest(CARD))
            [done] = store.append([structs.replace(entry(n), by=by)])
        found = store.get_cost(done.usage_id)
        assert (found.card, found.digest, found.card_id) == (CARD, card_digest(CARD), "card-2")
        assert card_digest(found.card) == found.digest
        connection = store.store._writer.open()
        assert connection.execute("SELECT count(*) FROM kept_card").fetchone() == (1,)


def test_cards_that_are_new_are_noticed_inside_the_transaction(tmp_path: Path) -> None:
    with Sync() as store:
        revision = store.cards_revision()
        store.add_card(CARD, "", b"1" * 16)
        for count in (1, 2):
            assert drive(store.store.append([entry() for _ in range(count)], context(), revision)) is None
    for group in (False, True):
        path = tmp_path / f"{group}.db"
        with Sync(path, group_commit=group) as store, Sync(path) as other:
            revision = store.cards_revision()
            append = store.store.append
            assert len(drive(append([entry()], context(), revision))) == 1
            other.add_card(CARD, "", b"1" * 16)
            for count in (1, 2):
                assert drive(append([entry() for _ in range(count)], context(), revision)) is None
            assert store.count(Filter()) == 1
            assert len(drive(append([entry()], context(), store.cards_revision()))) == 1


@pytest.mark.parametrize("group", [False, True])
def test_writers_wait_for_a_chunk_at_max_known(tmp_path: Path, group: bool) -> None:
    path = str(tmp_path / "costs.db")
    with Sync(path, durability="process", group_commit=group) as store:
        for n in range(8):
            store.append([entry(n * 1000 + i, units=5) for i in range(1000)])
        waits: list[float] = []
        done = threading.Event()

        def write() -> None:
            while not done.is_set():
                started = time.monotonic()
                drive(store.store.append([entry(units=5)], context()))
                waits.append(time.monotonic() - started)

        thread = threading.Thread(target=write)
        thread.start()
        after, changed = None, 0
        while changed < 8000:
            step = store.reprice(Filter(end=START.replace(year=2027)), at(7), after, 250, dry_run=False)
            changed += len(step.changes)
            after = step.position
            assert after is not None
        done.set()
        thread.join()
        assert changed >= 8000
        # Between two chunks at the latest; all of them take longer.
        assert len(waits) > 10
        store.reprice(Filter(), at(7), None, 30_000, dry_run=False)
        count = store.count(Filter())
        for group_by in ((), ("user",), ("label:x",)):
            [(_, _, sums)] = store.summarize(Filter(), group_by, None)
            assert (sums.units, sums.requests) == (7 * count, count)


def test_two_processes_reprice_the_same(tmp_path: Path) -> None:
    path = str(tmp_path / "costs.db")
    with Sync(path) as one, Sync(path) as two:
        one.append([entry(n, units=5) for n in range(500)])
        stores: list[SqliteLedger] = [one.store, two.store]
        found: list[int] = []

        def work(store: SqliteLedger) -> None:
            after = None
            while True:
                step = drive(store.reprice(Filter(), at(7), after, 50, context(), dry_run=False))
                found.append(len(step.changes))
                after = step.position
                if after is None:
                    break

        in_threads([partial(work, store) for store in stores])
        assert sum(found) == 500, "each record changed once"
        assert [s.units for _, _, s in one.summarize(Filter(), (), None)] == [3500]


def test_an_entry_without_a_card_keeps_none() -> None:
    with Sync() as store:
        [done] = store.append([entry(units=None)])
        found = store.get_cost(done.usage_id)
        assert (found.card, found.units, found.fallbacks) == (None, None, ("region",))
        assert store.get_cost("no-such-id") is None


@pytest.mark.parametrize("group", [False, True])
def test_observers_that_race_make_one_record_with_counts(tmp_path: Path, group: bool) -> None:
    path = str(tmp_path / "costs.db")
    unknown = {"observation": True, "quality": UsageQuality.UNKNOWN, "input_tokens": None}
    with (
        Sync(path, durability="process", group_commit=group) as one,
        Sync(path, durability="process", group_commit=group) as two,
    ):
        # Series are known, so that appending is a single statement.
        one.append([entry(units=None, **unknown)])
        two.append([entry(units=5, observation=True)])
        for n in range(40):
            key = f"k{n}"
            first = entry(units=None, idempotency_key=key, **unknown)
            counted = entry(units=5, idempotency_key=key, observation=True)
            found: list[Any] = []

            def append(store: Sync, item: Entry, found: list[Any] = found) -> None:
                found.extend(store.append([item]))

            calls = [(one, first), (two, counted), (two, first), (one, counted)]
            in_threads([partial(append, *call) for call in calls])
            assert len({answer.usage_id for answer in found}) == 1
            assert {answer.status for answer in found} == {SubmitStatus.CREATED, SubmitStatus.DUPLICATE}
            kept = one.get_cost(found[0].usage_id)
            assert (kept.units, kept.record.input_tokens) == (5, 100)
        [(_, _, sums)] = one.summarize(Filter(), (), None)
        assert (sums.requests, sums.units, sums.unpriced_requests) == (42, 41 * 5, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert list(find_faults(connection)) == []


def test_a_file_is_sound_after_corrections(tmp_path: Path) -> None:
    path = str(tmp_path / "costs.db")
    with Sync(path) as store:
        done = store.append([entry(n, units=5, user_id="u", idempotency_key=f"k{n}") for n in range(300)])
        for n, answer in enumerate(done[::3]):
            record = None if n % 2 else structs.replace(entry(0).record, user_id="v", input_tokens=n)
            status = CostStatus.PRICED if record else CostStatus.VOIDED
            revision = Revision(
                organization_id="acme",
                usage_id=answer.usage_id,
                after=1,
                kind=RevisionKind.CORRECTED if record else RevisionKind.VOIDED,
                record=record,
                units=7 if record else 5,
                by=Pricing(status, "USD"),
                reason="r",
                actor="",
                made_at=TAKEN,
            )
            assert store.revise(revision)
        store.append([entry(n, units=5) for n in range(300)])
        found = {keys[0]: s.units for keys, _, s in store.summarize(Filter(), ("user",), None)}
        assert found == {"": 1500, "u": 1000, "v": 350}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert list(find_faults(connection)) == []


def test_a_correction_is_whole_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sync() as store:
        first = entry(units=5, idempotency_key="k", user_id="u")
        [done] = store.append([first])
        record = structs.replace(first.record, input_tokens=7, user_id="v")
        revision = Revision(
            organization_id="acme",
            usage_id=done.usage_id,
            after=1,
            kind=RevisionKind.CORRECTED,
            record=record,
            units=7,
            by=Pricing(CostStatus.PRICED, "USD"),
            reason="r",
            actor="",
            made_at=TAKEN,
        )
        monkeypatch.setattr("llm_cost_ops.ledger.sqlite.sums._ADD", "this is no SQL")
        with pytest.raises(RpcError):
            store.revise(revision)
        monkeypatch.undo()
        assert store.get_cost(done.usage_id).record.input_tokens == 100
        assert len(store.revisions("acme", done.usage_id)) == 1
        assert [s.units for _, _, s in store.summarize(Filter(user_ids=("u",)), (), None)] == [5]
        assert store.revise(revision)
        assert [s.units for _, _, s in store.summarize(Filter(user_ids=("v",)), (), None)] == [7]
