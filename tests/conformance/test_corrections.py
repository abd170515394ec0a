"""Voiding, correcting and superseding records: the same over every transport, in both colours."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops import ConflictError, NotFoundError, UsageRecord, ValidationError, usage_from_response
from llm_cost_ops.exceptions import CostOpsError
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.types import CostStatus, RevisionKind, SubmitStatus, UsageQuality

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)
CALL: dict[str, Any] = {
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
    "timestamp": AT,
}
COST = Decimal("0.0075")


async def facts(client: Any, organization: str, **filters: Any) -> Any:
    """What the sums and the lists say, which is the same."""
    summary = await client.costs.get(organization_id=organization, **filters)
    by_user = await client.costs.get(organization_id=organization, group_by="user", **filters)
    assert sum(group.cost for group in by_user.breakdown) == summary.total_cost
    pager = client.usage.get_history(organization_id=organization, **filters)
    listed = (await pager).data
    assert sum(record.request_count or 1 for record in listed) == summary.total_requests
    assert sum(record.estimated_cost or 0 for record in listed) == summary.total_cost
    return summary.total_cost, summary.total_requests, summary.total_tokens


async def test_a_voided_record_counts_no_more(client: Any, organization: str) -> None:
    call = {**CALL, "organization_id": organization, "idempotency_key": str(uuid7())}
    sent = await client.usage.submit(**call)
    kept = await client.usage.submit(organization_id=organization, **CALL)
    voided = await client.usage.void(sent.usage_id, organization_id=organization, reason="sent twice")
    assert (voided.revision, voided.kind, voided.reason) == (2, RevisionKind.VOIDED, "sent twice")
    assert (voided.usage_id, voided.organization_id) == (sent.usage_id, organization)
    assert voided.usage.cost_status == CostStatus.VOIDED
    assert await facts(client, organization) == (COST, 1, 1500)
    assert await facts(client, organization, status="voided") == (COST, 1, 1500)
    [listed] = (await client.usage.get_history(organization_id=organization)).data
    assert listed.id == kept.usage_id
    receipt = await client.costs.verify(sent.usage_id, organization_id=organization)
    assert receipt.matches, receipt.reason
    cost = receipt.recorded
    assert (cost.status, cost.revision, cost.total_cost) == (CostStatus.VOIDED, 2, COST)
    assert (cost.revision_kind, cost.revision_reason) == (RevisionKind.VOIDED, "sent twice")
    again = await client.usage.void(sent.usage_id, organization_id=organization, reason="again")
    assert again == voided
    repeated = await client.usage.submit(**call)
    assert (repeated.duplicate, repeated.estimated_cost) == (True, COST)
    assert await facts(client, organization) == (COST, 1, 1500)


async def test_a_correction_is_priced_and_summed_anew(client: Any, organization: str) -> None:
    call = {**CALL, "organization_id": organization, "idempotency_key": str(uuid7()), "user_id": "u"}
    sent = await client.usage.submit(**call)
    changes = {"input_tokens": 2000, "cached_tokens": 400, "user_id": "v", "labels": {"team": "red"}}
    corrected = await client.usage.correct(
        sent.usage_id, organization_id=organization, reason="wrong counter", changes=changes
    )
    assert (corrected.revision, corrected.kind) == (2, RevisionKind.CORRECTED)
    assert (corrected.usage.total_tokens, corrected.usage.user_id) == (2500, "v")
    assert corrected.usage.estimated_cost == Decimal("0.0095")
    assert await facts(client, organization) == (Decimal("0.0095"), 1, 2500)
    assert (await facts(client, organization, user_id="u"))[1] == 0
    assert (await facts(client, organization, user_id="v", label={"team": "red"}))[1] == 1
    by_meter = await client.costs.get(organization_id=organization, group_by="meter")
    assert sum(group.cost for group in by_meter.breakdown) == Decimal("0.0095")
    receipt = await client.costs.verify(sent.usage_id, organization_id=organization)
    assert receipt.matches, receipt.reason
    assert sum(line.cost for line in receipt.recorded.lines) == Decimal("0.0095")
    same = await client.usage.correct(
        sent.usage_id, organization_id=organization, reason="again", changes={"input_tokens": 2000}
    )
    assert same == corrected
    fewer = await client.usage.correct(
        sent.usage_id,
        organization_id=organization,
        reason="no cache",
        changes={"cached_tokens": 0, "labels": None},
    )
    assert (fewer.revision, fewer.usage.labels, fewer.usage.estimated_cost) == (3, {}, Decimal("0.01"))
    repeated = await client.usage.submit(**call)
    assert (repeated.duplicate, repeated.estimated_cost) == (True, COST)
    history = await client.usage.revisions(sent.usage_id, organization_id=organization)
    assert [
        (each.revision, each.usage.input_tokens, each.usage.estimated_cost) for each in history.revisions
    ] == [
        (1, 1000, COST),
        (2, 2000, Decimal("0.0095")),
        (3, 2000, Decimal("0.01")),
    ]
    assert history.revisions[0].kind == RevisionKind.RECORDED
    assert history.revisions[0].usage.user_id == "u"
    assert history.revisions[0].made_at == sent.processed_at


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, "changes"),
        ({"output_tokns": 5}, "changes.output_tokns"),
        ({"organization_id": "other"}, "changes.organization_id"),
        ({"idempotency_key": "k"}, "changes.idempotency_key"),
        ({"timestamp": "2026-01-01T00:00:00Z"}, "changes.timestamp"),
        ({"estimated_cost": "1"}, "changes.estimated_cost"),
        ({"input_tokens": "many"}, "changes.input_tokens"),
        ({"input_tokens": -1}, "changes.input_tokens"),
        ({"cached_tokens": 1001}, "changes.cached_tokens"),
        ({"total_tokens": 7}, "changes.total_tokens"),
        ({"provider": None}, "changes.provider"),
    ],
)
async def test_wrong_changes_are_refused_by_name(
    client: Any, organization: str, changes: dict[str, Any], field: str
) -> None:
    sent = await client.usage.submit(organization_id=organization, **CALL)
    with pytest.raises(ValidationError) as caught:
        await client.usage.correct(sent.usage_id, organization_id=organization, reason="r", changes=changes)
    assert field in [violation.field for violation in caught.value.violations]
    history = await client.usage.revisions(sent.usage_id, organization_id=organization)
    assert len(history.revisions) == 1


async def test_a_reason_must_be_given(client: Any, organization: str) -> None:
    sent = await client.usage.submit(organization_id=organization, **CALL)
    for reason in ("", "x" * 1001):
        with pytest.raises(ValidationError, match="reason"):
            await client.usage.void(sent.usage_id, organization_id=organization, reason=reason)
    assert await facts(client, organization) == (COST, 1, 1500)


async def test_what_was_voided_is_not_corrected(client: Any, organization: str) -> None:
    sent = await client.usage.submit(organization_id=organization, **CALL)
    await client.usage.void(sent.usage_id, organization_id=organization, reason="r")
    with pytest.raises(CostOpsError, match="was voided") as caught:
        await client.usage.correct(
            sent.usage_id, organization_id=organization, reason="r", changes={"input_tokens": 1}
        )
    assert caught.value.code == "FAILED_PRECONDITION"
    report = await client.costs.reprice(organization_id=organization, status="voided")
    assert report.changed == 0


async def test_there_is_no_such_record(client: Any, organization: str) -> None:
    sent = await client.usage.submit(organization_id=organization, **CALL)
    for place in ({"organization_id": organization}, {"organization_id": f"{organization}-b"}):
        usage_id = sent.usage_id if place["organization_id"] != organization else str(uuid7())
        for call in (
            client.usage.void(usage_id, reason="r", **place),
            client.usage.correct(usage_id, reason="r", changes={"input_tokens": 1}, **place),
            client.usage.revisions(usage_id, **place),
        ):
            with pytest.raises(NotFoundError, match="no usage record"):
                await call
    with pytest.raises(ValidationError, match="organization_id must be given"):
        await client.usage.void(sent.usage_id, reason="r")


async def test_counts_supersede_an_observation_that_had_none(client: Any, organization: str) -> None:
    key = {"organization_id": organization, "idempotency_key": str(uuid7())}
    known = {"provider": "openai", "model_id": "gpt-4o", "timestamp": AT, "observation": True, **key}
    first = await client.usage.submit(**known, quality=UsageQuality.UNKNOWN, labels={"team": "red"})
    assert first.estimated_cost is None
    counted = await client.usage.submit(**known, input_tokens=1000, output_tokens=500)
    assert (counted.usage_id, counted.duplicate, counted.estimated_cost) == (first.usage_id, False, COST)
    assert await facts(client, organization, label={"team": "red"}) == (COST, 1, 1500)
    for again in ({"quality": UsageQuality.UNKNOWN}, {"input_tokens": 1000, "output_tokens": 500}):
        repeated = await client.usage.submit(**known, **again)
        assert (repeated.duplicate, repeated.estimated_cost) == (True, COST)
    with pytest.raises(ConflictError):
        await client.usage.submit(**known, input_tokens=1000, output_tokens=501)
    history = await client.usage.revisions(first.usage_id, organization_id=organization)
    assert [each.kind for each in history.revisions] == [RevisionKind.RECORDED, RevisionKind.SUPERSEDED]
    assert history.revisions[0].usage.input_tokens is None
    assert await facts(client, organization) == (COST, 1, 1500)


async def test_a_batch_supersedes_and_counts_conflicts(client: Any, organization: str) -> None:
    def seen(key: str, put_in: int | None) -> UsageRecord:
        return UsageRecord(
            organization_id=organization,
            idempotency_key=key,
            provider="openai",
            model_id="gpt-4o",
            timestamp=AT,
            observation=True,
            input_tokens=put_in,
        )

    key, other = str(uuid7()), str(uuid7())
    done = await client.usage.submit_batch(
        [seen(key, None), seen(key, 1000), seen(key, None), seen(other, 1000), seen(other, 7)]
    )
    assert [result.status for result in done.results] == [
        SubmitStatus.CREATED,
        SubmitStatus.CREATED,
        SubmitStatus.DUPLICATE,
        SubmitStatus.CREATED,
        SubmitStatus.CONFLICT,
    ]
    assert (done.created, done.duplicates, done.conflicts) == (3, 1, 1)
    assert (await facts(client, organization))[1:] == (2, 2000)


async def test_sums_tell_what_providers_reported(client: Any, organization: str) -> None:
    reported = {"reported_cost": "0.5", "provider": "openrouter", "model_id": "no/such-model"}
    await client.usage.submit(**{**CALL, "organization_id": organization, **reported})
    await client.usage.submit(organization_id=organization, **CALL)
    summary = await client.costs.get(organization_id=organization, group_by="provider")
    assert (summary.reported_requests, summary.reported_cost) == (1, Decimal("0.5"))
    assert summary.total_cost == COST + Decimal("0.5")
    groups = {group.value: (group.reported_requests, group.reported_cost) for group in summary.breakdown}
    assert groups == {"openai": (0, Decimal(0)), "openrouter": (1, Decimal("0.5"))}
    in_euros = await client.costs.get(organization_id=organization, currency="EUR")
    assert (in_euros.reported_requests, in_euros.reported_cost) == (1, Decimal(0))


@pytest.mark.parametrize("abandoned_first", [True, False])
async def test_a_stream_that_one_observer_saw_to_its_end(
    client: Any, organization: str, abandoned_first: bool
) -> None:
    response_id = f"chatcmpl-{uuid7()}"
    chunk = {"id": response_id, "object": "chat.completion.chunk", "model": "gpt-4o", "created": 1793534400}
    text = {**chunk, "choices": [{"index": 0, "delta": {"content": "Hel"}}]}
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    last = {**chunk, "choices": [], "usage": usage}
    seen = {"organization_id": organization, "provider": "openai", "observation": True}
    abandoned = usage_from_response(iter([text]), labels={"team": "red"}, **seen)
    whole = usage_from_response(iter([text, last]), **seen)
    assert (abandoned.quality, abandoned.idempotency_key) == (UsageQuality.UNKNOWN, whole.idempotency_key)
    both = [abandoned, whole] if abandoned_first else [whole, abandoned]
    receipts = [await client.usage.submit(record) for record in both]
    assert receipts[0].usage_id == receipts[1].usage_id
    assert receipts[1].estimated_cost == COST
    assert receipts[1].duplicate is not abandoned_first
    assert await facts(client, organization) == (COST, 1, 1500)
