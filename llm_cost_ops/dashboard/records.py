"""The pages about single calls: the list of records, a record with the lines of its cost, and CSV."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from urllib.parse import unquote

from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    ListUsageRequest,
    ListUsageResponse,
    ListUsageRevisionsRequest,
    UsageRecord,
    VerifyCostRequest,
)
from llm_cost_ops._gen.methods import LIST_USAGE, LIST_USAGE_REVISIONS, VERIFY_COST
from llm_cost_ops.dashboard.exchange import Answer
from llm_cost_ops.dashboard.page import Page, csv_answer, csv_line
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access.keys import principal_of_id

__all__ = ["RECORD_PATH", "record_page", "records_csv", "records_page"]

RECORD_PATH = "/dashboard/record/"

_PAGE_SIZE = 50
_CSV_PAGE_SIZE = 1000
_COLUMNS = (
    "timestamp organization provider model project user tags input_tokens cached_tokens output_tokens cost "
    "currency status id"
).split()


async def records_page(page: Page) -> Answer:
    """The records of a period, the newest first."""
    view = page.view
    span = view.span(page.now)
    request = ListUsageRequest(
        **view.filter_fields(span), page_size=_PAGE_SIZE, cursor=page.request.param("cursor")
    )
    answer = await page.caller.call(LIST_USAGE, request)
    assert answer.pagination is not None
    following = answer.pagination.next_cursor
    return page.render(
        "records.html",
        "Records",
        span=span,
        records=answer.data,
        is_first=not request.cursor,
        older=f"{page.url('/dashboard/records')}{'&' if '?' in page.url('/') else '?'}cursor={following}"
        if following
        else "",
    )


async def record_page(page: Page) -> Answer:
    """A record, how its cost came about, and what became of it."""
    usage_id = unquote(page.request.path.removeprefix(RECORD_PATH))
    organization = page.request.param("organization")
    verified, revised = await asyncio.gather(
        page.caller.call(VERIFY_COST, VerifyCostRequest(usage_id=usage_id, organization_id=organization)),
        page.caller.call(
            LIST_USAGE_REVISIONS, ListUsageRevisionsRequest(usage_id=usage_id, organization_id=organization)
        ),
    )
    assert verified.data is not None
    assert revised.data is not None
    revisions = revised.data.revisions
    return page.render(
        "record.html",
        "Record",
        usage_id=usage_id,
        record=revisions[-1].usage,
        revisions=revisions,
        verification=verified.data,
        cost=verified.data.recorded,
    )


async def records_csv(page: Page) -> Answer:
    """Every record of the period and its filters, the newest first."""
    fields = page.view.filter_fields(page.view.span(page.now))
    request = ListUsageRequest(**fields, page_size=_CSV_PAGE_SIZE)
    # What is wrong with the request is said in a page: once the file has begun it can only be cut off.
    first = await page.caller.call(LIST_USAGE, request)
    return csv_answer("records.csv", _lines(page, request, first))


async def _lines(
    page: Page, request: ListUsageRequest, answer: ListUsageResponse
) -> AsyncGenerator[bytes, None]:
    yield csv_line(_COLUMNS)
    while True:
        yield b"".join(_line(record) for record in answer.data)
        assert answer.pagination is not None
        if not answer.pagination.next_cursor:
            return
        request = replace(request, cursor=answer.pagination.next_cursor)
        await _renew(page)
        answer = await page.caller.call(LIST_USAGE, request)


async def _renew(page: Page) -> None:
    """Ask again whether the key is in force: a file may take longer than a page may. UNAUTHENTICATED."""
    page.caller.extend()
    principal = page.principal  # where there is none, the handler asks at each call
    if principal is not None and not await principal_of_id(
        page.keys, principal.key_id, page.caller.context(LIST_USAGE)
    ):
        raise RpcError(StatusCode.UNAUTHENTICATED, "the session has ended: sign in again")


def _line(record: UsageRecord) -> bytes:
    assert record.timestamp is not None
    return csv_line(
        (
            record.timestamp.isoformat().replace("+00:00", "Z"),
            record.organization_id,
            record.provider,
            record.model_id,
            record.project_id,
            record.user_id,
            " ".join(record.tags),
            record.input_tokens,
            record.cached_tokens,
            record.output_tokens,
            record.estimated_cost,
            record.currency,
            record.cost_status.value,
            record.id,
        )
    )
