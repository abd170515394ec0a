"""What every list and query shares: filters, pages and cursors."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from llm_cost_ops._gen import messages
from llm_cost_ops._gen.messages import (
    CostStatus,
    ExportUsageRequest,
    ExportUsageResponse,
    Operation,
    Pagination,
)
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.retention import removed_error
from llm_cost_ops.ledger.types import Filter, Position
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.chunks import chunks_of
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.times import parse_interval
from llm_cost_ops.service.access.tenancy import tenant_of
from llm_cost_ops.service.retention import removed_before
from llm_cost_ops.wire.json import MessageStruct
from llm_cost_ops.wire.open_enum import OpenEnum
from llm_cost_ops.wire.validation import no_member

__all__ = ["DEFAULT_PAGE_SIZE", "MAX_LABELS", "Page", "export", "filter_of", "refuse_unknown_filters"]

DEFAULT_PAGE_SIZE = 20

MAX_LABELS = 64
"""The most labels of a record, as its proto says: no record has all of a filter's that are more."""


def _members(field: str, enum: type[OpenEnum], texts: list[str]) -> tuple[str, ...]:
    """The values in a filter. One that is not known would find nothing, but for a number."""
    for text in texts:
        if not enum(text).known and enum(text).number is None:
            raise invalid_argument(field, no_member(text, enum))
    return tuple(enum(text).value for text in texts)


def refuse_unknown_filters(request: MessageStruct) -> None:
    """INVALID_ARGUMENT for a field that only a newer version knows.

    It may narrow the query: leaving it out would widen it.
    """
    unknown = request.unknown_
    if unknown and unknown.binary:
        raise invalid_argument("request", "has a field that this version does not know")


def filter_of(request: messages.Filter) -> Filter:
    """The store's filter for that of a request. Raises INVALID_ARGUMENT."""
    refuse_unknown_filters(request)
    if len(request.label) > MAX_LABELS:
        raise invalid_argument("label", f"must hold at most {MAX_LABELS} labels, which is what a record has")
    start, end = parse_interval(request.start_date, request.end_date, request.time_zone)
    return Filter(
        organization_ids=tuple(request.organization_id),
        providers=tuple(canonical_provider(provider) for provider in request.provider),
        model_ids=tuple(request.model_id),
        project_ids=tuple(request.project_id),
        user_ids=tuple(request.user_id),
        tags=tuple(request.tag),
        service_tiers=tuple(request.service_tier),
        processings=tuple(request.processing),
        regions=tuple(request.region),
        operations=_members("operation", Operation, request.operation),
        statuses=_members("status", CostStatus, request.status),
        labels=dict(request.label),
        start=start,
        end=end,
    )


class Page:
    """Which part of a list was asked for: a numbered page, or what follows a cursor.

    A cursor is opaque to the caller. It names the list that it was cut from, and the organizations
    of who asked for it, so that it can't be used on another list or by somebody else.
    """

    def __init__(self, number: int, size: int, after: Position | None, scope: str) -> None:
        self.number = number
        self.size = size
        self.after = after
        self.scope = scope
        self.offset = (number - 1) * size if number else None

    @classmethod
    def of(cls, request: Any, scope: str, context: CallContext) -> Page:
        """The page that a request with page, page_size and cursor asks for."""
        tenant = tenant_of(context)
        scope = f"{scope}:{tenant}" if tenant else scope
        if request.cursor and request.page:
            raise invalid_argument("cursor", "can't go with page")
        after = _position(request.cursor, scope) if request.cursor else None
        number = 0 if request.cursor else request.page or 1
        return cls(number, request.page_size or DEFAULT_PAGE_SIZE, after, scope)

    def described(self, following: Position | None, total: int | None) -> Pagination:
        """Where the page stands; `following` is the position of what comes after it, None at the end."""
        pages = None if total is None else -(-total // self.size)
        cursor = ""
        if following is not None:
            cursor = (
                base64.urlsafe_b64encode(msgspec.json.encode([self.scope, following])).decode().rstrip("=")
            )
        return Pagination(
            page=self.number,
            page_size=self.size,
            per_page=self.size,
            total_items=total,
            total_pages=pages,
            has_next=following is not None,
            has_prev=self.number > 1 or self.after is not None,
            next_cursor=cursor,
        )


def _position(cursor: str, scope: str) -> Position:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        found, position = msgspec.json.decode(base64.urlsafe_b64decode(padded), type=tuple[str, str])
    except (ValueError, msgspec.DecodeError):
        raise invalid_argument("cursor", "is not one that this service gave") from None
    if found != scope:
        raise invalid_argument("cursor", "belongs to another list, another order or another API key")
    return position


_PAGE = 500


async def export(
    ledger: Ledger, request: ExportUsageRequest, context: CallContext
) -> AsyncGenerator[ExportUsageResponse, None]:
    """Give the records by timestamp, a page in memory at a time.

    A page begins after the last record of the page before, whatever was added meanwhile; so the
    position is the only thing that an export keeps, and no transaction is open between pages.
    """
    order = request.order or "asc"
    if order not in ("asc", "desc"):
        raise invalid_argument("order", f"must be asc or desc, not {order[:64]!r}")
    where = filter_of(request)
    after: Position | None = None
    while True:
        records, after = await ledger.list_usage(
            where, "timestamp", order == "desc", _PAGE, after, None, context
        )
        # Asked after the list, so that a removal in between is reported too.
        missing = None if where.start is None else await removed_before(ledger, where, context)
        if missing is not None:
            whose = ", ".join(where.organization_ids) or "some organizations"
            raise removed_error(whose, to_micros(missing), "one by one")
        for chunk in chunks_of(records):
            yield ExportUsageResponse(records=chunk)
        if after is None:
            return
        context.check_deadline()
