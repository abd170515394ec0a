"""From what a caller sent to what a ledger keeps."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus, UsageQuality, UsageRecord
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.money import UNITS
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.limits import MAX_RECORD_COST
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.usage import total_tokens

__all__ = ["MAX_UNITS", "as_kept", "check_record_cost", "in_utc", "new_entry"]

MAX_UNITS = MAX_RECORD_COST * UNITS
"""MAX_RECORD_COST in 10^-12."""

_NO_STATUS = CostStatus.UNSPECIFIED


def new_entry(sent: UsageRecord, key: str, now: datetime, book: PriceBook) -> Entry:
    """The record as it will be stored, and its price."""
    record = as_kept(sent)
    price = book.price(record, at=record.timestamp or now)
    check_record_cost(price.units, price.by.currency)
    return Entry(record, sent.idempotency_key or key, now, price.units, price.by)


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
    if kept.input_tokens is None and kept.output_tokens is None:
        kept.total_tokens = None
        if not kept.meters:
            kept.quality = UsageQuality.UNKNOWN
    else:
        kept.total_tokens = total_tokens(kept)
    moment = kept.timestamp
    if moment is not None and moment.tzinfo is not UTC:
        kept.timestamp = in_utc(moment)
    return kept


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
