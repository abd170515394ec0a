"""Takes usage in: what a caller sent becomes what a ledger keeps, with its price, and that a receipt.

A batch goes through `Intake`: each record is checked, priced and handed to the ledger before the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    CostStatus,
    FieldViolation,
    RecordError,
    SubmitResult,
    SubmitStatus,
    UsageQuality,
    UsageReceipt,
    UsageRecord,
)
from llm_cost_ops.ledger import Alike, Batch
from llm_cost_ops.ledger.types import Appended, Entry
from llm_cost_ops.pricing.money import UNITS, from_units
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_argument
from llm_cost_ops.rules.batches import refused
from llm_cost_ops.rules.limits import MAX_RECORD_COST
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.requests import CLOCK_SKEW, check_record, keeps_unknown, known_total
from llm_cost_ops.service.access.tenancy import OTHER_ORGANIZATION, may_access

__all__ = [
    "CONFLICTING",
    "MAX_UNITS",
    "Intake",
    "as_kept",
    "check_record_cost",
    "in_utc",
    "new_entry",
    "receipt_of",
    "result_of",
]

CONFLICTING = "the idempotency key was used before with other content"

MAX_UNITS = MAX_RECORD_COST * UNITS
"""MAX_RECORD_COST in 10^-12."""

_NO_STATUS = CostStatus.UNSPECIFIED
_CREATED = SubmitStatus.CREATED
_DUPLICATE = SubmitStatus.DUPLICATE
# In the place of a result that is known later.
_OPEN = SubmitResult()


def new_entry(sent: UsageRecord, key: str, now: datetime, book: PriceBook) -> Entry:
    """The record as it will be stored, and its price."""
    record = as_kept(sent)
    price = book.price(record, at=record.timestamp or now)
    check_record_cost(price.units, price.by.currency)
    return Entry(record, str.__str__(sent.idempotency_key or key), now, price.units, price.by)


def as_kept(sent: UsageRecord, provider: str = "") -> UsageRecord:
    """The record in the form of an Entry. `provider` is its canonical one, where that is known."""
    kept = replace(sent)  # in half the time of copy.copy
    # What the caller put into fields that are for output only is dropped. Most records have none of it, and
    # to look takes less time than to write.
    if kept.id:
        kept.id = ""
    if kept.idempotency_key:
        kept.idempotency_key = ""
    if kept.ingested_at is not None:
        kept.ingested_at = None
    if kept.estimated_cost is not None:
        kept.estimated_cost = None
    if kept.currency:
        kept.currency = ""
    if kept.cost_status is not _NO_STATUS:
        kept.cost_status = _NO_STATUS
    canonical = provider or canonical_provider(kept.provider)
    if kept.provider != canonical:
        kept.provider = canonical
    kept.total_tokens = known_total(kept)
    if kept.total_tokens is None and not kept.meters:
        kept.quality = UsageQuality.UNKNOWN
    moment = kept.timestamp
    if moment is not None and moment.tzinfo is not UTC:
        kept.timestamp = in_utc(moment)
    return kept


def _is_as_kept(sent: UsageRecord, provider: str) -> bool:
    """Whether a checked record is in the form of an Entry already, but for its total; mostly it is."""
    moment = sent.timestamp
    return (
        (sent.input_tokens is not None or sent.output_tokens is not None)
        and sent.provider == provider
        and (moment is None or moment.tzinfo is UTC)
        and not (sent.id or sent.idempotency_key or sent.currency)
        and sent.ingested_at is None
        and sent.estimated_cost is None
        and sent.cost_status is _NO_STATUS
    )


def check_record_cost(units: int | None, currency: str) -> None:
    """Refuse a cost in 10^-12 of a currency that is above MAX_RECORD_COST: INVALID_ARGUMENT."""
    if units is not None and units > MAX_UNITS:
        rule = f"and the other counts come to more than {MAX_RECORD_COST:,} {currency}"
        raise invalid_argument("input_tokens", rule)


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC, which is also the zone of a naive one."""
    if moment.tzinfo is UTC:
        return moment
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


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
        """Take the next records in."""
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
            if moment is not None and (moment if moment.tzinfo is UTC else in_utc(moment)) > latest:
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
            # It is refused whatever its time is, and then that is said as well.
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
        kept = record if _is_as_kept(record, kind.provider) else as_kept(record, kind.provider)
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

    __slots__ = ("alike", "plan", "provider")

    def __init__(self, record: UsageRecord, book: PriceBook) -> None:
        kept = as_kept(record)
        self.provider = kept.provider
        self.plan = book.plan_of(kept)
        self.alike: Alike = {}


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
