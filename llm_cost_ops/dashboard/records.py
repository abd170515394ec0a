"""The pages about single calls: the list of records, a record with the lines of its cost, and CSV."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from urllib.parse import unquote

from llm_cost_ops._gen.messages import ListUsageRequest, UsageRecord, VerifyCostRequest
from llm_cost_ops._gen.methods import LIST_USAGE, VERIFY_COST
from llm_cost_ops.dashboard.exchange import Answer
from llm_cost_ops.dashboard.page import Page, csv_answer, csv_line
from llm_cost_ops.rules.times import parse_start

__all__ = ["RECORD_PATH", "record_page", "records_csv", "records_page"]

RECORD_PATH = "/dashboard/record/"

_PAGE_SIZE = 50
_CSV_PAGE_SIZE = 1000
_MAX_AT_A_MOMENT = 1000
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
    """A record, and how its cost came about."""
    usage_id = unquote(page.request.path.removeprefix(RECORD_PATH))
    organization = page.request.param("organization")
    request = VerifyCostRequest(usage_id=usage_id, organization_id=organization)
    answer = await page.caller.call(VERIFY_COST, request)
    assert answer.data is not None
    return page.render(
        "record.html",
        "Record",
        usage_id=usage_id,
        record=await _record(page, usage_id, organization),
        verification=answer.data,
        cost=answer.data.recorded,
    )


async def _record(page: Page, usage_id: str, organization: str) -> UsageRecord | None:
    """The record of an id, among those of its moment, which the address has: no method gives one by id."""
    at = page.request.param("at")
    if not at:
        return None
    moment = parse_start(at, field="at")
    end = (moment + timedelta(microseconds=1)).isoformat().replace("+00:00", "Z")
    request = ListUsageRequest(
        organization_id=[organization] if organization else [],
        start_date=at,
        end_date=end,
        page_size=_MAX_AT_A_MOMENT,
    )
    found = await page.caller.call(LIST_USAGE, request)
    return next((record for record in found.data if record.id == usage_id), None)


async def records_csv(page: Page) -> Answer:
    """Every record of the period and its filters, the newest first."""
    return csv_answer("records.csv", _lines(page))


async def _lines(page: Page) -> AsyncIterator[bytes]:
    yield csv_line(_COLUMNS)
    fields = page.view.filter_fields(page.view.span(page.now))
    cursor = ""
    while True:
        request = ListUsageRequest(**fields, page_size=_CSV_PAGE_SIZE, cursor=cursor)
        answer = await page.caller.call(LIST_USAGE, request)
        yield b"".join(_line(record) for record in answer.data)
        assert answer.pagination is not None
        cursor = answer.pagination.next_cursor
        if not cursor:
            return


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
