"""Batches: entries are handed over one by one, and written together."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_cost_ops._gen.messages import CostStatus, RevisionKind, SubmitStatus
from llm_cost_ops.ledger import Batch
from llm_cost_ops.ledger.encoding import usage_id
from llm_cost_ops.ledger.sqlite import integrity
from llm_cost_ops.ledger.sqlite import sums as rollups
from llm_cost_ops.ledger.sqlite.sums import FOLD_EVERY
from llm_cost_ops.ledger.types import Appended, Entry, Filter, Revision
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rules.limits import MAX_COUNT
from tests.dict_ledger import DictLedger
from tests.unit.ledger.making import START, TAKEN, Sync, context, entry, pricing

CALL = "01a21e1d-6570-7f7b-ba9f-2b0e7b85e350"


@pytest.fixture(params=["memory", "file", "dict"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sync]:
    ledger = DictLedger() if request.param == "dict" else None
    with Sync(tmp_path / "costs.db" if request.param == "file" else None, ledger=ledger) as made:
        yield made


def add(batch: Batch, sent: Entry, key: str | int) -> str:
    return batch.add(sent.record, key, sent.ingested_at, sent.units, sent.by)


async def _written(batch: Batch, revision: int | None) -> dict[int, Appended] | None:
    return await batch.write(context(), revision)


def write(batch: Batch, revision: int | None = None) -> dict[int, Appended] | None:
    return drive(_written(batch, revision))


def ids_of(store: Sync, batch: Batch, *keys: str | int) -> list[str]:
    """The ids of entries with these keys, whoever says them."""
    promised = [add(batch, entry(n), key) for n, key in enumerate(keys)]
    settled = write(batch) or {}
    ids = [settled[at].usage_id if at in settled else made for at, made in enumerate(promised)]
    assert [store.get_cost(made).record.timestamp for made in ids] == [
        START + timedelta(seconds=n) for n in range(len(keys))
    ]
    return ids


@pytest.mark.parametrize("call", [CALL, "batch of monday", CALL.upper()])
def test_a_number_is_a_key_behind_that_of_the_batch(store: Sync, call: str) -> None:
    ids = ids_of(store, store.store.batch(call), 0, 12, "own", 1)
    assert ids == [usage_id("acme", key)[0] for key in (f"{call}:0", f"{call}:12", "own", f"{call}:1")]
    again = store.append([entry(0, idempotency_key=f"{call}:0"), entry(3, idempotency_key=f"{call}:1")])
    assert [done.status for done in again] == [SubmitStatus.DUPLICATE] * 2


def test_numbers_are_keys_of_their_organization() -> None:
    with Sync() as store:
        batch = store.store.batch(CALL)
        names = ["acme", "globex", "acme", "initech", "globex"]
        ids = [add(batch, entry(organization_id=name), n) for n, name in enumerate(names)]
        assert write(batch) == {}
        assert ids == [usage_id(name, f"{CALL}:{n}")[0] for n, name in enumerate(names)]


@pytest.mark.parametrize("path", [None, "costs.db"])
def test_what_is_refused_leaves_the_batch_as_it_was(path: str | None, tmp_path: Path) -> None:
    with Sync(path and tmp_path / path) as store:
        batch = store.store.batch(CALL)
        add(batch, entry(), 0)
        with pytest.raises(RpcError) as caught:
            add(batch, entry(input_tokens=MAX_COUNT + 1), 1)
        assert caught.value.code is StatusCode.INVALID_ARGUMENT
        add(batch, entry(), 2)
        assert write(batch) == {}
        [(_, _, sums)] = store.summarize(Filter(), (), None)
        assert (sums.requests, sums.input_tokens) == (2, 200)


def test_nothing_is_written_where_the_cards_are_others(store: Sync) -> None:
    batch = store.store.batch(CALL)
    add(batch, entry(), 0)
    assert write(batch, revision=7) is None
    assert store.count(Filter()) == 0
    assert write(batch, revision=0) is not None
    assert store.count(Filter()) == 1


def test_an_empty_batch_writes_nothing(store: Sync) -> None:
    assert write(store.store.batch()) == {}


@pytest.mark.parametrize("at", [0, 1, 63, 64, 65, 120])
def test_one_key_that_was_used_harms_no_neighbour(store: Sync, at: int) -> None:
    """Wherever it stands in a statement of many rows, or behind them."""
    store.append([entry(at, idempotency_key=f"{CALL}:{at}")])
    batch = store.store.batch(CALL)
    for n in range(121):
        add(batch, entry(n), n)
    settled = write(batch) or {}
    others = {n: done.status for n, done in settled.items() if done.status != SubmitStatus.CREATED}
    assert others == {at: SubmitStatus.DUPLICATE}
    [(_, _, sums)] = store.summarize(Filter(), (), None)
    assert sums.requests == store.count(Filter()) == 121


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 150)), max_size=6),
    st.sampled_from([0, 1, 5, 300]),
)
@settings(max_examples=40, deadline=None)
def test_keys_that_were_used_are_told_wherever_they_stand(runs: list[tuple[bool, int]], fold: int) -> None:
    used = [was_used for was_used, count in runs for _ in range(count)]
    with Sync(durability="process") as store, patch.object(rollups, "FOLD_EVERY", fold or FOLD_EVERY):
        entries = [entry(n, idempotency_key=f"{n}") for n in range(len(used))]
        store.append([each for each, was_used in zip(entries, used, strict=True) if was_used])
        answers = [done.status for done in store.append(entries)]
        expected = [SubmitStatus.DUPLICATE if was_used else SubmitStatus.CREATED for was_used in used]
        assert answers == expected
        assert store.count(Filter()) == len(used)
        assert list(integrity.find_faults(store.store._writer.open())) == []


def test_a_batch_is_written_once_though_its_first_transaction_is_rolled_back(tmp_path: Path) -> None:
    """Rows were made before, with the ids of organizations and series that a rollback took back."""

    class Busy(sqlite3.Cursor):
        faults = 1

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and Busy.faults:
                Busy.faults -= 1
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error
            return super().execute(sql, *values)

    with Sync(tmp_path / "costs.db") as store:
        store.append([entry()])
        writer = store.store._writer
        writer._cursor = writer.open().cursor(Busy)
        batch = store.store.batch(CALL)
        for n in range(200):
            add(batch, entry(n, organization_id=f"o{n % 3}", model_id=f"m{n % 2}"), n)
        assert write(batch) == {}
        assert Busy.faults == 0
        found = store.summarize(Filter(), ("organization", "model"), None)
        assert sorted(sums.requests for _, _, sums in found) == [1, 33, 33, 33, 33, 34, 34]
        assert list(integrity.find_faults(writer.open())) == []


ENTRIES = st.builds(
    entry,
    st.integers(-2_000_000_000, 100_000),
    units=st.none() | st.integers(0, 10**18),
    model_id=st.sampled_from(["a", "b"]),
    currency=st.sampled_from(["USD", "EUR"]),
    output_tokens=st.none() | st.integers(0, MAX_COUNT),
    cached_tokens=st.integers(0, 100),
    request_count=st.none() | st.integers(1, 9),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(ENTRIES, st.integers(1, 200)), min_size=1, max_size=5))
def test_sums_of_batches_are_those_of_their_rows(batches: list[tuple[Entry, int]]) -> None:
    """They are added up as rows are made, and not read back."""
    with Sync() as store:
        for sent, size in batches:
            store.append([sent] * size)
        connection = store.store._writer.open()
        assert list(integrity.find_faults(connection)) == []
        added = sum(size for _, size in batches)
        found = store.summarize(Filter(), ("model",), None)
        assert sum(sums.requests for _, _, sums in found) == sum(
            (sent.record.request_count or 1) * size for sent, size in batches
        )
        assert sum(sums.units for _, _, sums in found) == sum((e.units or 0) * size for e, size in batches)
        assert store.count(Filter()) == added


def test_rows_that_wait_for_their_sums_are_added_with_a_batch() -> None:
    with Sync() as store:
        for n in range(100):
            store.append([entry(n, units=1)])
        store.append([entry(n, units=1) for n in range(FOLD_EVERY)])
        count = 100 + FOLD_EVERY
        writer = store.store._writer.open()
        assert writer.execute("SELECT seq FROM rollup_watermark").fetchone() == (count,)
        assert list(integrity.find_faults(writer)) == []
        [(_, _, sums)] = store.summarize(Filter(), (), None)
        assert (sums.requests, sums.units) == (count, count)


def test_rows_of_a_batch_are_those_of_single_records(tmp_path: Path) -> None:
    """Byte for byte, also what has no value."""
    sent = [
        entry(1, idempotency_key="text", user_id="u", tags=["a", "a", "b"], labels={"x": "y"}),
        entry(2, idempotency_key=CALL),
        entry(3, idempotency_key=f"{CALL}:7", units=None),
        entry(4, idempotency_key="more", units=0, user_id="", input_tokens=None),
    ]
    found = []
    for name, at_once in (("singly", 1), ("together", len(sent))):
        with Sync(tmp_path / name) as store:
            for at in range(0, len(sent), at_once):
                store.append(sent[at : at + at_once])
            found.append(store.store._writer.open().execute("SELECT * FROM usage ORDER BY seq").fetchall())
    assert found[0] == found[1]
    assert [[type(value) for value in row] for row in found[0]] == [
        [type(value) for value in row] for row in found[1]
    ]
    assert [row[12:17] for row in found[1]][1:] == [
        (1500, 0, None, None, None),
        (None,) * 5,
        (0, 0, None, None, None),
    ]


WRITERS = st.sampled_from(["batch"] * 4 + ["theirs", "single", "revised", "undone", "used"])


@settings(max_examples=40, deadline=None)
@given(
    writes=st.lists(st.tuples(WRITERS, st.integers(2, 7)), min_size=3, max_size=25),
    every=st.sampled_from([5, 8, 32]),
)
@example([("batch", 2), ("undone", 2), ("theirs", 2), ("batch", 3)], 8)
def test_sums_hold_whoever_writes_between_batches(writes: list[tuple[str, int]], every: int) -> None:
    """Another process, single records, one that is corrected, a batch that is undone, one with a used key."""

    def undo(*arguments: Any) -> None:
        fold_added(*arguments)
        raise RpcError(StatusCode.ABORTED, "not this one")

    fold_added = rollups.fold_added
    with (
        patch.object(rollups, "FOLD_EVERY", every),
        TemporaryDirectory() as folder,
        Sync(f"{folder}/costs.db", durability="process") as ours,
        Sync(f"{folder}/costs.db", durability="process") as theirs,
    ):
        [newest] = ours.append([entry(idempotency_key="used")])
        for n, (what, size) in enumerate(writes):
            batch = [entry(n * 100 + at, units=n * 10**6) for at in range(size)]
            if what == "single":
                ours.append(batch[:1])
            elif what == "theirs":
                theirs.append(batch)
            elif what == "used":
                ours.append([*batch, entry(idempotency_key="used")])
            elif what == "undone":
                with patch.object(rollups, "fold_added", undo), pytest.raises(RpcError):
                    ours.append(batch)
            elif what == "revised":
                sent = entry(units=7, output_tokens=n)
                revision = Revision(
                    organization_id="acme",
                    usage_id=newest.usage_id,
                    after=len(ours.revisions("acme", newest.usage_id)),
                    kind=RevisionKind.CORRECTED,
                    record=sent.record,
                    units=sent.units,
                    by=sent.by,
                    reason="",
                    actor="",
                    made_at=TAKEN,
                )
                assert theirs.revise(revision)
            else:
                newest = ours.append(batch)[-1]
        assert list(integrity.find_faults(ours.store._writer.open())) == []


def test_entries_that_are_alike_share_what_a_batch_made_of_them() -> None:
    """Priced alike or not: the ids of a row follow from both."""
    with Sync() as store:
        batch, alike = store.store.batch(CALL), {}
        for n, by in enumerate([pricing(), pricing(CostStatus.UNPRICED), pricing()]):
            sent = entry(n, units=None if by.status == CostStatus.UNPRICED else 5)
            batch.add(sent.record, n, sent.ingested_at, sent.units, by, alike)
        assert write(batch) == {}
        found = store.summarize(Filter(), ("status",), None)
        assert {keys: sums.requests for keys, _, sums in found} == {("priced",): 2, ("unpriced",): 1}
