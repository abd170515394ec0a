"""The store beside a model of it: a dict of entries, and sums over fractions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llm_cost_ops._gen.messages import SubmitStatus, UsageRecord
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.sqlite import sums as rollups
from llm_cost_ops.ledger.types import Entry, Filter
from llm_cost_ops.pricing.money import from_units
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY, buckets_between
from tests.unit.ledger.making import START, TAKEN, Sync, entry

ORGS = ["acme", "globex"]
ZONES = ["", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe"]
DIMENSIONS = {
    "organization": "organization_id",
    "provider": "provider",
    "model": "model_id",
    "project": "project_id",
    "user": "user_id",
    "operation": "operation",
    "service_tier": "service_tier",
    "processing": "processing",
    "region": "region",
}

quarter = timedelta(minutes=15)
moments = st.one_of(
    st.integers(0, 12).map(lambda n: START + n * quarter),
    st.integers(-9, 9).map(lambda n: START + timedelta(days=n)),
    st.integers(-3 * 10**12, 3 * 10**12).map(lambda n: START + timedelta(microseconds=n)),
    st.just(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
)
few = {
    "organization_id": st.sampled_from(ORGS),
    "provider": st.sampled_from(["openai", "google"]),
    "model_id": st.sampled_from(["a", "b"]),
    "project_id": st.sampled_from(["", "p"]),
    "user_id": st.sampled_from(["", "u", "v"]),
    "region": st.sampled_from(["", "eu"]),
    "tags": st.lists(st.sampled_from(["x", "y", "x,y"]), max_size=3),
    "labels": st.dictionaries(st.sampled_from(["team", 'o"d.d[k]']), st.sampled_from(["", "red", "ブルー"])),
    "input_tokens": st.integers(0, 10**6),
    "output_tokens": st.integers(0, 10**6),
    "request_count": st.one_of(st.none(), st.integers(1, 5)),
    "idempotency_key": st.sampled_from(["", "k1", "k2", "k3", "01a20359-ab54-7000-bc5b-ba4c242805a1"]),
}
money = st.one_of(st.none(), st.integers(0, 10**18), st.integers(999_999, 1_000_001))
entries = st.builds(
    lambda at, units, currency, fields: entry(at, units=units, currency=currency, **fields),
    moments,
    money,
    st.sampled_from(["USD", "EUR"]),
    st.fixed_dictionaries({}, optional=few),
)
subsets = {
    "organization_ids": st.lists(st.sampled_from([*ORGS, "none"]), max_size=2, unique=True),
    "providers": st.lists(st.sampled_from(["openai", "google"]), max_size=1),
    "model_ids": st.lists(st.sampled_from(["a", "gpt-4o"]), max_size=2, unique=True),
    "project_ids": st.just(["p"]),
    "regions": st.just(["eu", "us"]),
    "service_tiers": st.just([""]),
    "operations": st.sampled_from([["chat"], ["unspecified", "chat"]]),
    "user_ids": st.lists(st.sampled_from(["u", "v", ""]), max_size=2, unique=True),
    "tags": st.lists(st.sampled_from(["x", "y"]), max_size=2, unique=True),
    "labels": st.dictionaries(
        st.sampled_from(["team", 'o"d.d[k]']), st.sampled_from(["", "red"]), max_size=1
    ),
    "start": moments,
    "end": moments,
}
filters = st.fixed_dictionaries({}, optional=subsets).map(
    lambda fields: Filter(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
)
groupings = st.lists(st.sampled_from([*DIMENSIONS, "tag", "label:team", "status"]), max_size=3, unique=True)
intervals = st.one_of(st.none(), st.sampled_from(["hour", "day", "week", "month"]))


def passes(record: UsageRecord, where: Filter) -> bool:
    assert record.timestamp is not None
    return (
        (not where.organization_ids or record.organization_id in where.organization_ids)
        and (not where.providers or record.provider in where.providers)
        and (not where.model_ids or record.model_id in where.model_ids)
        and (not where.project_ids or record.project_id in where.project_ids)
        and (not where.regions or record.region in where.regions)
        and (not where.service_tiers or record.service_tier in where.service_tiers)
        and (not where.operations or str(record.operation) in where.operations)
        and (not where.user_ids or record.user_id in where.user_ids)
        and (not where.tags or not set(record.tags).isdisjoint(where.tags))
        and all(record.labels.get(key) == value for key, value in where.labels.items())
        and (where.start is None or where.start <= record.timestamp)
        and (where.end is None or record.timestamp < where.end)
    )


def key_sets(item: Kept, group_by: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The groups that an entry is in."""
    found: list[tuple[str, ...]] = [()]
    for name in group_by:
        if name == "tag":
            values = list(dict.fromkeys(item.record.tags)) or [""]
        elif name.startswith("label:"):
            values = [item.record.labels.get(name.removeprefix("label:"), "")]
        else:
            values = [item.by.status if name == "status" else getattr(item.record, DIMENSIONS[name])]
        found = [(*keys, str(value)) for keys in found for value in values]
    return found


class Kept(NamedTuple):
    """What the store should hold of an entry."""

    id: str
    record: UsageRecord
    units: int | None
    by: Pricing


class StoreBesideModel(RuleBasedStateMachine):
    on_file = False

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Kept] = []
        self.keys: dict[tuple[str, str], Kept] = {}

    @initialize(every=st.sampled_from([1, 2, 3, 7, 128]))
    def open(self, every: int) -> None:
        self.folding = patch.object(rollups, "FOLD_EVERY", every)
        self.folding.start()
        self.folder = TemporaryDirectory()
        self.store = self.make()

    def make(self) -> Sync:
        return Sync(f"{self.folder.name}/costs.db" if self.on_file else None, durability="process")

    def teardown(self) -> None:
        self.store.aclose()
        self.folder.cleanup()
        self.folding.stop()

    @rule(batch=st.lists(entries, min_size=1, max_size=6))
    def append(self, batch: list[Entry]) -> None:
        answers = self.store.append(batch)
        for item, answer in zip(batch, answers, strict=True):
            place = (item.record.organization_id, item.key)
            new = Kept(answer.usage_id, item.record, item.units, item.by)
            first = self.keys.setdefault(place, new) if place[1] else new
            if first is new:
                self.kept.append(new)
                status = SubmitStatus.CREATED
            else:
                same = first.record == item.record
                status = SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT
            assert (answer.status, answer.usage_id, answer.units, answer.currency, answer.cost_status) == (
                status,
                first.id,
                first.units,
                first.by.currency,
                first.by.status,
            )
            assert answer.processed_at == TAKEN

    @rule(where=filters, group_by=groupings.map(tuple), interval=intervals, zone=st.sampled_from(ZONES))
    def summarize(self, where: Filter, group_by: tuple[str, ...], interval: str | None, zone: str) -> None:
        buckets = None
        if interval is not None:
            low = max(where.start or START, START - timedelta(days=3))
            high = min(where.end or START + timedelta(days=2), START + timedelta(days=9))
            buckets = buckets_between(low, high, interval, zone)
        expected: dict[Any, list[Fraction]] = defaultdict(lambda: [Fraction(0)] * 5)
        for item in self.kept:
            record = item.record
            assert record.timestamp is not None
            if not passes(record, where):
                continue
            count = record.request_count or 1
            amounts = (
                count,
                (record.input_tokens or 0),
                (record.output_tokens or 0),
                count if item.units is None else 0,
                item.units or 0,
            )
            for index, (low, high) in enumerate(buckets or [(START, START)]):
                if buckets is None or low <= record.timestamp < high:
                    for keys in key_sets(item, group_by):
                        place = (keys, index, item.by.currency)
                        expected[place] = [a + b for a, b in zip(expected[place], amounts, strict=True)]
        found = {
            (keys, index, s.currency): [
                s.requests,
                s.input_tokens,
                s.output_tokens,
                s.unpriced_requests,
                s.units,
            ]
            for keys, index, s in self.store.summarize(where, group_by, buckets)
        }
        assert found == expected

    @rule(
        where=filters,
        sort=st.sampled_from(["timestamp", "ingested_at"]),
        descending=st.booleans(),
        size=st.integers(1, 4),
    )
    def list(self, where: Filter, sort: str, descending: bool, size: int) -> None:
        expected = [item.id for item in self.kept if passes(item.record, where)]
        if sort == "timestamp":
            moments_of = {item.id: item.record.timestamp for item in self.kept}
            expected.sort(key=lambda usage_id: moments_of[usage_id])
        if descending:
            expected = self._reversed(expected, sort)
        found, after = [], None
        while True:
            records, after = self.store.list_usage(where, sort, descending, size, after, None)
            found += records
            if after is None:
                break
            assert len(records) == size
        assert [record.id for record in found] == expected
        assert self.store.count(where) == len(expected)
        numbered, _ = self.store.list_usage(where, sort, descending, size, None, size)
        assert [record.id for record in numbered] == expected[size : 2 * size]
        costs = {item.id: item.units for item in self.kept}
        for record in found:
            units = costs[record.id]
            assert record.estimated_cost == (None if units is None else from_units(units))

    def everything(self) -> Sequence[Kept]:
        """What takes up time: voided records, which no other rule knows, as well."""
        return self.kept

    def _reversed(self, ids: list[str], sort: str) -> list[str]:
        # A list that goes down is one that goes up, from its end.
        return ids[::-1]

    @rule(where=filters, width=st.sampled_from([QUARTER, QUARTER * QUARTERS_A_DAY]))
    def occupied(self, where: Filter, width: int) -> None:
        found = self.store.occupied(where, width)
        alone = Filter(organization_ids=where.organization_ids, start=where.start, end=where.end)
        records = [item.record for item in self.everything()]
        numbers = {to_micros(record.timestamp) // width for record in records if passes(record, alone)}
        assert found == sorted(numbers)

    @invariant()
    def rollups_and_rows_agree(self) -> None:
        if not self.kept:
            return
        by_row = self.store.summarize(Filter(), ("provider", "label:team"), None)
        for group_by in (("provider",), ("provider", "user")):
            by_rollup = self.store.summarize(Filter(), group_by, None)
            assert sum(s.units for _, _, s in by_rollup) == sum(s.units for _, _, s in by_row)
            assert sum(s.requests for _, _, s in by_rollup) == sum(s.requests for _, _, s in by_row)


class FileBesideModel(StoreBesideModel):
    on_file = True

    @rule()
    def reopen(self) -> None:
        self.store.aclose()
        self.store = Sync(f"{self.folder.name}/costs.db", durability="process")


StoreBesideModel.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
FileBesideModel.TestCase.settings = settings(max_examples=10, stateful_step_count=20, deadline=None)
TestStoreBesideModel = StoreBesideModel.TestCase
TestFileBesideModel = FileBesideModel.TestCase
