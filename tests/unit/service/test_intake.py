"""A batch in the process: its records go without keys of their own, and the service gives them theirs."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from llm_cost_ops import CostOpsClient, ValidationError
from llm_cost_ops._gen.messages import CostStatus, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.encoding import usage_id

NOW = datetime.now(UTC).replace(microsecond=0)
CREATED, DUPLICATE, INVALID = SubmitStatus.CREATED, SubmitStatus.DUPLICATE, SubmitStatus.INVALID


def record(n: int, **fields: Any) -> UsageRecord:
    given: dict[str, Any] = {"model_id": "gpt-4o", "input_tokens": n, "output_tokens": 0, **fields}
    given = {"provider": "OpenAI", "timestamp": NOW - timedelta(seconds=n), **given}
    return UsageRecord(organization_id="acme", **given)


# Texts that a header could carry, and those that none could.
@pytest.mark.parametrize(
    "key", ["01a21e1d-6570-7f7b-ba9f-2b0e7b85e350", "monday", "понедельник", "x" * 199, "x" * 250, " spaces "]
)
def test_keys_of_a_batch_are_numbered_by_place_whatever_is_refused(key: str) -> None:
    records = [record(0), record(1, idempotency_key="own"), record(2, input_tokens=-1), record(3)]
    sent = deepcopy(records)
    with CostOpsClient(base_url="sqlite://") as client:
        done = client.usage.submit_batch(records, idempotency_key=key)
        assert records == sent
        assert [result.status for result in done.results] == [CREATED, CREATED, INVALID, CREATED]
        keys = [f"{key}:0", "own", f"{key}:3"]
        ids = [result.usage.usage_id for result in done.results if result.usage is not None]
        assert ids == [usage_id("acme", each)[0] for each in keys]
        kept = {found.id: found.idempotency_key for found in client.usage.get_history()}
        assert kept == dict(zip(ids, keys, strict=True))
        again = client.usage.submit_batch(records, idempotency_key=key)
        assert [result.status for result in again.results] == [DUPLICATE, DUPLICATE, INVALID, DUPLICATE]
        assert [result.usage.usage_id for result in again.results if result.usage is not None] == ids


@pytest.mark.parametrize("key", ["x" * 251, "tab\t"])
def test_a_key_that_would_be_none_of_a_record_is_refused_for_the_batch(key: str) -> None:
    with CostOpsClient(base_url="sqlite://") as client:
        with pytest.raises(ValidationError) as caught:
            client.usage.submit_batch([record(0), record(1)], idempotency_key=key)
        assert [violation.field for violation in caught.value.violations] == ["idempotency_key"]
        assert not list(client.usage.get_history())


def test_each_receipt_of_a_batch_says_what_is_stored_under_its_id() -> None:
    """Receipts are made before anything is written: of several models and times, priced and not."""
    models = [("gpt-4o", None), ("gpt-4o-mini", None), ("nobody-knows", None), ("nobody-knows", Decimal(2))]
    records = [record(n, model_id=model, reported_cost=cost) for n, (model, cost) in enumerate(models * 30)]
    with CostOpsClient(base_url="sqlite://") as client:
        done = client.usage.submit_batch(records)
        stored = {found.id: found for found in client.usage.get_history(page_size=100)}
    assert (done.created, len(stored)) == (120, 120)
    for sent, result in zip(records, done.results, strict=True):
        receipt = result.usage
        assert receipt is not None
        found = stored[receipt.usage_id]
        assert (found.timestamp, found.model_id, found.provider) == (sent.timestamp, sent.model_id, "openai")
        assert (receipt.estimated_cost, receipt.currency, receipt.cost_status, receipt.processed_at) == (
            found.estimated_cost,
            found.currency,
            found.cost_status,
            found.ingested_at,
        )
    assert {found.cost_status.value for found in stored.values()} == {"priced", "unpriced", "reported"}


def test_what_only_the_service_may_say_is_dropped_and_the_rest_kept() -> None:
    forged = record(
        7, id="x", ingested_at=NOW, estimated_cost=Decimal(9), currency="EUR", cost_status=CostStatus.PRICED
    )
    with CostOpsClient(base_url="sqlite://") as client:
        done = client.usage.submit_batch([forged, record(8, user_id="u", tags=["a", "a"], labels={"k": "v"})])
        found = {each.input_tokens: each for each in client.usage.get_history()}
    assert done.created == 2
    assert (found[7].currency, found[7].id) != ("EUR", "x")
    assert (found[8].user_id, found[8].tags, found[8].labels) == ("u", ["a", "a"], {"k": "v"})


# In all the forms that a service takes; of most of them a copy is made, of the first none.
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"provider": "openai"},
    "alias": {"provider": "OpenAI"},
    "its total": {"total_tokens": 7},
    "one count": {"output_tokens": None},
    "no counts": {"input_tokens": None, "output_tokens": None},
    "no counts, their total": {"input_tokens": None, "output_tokens": None, "total_tokens": 0},
    "meters": {"input_tokens": None, "output_tokens": None, "meters": {"web_searches": 2}},
    "without a zone": {"timestamp": NOW.replace(tzinfo=None)},
    "another zone": {"timestamp": NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))},
    "forged": {"id": "x", "currency": "EUR", "estimated_cost": Decimal(9), "ingested_at": NOW},
    "forged status": {"cost_status": CostStatus.PRICED},
}


def test_a_record_is_kept_the_same_alone_and_in_a_batch() -> None:
    forms = [
        record(7, **{"idempotency_key": f"key-{n}", "session_id": name, "provider": "openai", **fields})
        for n, (name, fields) in enumerate(FORMS.items())
    ]
    sent = deepcopy(forms)
    with CostOpsClient(base_url="sqlite://") as single, CostOpsClient(base_url="sqlite://") as batched:
        for each in forms:
            single.usage.submit(each)
        assert batched.usage.submit_batch(forms).created == len(forms)
        assert forms == sent
        kept = [
            {found.session_id: replace(found, ingested_at=None) for found in client.usage.get_history()}
            for client in (single, batched)
        ]
        assert kept[0] == kept[1]
        assert {name: found.total_tokens for name, found in kept[0].items()} == {
            name: None if fields.get("input_tokens", 7) is None else 7 for name, fields in FORMS.items()
        }
        assert single.usage.submit_batch(forms).duplicates == len(forms)
        for each in forms:
            assert batched.usage.submit(each).duplicate


def test_what_becomes_of_records_after_a_batch_changes_nothing_that_is_kept() -> None:
    sent = record(7, provider="openai", tags=["a"], labels={"k": "v"})
    with CostOpsClient(base_url="sqlite://") as client:
        client.usage.submit_batch([sent])
        sent.user_id, sent.input_tokens = "somebody", 8
        sent.tags.append("b")
        sent.labels["k"] = "w"
        [found] = client.usage.get_history()
    assert (found.user_id, found.input_tokens, found.tags, found.labels) == ("", 7, ["a"], {"k": "v"})
