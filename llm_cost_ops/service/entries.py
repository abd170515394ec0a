"""From what a caller sent to what a ledger keeps."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus, UsageQuality, UsageRecord
from llm_cost_ops.pricing.money import UNITS
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.limits import MAX_RECORD_COST
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.usage import total_tokens

__all__ = ["as_kept", "check_record_cost", "in_utc"]


def as_kept(sent: UsageRecord) -> UsageRecord:
    """The record in the form of an Entry."""
    moment = sent.timestamp
    if moment is not None:
        moment = in_utc(moment)
    # What the caller put into fields that are for output only is dropped.
    uncounted = sent.input_tokens is None and sent.output_tokens is None
    return replace(
        sent,
        id="",
        idempotency_key="",
        provider=canonical_provider(sent.provider),
        total_tokens=None if uncounted else total_tokens(sent),
        quality=UsageQuality.UNKNOWN if uncounted and not sent.meters else sent.quality,
        timestamp=moment,
        ingested_at=None,
        estimated_cost=None,
        currency="",
        cost_status=CostStatus.UNSPECIFIED,
    )


def check_record_cost(units: int | None, currency: str) -> None:
    """Refuse a cost in 10^-12 of a currency that is above MAX_RECORD_COST: INVALID_ARGUMENT."""
    if units is not None and units > MAX_RECORD_COST * UNITS:
        rule = f"and the other counts come to more than {MAX_RECORD_COST:,} {currency}"
        raise invalid_argument("input_tokens", rule)


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC, which is also the zone of a naive one."""
    if moment.tzinfo is UTC:
        return moment
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
