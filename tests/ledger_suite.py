"""What every ledger has to do, as tests: a backend runs them by a subclass that says how one is opened.

class TestMyLedger(LedgerSuite):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"mine://{tmp_path}/costs"
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    CostStatus,
    Rate,
    RateCard,
    RevisionKind,
    SubmitStatus,
    UsageQuality,
    UsageRecord,
)
from llm_cost_ops.ledger import ApiKey, Committed, Filter, Revision, open_ledger
from llm_cost_ops.ledger.consumers import catch_up
from llm_cost_ops.pricing.cards import card_digest
from llm_cost_ops.pricing.types import Priced, Pricing
from llm_cost_ops.rpc.context import drive, uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST
from tests.unit.ledger.making import START, TAKEN, Sync, context, entry, pricing

__all__ = ["LedgerSuite"]

CREATED, DUPLICATE, CONFLICT = SubmitStatus.CREATED, SubmitStatus.DUPLICATE, SubmitStatus.CONFLICT
EVERYTHING = Filter()


def statuses(ledger: Sync, *entries: Any) -> list[SubmitStatus]:
    return [done.status for done in ledger.append(list(entries))]


def card(price: str = "2", **fields: Any) -> RateCard:
    fields = {"id": uuid7(), "provider": "openai", "model_id": "gpt-4o", "currency": "USD"} | fields
    return RateCard(rates=[Rate(meter="INPUT", price=Decimal(price), per=1)], **fields)


def priced(units: int | None, status: CostStatus = CostStatus.PRICED) -> Priced:
    return Priced(units, pricing(CostStatus.UNPRICED if units is None else status))


def revise(ledger: Sync, usage_id: str, after: int, record: UsageRecord | None = None, **fields: Any) -> bool:
    """Correct a record, or void it when there is none."""
    voided = record is None
    units = fields.pop("units", 5)
    revision = Revision(
        organization_id=fields.pop("organization_id", "acme"),
        usage_id=usage_id,
        after=after,
        kind=RevisionKind.VOIDED if voided else RevisionKind.CORRECTED,
        record=record,
        units=units,
        by=pricing(CostStatus.VOIDED if voided else CostStatus.PRICED),
        reason="a reason",
        actor="lco_1",
        made_at=TAKEN + timedelta(days=after),
    )
    return bool(ledger.revise(revision))


def sums(ledger: Sync, group_by: tuple[str, ...] = (), where: Filter = EVERYTHING) -> list[Any]:
    return [
        (*keys, s.requests, s.input_tokens, s.units) for keys, _, s in ledger.summarize(where, group_by, None)
    ]


def ask_everything(ledger: Sync) -> None:
    """Ask for sums of every kind, so that a ledger which keeps answers has them before what comes next."""
    for group_by in ((), ("user",), ("tag",), ("label:team",), ("status",), ("model", "user")):
        ledger.summarize(EVERYTHING, group_by, None)
        ledger.summarize(Filter(statuses=("voided",)), group_by, None)
    ledger.summarize(EVERYTHING, ("meter",), None)
    ledger.count(EVERYTHING)


class Word(str, enum.Enum):  # noqa: UP042 - StrEnum writes itself as its value
    """A caller's own, whose str() is its name, as its hash is that of the name."""

    TENANT = "acme"
    PROVIDER = "openai"
    USER = "ann"


class Number(int, enum.Enum):
    SEVEN = 7


class OfEachLedger:
    """The fixtures of a suite that every ledger passes."""

    @pytest.fixture
    def url(self) -> str:
        """Where a new ledger is; each test has one of its own."""
        raise NotImplementedError

    @pytest.fixture
    def ledger(self, url: str) -> Iterator[Sync]:
        with Sync(ledger=open_ledger(url)) as made:
            yield made


class LedgerSuite(OfEachLedger):
    """The contract of Ledger, Sums and KeyStore."""

    @pytest.mark.parametrize("count", [1, 150])
    def test_enums_are_the_texts_and_numbers_that_they_hold(self, ledger: Sync, count: int) -> None:
        odd = {
            "organization_id": Word.TENANT,
            "provider": Word.PROVIDER,
            "project_id": Word.TENANT,
            "user_id": Word.USER,
            "input_tokens": Number.SEVEN,
            "cached_tokens": Number.SEVEN,
            "request_count": Number.SEVEN,
        }
        usual = {name: value.value for name, value in odd.items()}
        for fields, expected in ((odd, CREATED), (usual, DUPLICATE)):
            sent = [entry(idempotency_key=f"k{number}", **fields) for number in range(count)]
            assert statuses(ledger, *sent) == [expected] * count
        assert sums(ledger, ("provider", "project", "user"), Filter(user_ids=(Word.USER,))) == [
            ("openai", "acme", "ann", 7 * count, 7 * count, 1_500_000_000 * count)
        ]

    def test_a_key_counts_once_in_its_organization(self, ledger: Sync) -> None:
        first, again = entry(idempotency_key="k"), entry(idempotency_key="k")
        other = entry(idempotency_key="k", input_tokens=7)
        assert statuses(ledger, first, again, other, entry()) == [CREATED, DUPLICATE, CONFLICT, CREATED]
        assert statuses(ledger, again) == [DUPLICATE]
        assert statuses(ledger, replace(other, units=9)) == [CONFLICT]
        assert statuses(ledger, entry(idempotency_key="k", organization_id="globex")) == [CREATED]
        assert ledger.count(EVERYTHING) == 3

    def test_figures_follow_what_is_written(self, ledger: Sync) -> None:
        before = ledger.figures()
        ledger.append([entry()])
        after = ledger.figures()
        assert after.commits == before.commits + 1
        assert after.queued == 0
        assert 0 <= after.unfolded_rows <= 1
        assert after.bytes >= before.bytes > 0

    def test_a_duplicate_gets_the_first_answer(self, ledger: Sync) -> None:
        [first] = ledger.append([entry(idempotency_key="k", units=5)])
        later = replace(entry(idempotency_key="k", units=9), ingested_at=TAKEN + timedelta(days=1))
        [again] = ledger.append([later])
        assert (again.status, again.usage_id, again.units, again.processed_at) == (
            DUPLICATE,
            first.usage_id,
            5,
            TAKEN,
        )

    def test_threads_that_send_one_key_create_one_record(self, ledger: Sync) -> None:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: statuses(ledger, entry(idempotency_key="k"))[0], range(32)))
        assert sorted(found) == sorted([CREATED] + [DUPLICATE] * 31)

    def test_counts_decide_where_either_is_an_observation(self, ledger: Sync) -> None:
        seen = {"observation": True, "labels": {"by": "proxy"}, "model_id": "gpt-4o-2024-08-06"}
        assert statuses(ledger, entry(idempotency_key="k", **seen)) == [CREATED]
        assert statuses(ledger, entry(5, idempotency_key="k")) == [DUPLICATE]
        assert statuses(ledger, entry(5, idempotency_key="k", input_tokens=7)) == [CONFLICT]
        assert statuses(ledger, entry(idempotency_key="l")) == [CREATED]
        assert statuses(ledger, entry(5, idempotency_key="l", **seen)) == [DUPLICATE]
        assert statuses(ledger, entry(5, idempotency_key="l", **seen, cached_tokens=1)) == [CONFLICT]

    def test_counts_supersede_an_observation_without_them(self, ledger: Sync) -> None:
        seen = {"observation": True, "quality": UsageQuality.UNKNOWN, "input_tokens": None}
        first = entry(units=None, idempotency_key="k", user_id="u", labels={"team": "red"}, **seen)
        counted = entry(9, units=5, idempotency_key="k", labels={"by": "proxy"})
        [unknown] = ledger.append([first])
        ask_everything(ledger)
        [done] = ledger.append([counted])
        assert (done.status, done.usage_id, done.units) == (CREATED, unknown.usage_id, 5)
        assert sums(ledger, ("user",)) == [("u", 1, 100, 5)]
        assert ledger.count(EVERYTHING) == 1
        found = ledger.get_cost(done.usage_id)
        assert (found.revision, found.kind, found.record.timestamp) == (2, RevisionKind.SUPERSEDED, START)
        assert (found.record.labels, found.record.input_tokens) == ({"by": "proxy"}, 100)
        for again in (first, counted, entry(5, idempotency_key="k", observation=True)):
            [answer] = ledger.append([again])
            assert (answer.status, answer.units) == (DUPLICATE, 5)
        assert statuses(ledger, entry(9, idempotency_key="k", input_tokens=7)) == [CONFLICT]
        kinds = [(item.revision, item.record.input_tokens) for item in ledger.committed(None, 9)[0]]
        assert kinds == [(1, None), (2, 100)]

    def test_an_observation_without_counts_contradicts_none(self, ledger: Sync) -> None:
        unknown = {"observation": True, "quality": UsageQuality.UNKNOWN, "units": None}
        late = entry(3, idempotency_key="k", input_tokens=None, **unknown)
        other = entry(4, idempotency_key="l", input_tokens=3, **unknown)
        counted = entry(idempotency_key="l")
        # All in one list: the order is that of the list.
        batch = [entry(idempotency_key="k"), late, other, replace(other), counted, counted]
        assert statuses(ledger, *batch) == [CREATED, DUPLICATE, CREATED, DUPLICATE, CREATED, DUPLICATE]
        assert [row[:2] for row in sums(ledger)] == [(2, 200)]

    def test_what_was_corrected_or_voided_is_not_superseded(self, ledger: Sync) -> None:
        seen = {"observation": True, "quality": UsageQuality.UNKNOWN, "units": None}
        first, second = (entry(idempotency_key=key, **seen) for key in "kl")
        ids = [done.usage_id for done in ledger.append([first, second])]
        assert revise(ledger, ids[0], 1, replace(first.record, input_tokens=7))
        assert revise(ledger, ids[1], 1)
        assert (
            statuses(ledger, *(entry(idempotency_key=key, input_tokens=9) for key in "kl")) == [CONFLICT] * 2
        )
        assert statuses(ledger, first, second) == [DUPLICATE] * 2
        assert [row[:2] for row in sums(ledger)] == [(1, 7)]

    @pytest.mark.parametrize(
        "wrong",
        [entry(input_tokens=MAX_COUNT + 1), entry(units=MAX_RECORD_COST * 10**12 + 1)],
        ids=["count", "cost"],
    )
    def test_what_is_too_large_refuses_the_whole_list(self, ledger: Sync, wrong: Any) -> None:
        with pytest.raises(RpcError, match=r"must (be|cost) at most") as caught:
            ledger.append([entry(), wrong])
        assert caught.value.code is StatusCode.INVALID_ARGUMENT
        assert ledger.count(EVERYTHING) == 0

    @pytest.mark.parametrize("sort", ["timestamp", "ingested_at"])
    @pytest.mark.parametrize("descending", [False, True])
    def test_pages_hold_each_record_once(self, ledger: Sync, sort: str, descending: bool) -> None:
        moments = (5, 3, 3, 9, 1, 3)
        ids = [done.usage_id for done in ledger.append([entry(at) for at in moments])]
        order = sorted(range(6), key=lambda n: (moments[n] if sort == "timestamp" else 0, n))
        expected = [ids[n] for n in (reversed(order) if descending else order)]
        found, position = [], None
        while True:
            page, position = ledger.list_usage(EVERYTHING, sort, descending, 2, position, None)
            found += [record.id for record in page]
            if position is None:
                break
        assert found == expected
        skipped, _ = ledger.list_usage(EVERYTHING, sort, descending, 2, None, 3)
        assert [record.id for record in skipped] == expected[3:5]
        with pytest.raises(RpcError) as caught:
            ledger.list_usage(EVERYTHING, sort, descending, 2, "never given", None)
        assert caught.value.code is StatusCode.INVALID_ARGUMENT

    def test_a_record_has_what_the_ledger_knows_of_it(self, ledger: Sync) -> None:
        kept = card(id="card-2", version=3)
        digest = card_digest(kept)
        by = Pricing(CostStatus.PRICED, "EUR", "card-2", 3, ("region",), "", card=kept, digest=digest)
        [done] = ledger.append([replace(entry(2, idempotency_key="k", units=1_500_000_000_000), by=by)])
        found = ledger.get_cost(done.usage_id)
        record = found.record
        assert (record.id, record.idempotency_key, record.ingested_at) == (done.usage_id, "k", TAKEN)
        assert (record.estimated_cost, record.currency, record.timestamp) == (
            Decimal("1.5"),
            "EUR",
            START + timedelta(seconds=2),
        )
        assert (found.card, found.digest, found.fallbacks) == (kept, by.digest, ("region",))
        # Read once, so that it is compiled once for all receipts.
        assert ledger.get_cost(done.usage_id).card is found.card
        assert (found.revision, found.calculated_at) == (1, TAKEN)
        assert ledger.get_cost(done.usage_id, "globex") is None
        assert ledger.get_cost("none") is None

    def test_a_record_without_a_time_has_that_of_its_arrival(self, ledger: Sync) -> None:
        bare = entry(idempotency_key="k")
        bare.record.timestamp = None
        assert statuses(ledger, bare, entry(TAKEN, idempotency_key="k")) == [CREATED, DUPLICATE]
        [record], _ = ledger.list_usage(EVERYTHING, "timestamp", False, 5, None, None)
        assert record.timestamp == TAKEN

    def test_repricing_adds_revisions_and_sums_follow(self, ledger: Sync) -> None:
        ids = [done.usage_id for done in ledger.append([entry(n, units=5) for n in range(5)])]
        planned = ledger.reprice(EVERYTHING, lambda _: priced(7), None, 10, dry_run=True)
        assert [s.units for _, _, s in ledger.summarize(EVERYTHING, (), None)] == [25]
        done = ledger.reprice(EVERYTHING, lambda _: priced(7), None, 10, dry_run=False)
        assert (planned.examined, planned.changes) == (done.examined, done.changes)
        assert {(c.units_before, c.units_after) for c in done.changes} == {(5, 7)}
        assert ledger.reprice(EVERYTHING, lambda _: priced(7), None, 10, dry_run=False).changes == []
        step = ledger.reprice(EVERYTHING, lambda _: priced(None), None, 2, dry_run=False)
        rest = ledger.reprice(EVERYTHING, lambda _: priced(9), step.position, 10, dry_run=False)
        assert (step.examined, rest.examined) == (2, 3)
        [(_, _, sums)] = ledger.summarize(EVERYTHING, (), None)
        assert (sums.units, sums.requests, sums.unpriced_requests) == (27, 5, 2)
        assert ledger.count(Filter(statuses=("unpriced",))) == 2
        found = ledger.get_cost(ids[4])
        assert (found.units, found.revision) == (9, 3)

    def test_a_correction_is_a_revision_and_sums_follow(self, ledger: Sync) -> None:
        first = entry(idempotency_key="k", units=3, user_id="u", tags=["x"], labels={"team": "red"})
        [done, _] = ledger.append([first, entry(1, units=1, model_id="b")])
        changes = {"input_tokens": 7, "user_id": "v", "tags": ["y"], "labels": {}, "model_id": "b"}
        record = replace(first.record, **changes, request_count=4)
        ask_everything(ledger)
        assert not revise(ledger, done.usage_id, 2, record)
        assert not revise(ledger, done.usage_id, 1, record, organization_id="globex")
        assert not revise(ledger, "none", 1, record)
        assert revise(ledger, done.usage_id, 1, record)
        assert not revise(ledger, done.usage_id, 1, record)
        assert sums(ledger, ("model",)) == [("b", 5, 107, 6)]
        assert sums(ledger, ("user",)) == [("", 1, 100, 1), ("v", 4, 7, 5)]
        assert sums(ledger, ("tag",)) == [("", 1, 100, 1), ("y", 4, 7, 5)]
        assert sums(ledger, ("label:team",)) == [("", 5, 107, 6)]
        assert sums(ledger, (), Filter(tags=("x",))) == sums(ledger, (), Filter(user_ids=("u",))) == []
        assert sums(ledger, (), Filter(user_ids=("v",), model_ids=("b",))) == [(4, 7, 5)]
        metered = ledger.summarize(EVERYTHING, ("meter", "user"), None)
        assert [(*keys, s.input_tokens) for keys, _, s in metered if s.input_tokens] == [
            ("INPUT", "", 100),
            ("INPUT", "v", 7),
        ]
        found = ledger.get_cost(done.usage_id)
        assert (found.record.input_tokens, found.record.timestamp) == (7, START)
        assert (found.revision, found.kind, found.reason) == (2, RevisionKind.CORRECTED, "a reason")
        [listed], _ = ledger.list_usage(Filter(user_ids=("v",)), "timestamp", False, 5, None, None)
        assert listed == found.record
        # As it was sent it is still a duplicate, and as it is now another one.
        assert statuses(ledger, first) == [DUPLICATE]
        assert statuses(ledger, entry(idempotency_key="k", input_tokens=7)) == [CONFLICT]

    def test_voided_records_are_out_of_sums_and_lists(self, ledger: Sync) -> None:
        first = entry(idempotency_key="k", units=5, user_id="u", tags=["x"])
        [done, other] = ledger.append([first, entry(1, units=1)])
        ask_everything(ledger)
        assert revise(ledger, done.usage_id, 1)
        voided = Filter(statuses=("voided",))
        for group_by in ((), ("status",), ("user",), ("tag",)):
            assert [row[-3:] for row in sums(ledger, group_by)] == [(1, 100, 1)]
            assert [row[-3:] for row in sums(ledger, group_by, voided)] == [(1, 100, 5)]
        metered = ledger.summarize(EVERYTHING, ("meter",), None)
        assert sum(s.units for _, _, s in metered) == 1
        assert (ledger.count(EVERYTHING), ledger.count(voided)) == (1, 1)
        for sort in ("timestamp", "ingested_at"):
            for where, expected in ((EVERYTHING, other), (voided, done)):
                records, _ = ledger.list_usage(where, sort, True, 9, None, None)
                assert [record.id for record in records] == [expected.usage_id]
        assert ledger.get_cost(done.usage_id).status == CostStatus.VOIDED
        for where in (EVERYTHING, voided):
            ledger.reprice(where, lambda _: priced(9), None, 9, dry_run=False)
        assert (sums(ledger), sums(ledger, (), voided)) == ([(1, 100, 9)], [(1, 100, 5)])
        assert statuses(ledger, first, replace(first)) == [DUPLICATE] * 2

    def test_every_revision_is_kept(self, ledger: Sync) -> None:
        first = entry(idempotency_key="k", units=3)
        [done] = ledger.append([first])
        ledger.reprice(EVERYTHING, lambda _: priced(4), None, 9, dry_run=False, actor="lco_2")
        assert revise(ledger, done.usage_id, 2, replace(first.record, input_tokens=7))
        ledger.reprice(EVERYTHING, lambda _: priced(6), None, 9, dry_run=False)
        assert revise(ledger, done.usage_id, 4, replace(first.record, input_tokens=8))
        assert revise(ledger, done.usage_id, 5, units=5)
        expected = [
            ("recorded", 100, 3),
            ("repriced", 100, 4),
            ("corrected", 7, 5),
            ("repriced", 7, 6),
            ("corrected", 8, 5),
            ("voided", 8, 5),
        ]
        revised = ledger.revisions("acme", done.usage_id)
        assert [each.number for each in revised] == [1, 2, 3, 4, 5, 6]
        committed, _ = ledger.committed(None, 9)
        assert [each.record for each in committed] == [each.record for each in revised]
        found = [
            (str(each.kind), each.record.input_tokens, int(each.record.estimated_cost * 10**12))
            for each in revised
        ]
        assert found == expected
        assert (revised[2].reason, revised[2].actor) == ("a reason", "lco_1")
        assert (revised[1].actor, revised[3].actor) == ("lco_2", "")
        assert revised[2].made_at == TAKEN + timedelta(days=2)
        assert (revised[0].reason, revised[0].actor, revised[0].made_at) == ("", "", TAKEN)
        assert ledger.revisions("globex", done.usage_id) == ledger.revisions("acme", "none") == []

    def test_reported_costs_are_summed_apart(self, ledger: Sync) -> None:
        reported = Pricing(CostStatus.REPORTED, "USD")
        ledger.append([replace(entry(units=5, request_count=3, user_id="u"), by=reported), entry(units=7)])
        for group_by in ((), ("provider",), ("tag",)):
            [(_, _, found)] = ledger.summarize(EVERYTHING, group_by, None)
            assert (found.units, found.reported_requests, found.reported_units) == (12, 3, 5)
        users = {keys: s.reported_units for keys, _, s in ledger.summarize(EVERYTHING, ("user",), None)}
        assert users == {("",): 0, ("u",): 5}
        metered = ledger.summarize(EVERYTHING, ("meter",), None)
        assert sum(s.reported_units for _, _, s in metered) == 5

    def test_commits_come_in_order_and_consumers_move_forward(self, ledger: Sync) -> None:
        ids = [done.usage_id for done in ledger.append([entry(n, units=5) for n in range(3)])]
        ledger.reprice(Filter(end=START + timedelta(seconds=1)), lambda _: priced(7), None, 9, dry_run=False)
        ids += [done.usage_id for done in ledger.append([entry(9)])]
        expected = [(ids[0], 1), (ids[1], 1), (ids[2], 1), (ids[0], 2), (ids[3], 1)]
        for size in (1, 2, 9):
            found, position = [], None
            while True:
                page, position = ledger.committed(position, size)
                if not page:
                    break
                found += [(item.record.id, item.revision) for item in page]
            assert found == expected
        assert ledger.committed(position, 5) == ([], position)
        _, early = ledger.committed(None, 2)
        assert ledger.consumer_position("alerts") is None
        for moved in (early, position, early):
            ledger.move_consumer("alerts", moved)
        assert ledger.consumer_position("alerts") == position
        with pytest.raises(RpcError):
            ledger.committed("never given", 5)

    def test_a_consumer_gets_each_commit_and_those_again_that_it_failed_at(self, ledger: Sync) -> None:
        ids = [done.usage_id for done in ledger.append([entry(n) for n in range(5)])]
        seen: list[str] = []

        async def handle(commits: Sequence[Committed]) -> None:
            seen.extend(item.record.id for item in commits)
            if len(seen) == 4:
                raise RuntimeError("the webhook is down")

        def caught_up(name: str) -> int:
            return drive(catch_up(ledger.store, name, handle, context(), limit=2))

        with pytest.raises(RuntimeError):
            caught_up("alerts")
        assert (caught_up("alerts"), seen) == (3, [*ids[:4], *ids[2:]])
        ids += [done.usage_id for done in ledger.append([entry(9)])]
        assert (caught_up("alerts"), caught_up("alerts"), seen[-1]) == (1, 0, ids[5])
        assert (caught_up("exports"), seen[-6:]) == (6, ids)

    def test_cards_have_versions_and_keys(self, ledger: Sync) -> None:
        before = ledger.cards_revision()
        first, status = ledger.add_card(card(), "k", b"1" * 16)
        assert (first.version, status) == (1, CREATED)
        assert ledger.cards_revision() > before
        assert ledger.add_card(card(), "k", b"1" * 16) == (first, DUPLICATE)
        assert ledger.add_card(card("3"), "k", b"2" * 16) == (first, CONFLICT)
        assert ledger.add_card(card(), "other", b"1" * 16) == (first, DUPLICATE)
        second, status = ledger.add_card(card(region="eu"), "", b"2" * 16)
        assert (second.version, status) == (1, CREATED)
        assert ledger.get_card(second.id) == second
        assert ledger.get_card("none") is None
        assert len(ledger.all_cards()) == 2

    def test_known_cards_are_given_among_the_others(self, ledger: Sync) -> None:
        first, _ = ledger.add_card(card(), "", b"1" * 16)
        known = {each.id: each for each in ledger.all_cards()}
        second, _ = ledger.add_card(card("3"), "", b"2" * 16)
        gone = card(region="eu")
        assert ledger.all_cards(known={**known, gone.id: gone}) == [first, second]

    def test_entries_priced_with_other_cards_are_not_written(self, ledger: Sync) -> None:
        revision = ledger.cards_revision()
        ledger.add_card(card(), "", b"1" * 16)
        for batch in ([entry()], [entry(), entry()]):
            assert drive(ledger.store.append(batch, context(), revision)) is None
            assert len(drive(ledger.store.append(batch, context(), ledger.cards_revision()))) == len(batch)
        assert ledger.count(EVERYTHING) == 3

    def test_groups_and_buckets(self, ledger: Sync) -> None:
        ledger.append(
            [
                entry(0, units=1, tags=["x", "y", "x"], labels={"team": "red"}, user_id="u"),
                entry(7200, units=2, tags=["x"], request_count=3),
                entry(7200, units=None, organization_id="globex"),
                entry(0, units=4, currency="EUR"),
            ]
        )

        def units(group_by: tuple[str, ...], where: Filter = EVERYTHING, buckets: Any = None) -> Any:
            found = ledger.summarize(where, group_by, buckets)
            return [(*keys, bucket, s.currency, s.units) for keys, bucket, s in found]

        assert units(("tag",)) == [
            ("", 0, "EUR", 4),
            ("", 0, "USD", 0),
            ("x", 0, "USD", 3),
            ("y", 0, "USD", 1),
        ]
        assert units(("label:team",)) == [("", 0, "EUR", 4), ("", 0, "USD", 2), ("red", 0, "USD", 1)]
        hours = [(START + timedelta(hours=n), START + timedelta(hours=n + 1)) for n in range(3)]
        assert units((), Filter(organization_ids=("acme",)), hours) == [
            (0, "EUR", 4),
            (0, "USD", 1),
            (2, "USD", 2),
        ]
        assert units(("organization", "status"), Filter(start=START + timedelta(hours=1))) == [
            ("acme", "priced", 0, "USD", 2),
            ("globex", "unpriced", 0, "USD", 0),
        ]
        [(_, _, sums)] = ledger.summarize(Filter(user_ids=("u",), labels={"team": "red"}), ("user",), None)
        assert (sums.requests, sums.input_tokens, sums.unpriced_requests) == (1, 100, 0)
        with pytest.raises(RpcError) as caught:
            ledger.summarize(EVERYTHING, ("colour",), None)
        assert caught.value.code is StatusCode.INVALID_ARGUMENT

    def test_meters_add_up_to_the_whole(self, ledger: Sync) -> None:
        kept = card("0.000000000001", id="card-2")
        by = Pricing(CostStatus.PRICED, "USD", "card-2", 1, card=kept, digest=card_digest(kept))
        ledger.append([replace(entry(output_tokens=7, units=100), by=by), entry(5, units=3)])
        found = ledger.summarize(EVERYTHING, ("meter",), None)
        by_meter = {keys[0]: (s.units, s.input_tokens, s.output_tokens) for keys, _, s in found}
        assert by_meter == {"INPUT": (100, 200, 0), "OUTPUT": (0, 0, 7), "": (3, 0, 0)}

    def test_occupied_stretches_and_count(self, ledger: Sync) -> None:
        second = 10**6
        assert ledger.occupied(EVERYTHING, second) == []
        before_1970 = START.replace(year=1969, month=12, day=31, hour=23, minute=59, second=59)
        ledger.append(
            [entry(3), entry(8), entry(8.5), entry(before_1970), entry(99, organization_id="globex")]
        )
        acme = Filter(organization_ids=("acme",), model_ids=("none",))
        first = int(START.timestamp())
        assert ledger.occupied(acme, second) == [-1, first + 3, first + 8]
        assert ledger.occupied(replace(acme, end=START + timedelta(seconds=8)), second) == [-1, first + 3]
        assert ledger.count(Filter(organization_ids=("acme",))) == 4
        assert ledger.count(Filter(end=START + timedelta(seconds=8))) == 2

    def test_keys_are_added_once_and_revoked(self, ledger: Sync) -> None:
        def ask(name: str, *arguments: Any) -> Any:
            return drive(getattr(ledger.store.keys, name)(*arguments, context()))

        key = ApiKey(id="lco_1", hash=b"h" * 32, role="reader", organizations=("acme",), created_at=START)
        assert not ask("any")
        ask("add", key)
        assert ask("any")
        assert ask("find", "lco_1") == key
        with pytest.raises(RpcError) as caught:
            ask("add", key)
        assert caught.value.code is StatusCode.ALREADY_EXISTS
        revoked = ask("revoke", "lco_1", TAKEN)
        assert revoked == replace(key, revoked_at=TAKEN) == ask("find", "lco_1")
        assert ask("revoke", "lco_1", START) == revoked
        assert ask("revoke", "none", START) is None
        assert ask("all") == [revoked]
        assert len(ask("secret")) == 32
        assert ask("secret") == ask("secret")

    def test_a_closed_ledger_refuses(self, ledger: Sync) -> None:
        ledger.check()
        ledger.aclose()
        ledger.aclose()
        for call in (lambda: ledger.append([entry()]), ledger.check, lambda: ledger.count(EVERYTHING)):
            with pytest.raises(RpcError, match="closed") as caught:
                call()
            assert caught.value.code is StatusCode.FAILED_PRECONDITION
