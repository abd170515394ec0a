"""Erasing and removing in any order, among records that are sent, sent again, corrected and voided.

Every ledger beside the one in dicts, and beside fractions that know nothing of erasing and removing: neither
may change what was spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from fractions import Fraction
from itertools import combinations
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger import Filter, day_spans, open_ledger
from llm_cost_ops.ledger.sqlite import day_sums
from llm_cost_ops.rpc.status import RpcError
from tests.dict_ledger import DictLedger
from tests.ledger_suite import revise
from tests.life_suite import erase, faults, remove
from tests.unit.ledger.making import START, Sync, entry

ORGANIZATIONS = ("acme", "globex")
USERS = ("", "ann", "bob")
_GROUPINGS = [
    *combinations(("organization", "model", "project", "status"), 2),
    ("user",),
    ("user", "model"),
    ("tag",),
    ("label:who",),
]
_HOUR = timedelta(hours=1)
_FILTERS = (
    Filter(),
    Filter(organization_ids=("acme",)),
    Filter(start=START + 24 * _HOUR, end=START + 72 * _HOUR),
    Filter(start=START + 30 * _HOUR),
)

sent = st.builds(
    lambda hours, units, key, fields: entry(
        START + hours * _HOUR, units=units, idempotency_key=key, **fields
    ),
    st.integers(0, 96),
    st.one_of(st.none(), st.integers(0, 10**15)),
    st.sampled_from(["", *"abcdefgh"]),
    st.fixed_dictionaries(
        {"organization_id": st.sampled_from(ORGANIZATIONS), "user_id": st.sampled_from(USERS)},
        optional={
            "model_id": st.sampled_from("mn"),
            "project_id": st.sampled_from("pq"),
            "tags": st.lists(st.sampled_from(["x", "ann"]), max_size=2),
            "labels": st.fixed_dictionaries({"who": st.sampled_from(USERS)}),
        },
    ),
)
organizations = st.sampled_from(ORGANIZATIONS)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(sent, min_size=1, max_size=6)),
        st.tuples(st.just("erase"), st.sampled_from(USERS[1:])),
        st.tuples(st.just("remove"), st.tuples(organizations, st.integers(0, 8))),
        st.tuples(st.just("void"), st.integers(0, 50)),
        st.tuples(st.just("correct"), st.tuples(st.integers(0, 50), st.sampled_from(USERS))),
    ),
    max_size=12,
)


class Ledgers:
    """A ledger and its model, to which everything is done alike."""

    def __init__(self, ledger: Sync) -> None:
        self.both = (ledger, Sync(ledger=DictLedger()))
        self.spent: dict[tuple[str, str], Fraction] = {}
        for each in self.both:
            for name in ORGANIZATIONS:
                each.set_retention(name, 30)

    def send(self, entries: list[Any]) -> None:
        ours, theirs = (each.append(list(entries)) for each in self.both)
        assert [done.status for done in ours] == [done.status for done in theirs]
        for sent, one, other in zip(entries, ours, theirs, strict=True):
            assert (one.units, one.cost_status) == (other.units, other.cost_status)
            if sent.key:
                assert one.usage_id == other.usage_id
            if one.status == SubmitStatus.CREATED:
                place = (sent.record.organization_id, sent.record.model_id)
                self.spent[place] = self.spent.get(place, Fraction(0)) + Fraction(sent.units or 0, 10**12)

    def erase(self, user_id: str) -> None:
        ours, theirs = (erase(each, user_id) for each in self.both)
        assert ours == theirs

    def remove(self, what: tuple[str, int]) -> None:
        organization, halves = what
        ours, theirs = (remove(each, START + halves * 12 * _HOUR, organization) for each in self.both)
        assert ours == theirs

    def void(self, at: int) -> None:
        self._revise(at, None)

    def correct(self, what: tuple[int, str]) -> None:
        self._revise(*what)

    def _revise(self, at: int, user_id: str | None) -> None:
        records = [record for record in self._listed(self.both[1]) if record.idempotency_key]
        if not records:
            return
        record = records[at % len(records)]
        organization = record.organization_id
        cost = self.both[1].get_cost(record.id, organization)
        changed = None if user_id is None else replace(record, user_id=user_id, id="", idempotency_key="")
        for each in self.both:
            fields = {"organization_id": organization, "units": cost.units}
            assert revise(each, record.id, cost.revision, changed, **fields)
        if changed is None and str(cost.status) != "voided":
            self.spent[organization, record.model_id] -= Fraction(cost.units or 0, 10**12)
        elif changed is not None and str(cost.status) == "voided":
            self.spent[organization, record.model_id] += Fraction(cost.units or 0, 10**12)

    @staticmethod
    def _listed(ledger: Sync) -> list[Any]:
        found: list[Any] = ledger.list_usage(Filter(), "timestamp", False, 1000, None, None)[0]
        return found

    def compare(self) -> None:
        """Whatever is asked, both answer alike, or both refuse it."""
        ledger, model = self.both
        for where in _FILTERS:
            for group_by in _GROUPINGS:
                assert _answer(ledger, where, group_by) == _answer(model, where, group_by)
            assert ledger.count(where) == model.count(where)
            width = 86_400_000_000
            assert ledger.occupied(where, width) == model.occupied(where, width)
        ours, theirs = (sorted(map(_shown, self._listed(each))) for each in self.both)
        assert ours == theirs
        sums = ledger.summarize(Filter(), ("organization", "model"), None)
        found = {keys: amounts.units for keys, _, amounts in sums}
        wanted = {place: int(spent * 10**12) for place, spent in self.spent.items()}
        assert {place: units for place, units in found.items() if units} == {
            place: units for place, units in wanted.items() if units
        }
        assert faults(ledger) == []


def _shown(record: Any) -> tuple[Any, ...]:
    return (record.timestamp, record.organization_id, record.user_id, record.estimated_cost or -1)


def _answer(ledger: Sync, where: Filter, group_by: tuple[str, ...]) -> Any:
    try:
        return ledger.summarize(where, group_by, None)
    except RpcError as error:
        return error.code, error.message


def _run(ledger: Sync, script: list[tuple[str, Any]]) -> None:
    ledgers = Ledgers(ledger)
    for name, argument in script:
        getattr(ledgers, name)(argument)
        ledgers.compare()


@contextmanager
def keeping_days() -> Iterator[None]:
    """Days are kept from their first row on, alone and with others."""
    with (
        patch.object(day_spans, "MIN_ROWS", 1),
        patch.object(day_spans, "MIN_ROWS_OF_LONG", 1),
        patch.object(day_spans, "MIN_ROWS_A_GROUP", 0),
    ):
        yield


@settings(max_examples=40, deadline=None)
@given(script=operations)
def test_sqlite_beside_a_model(script: list[tuple[str, Any]]) -> None:
    with keeping_days(), patch.object(day_sums, "MIN_ROWS_A_GROUP_OF_LONG", 0), Sync() as ledger:
        _run(ledger, script)


def test_postgres_beside_a_model(postgres: Any) -> None:
    @settings(max_examples=5, deadline=None)
    @given(script=operations)
    def beside(script: list[tuple[str, Any]]) -> None:
        url = postgres.new_database()
        try:
            with keeping_days(), Sync(ledger=open_ledger(url)) as ledger:
                _run(ledger, script)
        finally:
            postgres.drop(url)

    beside()
