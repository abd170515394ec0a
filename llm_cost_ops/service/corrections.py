"""Voiding and correcting records: each a revision beside what was recorded, which stays."""

from __future__ import annotations

from llm_cost_ops._gen.messages import (
    CorrectUsageRequest,
    CostStatus,
    ListUsageRevisionsRequest,
    RevisionKind,
    UsageQuality,
    UsageRecord,
    UsageRevision,
    VoidUsageRequest,
)
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.ledger.encoding import check_record_cost
from llm_cost_ops.ledger.types import Recorded, Revised, Revision
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, violations_text
from llm_cost_ops.rules.requests import as_kept, check_record, corrected, states_no_count
from llm_cost_ops.service.access.tenancy import actor_of, organization_of
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.service.retention import unknown_record

__all__ = ["correct", "revisions", "void"]


async def void(ledger: Ledger, request: VoidUsageRequest, context: CallContext) -> UsageRevision:
    """Take a record out of the sums; one that is void already stays as it is."""
    organization = organization_of(request.organization_id, context)
    while True:
        found = await _found(ledger, organization, request.usage_id, context)
        if found.status == CostStatus.VOIDED:
            break
        by = Pricing(
            CostStatus.VOIDED,
            found.currency,
            found.card_id,
            found.card_version,
            found.fallbacks,
            found.origin_version,
            found.card,
            found.digest,
        )
        revision = _revision(found, RevisionKind.VOIDED, None, found.units, by, request.reason, context)
        if await ledger.revise(revision, context):
            break
        # Somebody else was faster.
        context.check_deadline()
    return await _in_force(ledger, organization, request.usage_id, context)


async def correct(
    ledger: Ledger, prices: Prices, request: CorrectUsageRequest, context: CallContext
) -> UsageRevision:
    """Change fields of a record, and price it again.

    FAILED_PRECONDITION for one that was voided. Changes that change nothing leave it as it is.
    """
    assert request.changes is not None
    organization = organization_of(request.organization_id, context)
    while True:
        found = await _found(ledger, organization, request.usage_id, context)
        if found.status == CostStatus.VOIDED:
            message = f"the usage record {request.usage_id!r} was voided: record it anew under another key"
            raise RpcError(StatusCode.FAILED_PRECONDITION, message)
        before = as_kept(found.record)
        record = _changed(before, request)
        if record == before:
            break
        book = await prices.refresh(context)
        price = book.price(record)
        check_record_cost(price.units, price.by.currency)
        kind = RevisionKind.CORRECTED
        revision = _revision(found, kind, record, price.units, price.by, request.reason, context)
        if await ledger.revise(revision, context):
            break
        context.check_deadline()
    return await _in_force(ledger, organization, request.usage_id, context)


async def revisions(
    ledger: Ledger, request: ListUsageRevisionsRequest, context: CallContext
) -> list[UsageRevision]:
    """Every revision of a record; NOT_FOUND without such a record."""
    organization = organization_of(request.organization_id, context)
    found = await ledger.revisions(organization, request.usage_id, context)
    if not found:
        raise await unknown_record(ledger, organization, request.usage_id, context)
    return [_shown(revised) for revised in found]


async def _found(ledger: Ledger, organization_id: str, usage_id: str, context: CallContext) -> Recorded:
    found = await ledger.get_cost(organization_id, usage_id, context)
    if found is None:
        raise await unknown_record(ledger, organization_id, usage_id, context)
    return found


def _changed(before: UsageRecord, request: CorrectUsageRequest) -> UsageRecord:
    """The record as it is to be. INVALID_ARGUMENT when it breaks a rule."""
    assert request.changes is not None
    record = corrected(before, request.changes)
    if before.quality == UsageQuality.UNKNOWN and "quality" not in request.changes:
        # Who corrects the counts knows them.
        record.quality = UsageQuality.UNKNOWN if states_no_count(record) else UsageQuality.UNSPECIFIED
    violations: list[Violation] = []
    check_record(record, "changes", None, violations, keep_unknown=True)
    if violations:
        raise RpcError(StatusCode.INVALID_ARGUMENT, violations_text(violations), violations=violations)
    return as_kept(record)


def _revision(
    found: Recorded,
    kind: RevisionKind,
    record: UsageRecord | None,
    units: int | None,
    by: Pricing,
    reason: str,
    context: CallContext,
) -> Revision:
    return Revision(
        organization_id=found.record.organization_id,
        usage_id=found.record.id,
        after=found.revision,
        kind=kind,
        record=record,
        units=units,
        by=by,
        reason=reason,
        actor=actor_of(context),
        made_at=context.now(),
    )


async def _in_force(
    ledger: Ledger, organization_id: str, usage_id: str, context: CallContext
) -> UsageRevision:
    return _shown((await ledger.revisions(organization_id, usage_id, context))[-1])


def _shown(revised: Revised) -> UsageRevision:
    return UsageRevision(
        usage_id=revised.record.id,
        organization_id=revised.record.organization_id,
        revision=revised.number,
        kind=revised.kind,
        reason=revised.reason,
        actor=revised.actor,
        made_at=revised.made_at,
        usage=revised.record,
    )
