"""What a ledger has to do: `Ledger` keeps records, costs, cards and keys, and `Sums` adds them up.

The two are apart so that a row store and a column store can share the work: sums may be answered by another
database than the one that decides whether a key is new.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from llm_cost_ops._gen.messages import AuditEvent, RateCard, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.types import (
    Amounts,
    ApiKey,
    Appended,
    AuditFilter,
    Committed,
    Entry,
    Erased,
    Filter,
    LedgerFigures,
    Position,
    Price,
    Recorded,
    Repriced,
    Retention,
    Revised,
    Revision,
)
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext

__all__ = ["Alike", "Batch", "KeyStore", "Ledger", "Sums"]


class KeyStore(Protocol):
    """Keeps API keys. What one process adds or revokes holds at once in every other one."""

    async def any(self, context: CallContext) -> bool:
        """Whether there is or was a key; cheap enough to ask before each call."""

    async def find(self, key_id: str, context: CallContext) -> ApiKey | None:
        """The key with an id, revoked and expired ones too; cheap enough to ask before each call."""

    async def all(self, context: CallContext) -> list[ApiKey]:
        """Every key, the oldest first."""

    async def secret(self, context: CallContext) -> bytes:
        """The 32 random bytes of this ledger alone that hashes are keyed with; made when first asked for."""

    async def add(self, key: ApiKey, context: CallContext, *, actor: str = "") -> None:
        """Keep a key; ALREADY_EXISTS when its id is taken. `actor` as in Revision, for the audit log."""

    async def revoke(
        self, key_id: str, at: datetime, context: CallContext, *, actor: str = ""
    ) -> ApiKey | None:
        """Revoke a key, or leave a revoked one as it is, and return it; None when there is none."""


class Sums(Protocol):
    """Exact sums over the records of a ledger.

    A query sees every record and revision that was acknowledged before it began. A sum above MAX_SUM is
    OUT_OF_RANGE.
    """

    async def summarize(
        self,
        where: Filter,
        group_by: tuple[str, ...],
        buckets: Sequence[tuple[datetime, datetime]] | None,
        context: CallContext,
    ) -> list[tuple[tuple[str, ...], int, Amounts]]:
        """Exact sums per group, bucket and currency, without those that are empty; by bucket and group.

        `group_by` names provider, model, organization, project, user, tag, label:<key>, operation,
        service_tier, processing, region, status or meter; a key is "" where a record has none. A record
        counts once under each of its tags. Each bucket is cut to the filter's interval; without buckets the
        whole interval is bucket 0.

        With meter each cost is under the meters of its lines. Costs and tokens of the groups add up to those
        of all; a call counts in each meter that it used, as unpriced where the meter has no price. Under ""
        is what has no lines: a cost that the provider reported. The lines are calculated from every record
        that the filter lets through, about 15 µs each; writing pays nothing for them. A ledger may keep what
        it calculated for the next query. INVALID_ARGUMENT for more than day_spans.MAX_GROUPS groups.
        """

    async def occupied(self, where: Filter, width: int, context: CallContext) -> list[int]:
        """In which stretches of time the filter's organizations have records in its interval, in order.

        Time is cut into stretches of `width` microseconds; they are numbered from 1970 on, and before it
        backwards from -1. The other conditions of the filter do not count. It costs what the answer is long.
        """

    async def count(self, where: Filter, context: CallContext, max_rows: int | None = None) -> int | None:
        """How many records the filter lets through, of those that were not removed.

        None where a ledger would have to read more than about `max_rows` records to know; never None
        without `max_rows`.
        """


Alike = dict[Pricing, Any]
"""What a batch knows of records that are alike, by how they were priced."""


class Batch(Protocol):
    """Entries that a ledger writes in one transaction: `Ledger.append` for who makes them one by one.

    A ledger takes from each what it needs, so that nobody has to keep thousands of them meanwhile.
    """

    def add(
        self,
        record: UsageRecord,
        key: str | int,
        ingested_at: datetime,
        units: int | None,
        by: Pricing,
        alike: Alike | None = None,
    ) -> str:
        """Take one more entry, whose parts are those of an Entry; the record may be changed afterwards, and
        its total_tokens may be missing, which follow from the others.

        A number as its key stands for the key of the batch with ":" and the number after it. `alike` is one
        dict for records that have their organization, provider, model, project, operation, service tier,
        processing and region in common: the batch keeps there what it makes of these.
        Returns the id that it will have if `write` says nothing else, or "" where `write` will say it.
        INVALID_ARGUMENT as for `Ledger.append`, and then the batch is as it was before.
        """

    def write(
        self, context: CallContext, revision: int | None = None
    ) -> Awaitable[dict[int, Appended] | None]:
        """Write the entries as `Ledger.append` does; None where nothing was written since cards are others.

        The answer says by the numbers of entries, from 0, what became of those that were not created with
        the id that `add` gave.
        """


class Ledger(Protocol):
    """Keeps usage and its costs, price cards and API keys, and an audit log of what was changed of them.

    What is to be audited (`ledger/audit.py`) is written in the transaction that does it.

    Everything is acknowledged only once it is as durable as the ledger promises. Methods raise RpcError:
    UNAVAILABLE with `retry_after` when the database stayed busy until just before the deadline,
    DEADLINE_EXCEEDED when a query took longer, RESOURCE_EXHAUSTED when there is no room left,
    FAILED_PRECONDITION when what should be a database is none, or the ledger is closed.
    """

    def append(
        self, entries: Sequence[Entry], context: CallContext, revision: int | None = None
    ) -> Awaitable[list[Appended] | None]:
        """Write usage and costs in one transaction, and tell in order what became of each entry.

        An (organization, key) counts once, however often and by however many processes it is sent at the same
        time: the same record again is a duplicate, another one a conflict (`duplicates.is_duplicate` says
        which), and neither harms its neighbours. The key itself decides, not the id that was made of it.
        Where `duplicates.supersedes` says so and the record was neither corrected nor voided, the new one
        takes its place as a revision of kind SUPERSEDED, with `duplicates.superseding` as its content: that
        is a created one, and what later ones are compared with; the time and the id stay.
        Counts above MAX_COUNT, or a cost above MAX_RECORD_COST, are INVALID_ARGUMENT for the whole list:
        validation should have caught them. What a sum would become is no reason to refuse.

        `revision` is that of the cards which priced the entries. When it is another one by the time of the
        transaction, nothing is written and the answer is None; that costs less than to ask before each call.
        """

    def batch(self, key: str = "") -> Batch:
        """An empty batch, to be filled and written once; `key` is for entries whose own are numbers."""

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

        `sort` is "timestamp", or "ingested_at" for the order in which records were committed; the order is
        total and stable while records are added. INVALID_ARGUMENT for a position that it never gave.
        """

    async def get_cost(self, organization_id: str, usage_id: str, context: CallContext) -> Recorded | None:
        """An organization's record with the revision of its cost that is in force, and the card that was
        kept with it; None when the organization has no such record.
        """

    async def reprice(
        self,
        where: Filter,
        price: Price,
        after: Position | None,
        limit: int,
        context: CallContext,
        *,
        dry_run: bool,
        actor: str = "",
    ) -> Repriced:
        """Look at the next records that the filter lets through, and add a revision to each whose status,
        currency or cost is not what `price` says. Voided records are passed over.

        Records come in the order in which they were committed, at most `limit` of them in one transaction,
        which writes revisions and sums; earlier revisions stay as they are. With `dry_run` nothing is
        written, and the answer is the same. `actor` is who made the revisions, as in Revision.
        """

    async def revise(self, revision: Revision, context: CallContext) -> bool:
        """Add a revision to a record; sums, lists and `committed` follow in the same transaction.

        False, and nothing is written, when there is no such record, or another revision is in force than the
        one that it comes after. Its content as it was sent stays what a duplicate is told by.
        """

    async def erase_user(
        self,
        user_id: str,
        organization_ids: tuple[str, ...],
        subject: str,
        after: Position | None,
        context: CallContext,
        *,
        actor: str = "",
    ) -> Erased:
        """Take a user out of the next records that name them, and of all that these were before.

        `erasure.without_user` says what goes. Some hundred records are changed in one transaction; counts,
        costs and sums stay as they are, and a key that was sent with another user is still a duplicate, as
        `erasure.as_erased` says. The step that finds nothing left has the rest of the ledger forget them:
        sums by user, and on SQLite the log. `organization_ids` () are all; `subject` goes into the audit log.
        """

    async def retentions(self, context: CallContext) -> list[Retention]:
        """What holds for each organization that has a retention or had one, by its name."""

    async def set_retention(
        self, organization_id: str, days: int, context: CallContext, *, actor: str = ""
    ) -> None:
        """Keep an organization's records for so many days, 0 for ever. What was removed stays so."""

    async def remove_older(
        self, organization_id: str, before: datetime, context: CallContext, *, dry_run: bool, actor: str = ""
    ) -> int:
        """Remove some hundred of an organization's records from before a midnight of UTC, in one transaction;
        how many it were, 0 at the end. With `dry_run` how many would be removed in all.

        The organization has a retention. Sums stay as they are, but those that can't be made any more are
        refused, as `retention.check_known` says; its other methods know nothing of removed records, but that
        their keys stay: what is sent again is a duplicate (`retention.removed_duplicate`).
        """

    async def revisions(self, organization_id: str, usage_id: str, context: CallContext) -> list[Revised]:
        """Every revision of an organization's record, from the first on; none when it has no such record."""

    async def committed(
        self, after: Position | None, limit: int, context: CallContext
    ) -> tuple[list[Committed], Position | None]:
        """What was committed after a position, and the position of the last of it; None for the beginning.

        Records and revisions in the order of their commits, the same order whoever asks and whenever: what
        became visible later never stands before what was given already. At the end the list is empty, and the
        position is the one that was given.
        """

    async def consumer_position(self, name: str, context: CallContext) -> Position | None:
        """Where the consumer of this name goes on in `committed`; None for one that never moved."""

    async def move_consumer(self, name: str, position: Position, context: CallContext) -> None:
        """Keep where a consumer goes on. A position before the one that is kept changes nothing."""

    async def add_card(
        self, card: RateCard, key: str, fingerprint: bytes, context: CallContext, *, actor: str = ""
    ) -> tuple[RateCard, SubmitStatus]:
        """Keep a card under the version that follows those of its model and dimensions.

        A key that stood for the same fingerprint before gives that card as a duplicate, for another one
        a conflict. So does content that equals the card's latest version, whatever the key.
        """

    async def get_card(self, card_id: str, context: CallContext) -> RateCard | None:
        """The card with an id, or None."""

    async def all_cards(
        self, context: CallContext, known: Mapping[str, RateCard] = MappingProxyType({})
    ) -> list[RateCard]:
        """Every card, by provider, model, date and version.

        A card never changes: one that is `known`, by its id, is given as it is.
        """

    async def cards_revision(self, context: CallContext) -> int:
        """A number that grows when a card is added, by any process."""

    async def audit_events(
        self, where: AuditFilter, limit: int, after: Position | None, offset: int | None, context: CallContext
    ) -> tuple[list[AuditEvent], Position | None]:
        """A page of the audit log, the newest first, and the position to go on after; None at the end."""

    @property
    def sums(self) -> Sums:
        """The sums over this ledger's records."""

    @property
    def keys(self) -> KeyStore:
        """The API keys of whoever may call the server over this ledger."""

    async def check(self, context: CallContext) -> None:
        """Write and commit a mark; raises as any other write does."""

    async def figures(self, context: CallContext) -> LedgerFigures:
        """What an operator watches; cheap enough to ask every few seconds."""

    async def aclose(self) -> None:
        """Finish what was begun and let go of files and threads. May be called twice."""
