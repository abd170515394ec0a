"""Takes usage in, and gives it back.

What a caller sent becomes what a ledger keeps, with its price, and that a receipt. A batch goes through
`Intake`: each record is checked, priced and handed to the ledger before the next.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    BatchSubmitUsageResponse,
    CorrectUsageRequest,
    CorrectUsageResponse,
    ExportUsageRequest,
    ExportUsageResponse,
    FieldViolation,
    ListUsageRequest,
    ListUsageResponse,
    ListUsageRevisionsRequest,
    ListUsageRevisionsResponse,
    RecordError,
    ResponseMeta,
    RevisionKind,
    StreamProblem,
    StreamUsageRequest,
    StreamUsageResponse,
    SubmitResult,
    SubmitStatus,
    SubmitUsageRequest,
    SubmitUsageResponse,
    UsageReceipt,
    UsageRecord,
    UsageRevisions,
    VoidUsageRequest,
    VoidUsageResponse,
)
from llm_cost_ops.ledger import Alike, Batch, Ledger, Position
from llm_cost_ops.ledger.duplicates import is_duplicate
from llm_cost_ops.ledger.encoding import MAX_UNITS, check_record_cost, usage_id
from llm_cost_ops.ledger.types import Appended, Entry, Filter
from llm_cost_ops.pricing.money import from_units, to_units
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.rpc.context import CallContext, utc_now
from llm_cost_ops.rpc.slices import Slices
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_argument
from llm_cost_ops.rules.batches import counted, refused
from llm_cost_ops.rules.requests import (
    CLOCK_SKEW,
    MAX_BATCH_KEY,
    as_kept,
    check_record,
    is_ahead,
    is_as_kept,
    keeps_unknown,
)
from llm_cost_ops.service import corrections
from llm_cost_ops.service.access.tenancy import OTHER_ORGANIZATION, may_access
from llm_cost_ops.service.pages import Page, export, filter_of
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.service.retention import removed_before
from llm_cost_ops.wire.json import to_utc

__all__ = ["Intake", "UsageService", "new_entry"]

# Records of a stream go into one transaction: so many, or those that came in so many seconds.
BATCH_RECORDS = 1000
BATCH_SECONDS = 0.02

MAX_COUNTED = 20_000
"""Where more records than these would have to be read to count those of a list, its total is not given."""

# Seconds after which a record from the future may come again, at most.
_MAX_WAIT = 60.0

# Records that are dealt with between two looks at the clock: less than a millisecond.
_AT_ONCE = 32


CONFLICTING = "the idempotency key was used before with other content"

_CREATED = SubmitStatus.CREATED
_DUPLICATE = SubmitStatus.DUPLICATE
# In the place of a result that is known later.
_OPEN = SubmitResult()


class UsageService:
    """Validates, prices and stores; answers are given once the store has committed.

    `shares_clock` says that callers have the clock of this process, so that a record from the future is
    theirs to repair. From another host, its clock or ours may be wrong: UNAVAILABLE, as it may come again.
    """

    def __init__(self, ledger: Ledger, prices: Prices, *, shares_clock: bool = False) -> None:
        self._ledger = ledger
        self._prices = prices
        self._ahead_code = StatusCode.INVALID_ARGUMENT if shares_clock else StatusCode.UNAVAILABLE

    async def submit_usage(self, request: SubmitUsageRequest, context: CallContext) -> SubmitUsageResponse:
        """Record one call."""
        assert request.usage is not None
        now = context.now()
        done = None
        if is_ahead(request.usage.timestamp, now):
            done = await self._known(request.usage, context.idempotency_key, context)
            if done is None:
                raise self._ahead(request.usage, "timestamp", now)
        while done is None:
            revision, book = self._prices.in_force
            entry = new_entry(request.usage, context.idempotency_key, now, book)
            appended = await self._ledger.append([entry], context, revision)
            if appended is not None:
                [done] = appended
                break
            await self._reprice(context)
        if done.status == SubmitStatus.CONFLICT:
            raise RpcError(
                StatusCode.ALREADY_EXISTS, CONFLICTING, violations=[Violation("idempotency_key", CONFLICTING)]
            )
        if done.status == SubmitStatus.DUPLICATE:
            context.response_status = 200
        receipt = receipt_of(done, request.usage.organization_id)
        return SubmitUsageResponse(data=receipt, meta=ResponseMeta(request_id=context.request_id))

    async def batch_submit_usage(
        self, request: BatchSubmitUsageRequest, context: CallContext
    ) -> BatchSubmitUsageResponse:
        """Record many calls; a bad record is refused alone."""
        # Numbered keys are made of it: the text that an enum of the caller's holds, not its name.
        context.idempotency_key = key = str.__str__(request.idempotency_key or context.idempotency_key)
        if len(key) > MAX_BATCH_KEY:  # beside the request
            rule = f"of a batch must have at most {MAX_BATCH_KEY} characters, not {len(key)}"
            raise invalid_argument("idempotency_key", rule)
        results = await self._write(request.records, "records[{}]", 0, context)
        return BatchSubmitUsageResponse(
            data=counted(results), meta=ResponseMeta(request_id=context.request_id)
        )

    async def stream_usage(
        self, requests: AsyncIterator[StreamUsageRequest], context: CallContext
    ) -> AsyncGenerator[StreamUsageResponse, None]:
        """Record calls as they come, and acknowledge each batch of them once it is written."""
        answer = StreamUsageResponse()
        records = _records(requests)
        batches = context.runtime.batches(records, BATCH_RECORDS, BATCH_SECONDS, context.remaining)
        try:
            async with aclosing(batches):
                async for batch in batches:
                    results = await self._write(batch, "", answer.durable, context)
                    answer = _acknowledged(answer, results)
                    yield answer
                    context.check_deadline()
        except TimeoutError:
            context.check_deadline()
            raise

    def export_usage(
        self, request: ExportUsageRequest, context: CallContext
    ) -> AsyncGenerator[ExportUsageResponse, None]:
        """Give every record that a filter lets through."""
        return export(self._ledger, request, context)

    async def list_usage(self, request: ListUsageRequest, context: CallContext) -> ListUsageResponse:
        """List records, by default the newest first."""
        sort, order = request.sort or "timestamp", request.order or "desc"
        if sort not in ("timestamp", "ingested_at"):
            raise invalid_argument("sort", f"must be timestamp or ingested_at, not {sort[:64]!r}")
        if order not in ("asc", "desc"):
            raise invalid_argument("order", f"must be asc or desc, not {order[:64]!r}")
        where = filter_of(request)
        page = Page.of(request, f"usage:{sort}:{order}", context)
        records, position = await self._ledger.list_usage(
            where,
            sort,
            order == "desc",
            page.size,
            page.after,
            page.offset,
            context,
        )
        total = await self._total(where, page, position, len(records), context) if page.number else None
        pagination = page.described(position, total)
        pagination.removed_before = await removed_before(self._ledger, where, context)
        return ListUsageResponse(
            data=records, pagination=pagination, meta=ResponseMeta(request_id=context.request_id)
        )

    async def _total(
        self, where: Filter, page: Page, following: Position | None, found: int, context: CallContext
    ) -> int | None:
        """How many records there are on all pages, where that is known or cheap to find out."""
        before = (page.number - 1) * page.size
        if following is None and (found or not before):
            return before + found
        return await self._ledger.sums.count(where, context, MAX_COUNTED)

    async def void_usage(self, request: VoidUsageRequest, context: CallContext) -> VoidUsageResponse:
        """Take a record out of the sums."""
        revision = await corrections.void(self._ledger, request, context)
        return VoidUsageResponse(data=revision, meta=ResponseMeta(request_id=context.request_id))

    async def correct_usage(self, request: CorrectUsageRequest, context: CallContext) -> CorrectUsageResponse:
        """Change fields of a record."""
        revision = await corrections.correct(self._ledger, self._prices, request, context)
        return CorrectUsageResponse(data=revision, meta=ResponseMeta(request_id=context.request_id))

    async def list_usage_revisions(
        self, request: ListUsageRevisionsRequest, context: CallContext
    ) -> ListUsageRevisionsResponse:
        """Give every revision of a record."""
        found = await corrections.revisions(self._ledger, request, context)
        data = UsageRevisions(usage_id=request.usage_id, revisions=found)
        return ListUsageRevisionsResponse(data=data, meta=ResponseMeta(request_id=context.request_id))

    async def _write(
        self, records: Sequence[UsageRecord], path: str, first: int, context: CallContext
    ) -> list[SubmitResult]:
        """Write records in one transaction but for those that may not be, and tell what became of each.

        `path` and `first` are as in Intake.
        """
        now = utc_now(context.runtime)  # not the call's: a stream may go on for days
        slices = Slices(context.runtime)
        ahead: dict[int, SubmitResult] = {}
        while True:
            revision, book = self._prices.in_force
            intake = Intake(self._ledger.batch(context.idempotency_key), book, now, path, first, context)
            for at in range(0, len(records), _AT_ONCE):
                await slices.pause()
                intake.take(records[at : at + _AT_ONCE])
            for place in intake.ahead:
                if place not in ahead:
                    record = records[place]
                    field = f"{intake.path_of(place)}.timestamp".lstrip(".")
                    key = intake.key_of(record, place)
                    ahead[place] = await self._from_the_future(record, field, key, now, context)
            settled = await intake.batch.write(context, revision)
            if settled is not None:
                break
            await self._reprice(context)
        for place, result in ahead.items():
            intake.results[place] = result
        for entry, done in settled.items():
            place = intake.places[entry]
            intake.results[place] = result_of(records[place], done)
        return intake.results

    async def _from_the_future(
        self, record: UsageRecord, field: str, key: str, now: datetime, context: CallContext
    ) -> SubmitResult:
        done = await self._known(record, key, context)
        if done is not None:
            return result_of(record, done)
        error = self._ahead(record, field, now)
        return refused(error.violations, error.code)

    async def _known(self, sent: UsageRecord, key: str, context: CallContext) -> Appended | None:
        """What became of a record whose key was used before, without writing it; None for a new one.

        A retry may meet a server whose clock is behind that of the one which took the record.
        """
        key = sent.idempotency_key or key
        if not key:
            return None
        organization = sent.organization_id
        revisions = await self._ledger.revisions(organization, usage_id(organization, key)[0], context)
        if not revisions or revisions[0].record.idempotency_key != key:
            return None
        # As it was sent: what was corrected since makes it no other.
        sent_kinds = (RevisionKind.RECORDED, RevisionKind.SUPERSEDED)
        found = [revision for revision in revisions if revision.kind in sent_kinds][-1]
        moment, kept_moment = sent.timestamp, found.record.timestamp
        assert moment is not None
        assert kept_moment is not None
        same = is_duplicate(as_kept(sent), as_kept(found.record), to_utc(moment), kept_moment)
        cost = found.record.estimated_cost
        return Appended(
            SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT,
            found.record.id,
            None if cost is None else to_units(cost),
            found.record.currency,
            found.record.cost_status,
            found.record.ingested_at or kept_moment,
        )

    def _ahead(self, record: UsageRecord, field: str, now: datetime) -> RpcError:
        assert record.timestamp is not None
        moment = to_utc(record.timestamp)
        rule = (
            f"must not be more than 5 minutes in the future: it is {_shown(moment)}, and the clock of the "
            f"service has {_shown(now)}, so one of the two is wrong"
        )
        later = (moment - now - CLOCK_SKEW).total_seconds()
        return RpcError(
            self._ahead_code,
            f"{field} {rule}; nothing was written",
            violations=[Violation(field, rule)],
            retry_after=None if self._ahead_code is StatusCode.INVALID_ARGUMENT else min(later, _MAX_WAIT),
        )

    async def _reprice(self, context: CallContext) -> None:
        """Load the cards that somebody added since the records were priced."""
        await self._prices.refresh(context)
        context.check_deadline()


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}Z"


async def _records(requests: AsyncIterator[StreamUsageRequest]) -> AsyncGenerator[UsageRecord, None]:
    """The records of a stream; one that could not be decoded comes alone, and says so itself."""
    async for request in requests:
        undecoded = request.unknown_
        if undecoded and undecoded.error:
            undecoded.error_field = undecoded.error_field.removeprefix("records[0]").removeprefix(".")
            yield UsageRecord(unknown_=undecoded)
        for record in request.records:
            yield record


def _acknowledged(before: StreamUsageResponse, results: Sequence[SubmitResult]) -> StreamUsageResponse:
    """The acknowledgement that follows another, with the results of the records in between."""
    answer = StreamUsageResponse(
        durable=before.durable + len(results), created=before.created, duplicates=before.duplicates
    )
    for index, result in enumerate(results, before.durable):
        if result.status == SubmitStatus.CREATED:
            answer.created += 1
        elif result.status == SubmitStatus.DUPLICATE:
            answer.duplicates += 1
        else:
            answer.problems.append(StreamProblem(index=index, status=result.status, error=result.error))
    return answer


def new_entry(sent: UsageRecord, key: str, now: datetime, book: PriceBook) -> Entry:
    """The record as it will be stored, and its price."""
    record = as_kept(sent)
    price = book.price(record, at=record.timestamp or now)
    check_record_cost(price.units, price.by.currency)
    return Entry(record, str.__str__(sent.idempotency_key or key), now, price.units, price.by)


def result_of(record: UsageRecord, done: Appended) -> SubmitResult:
    """The result of a record of which the ledger says what became."""
    if done.status is SubmitStatus.CONFLICT:
        violation = FieldViolation(field="idempotency_key", description=CONFLICTING)
        error = RecordError(code="ALREADY_EXISTS", message=CONFLICTING, violations=[violation])
        return SubmitResult(status=done.status, error=error)
    return SubmitResult(status=done.status, usage=receipt_of(done, record.organization_id))


def receipt_of(done: Appended, organization_id: str) -> UsageReceipt:
    """The receipt of a record that was created, or was there already."""
    return UsageReceipt(
        usage_id=done.usage_id,
        organization_id=organization_id,
        estimated_cost=None if done.units is None else from_units(done.units),
        currency=done.currency,
        processed_at=done.processed_at,
        cost_status=done.cost_status,
        duplicate=done.status is _DUPLICATE,
    )


class Intake:
    """One pass over the records of a batch, which go into `batch` unless they may not be written.

    `path` says where a record stands in the request, with {} for its number; that of the first is `first`.
    `results` are those of the records so far. Open are those in `ahead`, by their places: their times are
    further in the future than clocks may differ. `places` says where each entry of the batch stands; its
    result is that of a created one, or open where the batch gave no id.
    """

    def __init__(
        self, batch: Batch, book: PriceBook, now: datetime, path: str, first: int, context: CallContext
    ) -> None:
        self.batch = batch
        self.results: list[SubmitResult] = []
        self.ahead: list[int] = []
        self.places: list[int] = []
        self._book = book
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._price = book.price_by
        self._add = batch.add
        self._now = now
        self._latest = now + CLOCK_SKEW
        self._path = path
        self._first = first
        self._context = context
        self._call_key = context.idempotency_key
        self._keep_unknown = keeps_unknown(context.metadata)
        self._accessible: str | None = None

    def take(self, records: Iterable[UsageRecord]) -> None:
        """Validate and price the next records, and add them to the batch."""
        results, keep_unknown, latest = self.results, self._keep_unknown, self._latest
        violations: list[Violation] = []
        for record in records:
            check_record(record, "", None, violations, keep_unknown)
            if violations or record.organization_id != self._accessible:
                violations.clear()
                refusal = self._refusal(record)
                if refusal is not None:
                    results.append(refusal)
                    continue
            moment = record.timestamp
            if moment is not None and (moment if moment.tzinfo is UTC else to_utc(moment)) > latest:
                self.ahead.append(len(results))
                results.append(_OPEN)
                continue
            try:
                results.append(self._added(record))
            except RpcError as error:
                results.append(refused(error.violations, error.code))

    def path_of(self, place: int) -> str:
        """Where the record at a place stands in the request."""
        return self._path.format(self._first + place)

    def key_of(self, record: UsageRecord, place: int) -> str:
        """The idempotency key of the record at a place, "" for none."""
        call_key = self._call_key
        return record.idempotency_key or (f"{call_key}:{self._first + place}" if call_key else "")

    def _refusal(self, record: UsageRecord) -> SubmitResult | None:
        """Why a record may not be written, None where it may."""
        violations: list[Violation] = []
        path = self.path_of(len(self.results))
        check_record(record, path, None, violations, self._keep_unknown)
        if violations:
            # It is refused in any case: now name what is wrong with its time, too.
            violations.clear()
            check_record(record, path, self._now, violations, self._keep_unknown)
            return refused(violations)
        organization = record.organization_id
        if not may_access(self._context, organization):
            foreign = Violation(f"{path}.organization_id".lstrip("."), OTHER_ORGANIZATION)
            return refused([foreign], StatusCode.PERMISSION_DENIED)
        self._accessible = organization
        return None

    def _added(self, record: UsageRecord) -> SubmitResult:
        """Hand a record to the batch; its result."""
        now, place, organization = self._now, len(self.results), record.organization_id
        key = (
            organization,
            record.provider,
            record.model_id,
            record.project_id,
            record.operation,
            record.service_tier,
            record.processing,
            record.region,
            record.speed,
        )
        kind = self._kinds.get(key) or self._new_kind(key, record)
        own: str | int = record.idempotency_key
        if own:
            record = replace(record)
            record.idempotency_key = ""
            own = str.__str__(own)
        kept = record if is_as_kept(record, kind.provider) else as_kept(record, kind.provider)
        units, by = self._price(kind.plan, kept, kept.timestamp or now)
        if units is not None and units > MAX_UNITS:
            check_record_cost(units, by.currency)
        number = self._first + place
        if self._call_key and (not own or own == f"{self._call_key}:{number}"):
            # As every client numbers them that sends keys: ids are made faster of numbers.
            own = number
        made = self._add(kept, own, now, units, by, kind.alike)
        self.places.append(place)
        if not made:
            return _OPEN
        receipt = UsageReceipt(
            usage_id=made,
            organization_id=organization,
            estimated_cost=None if units is None else from_units(units),
            currency=by.currency,
            processed_at=now,
            cost_status=by.status,
        )
        return SubmitResult(status=_CREATED, usage=receipt)

    def _new_kind(self, key: tuple[str, ...], record: UsageRecord) -> _Kind:
        kind = self._kinds[key] = _Kind(record, self._book)
        return kind


class _Kind:
    """What records of a batch have in common that say the same of whom and what was called."""

    def __init__(self, record: UsageRecord, book: PriceBook) -> None:
        kept = as_kept(record)
        self.provider = kept.provider
        self.plan = book.plan_of(kept)
        self.alike: Alike = {}
