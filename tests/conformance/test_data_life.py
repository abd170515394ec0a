"""The audit log and erasing users: the same over every transport, in both colours."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from llm_cost_ops.rpc.ids import uuid7

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
