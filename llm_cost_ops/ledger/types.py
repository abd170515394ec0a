"""The values that a ledger takes and gives: entries on their way in, records and sums on their way out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from llm_cost_ops._gen.messages import CostStatus, RateCard, RevisionKind, SubmitStatus, UsageRecord
from llm_cost_ops.pricing.types import Priced, Pricing

__all__ = [
    "Amounts",
    "ApiKey",
    "Appended",
    "AuditFilter",
    "Change",
    "Committed",
    "Entry",
    "Erased",
    "Filter",
    "LedgerFigures",
    "Position",
    "Price",
    "Recorded",
    "Repriced",
    "Retention",
    "Revised",
    "Revision",
]

Position = str
"""Where a list or a feed goes on: opaque text of the ledger that gave it, and of no other."""

Price = Callable[[UsageRecord], Priced]
"""What a record costs. It may be asked about a record twice, and from another thread."""


class Entry(msgspec.Struct, gc=False):
    """One record on its way into the ledger.

    `record` is what the caller sent, with total_tokens filled in and the provider canonical: a ledger keeps
    it as it is, and tells a duplicate from a conflict by it. It has neither id nor key, and no timestamp
    where the caller gave none: `ingested_at` takes its place, and is then the same content. `key` is the
    idempotency key, "" for none. `units` is the cost in 10^-12 of the currency in `by`, None when unpriced.
    A ledger keeps each card in `by` once, so that receipts do not depend on the catalog.
    """

    record: UsageRecord
    key: str
    ingested_at: datetime
    units: int | None
    by: Pricing


class Recorded(msgspec.Struct, gc=False, kw_only=True):
    """A record with the revision of its cost that is in force.

    `units` as in Entry. `card` is the card that was kept when the cost was calculated, None where
    none was; `digest` is that of the card then. `calculated_at` is when it was calculated. `kind` says why
    there is this revision, and `reason` what was given for it.
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
    kind: RevisionKind = RevisionKind.RECORDED
    reason: str = ""


class Revision(msgspec.Struct, gc=False, kw_only=True):
    """A revision of a record, on its way into the ledger.

    `after` is the number of the revision that is in force. `record` is the record from now on, as in Entry
    and of the same organization; None where it stays as it is. `units` and `by` are its cost, as in Entry: a
    voided one has the cost that it had, in a Pricing with the status VOIDED. `actor` is who made it, "" when
    nobody in particular.
    """

    organization_id: str
    usage_id: str
    after: int
    kind: RevisionKind
    record: UsageRecord | None
    units: int | None
    by: Pricing
    reason: str
    actor: str
    made_at: datetime


class Revised(msgspec.Struct, gc=False, kw_only=True):
    """A revision that was made: `record` is what it was then, with its cost then."""

    number: int
    kind: RevisionKind
    record: UsageRecord
    reason: str
    actor: str
    made_at: datetime


class Change(msgspec.Struct, gc=False, kw_only=True):
    """What repricing changed of one record: its cost in 10^-12 of the currency, None for no price."""

    provider: str
    model_id: str
    units_before: int | None
    currency_before: str
    units_after: int | None
    currency_after: str


class Repriced(msgspec.Struct, gc=False):
    """What a step of repricing did: how many records it looked at, what changed, and where the next begins.

    `position` is None when nothing is left.
    """

    examined: int
    changes: list[Change]
    position: Position | None


class Committed(msgspec.Struct, gc=False):
    """That a record was committed, or a revision of its cost.

    `record` is what it was in that `revision`, with its cost then: 1 is a new record, and what follows was
    repriced, corrected, superseded or voided.
    """

    record: UsageRecord
    revision: int


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

    An empty field does not restrict, but that voided records pass only where `statuses` has "voided". The
    interval is [start, end); None is open.
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


class Amounts(msgspec.Struct, gc=False, kw_only=True):
    """The exact sums of a group in one currency; `units` are 10^-12 of it.

    `requests` counts calls, and `unpriced_requests` those among them whose price is not known.
    `reported_requests` and `reported_units` are the part whose status is REPORTED.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unpriced_requests: int = 0
    units: int = 0
    reported_requests: int = 0
    reported_units: int = 0
    currency: str = "USD"


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of the audit log: as in Filter, fields are ANDed and the values of one field are ORed."""

    organization_ids: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    start: datetime | None = None
    end: datetime | None = None


class Erased(msgspec.Struct, gc=False):
    """What a step of erasing did: in how many records a user was, and where the next step begins.

    `position` is None when nothing is left.
    """

    records: int
    position: Position | None


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """For how many days an organization's records are kept, 0 for ever; and from when on they are there.

    `removed_before` is None where none were removed.
    """

    organization_id: str
    days: int
    removed_before: datetime | None = None


class LedgerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator watches of a ledger.

    `commits` counts the transactions that wrote since this process opened it, `queued` the writes that wait
    for one. `unfolded_rows` are those that are not in the kept sums yet, so that queries add them up. `bytes`
    is the size of the database.
    """

    commits: int
    queued: int
    unfolded_rows: int
    bytes: int


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an API key: never the key itself.

    `id` is the visible prefix, `hash` the 32 bytes of a keyed hash, `role` one of metrics, reader, writer,
    admin. `organizations` None means all of them. Times are in UTC; None means never.
    """

    id: str
    hash: bytes
    name: str = ""
    role: str
    organizations: tuple[str, ...] | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def __repr__(self) -> str:
        return f"ApiKey({self.id!r}, role={self.role!r}, organizations={self.organizations!r})"
