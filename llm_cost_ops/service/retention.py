"""Keeps records for as long as their organization says, and removes them after that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from llm_cost_ops._gen.messages import (
    ApplyRetentionRequest,
    ApplyRetentionResponse,
    ListRetentionRequest,
    ListRetentionResponse,
    ResponseMeta,
    RetentionPolicy,
    RetentionReport,
    SetRetentionRequest,
    SetRetentionResponse,
)
from llm_cost_ops.ledger.protocols import Ledger
from llm_cost_ops.ledger.types import Filter, Retention
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access.tenancy import actor_of

__all__ = ["RetentionService", "apply_retention", "removed_before", "unknown_record"]


class RetentionService:
    """Sets, lists and applies the retention of organizations."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def set_retention(self, request: SetRetentionRequest, context: CallContext) -> SetRetentionResponse:
        """Set for how many days records are kept."""
        name = request.organization_id
        await self._ledger.set_retention(name, request.days, context, actor=actor_of(context))
        [kept] = await _retentions(self._ledger, [name], context)
        return SetRetentionResponse(data=_policy(kept), meta=ResponseMeta(request_id=context.request_id))

    async def list_retention(
        self, request: ListRetentionRequest, context: CallContext
    ) -> ListRetentionResponse:
        """List what holds."""
        found = await _retentions(self._ledger, request.organization_id, context)
        report = RetentionReport(as_of=context.now(), policies=[_policy(each) for each in found])
        return ListRetentionResponse(data=report, meta=ResponseMeta(request_id=context.request_id))

    async def apply_retention(
        self, request: ApplyRetentionRequest, context: CallContext
    ) -> ApplyRetentionResponse:
        """Remove what is past its days."""
        done = await apply_retention(
            self._ledger, request.organization_id, context, dry_run=request.dry_run, actor=actor_of(context)
        )
        report = RetentionReport(as_of=context.now(), policies=done)
        return ApplyRetentionResponse(data=report, meta=ResponseMeta(request_id=context.request_id))


async def apply_retention(
    ledger: Ledger, organizations: list[str], context: CallContext, *, dry_run: bool = False, actor: str = ""
) -> list[RetentionPolicy]:
    """Remove what is past its days of organizations, of all where none are named; what was of each.

    Stopped, it goes on the next time: every transaction removes some records as a whole.
    """
    done = []
    for kept in await _retentions(ledger, organizations, context):
        if not kept.days:
            continue
        before = _cutoff(kept.days, context.now())
        records = 0
        while number := await ledger.remove_older(
            kept.organization_id, before, context, dry_run=dry_run, actor=actor
        ):
            records += number
            if dry_run:
                break
            context.check_deadline()
        if records:
            policy = _policy(kept)
            policy.records, policy.removed_before = records, before
            done.append(policy)
    return done


def _cutoff(days: int, now: datetime) -> datetime:
    """The midnight of UTC before which records are past so many days."""
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        return day - timedelta(days=days)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


async def removed_before(ledger: Ledger, where: Filter, context: CallContext) -> datetime | None:
    """The moment before which a list by a filter lacks records; None where it lacks none.

    To be asked after the list was made, so that a removal in between is reported too.
    """
    moments = [
        each.removed_before
        for each in await _retentions(ledger, where.organization_ids, context)
        if each.removed_before is not None and (where.start is None or where.start < each.removed_before)
    ]
    return max(moments, default=None)


async def unknown_record(
    ledger: Ledger, organization_id: str, usage_id: str, context: CallContext
) -> RpcError:
    """NOT_FOUND for a record; it also says whether retention may have removed it."""
    message = f"there is no usage record {usage_id!r} of {organization_id!r}"
    for each in await _retentions(ledger, [organization_id], context):
        if each.removed_before is not None:
            since = f"{each.removed_before:%Y-%m-%d}"
            message += f"; records of before {since} were removed by its retention, and are in its sums only"
    return RpcError(StatusCode.NOT_FOUND, message)


async def _retentions(
    ledger: Ledger, organizations: list[str] | tuple[str, ...], context: CallContext
) -> list[Retention]:
    found = await ledger.retentions(context)
    return [each for each in found if not organizations or each.organization_id in organizations]


def _policy(kept: Retention) -> RetentionPolicy:
    return RetentionPolicy(
        organization_id=kept.organization_id, days=kept.days, removed_before=kept.removed_before
    )
