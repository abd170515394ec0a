"""What every ledger has to do about data's life, as tests; run as those of ledger_suite.py."""

from __future__ import annotations

import json
import pkgutil
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from llm_cost_ops._gen.messages import ModalityTokens, UsageQuality, UsageRecord
from llm_cost_ops.ledger import ApiKey, AuditFilter, Filter
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.sqlite.integrity import find_faults
from llm_cost_ops.pricing.money import to_units
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.wire.unknown import Unknown
from tests.ledger_suite import (
    CONFLICT,
    CREATED,
    DUPLICATE,
    OfEachLedger,
    ask_everything,
    card,
    priced,
    revise,
    statuses,
    sums,
)
from tests.unit.ledger.making import START, TAKEN, Sync, context, entry

__all__ = ["LifeSuite"]

EVERYTHING = Filter()
HOUR = timedelta(hours=1)


def events(ledger: Sync, **where: Any) -> list[tuple[Any, ...]]:
    """Who did what to what, the oldest first."""
    found, rest = ledger.audit_events(AuditFilter(**where), 1000, None, None)
    assert rest is None
    return [
        (each.action, each.actor, each.organization_id, each.subject, each.details)
        for each in reversed(found)
    ]


def key(key_id: str, *organizations: str) -> ApiKey:
    return ApiKey(
        id=key_id, hash=b"h" * 32, role="writer", organizations=organizations or None, created_at=TAKEN
    )


def faults(ledger: Sync) -> list[str]:
    """What `db check` finds."""
    store = ledger.store
    if isinstance(store, SqliteLedger):
        with store._writer.in_use:
            return list(find_faults(store._writer.open()))
    return drive(store.find_faults(context())) if hasattr(store, "find_faults") else []


def erase(ledger: Sync, user_id: str, *organizations: str) -> int:
    """Erase a user, step by step; in how many records they were."""
    position, records = None, 0
    while True:
        step = ledger.erase_user(user_id, organizations, "erasure-1", position)
        records += step.records
        position = step.position
        if position is None:
            return records


ANN = 'ann "the" ünser@example.org'
NAMED: dict[str, Any] = {
    "user_id": ANN,
    "session_id": ANN,
    "tags": ["x", ANN],
    "labels": {"team": "red", "who": ANN, ANN: "1"},
    "metadata": {"a": [1, ANN, {"b": ANN}], "text": f"by {ANN}, twice"},
}


def named(at: float = 0, **fields: Any) -> Any:
    return entry(at, **{**NAMED, **fields})


def remove(ledger: Sync, before: datetime, organization: str = "acme") -> int:
    """Remove an organization's records from before a moment, step by step; how many it were."""
    removed = 0
    while number := ledger.remove_older(organization, before, dry_run=False, actor="boss"):
        removed += number
    return removed


def refused(ledger: Sync, **question: Any) -> str:
    """Why sums are not answered."""
    with pytest.raises(RpcError) as caught:
        sums(ledger, question.pop("group_by", ()), Filter(**question))
    assert caught.value.code is StatusCode.FAILED_PRECONDITION
    assert [violation.field for violation in caught.value.violations] == ["start_date"]
    return caught.value.message


class LifeSuite(OfEachLedger):
    """The audit log, erasing users, and removing what is past its days."""

    def test_what_is_done_to_keys_is_audited(self, ledger: Sync) -> None:
        keys = ledger.store.keys
        drive(keys.add(key("one"), context(), actor="boss"))
        drive(keys.add(key("two", "acme", "globex"), context()))
        with pytest.raises(RpcError):
            drive(keys.add(key("two", "acme"), context()))
        at = TAKEN + timedelta(days=1)
        for _ in range(2):
            drive(keys.revoke("two", at, context(), actor="boss"))
        drive(keys.revoke("nobody", at, context(), actor="boss"))
        role = {"role": "writer"}
        assert events(ledger) == [
            ("key.created", "boss", "", "one", role),
            ("key.created", "local", "acme", "two", role),
            ("key.created", "local", "globex", "two", role),
            ("key.revoked", "boss", "acme", "two", role),
            ("key.revoked", "boss", "globex", "two", role),
        ]

    def test_what_is_done_to_cards_is_audited(self, ledger: Sync) -> None:
        first, _ = ledger.add_card(card(organization_id="acme"), "k", b"1" * 16, actor="boss")
        # Duplicates and conflicts add nothing.
        ledger.add_card(card(organization_id="acme"), "k", b"1" * 16)
        ledger.add_card(card("3", organization_id="acme"), "k", b"2" * 16)
        details = {"provider": "openai", "model_id": "gpt-4o", "version": 1}
        assert events(ledger) == [("price.created", "boss", "acme", first.id, details)]

    def test_what_is_done_to_records_is_audited(self, ledger: Sync) -> None:
        first, second, third = entry(), entry(1), entry(2, organization_id="globex")
        ids = [done.usage_id for done in ledger.append([first, second, third])]
        assert events(ledger) == []
        assert revise(ledger, ids[0], 1, first.record)
        assert not revise(ledger, ids[0], 1, first.record)
        assert revise(ledger, ids[1], 1)
        ledger.reprice(EVERYTHING, lambda _: priced(9), None, 10, dry_run=True, actor="boss")
        ledger.reprice(EVERYTHING, lambda _: priced(9), None, 10, dry_run=False, actor="boss")
        ledger.reprice(EVERYTHING, lambda _: priced(9), None, 10, dry_run=False, actor="boss")
        found = events(ledger)
        assert found[:2] == [
            ("usage.corrected", "lco_1", "acme", ids[0], {"revision": 2}),
            ("usage.voided", "lco_1", "acme", ids[1], {"revision": 2}),
        ]
        assert found[2:] == [
            ("usage.repriced", "boss", "acme", "", {"records": 1}),
            ("usage.repriced", "boss", "globex", "", {"records": 1}),
        ]

    def test_events_are_filtered_and_paged(self, ledger: Sync) -> None:
        for number in range(7):
            made = ApiKey(
                id=f"k{number}",
                hash=b"h" * 32,
                role="reader",
                organizations=("acme" if number % 2 else "globex",),
                created_at=TAKEN + timedelta(days=number),
            )
            drive(ledger.store.keys.add(made, context(), actor=f"a{number % 3}"))

        def subjects(**where: Any) -> list[str]:
            return [subject for _, _, _, subject, _ in events(ledger, **where)]

        assert subjects(organization_ids=("acme",)) == ["k1", "k3", "k5"]
        assert subjects(actors=("a0",), organization_ids=("acme", "globex")) == ["k0", "k3", "k6"]
        assert subjects(subjects=("k2", "k9")) == ["k2"]
        assert subjects(actions=("key.revoked",)) == []
        start, end = TAKEN + timedelta(days=2), TAKEN + timedelta(days=4)
        assert subjects(start=start, end=end) == ["k2", "k3"]
        seen: list[str] = []
        position = None
        while True:
            page, position = ledger.audit_events(AuditFilter(), 3, position, None)
            seen += [event.subject for event in page]
            if position is None:
                break
            # What is added meanwhile is newer, and moves nothing.
            drive(ledger.store.keys.add(key(f"new{len(seen)}"), context()))
        assert seen == [f"k{number}" for number in reversed(range(7))]
        page, _ = ledger.audit_events(AuditFilter(subjects=("k1", "k2", "k3")), 1, None, 1)
        assert [event.subject for event in page] == ["k2"]
        with pytest.raises(RpcError) as caught:
            ledger.audit_events(AuditFilter(), 3, "-1", None)
        assert caught.value.code is StatusCode.INVALID_ARGUMENT

    def test_a_user_is_erased_from_records_and_the_sums_stay(self, ledger: Sync) -> None:
        bob = [entry(1, user_id="bob"), entry(2, user_id="bob")]
        ledger.append([named(), *bob, named(3, request_count=3), named(4, organization_id="globex")])
        ask_everything(ledger)
        before = [sums(ledger, by) for by in ((), ("model",), ("organization", "status"))]
        assert erase(ledger, ANN, "acme") == 2
        assert [sums(ledger, by) for by in ((), ("model",), ("organization", "status"))] == before
        acme = Filter(organization_ids=("acme",))
        assert [row[:2] for row in sums(ledger, ("user",), acme)] == [("", 4), ("bob", 2)]
        assert [row[:2] for row in sums(ledger, ("tag",), acme)] == [("", 2), ("x", 4)]
        assert [row[:2] for row in sums(ledger, ("label:who",), acme)] == [("", 6)]
        assert ledger.count(Filter(organization_ids=("acme",), user_ids=(ANN,))) == 0
        records, _ = ledger.list_usage(acme, "timestamp", False, 9, None, None)
        first = records[0]
        assert (first.user_id, first.session_id, first.tags) == ("", "", ["x"])
        assert first.labels == {"team": "red"}
        # A text that only mentions the user is not looked into.
        assert first.metadata == {"a": [1, {}], "text": f"by {ANN}, twice"}
        assert [record.user_id for record in records] == ["", "bob", "bob", ""]
        assert ledger.count(Filter(user_ids=(ANN,))) == 1
        told = events(ledger)
        assert {event[:4] for event in told} == {("user.erased", "local", "acme", "erasure-1")}
        assert sum(event[4]["records"] for event in told) == 2
        assert erase(ledger, ANN, "acme") == 0
        assert erase(ledger, ANN) == 1
        assert ledger.count(Filter(user_ids=(ANN,))) == 0
        assert faults(ledger) == []

    def test_what_was_erased_does_not_come_back_under_its_key(self, ledger: Sync) -> None:
        first = named(idempotency_key="k")
        seen = {"observation": True, "quality": UsageQuality.UNKNOWN, "input_tokens": None, "units": None}
        unknown = named(1, idempotency_key="l", **seen)
        ids = [done.usage_id for done in ledger.append([first, unknown])]
        assert erase(ledger, ANN) == 2
        assert statuses(ledger, first, unknown) == [DUPLICATE] * 2
        assert statuses(ledger, named(idempotency_key="k", input_tokens=7)) == [CONFLICT]
        # Counts come, and nobody with them.
        assert statuses(ledger, named(9, idempotency_key="l", input_tokens=5)) == [CREATED]
        assert ledger.get_cost(ids[1]).record.input_tokens == 5
        for usage_id in ids:
            for revised in ledger.revisions("acme", usage_id):
                record = revised.record
                assert (record.user_id, record.session_id, record.tags) == ("", "", ["x"])
                assert record.labels == {"team": "red"}
        assert [row[:2] for row in sums(ledger, ("user",))] == [("", 2)]
        # A new one is another matter.
        assert statuses(ledger, named(2, idempotency_key="m")) == [CREATED]
        assert [row[:2] for row in sums(ledger, ("user",))] == [("", 2), (ANN, 1)]
        assert faults(ledger) == []

    @pytest.mark.parametrize("user", ["ann", "ren\u00e9e", 'a"b\\'])
    @pytest.mark.parametrize("nested", [False, True])
    def test_a_user_is_erased_from_fields_of_a_newer_version(
        self, ledger: Sync, user: str, *, nested: bool
    ) -> None:
        def newer(unknown: Any) -> dict[str, Any]:
            return {"modality": ModalityTokens(unknown_=unknown)} if nested else {"unknown_": unknown}

        def unknown_of(record: UsageRecord) -> Any:
            return record.modality.unknown_ if nested and record.modality else record.unknown_

        def sent(number: int, name: str) -> Any:
            text = json.dumps(name).encode()
            forms = [
                Unknown(binary=b"\xc2\xa9\x07" + bytes([len(name.encode())]) + name.encode()),
                Unknown(json={"new": msgspec.Raw(json.dumps({"who": [name, 1e999]}).encode())}),
                Unknown(json={"new": msgspec.Raw(msgspec.json.encode({name: 1}))}),
                # Half of a surrogate pair is JSON, and a name that comes twice too.
                Unknown(json={"new": msgspec.Raw(rb'["\ud800", {"a": %s, "a": 1}]' % text)}),
            ]
            seen = {"observation": True, "quality": UsageQuality.UNKNOWN, "input_tokens": None, "units": None}
            return entry(number, idempotency_key=f"{number}", **newer(forms[number % 4]), **seen)

        records = [sent(number, user if number < 4 else "bob") for number in range(8)]
        ids = [done.usage_id for done in ledger.append(records)]
        assert revise(ledger, ids[0], 1, entry().record)
        assert erase(ledger, user) == 4
        assert statuses(ledger, *records) == [DUPLICATE] * 8
        # Nor do they come back with the counts.
        known = [
            entry(0, idempotency_key=each.key, **newer(unknown_of(each.record)), input_tokens=5)
            for each in records[1:4]
        ]
        assert statuses(ledger, *known) == [CREATED] * 3
        for usage_id, each in zip(ids, records, strict=True):
            kept = {} if usage_id in ids[:4] else unknown_of(each.record)
            for revised in ledger.revisions("acme", usage_id):
                assert (unknown_of(revised.record) or {}) == kept
        assert erase(ledger, user) == 0
        assert faults(ledger) == []

    def test_a_user_is_erased_from_histories(self, ledger: Sync) -> None:
        sent = named(idempotency_key="k", units=7)
        [done] = ledger.append([sent])
        assert revise(ledger, done.usage_id, 1, replace(sent.record, user_id="bob"), units=8)
        assert revise(ledger, done.usage_id, 2, replace(sent.record, user_id=ANN, input_tokens=1), units=9)
        assert revise(ledger, done.usage_id, 3, replace(entry().record, user_id="bob"), units=10)
        ask_everything(ledger)
        before = ledger.get_cost(done.usage_id)
        assert erase(ledger, ANN) == 1
        after = ledger.get_cost(done.usage_id)
        assert (after.units, after.digest, after.revision) == (before.units, before.digest, before.revision)
        users = [revised.record.user_id for revised in ledger.revisions("acme", done.usage_id)]
        assert users == ["", "bob", "", "bob"]
        costs = [revised.record.estimated_cost for revised in ledger.revisions("acme", done.usage_id)]
        assert [to_units(cost) for cost in costs] == [7, 8, 9, 10]
        assert [item.record.user_id for item in ledger.committed(None, 9)[0]] == users
        assert statuses(ledger, sent) == [DUPLICATE]
        assert [row[:2] for row in sums(ledger, ("user",))] == [("bob", 1)]
        assert faults(ledger) == []

    def test_a_retention_is_set_and_listed(self, ledger: Sync) -> None:
        assert ledger.retentions() == []
        for days in (400, 30, 30):
            ledger.set_retention("acme", days, actor="boss")
        ledger.set_retention("Zeta", 0)
        ledger.set_retention("ärger", 7)
        found = [(each.organization_id, each.days, each.removed_before) for each in ledger.retentions()]
        assert found == [("Zeta", 0, None), ("acme", 30, None), ("ärger", 7, None)]
        assert [event[:2] + event[3:] for event in events(ledger, organization_ids=("acme",))] == [
            ("retention.set", "boss", "acme", {"days": 400}),
            ("retention.set", "boss", "acme", {"days": 30}),
        ]

    def test_what_is_removed_stays_in_the_sums_by_what_they_hold(self, ledger: Sync) -> None:
        day = timedelta(days=1).total_seconds()
        keyed = [named(at * day / 4, idempotency_key=f"k{at}", units=at) for at in range(12)]
        others = [
            entry(0),
            entry(day, organization_id="globex", user_id="bob"),
            entry(2 * day, user_id="bob"),
        ]
        ids = [done.usage_id for done in ledger.append([*keyed, *others])]
        assert revise(ledger, ids[0], 1)
        assert revise(ledger, ids[1], 1, replace(keyed[1].record, user_id="bob", input_tokens=7), units=70)
        ask_everything(ledger)
        by_series = [("organization",), ("model", "status"), ("project", "region", "organization")]
        before = [sums(ledger, by) for by in by_series]
        voided = sums(ledger, (), Filter(statuses=("voided",)))
        ledger.set_retention("acme", 30)
        border = START + timedelta(days=2)
        assert ledger.remove_older("acme", border, dry_run=True) == 9
        assert ledger.count(EVERYTHING) == 14
        assert remove(ledger, border) == 9
        assert remove(ledger, border) == 0
        assert faults(ledger) == []
        # Sums by series are as they were, and so are those of quarters of an hour.
        assert [sums(ledger, by) for by in by_series] == before
        assert sums(ledger, (), Filter(statuses=("voided",))) == voided
        assert sums(ledger, (), Filter(start=START + 6 * HOUR, end=START + 7 * HOUR)) == [(1, 7, 70)]
        assert ledger.occupied(EVERYTHING, round(day * 10**6))[0] == round(START.timestamp() / day)
        # Those that would lack something are refused, and say from when on they are answered.
        acme = {"organization_ids": ("acme",)}
        for question in (
            {"group_by": ("user",)},
            {"group_by": ("label:team",), **acme, "start": START},
            {"tags": ("x",)},
            {"user_ids": ("bob",), "start": border - HOUR},
            {"start": START + timedelta(seconds=1)},
            {"end": START + timedelta(seconds=1)},
        ):
            assert "2026-01-07T00:00:00Z or later for acme" in refused(ledger, **question)
        with pytest.raises(RpcError):
            ledger.summarize(EVERYTHING, ("meter",), None)
        later = Filter(start=border)
        assert [row[0] for row in sums(ledger, ("user",), later)] == [ANN, "bob"]
        assert sums(ledger, ("user",), Filter(organization_ids=("globex",)))[0][0] == "bob"
        ledger.summarize(later, ("meter",), None)
        # What asks for records has those that are there.
        assert ledger.count(EVERYTHING) == 6
        for sort in ("timestamp", "ingested_at"):
            listed, _ = ledger.list_usage(EVERYTHING, sort, False, 100, None, None)
            assert len(listed) == 6
            assert min(record.timestamp for record in listed if record.organization_id == "acme") == border
        assert ledger.get_cost(ids[1]) is None
        assert ledger.revisions("acme", ids[1]) == []
        assert not revise(ledger, ids[2], 1)
        assert len({item.record.id for item in ledger.committed(None, 100)[0]}) == 6
        looked = ledger.reprice(EVERYTHING, lambda _: priced(1), None, 100, dry_run=True)
        assert looked.examined == 6
        [kept] = [each for each in ledger.retentions() if each.organization_id == "acme"]
        assert (kept.days, kept.removed_before) == (30, border)
        [event] = events(ledger, actions=("retention.applied",))
        assert event[1:] == ("boss", "acme", "acme", {"before": border.isoformat()})

    def test_events_of_one_step_are_by_organization(self, ledger: Sync) -> None:
        names = [f"org-{number}" for number in range(9, 0, -1)]
        ledger.append([named(organization_id=name) for name in names])
        ledger.reprice(EVERYTHING, lambda _: priced(9), None, 10, dry_run=False)
        repriced = [event[2] for event in events(ledger, actions=("usage.repriced",))]
        assert repriced == sorted(names)
        while ledger.erase_user(ANN, tuple(names), "erasure-1", None).records > 1:
            pass  # the dict ledger's steps are of one record
        erased = [event[2] for event in events(ledger, actions=("user.erased",))]
        assert erased in (sorted(names), names[:1])

    def test_a_list_goes_on_where_its_last_record_was_removed(self, ledger: Sync) -> None:
        day = timedelta(days=1).total_seconds()
        ledger.append([entry(at * day) for at in (0, 1, 2, 2, 3)])
        ledger.append([entry(2 * day, organization_id="globex")])
        kept = []
        for sort in ("timestamp", "ingested_at"):
            for descending in (True, False):
                whole, _ = ledger.list_usage(EVERYTHING, sort, descending, 9, None, None)
                for size in range(1, 6):
                    _, position = ledger.list_usage(EVERYTHING, sort, descending, size, None, None)
                    kept.append((sort, descending, position, [record.id for record in whole[size:]]))
        ledger.set_retention("acme", 30)
        assert remove(ledger, START + timedelta(days=3)) == 4
        left = {record.id for record in ledger.list_usage(EVERYTHING, "timestamp", True, 9, None, None)[0]}
        assert len(left) == 2
        for sort, descending, position, following in kept:
            found, _ = ledger.list_usage(EVERYTHING, sort, descending, 9, position, None)
            assert [record.id for record in found] == [each for each in following if each in left]
        # A position of one list is one of a narrower list as well.
        globex = Filter(organization_ids=("globex",))
        for sort, descending, position, _ in kept:
            assert len(ledger.list_usage(globex, sort, descending, 9, position, None)[0]) <= 1

    def test_what_was_removed_since_it_was_found_is_not_erased(
        self, ledger: Sync, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A retention that is applied in the middle of an erasure."""
        ledger.append([named(), named(1, idempotency_key="last")])
        found: list[Any] = []

        def stale(find: Any) -> Any:
            def first_found_then_given(*arguments: Any, **named: Any) -> Any:
                if found:
                    return found.pop()
                found.append(find(*arguments, **named))
                return [], None

            return first_found_then_given

        for kind in ("sqlite", "postgres"):
            place = f"llm_cost_ops.ledger.{kind}.erasing.find_mentions"
            monkeypatch.setattr(place, stale(pkgutil.resolve_name(place)))
        assert erase(ledger, ANN) == (0 if found else 2)
        ledger.set_retention("acme", 30)
        assert remove(ledger, START + HOUR) == 2
        assert erase(ledger, ANN) == 0
        assert faults(ledger) == []

    def test_a_key_of_a_removed_record_counts_no_more(self, ledger: Sync) -> None:
        first = entry(0, idempotency_key="k", units=5)
        seen = {"observation": True, "quality": UsageQuality.UNKNOWN, "input_tokens": None, "units": None}
        unknown = entry(1, idempotency_key="l", **seen)
        ids = [done.usage_id for done in ledger.append([first, unknown, entry(2)])]
        ledger.set_retention("acme", 1)
        before = sums(ledger)
        assert remove(ledger, START + timedelta(days=1)) == 3
        again = [first, entry(0, idempotency_key="k", units=5, input_tokens=7), entry(1, idempotency_key="l")]
        answers = [*ledger.append(again), *ledger.append(again[:1])]
        assert [done.status for done in answers] == [DUPLICATE] * 4
        assert [done.usage_id for done in answers] == [ids[0], ids[0], ids[1], ids[0]]
        # What it cost is not known any more, and is not said to be nothing.
        assert {(done.units, str(done.cost_status)) for done in answers} == {(None, "unspecified")}
        assert sums(ledger) == before
        # Another organization's key is its own; and a new record of old times counts, until it is removed.
        assert statuses(ledger, entry(0, idempotency_key="k", organization_id="globex")) == [CREATED]
        assert statuses(ledger, entry(3, idempotency_key="m")) == [CREATED]
        assert ledger.count(Filter(organization_ids=("acme",))) == 1
        after = sums(ledger)
        assert after[0][0] == before[0][0] + 2
        assert remove(ledger, START + timedelta(days=1)) == 1
        assert sums(ledger) == after
        assert faults(ledger) == []

    def test_consumers_miss_nothing_that_comes_after_a_removal(self, ledger: Sync) -> None:
        done = ledger.append([entry(at, idempotency_key=f"k{at}") for at in range(3)])
        assert revise(ledger, done[2].usage_id, 1)
        seen, position = ledger.committed(None, 100)
        assert len(seen) == 4
        ledger.set_retention("acme", 1)
        # The newest row and the newest revision of all are among what is removed.
        assert remove(ledger, START + timedelta(days=1)) == 3
        assert ledger.committed(None, 100)[0] == []
        later = START + timedelta(days=9)
        [made] = ledger.append([entry(later, idempotency_key="new")])
        assert revise(ledger, made.usage_id, 1)
        seen, position = ledger.committed(position, 100)
        assert [(item.record.id, item.revision) for item in seen] == [(made.usage_id, 1), (made.usage_id, 2)]
        assert ledger.committed(position, 100)[0] == []
        assert faults(ledger) == []
        assert sums(ledger, (), Filter(statuses=("priced", "voided")))[0][0] == 4
