"""The audit log, erasing users and retention: the same over every transport, in both colours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops import NotFoundError, ValidationError
from llm_cost_ops.exceptions import CostOpsError
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.types import CostStatus, RetentionPolicy
from tests.conformance.clients import each

CALL: dict[str, Any] = {
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
    "timestamp": "2026-11-20T15:00:00Z",
}
COST = Decimal("0.0075")


async def test_a_user_is_erased_and_the_receipt_still_holds(client: Any, organization: str) -> None:
    user = f"{uuid7()}@example.org"
    call = {**CALL, "organization_id": organization, "user_id": user, "idempotency_key": str(uuid7())}
    sent = await client.usage.submit(**call)
    corrected = {"input_tokens": 2000}
    place = {"organization_id": organization}
    await client.usage.correct(sent.usage_id, reason=f"{user} said so", changes=corrected, **place)
    other = await client.usage.submit(**{**call, "user_id": "bob", "idempotency_key": ""})
    before = await client.costs.get(**place)
    done = await client.privacy.erase(user_id=user, **place)
    assert done.records == 1
    assert (await client.costs.get(**place)) == before
    for usage_id in (sent.usage_id, other.usage_id):
        receipt = await client.costs.verify(usage_id, **place)
        assert receipt.matches, receipt.reason
    history = await client.usage.revisions(sent.usage_id, **place)
    assert [each.usage.user_id for each in history.revisions] == ["", ""]
    assert [each.reason for each in history.revisions] == ["", "[erased] said so"]
    again = await client.usage.submit(**call)
    assert (again.duplicate, again.usage_id, again.estimated_cost) == (True, sent.usage_id, COST)
    assert (await client.costs.get(user_id=user, **place)).total_requests == 0
    assert (await client.privacy.erase(user_id=user, **place)).records == 0
    erased, revised = (await client.audit.list(**place)).data
    assert (erased.action, erased.subject, erased.details) == ("user.erased", done.id, {"records": 1})
    assert (revised.action, revised.subject) == ("usage.corrected", sent.usage_id)
    assert revised.number < erased.number


async def test_what_is_past_its_days_is_removed_and_its_sums_stay(client: Any, organization: str) -> None:
    place = {"organization_id": organization}
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    sent = []
    for days in (40, 31, 29, 0):
        moment = today - timedelta(days=days)
        call = {**CALL, **place, "timestamp": moment, "idempotency_key": str(uuid7()), "user_id": "ann"}
        sent.append((await client.usage.submit(**call), call))
    before = await client.costs.get(group_by=["model", "day"], **place)
    policy = await client.retention.set(days=30, **place)
    assert (policy.days, policy.removed_before) == (30, None)
    border = today - timedelta(days=30)
    for dry_run in (True, False):
        [done] = (await client.retention.apply(dry_run=dry_run, **place)).policies
        assert (done.organization_id, done.records, done.removed_before) == (organization, 2, border)
    assert (await client.retention.apply(**place)).policies == []
    [listed] = (await client.retention.list(**place)).policies
    assert (listed.days, listed.removed_before) == (30, border)
    # Sums are as they were, by what they hold.
    assert await client.costs.get(group_by=["model", "day"], **place) == before
    with pytest.raises(CostOpsError, match="00:00:00Z or later") as caught:
        await client.costs.get(group_by="user", **place)
    assert [field for field, _ in caught.value.violations] == ["start_date"]
    by_user = await client.costs.get(group_by="user", start_date=border, **place)
    assert [(group.value, group.requests) for group in by_user.breakdown] == [("ann", 2)]
    # Lists say from when on they are whole; what was asked for from earlier is refused where nothing says so.
    page = await client.usage.get_history(**place)
    assert [record.id for record in page.data] == [done.usage_id for done, _ in sent[:1:-1]]
    assert (page.pagination.removed_before, page.pagination.total_items) == (border, 2)
    later = await client.usage.get_history(start_date=border, **place)
    assert later.pagination.removed_before is None
    assert len([record async for record in each(client.usage.export(**place))]) == 2
    with pytest.raises(CostOpsError, match="not known one by one"):
        _ = [
            record
            async for record in each(client.usage.export(start_date=today.date().replace(year=2020), **place))
        ]
    first, call = sent[0]
    for ask in (client.costs.verify, client.usage.revisions):
        with pytest.raises(NotFoundError, match="removed by its retention"):
            await ask(first.usage_id, **place)
    again = await client.usage.submit(**call)
    assert (again.duplicate, again.usage_id, again.estimated_cost) == (True, first.usage_id, None)
    assert again.cost_status == CostStatus.UNSPECIFIED
    assert await client.costs.get(group_by=["model", "day"], **place) == before
    applied, was_set = (await client.audit.list(**place)).data
    assert (applied.action, was_set.action) == ("retention.applied", "retention.set")
    assert await client.retention.set(days=0, **place) == RetentionPolicy(
        organization_id=organization, removed_before=border
    )
    with pytest.raises(ValidationError, match="days"):
        await client.retention.set(days=-1, **place)
