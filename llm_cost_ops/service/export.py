"""All the records that a filter lets through, as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from llm_cost_ops._gen.messages import ExportUsageRequest, ExportUsageResponse
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.service.listing import filter_of, invalid
from llm_cost_ops.stores import Position, Store

__all__ = ["export"]

_PAGE = 500


async def export(
    store: Store, request: ExportUsageRequest, context: CallContext
) -> AsyncGenerator[ExportUsageResponse, None]:
    """Give the records by timestamp, a page in memory at a time.

    A page begins behind the last record of the page before, whatever was added meanwhile; so the
    position is the only thing that an export keeps, and no transaction is open between pages.
    """
    order = request.order or "asc"
    if order not in ("asc", "desc"):
        raise invalid("order", f"must be asc or desc, not {order[:64]!r}")
    where = filter_of(request)
    after: Position | None = None
    while True:
        records, after = await store.list_usage(
            where, "timestamp", order == "desc", _PAGE, after, None, context
        )
        for record in records:
            yield ExportUsageResponse(usage=record)
        if after is None:
            return
        context.check_deadline()
