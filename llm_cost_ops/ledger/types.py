"""What crosses the border between the engine and a store: entries on their way in, sums on their way out."""

from __future__ import annotations

from datetime import datetime

import msgspec

from llm_cost_ops._gen.messages import CostStatus, RateCard, SubmitStatus, UsageRecord
from llm_cost_ops.pricing.pricebook import Pricing

__all__ = ["Appended", "Change", "Entry", "Filter", "Recorded", "Sums"]


class Entry(msgspec.Struct, gc=False):
    """One record on its way into the ledger.

    `record` is what the caller sent, with total_tokens filled in and the provider canonical: a store keeps
    it as it is, and tells a duplicate from a conflict by it. It has neither id nor key, and no timestamp
    where the caller gave none: `ingested_at` takes its place, and is then the same content. `key` is the
    idempotency key, "" for none. `units` is the cost in 10^-12 of the currency in `by`, None when unpriced.
    A store keeps each card in `by` once, so that receipts do not depend on the catalog.
    """

    record: UsageRecord
    key: str
    ingested_at: datetime
    units: int | None
    by: Pricing


class Recorded(msgspec.Struct, gc=False, kw_only=True):
    """A record with the revision of its cost that is in force.

    `units` as in Entry. `card` is the card that was kept when the cost was calculated, None where
    none was; `digest` is that of the card then. `calculated_at` is when it was calculated.
    """

    record: UsageRecord
    revision: int
    status: CostStatus
    currency: str
    units: int | None
    card_id: str
    card_version: int
    origin_version: str
    fallbacks: tuple[str, ...]
    card: RateCard | None
    digest: bytes
    calculated_at: datetime


class Change(msgspec.Struct, gc=False, kw_only=True):
    """What repricing changed of one record: its cost in 10^-12 of the currency, None for no price."""

    provider: str
    model_id: str
    units_before: int | None
    currency_before: str
    units_after: int | None
    currency_after: str


class Appended(msgspec.Struct, gc=False):
    """What became of one entry; for a duplicate everything but `status` is of the first answer.

    `status` is created, duplicate or conflict. `units` is in 10^-12 of `currency`.
    """

    status: SubmitStatus
    usage_id: str
    units: int | None
    currency: str
    cost_status: CostStatus
    processed_at: datetime


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which records: fields are ANDed, the values of one field are ORed, and labels must all be there.

    An empty field does not restrict. The interval is [start, end); None is open.
    """

    organization_ids: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    model_ids: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    user_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    service_tiers: tuple[str, ...] = ()
    processings: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    start: datetime | None = None
    end: datetime | None = None


class Sums(msgspec.Struct, gc=False, kw_only=True):
    """The exact sums of a group in one currency; `units` are 10^-12 of it.

    `requests` counts calls, and `unpriced_requests` those among them whose price is not known.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unpriced_requests: int = 0
    units: int = 0
    currency: str = "USD"
