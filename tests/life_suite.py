"""What every ledger has to do about data's life, as tests; run as those of ledger_suite.py."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from llm_cost_ops.ledger import ApiKey, AuditFilter, Filter, open_ledger
from llm_cost_ops.rpc.runtime import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.ledger_suite import card, priced, revise
from tests.unit.ledger.making import TAKEN, Sync, context, entry

__all__ = ["LifeSuite"]

EVERYTHING = Filter()


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


class LifeSuite:
    """The audit log."""

    @pytest.fixture
    def url(self) -> str:
        """Where a new ledger is; each test has one of its own."""
        raise NotImplementedError

    @pytest.fixture
    def ledger(self, url: str) -> Iterator[Sync]:
        with Sync(ledger=open_ledger(url)) as made:
            yield made

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
        assert sorted(found[2:], key=str) == [
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
