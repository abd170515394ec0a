"""Where usage and prices are kept. `Store` is what the service asks of any of them; SQLite is the first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from llm_cost_ops._gen.messages import RateCard, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.types import Appended, Change, Entry, Filter, Recorded, Sums
from llm_cost_ops.pricing.pricebook import Priced
from llm_cost_ops.rpc.context import CallContext

__all__ = ["ApiKey", "CardOf", "KeyStore", "Position", "Price", "Store"]

Position = tuple[int, int]
"""Where a page ended: microseconds since 1970, and the number under which the store keeps the record."""

CardOf = Callable[[str, int, str], RateCard | None]
"""The card with an id, a version and an origin_version, or None; for cards that the store did not keep."""

Price = Callable[[UsageRecord], Priced]
"""What a record costs. It may be asked about a record twice, and from another thread."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an API key: never the key itself.

    `id` is the visible prefix, `hash` the 32 bytes of a keyed hash, `role` one of reader, writer, admin.
    `organizations` None means all of them. Times are in UTC; None means never.
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


class KeyStore(Protocol):
    """Keeps API keys. What one process adds or revokes holds at once in every other one."""

    async def any(self, context: CallContext) -> bool:
        """Whether there is or was a key; cheap enough to ask before each call."""

    async def find(self, key_id: str, context: CallContext) -> ApiKey | None:
        """The key with an id, revoked and expired ones too; cheap enough to ask before each call."""

    async def all(self, context: CallContext) -> list[ApiKey]:
        """Every key, the oldest first."""

    async def secret(self, context: CallContext) -> bytes:
        """The 32 random bytes of this store alone that hashes are keyed with; made when first asked for."""

    async def add(self, key: ApiKey, context: CallContext) -> None:
        """Keep a key; ALREADY_EXISTS when its id is taken."""

    async def revoke(self, key_id: str, at: datetime, context: CallContext) -> ApiKey | None:
        """Revoke a key, or leave a revoked one as it is, and return it; None when there is none."""


class Store(Protocol):
    """Keeps usage, its costs, their sums and the price cards.

    Everything is acknowledged only once it is as durable as the store promises. Methods raise RpcError:
    UNAVAILABLE with `retry_after` when the store stayed busy until just before the deadline,
    DEADLINE_EXCEEDED when a query took longer, RESOURCE_EXHAUSTED when there is no room left,
    FAILED_PRECONDITION when what should be a store is none, or is closed.
    """

    def append(
        self, entries: Sequence[Entry], context: CallContext, revision: int | None = None
    ) -> Awaitable[list[Appended] | None]:
        """Write usage and costs in one transaction, and tell in order what became of each entry.

        An (organization, key) counts once: the same record again is a duplicate, another one a conflict,
        and neither harms its neighbours. Counts above 10^15, or a cost above 10^9, are INVALID_ARGUMENT for
        the whole list: validation should have caught them. Sums may be brought up to date later, where no
        query can tell.

        `revision` is that of the cards which priced the entries. When it is another one by the time of the
        transaction, nothing is written and the answer is None; that costs less than to ask before each call.
        """

    async def summarize(
        self,
        where: Filter,
        group_by: tuple[str, ...],
        buckets: Sequence[tuple[datetime, datetime]] | None,
        context: CallContext,
    ) -> list[tuple[tuple[str, ...], int, Sums]]:
        """Exact sums per group, bucket and currency, without those that are empty.

        `group_by` names provider, model, organization, project, user, tag, label:<key>, operation,
        service_tier, processing, region or status; a key is "" where a record has none. A record counts
        once under each of its tags. Each bucket is cut to the filter's interval; without buckets the whole
        interval is bucket 0.
        """

    async def summarize_meters(
        self,
        where: Filter,
        group_by: tuple[str, ...],
        buckets: Sequence[tuple[datetime, datetime]] | None,
        card_of: CardOf,
        context: CallContext,
    ) -> list[tuple[tuple[str, ...], int, Sums]]:
        """As `summarize`, where `group_by` may hold meter: each cost under the meters of its lines.

        Costs and tokens of the groups add up to those of all; a call counts in each meter that it used,
        as unpriced where the meter has no price. What has no lines stands under "": a cost that the
        provider reported, and one whose card nobody knows any more.

        The lines are calculated anew from every record that the filter lets through, about 15 µs each
        (a sum that needs no meters reads rollups, or takes 2 µs a record); writing pays nothing for them.
        """

    async def span(self, where: Filter, context: CallContext) -> tuple[datetime, datetime] | None:
        """The filter's interval; where it is open, up to the first or last record of its organizations.

        None when that leaves nothing.
        """

    async def list_usage(
        self,
        where: Filter,
        sort: str,
        descending: bool,
        limit: int,
        after: Position | None,
        offset: int | None,
        context: CallContext,
    ) -> tuple[list[UsageRecord], Position | None]:
        """A page of records with their costs filled in, and the position to go on after; None at the end.

        `sort` is "timestamp", or "ingested_at" for the order in which the store's records were made; the
        order is total and stable while records are added. INVALID_ARGUMENT for a position it never gave.
        """

    async def count_usage(self, where: Filter, context: CallContext) -> int:
        """How many records the filter lets through."""

    async def get_cost(self, usage_id: str, context: CallContext) -> Recorded | None:
        """A record with the revision of its cost that is in force, and the card that was kept with it."""

    async def matching(self, where: Filter, after: int, limit: int, context: CallContext) -> list[int]:
        """The numbers of the first records after a number that the filter lets through, ascending."""

    async def reprice(
        self, seqs: Sequence[int], price: Price, context: CallContext, *, dry_run: bool
    ) -> list[Change]:
        """Add a revision to each of the records whose status, currency or cost is not what `price` says.

        One transaction writes revisions and sums; earlier revisions stay as they are. With `dry_run`
        nothing is written, and the answer is the same.
        """

    async def add_card(
        self, card: RateCard, key: str, fingerprint: bytes, context: CallContext
    ) -> tuple[RateCard, SubmitStatus]:
        """Keep a card under the version that follows those of its model and dimensions.

        A key that stood for the same fingerprint before gives that card as a duplicate, for another one
        a conflict. So does content that equals the card's latest version, whatever the key.
        """

    async def get_card(self, card_id: str, context: CallContext) -> RateCard | None:
        """The card with an id, or None."""

    async def all_cards(self, context: CallContext) -> list[RateCard]:
        """Every card, by provider, model, date and version."""

    async def cards_revision(self, context: CallContext) -> int:
        """A number that grows when a card is added, by any process."""

    @property
    def keys(self) -> KeyStore:
        """The API keys of whoever may call the server over this store."""

    async def check(self, context: CallContext) -> None:
        """Write and commit a mark; raises as any other write does."""

    async def aclose(self) -> None:
        """Finish what was begun and let go of files and threads. May be called twice."""
