from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import msgspec
import pytest

from llm_cost_ops._gen.messages import CostStatus, ModalityTokens, Operation, SubmitStatus
from llm_cost_ops.ledger import encoding
from llm_cost_ops.ledger.encoding import as_key, as_text, usage_id
from llm_cost_ops.ledger.sqlite import append, integrity, obvious_faults, rows, sums
from llm_cost_ops.ledger.sqlite.sums import FOLD_EVERY
from llm_cost_ops.ledger.types import Entry, Filter
from llm_cost_ops.pricing.money import UNITS
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST, MAX_SUM
from llm_cost_ops.wire.unknown import Unknown
from tests.unit.ledger.making import TAKEN, Sync, entry, pricing

CREATED, DUPLICATE, CONFLICT = SubmitStatus.CREATED, SubmitStatus.DUPLICATE, SubmitStatus.CONFLICT


@pytest.fixture(params=["memory", "file", "group"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sync]:
    path = None if request.param == "memory" else tmp_path / "costs.db"
    with Sync(path, durability="disk", group_commit=request.param == "group") as made:
        yield made


def statuses(store: Sync, *entries: Entry) -> list[SubmitStatus]:
    return [done.status for done in store.append(list(entries))]


def requests(store: Sync, **where: object) -> int:
    return sum(sums.requests for _, _, sums in store.summarize(Filter(**where), (), None))


def test_a_key_counts_once(store: Sync) -> None:
    key = uuid7()
    [created] = store.append([entry(idempotency_key=key)])
    assert (created.status, created.units) == (CREATED, 1_500_000_000)
    [again] = store.append([entry(idempotency_key=key, units=7)])
    assert again.status == DUPLICATE
    assert msgspec.structs.replace(again, status=CREATED) == created  # the first answer again
    [other] = store.append([entry(idempotency_key=key, input_tokens=7)])
    assert (other.status, other.usage_id) == (CONFLICT, created.usage_id)
    assert statuses(store, entry(idempotency_key=key, organization_id="other")) == [CREATED]
    assert requests(store) == 2
    assert store.count(Filter()) == 2


def test_a_time_that_the_store_filled_in_is_the_same_content(store: Sync) -> None:
    def of(key: str, timestamp: datetime | None, **fields: object) -> Entry:
        made = entry(TAKEN, idempotency_key=key, **fields)
        made.record.timestamp = timestamp
        return made

    assert statuses(store, of("without", None), of("with", TAKEN)) == [CREATED] * 2
    assert statuses(store, of("without", TAKEN), of("with", None)) == [DUPLICATE] * 2
    later = TAKEN + timedelta(microseconds=1)
    assert statuses(store, of("without", later), of("with", later)) == [CONFLICT] * 2
    assert statuses(store, of("without", TAKEN, user_id="u"), of("with", None, tags=["t"])) == [CONFLICT] * 2
    records, _ = store.list_usage(Filter(), "ingested_at", False, 10, None, None)
    assert [record.timestamp for record in records] == [TAKEN] * 2


def folded(store: Sync) -> int:
    return store.store._writer.open().execute("SELECT seq FROM rollup_watermark").fetchone()[0]


def test_sums_are_brought_up_to_date_now_and_then(store: Sync) -> None:
    for n in range(FOLD_EVERY + 20):
        store.append([entry(n)])
        assert folded(store) == (n + 1) // FOLD_EVERY * FOLD_EVERY
    store.append([entry() for _ in range(FOLD_EVERY - 30)])
    assert folded(store) == FOLD_EVERY
    store.append([entry() for _ in range(20)])
    assert folded(store) == requests(store) == 2 * FOLD_EVERY + 10


@pytest.mark.parametrize("fault", ["BEGIN IMMEDIATE", "COMMIT"])
def test_a_record_is_acknowledged_though_its_sums_have_to_wait(fault: str) -> None:
    class Busy(sqlite3.Cursor):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if sql == fault:
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error
            return super().execute(sql, *values)

    with Sync() as store:
        store.append([entry() for _ in range(FOLD_EVERY - 1)])
        writer = store.store._writer
        plain, writer._cursor = writer._cursor, writer._connection.cursor(Busy)
        assert statuses(store, entry(idempotency_key="k")) == [CREATED]
        writer._cursor = plain
        assert (folded(store), requests(store)) == (0, FOLD_EVERY)
        assert statuses(store, entry(idempotency_key="k")) == [DUPLICATE]
        store.append([entry() for _ in range(FOLD_EVERY)])
        assert folded(store) == requests(store) == 2 * FOLD_EVERY


@pytest.mark.parametrize("many", [1, 2, FOLD_EVERY])
def test_an_interrupt_behind_any_statement_leaves_no_transaction_open(tmp_path: Path, many: int) -> None:
    """What is acknowledged next would be in it, and gone with it."""
    interrupted = []

    class Interrupted(sqlite3.Cursor):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            super().execute(sql, *values)
            if sql not in interrupted:
                interrupted.append(sql)
                raise KeyboardInterrupt
            return self

    path, sent = tmp_path / "costs.db", 0
    with Sync(path) as store:
        store.append([entry()])
        writer = store.store._writer
        while True:
            writer._cursor = writer._connection.cursor(Interrupted)
            sent += 1
            try:
                store.append([entry(idempotency_key=f"{sent}-{at}") for at in range(many)])
            except KeyboardInterrupt:
                assert not writer._connection.in_transaction
                continue
            break
        assert interrupted
        writer._cursor = None
        assert statuses(store, entry(idempotency_key="kept")) == [CREATED]
    with Sync(path) as again:
        assert statuses(again, entry(idempotency_key="kept")) == [DUPLICATE]


def test_an_interrupted_rollback_is_done_by_the_next_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "costs.db"
    with Sync(path) as store:
        store.append([entry()])
        writer = store.store._writer
        with (
            patch.object(sums, "fold_added", interrupted),
            patch.object(writer.database, "notice", interrupted),
            pytest.raises(KeyboardInterrupt),
        ):
            store.append([entry(model_id="new"), entry()])
        assert writer._connection.in_transaction
        assert statuses(store, entry(idempotency_key="kept")) == [CREATED]
        assert statuses(store, entry(idempotency_key="new", model_id="new"), entry()) == [CREATED] * 2
    with Sync(path) as again:
        assert statuses(again, entry(idempotency_key="kept")) == [DUPLICATE]
        assert requests(again) == 4


def test_the_order_of_maps_and_repeated_tags_are_no_content(store: Sync) -> None:
    one = {"labels": {"a": "1", "b": "2"}, "meters": {"x": 1, "y": 2}, "metadata": {"p": {"q": 1, "r": 2}}}
    other = {"labels": {"b": "2", "a": "1"}, "meters": {"y": 2, "x": 1}, "metadata": {"p": {"r": 2, "q": 1}}}
    for seconds, fields, expected in ((0, one, CREATED), (1, other, DUPLICATE)):
        sent = entry(idempotency_key="k", tags=["t", "t"], **fields)
        sent.record.timestamp = None
        sent.ingested_at += timedelta(seconds=seconds)
        assert statuses(store, sent) == [expected]
    [(keys, _, sums)] = store.summarize(Filter(), ("tag",), None)
    assert (keys, sums.requests) == (("t",), 1)


def test_a_batch_is_itemised(store: Sync) -> None:
    old, new = uuid7(), uuid7()
    store.append([entry(idempotency_key=old)])
    batch = [
        entry(idempotency_key=old),
        entry(idempotency_key=new, user_id="u"),
        entry(idempotency_key=old, input_tokens=7),
        entry(idempotency_key=new, user_id="u"),
        entry(idempotency_key=new, user_id="v"),
        entry(),
        entry(),
    ]
    found = store.append(batch)
    assert [done.status for done in found] == [
        DUPLICATE,
        CREATED,
        CONFLICT,
        DUPLICATE,
        CONFLICT,
        CREATED,
        CREATED,
    ]
    assert found[1].usage_id == found[3].usage_id == found[4].usage_id
    assert len({done.usage_id for done in found}) == 4
    assert requests(store) == 4
    assert store.append([]) == []


def test_keys_that_differ_in_spelling_are_different(store: Sync) -> None:
    key = uuid7()
    spellings = [
        key,
        key.upper(),
        key.replace("-", ""),
        f"{{{key}}}",
        f" {key}",
        key.replace("-", " "),
        "ключ",
        "'; --",
    ]
    assert set(statuses(store, *(entry(idempotency_key=k) for k in spellings))) == {CREATED}
    assert set(statuses(store, *(entry(idempotency_key=k) for k in spellings))) == {DUPLICATE}


@pytest.mark.parametrize(
    "text",
    [
        "01a21d7c-a262-76e1-b7bc-3012661e3a3d",
        "01A21D7C-A262-76E1-B7BC-3012661E3A3D",
        "",
        "x" * 36,
        "-" * 36,
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_keys_come_back_as_they_were(text: str) -> None:
    assert as_text(as_key(text)) == text


def test_uuids_take_sixteen_bytes() -> None:
    assert len(as_key(uuid7())) == 16
    assert as_key("01a20359 ab54 7000 bc5b ba4c242805a1") == "01a20359 ab54 7000 bc5b ba4c242805a1"
    assert isinstance(as_key("01a20359-ab54-7000-bc5b-ba4c24  05a1"), str)


def test_nothing_that_was_sent_is_lost(store: Sync) -> None:
    sent = entry(
        datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC),
        units=1,
        idempotency_key=uuid7(),
        operation=Operation("99"),
        modality=ModalityTokens(input_audio_tokens=5, unknown_=Unknown(b"\x08\x01", {})),
        meters={"web_searches": 3},
        request_count=4,
        tags=["b", "a", "b"],
        labels={"team": "søk", 'quo"te': "x'y"},
        reported_cost=Decimal("0.0000000011"),
        metadata={"deep": [1, 2.5, None, {"ü": True}], "nan": "NaN"},
        latency_ms=0,
        unknown_=Unknown(b"\xff\x00\x01", {"neu": msgspec.Raw(b'{"a": 1.10, "b": 12345678901234567890123}')}),
    )
    [done] = store.append([sent])
    expected = msgspec.structs.replace(
        sent.record,
        id=done.usage_id,
        idempotency_key=sent.key,
        ingested_at=TAKEN,
        estimated_cost=Decimal("0.000000000001"),
        currency="USD",
        cost_status=CostStatus.PRICED,
    )
    [record], more = store.list_usage(Filter(), "timestamp", True, 10, None, None)
    assert record == expected
    assert bytes(record.unknown_.json["neu"]) == b'{"a": 1.10, "b": 12345678901234567890123}'
    assert record.operation == "99"
    assert more is None


def test_fields_of_a_newer_version_stay(tmp_path: Path) -> None:
    with Sync(tmp_path / "a.db") as store:
        store.append([entry()])
        connection = store.store._database.connect()
        connection.execute(
            "UPDATE usage SET record = CAST(json_set(CAST(record AS TEXT), '$.newer', json('[1]')) AS BLOB)"
        )
        connection.close()
        [record], _ = store.list_usage(Filter(), "timestamp", True, 10, None, None)
    assert bytes(record.unknown_.json["newer"]) == b"[1]"
    assert record.input_tokens == 100


def test_an_unpriced_record_has_no_cost(store: Sync) -> None:
    [done] = store.append([entry(units=None, request_count=3, idempotency_key="k")])
    assert (done.units, done.cost_status) == (None, CostStatus.UNPRICED)
    assert store.append([entry(units=None, request_count=3, idempotency_key="k")])[0].units is None
    [(_, _, sums)] = store.summarize(Filter(), (), None)
    assert (sums.requests, sums.unpriced_requests, sums.units) == (3, 3, 0)
    [record], _ = store.list_usage(Filter(), "timestamp", True, 10, None, None)
    assert record.estimated_cost is None


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_too_large_is_refused_whole(store: Sync, size: int) -> None:
    for bad in (entry(input_tokens=MAX_COUNT + 1), entry(units=MAX_RECORD_COST * UNITS + 1)):
        with pytest.raises(RpcError) as caught:
            store.append([entry() for _ in range(size - 1)] + [bad])
        assert caught.value.code is StatusCode.INVALID_ARGUMENT
    assert store.count(Filter()) == 0
    assert statuses(store, entry(input_tokens=MAX_COUNT, units=MAX_RECORD_COST * UNITS)) == [CREATED]


def refused(store: Sync, *group_by: str) -> bool:
    try:
        store.summarize(Filter(), group_by, None)
    except RpcError as error:
        return error.code is StatusCode.OUT_OF_RANGE
    return False


@pytest.mark.parametrize("column", ["input", "cost_micros"])
def test_a_sum_that_is_too_large_is_out_of_range_when_read(store: Sync, column: str) -> None:
    """The write succeeds, whatever the sum becomes; what is refused stays refused."""
    largest = entry(input_tokens=MAX_COUNT, units=MAX_RECORD_COST * UNITS)
    store.append([largest] * FOLD_EVERY)
    writer = store.store._writer.open()
    writer.execute(f"UPDATE rollup SET {column} = ?", (MAX_SUM - FOLD_EVERY * 10**12,))
    store.append([largest] * FOLD_EVERY)
    assert not refused(store)
    # Above what is answered, then above what 64 bits hold.
    store.append([largest] * FOLD_EVERY)
    assert refused(store, "project")
    writer.execute(f"UPDATE rollup SET {column} = ?", (2**63 - 2,))
    for _ in range(2):
        assert {done.status for done in store.append([largest] * FOLD_EVERY)} == {CREATED}
        assert refused(store)
        assert refused(store, "provider", "project")
    assert writer.execute(f"SELECT DISTINCT {column} FROM rollup").fetchall() == [(2**63 - 1,)]
    # Rows are summed apart from that.
    assert not refused(store, "label:x")


def test_one_id_of_two_keys_merges_nothing(store: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys are compared, not the ids that were made of them: here all first attempts have one id."""
    real = encoding.usage_id

    def colliding(organization_id: str, key: str, attempt: int = 0) -> Any:
        text, stored, kept = real(organization_id, key if attempt else "k", attempt)
        return (text, stored, encoding.as_key(key)) if not attempt else (text, stored, kept)

    monkeypatch.setattr(rows, "usage_id", colliding)
    monkeypatch.setattr(append, "usage_id", colliding)
    monkeypatch.setattr(integrity, "usage_id", colliding)
    batches = [["a"], ["b", "a", "c"], ["d"], ["c", "e"]]
    seen: dict[str, str] = {}
    for batch in batches:
        for key, done in zip(batch, store.append([entry(idempotency_key=k) for k in batch]), strict=True):
            assert done.status == (SubmitStatus.DUPLICATE if key in seen else CREATED)
            assert seen.setdefault(key, done.usage_id) == done.usage_id
            assert store.get_cost(done.usage_id).record.idempotency_key == key
    assert len(set(seen.values())) == store.count(Filter()) == 5
    connection = store.store._writer.open()
    assert list(integrity.find_faults(connection)) == []
    connection.execute("UPDATE usage SET id = randomblob(16) WHERE key = 'e'")
    assert list(integrity.find_faults(connection)) == ["ids: 1 do not follow from their keys"]


def test_the_look_at_a_file_searches_its_index_by_organization_and_id(tmp_path: Path) -> None:
    """A look that reads the whole index for each row would take longer the larger the file is."""
    with Sync(tmp_path / "costs.db") as store:
        store.append([entry()])
        connection = store.store._writer.open()
        plan = connection.execute(f"EXPLAIN QUERY PLAN {obvious_faults._NOT_INDEXED}", (0,)).fetchall()
    steps = [detail for *_, detail in plan if " i " in detail]
    assert len(steps) == 2
    assert all(detail.startswith("SEARCH i ") for detail in steps), steps


def test_an_id_is_looked_for_in_one_organization(store: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    real = encoding.usage_id
    monkeypatch.setattr(rows, "usage_id", lambda _, key: real("same", key))
    for organization in ("acme", "globex"):
        again = entry(idempotency_key="k", organization_id=organization)
        assert statuses(store, again) == [CREATED]
        assert statuses(store, again) == [SubmitStatus.DUPLICATE]
    usage_id = real("same", "k")[0]
    assert store.get_cost(usage_id, "globex").record.organization_id == "globex"
    assert store.get_cost(usage_id, "initech") is None


def test_an_observation_is_a_duplicate_by_its_counts(store: Sync) -> None:
    key: dict[str, Any] = {"idempotency_key": "k"}
    store.append([entry(**key)])
    seen = {"observation": True, "labels": {"by": "proxy"}, "model_id": "gpt-4o-2024-08-06"}
    assert statuses(store, entry(5, **key, **seen)) == [SubmitStatus.DUPLICATE]
    for other in (
        {"input_tokens": 101},
        {"cached_tokens": 1},
        {"meters": {"PAGES": 1}},
        {"request_count": 2},
    ):
        assert statuses(store, entry(5, **key, **seen, **other)) == [SubmitStatus.CONFLICT]
    assert statuses(store, entry(5, **key, labels={"by": "proxy"})) == [SubmitStatus.CONFLICT]


def test_ids_follow_from_organization_and_key() -> None:
    time_ordered = uuid7()
    keys = [time_ordered, f"{time_ordered}:1", time_ordered.upper(), "k", "", " " * 40, "х" * 36, "a" * 36]
    keys.append(time_ordered[:8] + "----" + time_ordered[12:])
    made = {}
    for organization in ("acme", "acm", "acme e", "4"):
        for key in keys:
            text, stored, _ = usage_id(organization, key)
            assert as_text(stored) == text == str(UUID(text))
            assert as_key(text) == stored
            assert (usage_id(organization, key)[0] == text) is bool(key)
            made[organization, key] = text
    assert len(set(made.values())) == len(made)
    assert {made["acme", key][:13] for key in keys[:2]} == {time_ordered[:13]}


def test_a_failed_transaction_leaves_no_ids_behind(store: Sync) -> None:
    def fail(cursor: object, interner: object) -> None:
        raise RuntimeError("boom")

    def job(cursor: object, interner: object) -> None:
        interner.ids(cursor, ("new", *[""] * 7, pricing()))
        fail(cursor, interner)

    from llm_cost_ops.rpc.context import drive
    from tests.unit.ledger.making import context

    with pytest.raises(RuntimeError, match="boom"):
        drive(store.store._write(job, context()))
    assert statuses(store, entry(organization_id="new")) == [CREATED]
    assert requests(store, organization_ids=("new",)) == 1


def test_the_interner_is_bounded(store: Sync) -> None:
    interner = store.store._writer.interner
    interner._max_known = 10
    for n in range(35):
        store.append([entry(organization_id=f"o{n}")])
    assert len(interner._known) <= 10
    assert statuses(store, *(entry(organization_id=f"o{n}") for n in range(35))) == [CREATED] * 35
    assert len(store.summarize(Filter(), ("organization",), None)) == 35


def test_keys_of_a_batch_whose_numbers_are_equal_are_several_keys(store: Sync) -> None:
    """Ids of a batch follow from the numbers behind its key, which may be written in several ways."""
    call = uuid7()
    keys = [f"{call}:{number}" for number in ("7", "07", "٧", "8", "", "x", "7:7", "9" * 20)]
    assert statuses(store, *(entry(idempotency_key=key) for key in keys)) == [CREATED] * 8
    assert statuses(store, *(entry(idempotency_key=key) for key in keys)) == [DUPLICATE] * 8
    records, _ = store.list_usage(Filter(), "ingested_at", False, 20, None, None)
    assert {record.idempotency_key for record in records} == set(keys)
    assert len({record.id for record in records}) == 8
