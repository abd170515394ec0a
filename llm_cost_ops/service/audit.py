"""Shows the audit log."""

from __future__ import annotations

from llm_cost_ops._gen.messages import ListAuditEventsRequest, ListAuditEventsResponse, ResponseMeta
from llm_cost_ops.ledger import AuditFilter, Ledger
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rules.times import parse_interval
from llm_cost_ops.service.pages import Page, refuse_unknown_filters

__all__ = ["AuditService"]


class AuditService:
    """Lists events; none can be changed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def list_audit_events(
        self, request: ListAuditEventsRequest, context: CallContext
    ) -> ListAuditEventsResponse:
        """List events, the newest first."""
        refuse_unknown_filters(request)
        start, end = parse_interval(request.start_date, request.end_date, "")
        where = AuditFilter(
            organization_ids=tuple(request.organization_id),
            actions=tuple(request.action),
            actors=tuple(request.actor),
            subjects=tuple(request.subject),
            start=start,
            end=end,
        )
        page = Page.of(request, "audit", context)
        events, position = await self._ledger.audit_events(where, page.size, page.after, page.offset, context)
        return ListAuditEventsResponse(
            data=events,
            pagination=page.described(position, None),
            meta=ResponseMeta(request_id=context.request_id),
        )
