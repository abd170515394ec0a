"""The ledger in PostgreSQL: a database that any number of servers share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from llm_cost_ops._gen.messages import AuditEvent, RateCard, SubmitStatus, UsageRecord
from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.batches import append_as_batch
from llm_cost_ops.ledger.postgres import (
    cards,
    erasing,
    integrity,
    listing,
    retaining,
    revisions,
    summaries,
    sums,
)
from llm_cost_ops.ledger.postgres.api_keys import PostgresKeys
from llm_cost_ops.ledger.postgres.append import Answer, Appender, PostgresBatch
from llm_cost_ops.ledger.postgres.audit import add_events, audit_events
from llm_cost_ops.ledger.postgres.connection import Database, Session
from llm_cost_ops.ledger.postgres.revise import revise
from llm_cost_ops.ledger.postgres.workers import Ticket, Workers, until_of
from llm_cost_ops.ledger.types import (
    Amounts,
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
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.status import RpcError

__all__ = ["PostgresLedger"]

T = TypeVar("T")

_ERASED_AT_ONCE = _REMOVED_AT_ONCE = 250
FOLD_EVERY = 5000
"""Rows of an organization that a process writes before it has its sums folded.

A query takes a microsecond or two for each row of delta. To fold them takes the database about 0.7 us a
record at 5,000 and 1.7 at 2,000, where there are 35 series; to write a record takes it 8.
"""


class PostgresLedger:
    """A Ledger in a PostgreSQL database. Nothing is connected, and no thread started, before the first call.

    Writes of all calls that come at the same time share a commit. At most twice as many connections as there
    are cores are open for everything else, and two for writing.

    A child that the process forks opens connections of its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unfolded: Counter[int] = Counter()
        self._workers = Workers(database, 2 * (os.cpu_count() or 1))
        self._appender = Appender(database, self._written)
        self._closed = False
        self._keys = PostgresKeys(self._workers)
        for owner in (database, self._workers, self._appender):
            forget_in_children(owner)

    def append(
        self, entries: Sequence[Entry], context: CallContext, revision: int | None = None
    ) -> Awaitable[list[Appended] | None]:
        """Write usage and costs in one transaction; see Ledger."""
        return append_as_batch(self.batch(), entries, context, revision)

    def batch(self, key: str = "") -> PostgresBatch:
        """An empty batch; see Ledger."""
        return PostgresBatch(self._write_batch, key)

    async def _write_batch(self, batch: PostgresBatch, context: CallContext, revision: int | None) -> Answer:
        if not batch.rows:
            return {}
        context.check_deadline()
        batch.revision = revision
        batch.open.update(range(len(batch.rows)))
        return await self._appender.put(batch, until_of(context)).result(context)

    def _written(self, org: int, rows: int) -> None:
        """Have an organization's sums folded, beside the writing, once there is something to fold."""
        self._unfolded[org] += rows
        if self._unfolded[org] >= FOLD_EVERY:
            del self._unfolded[org]
            try:
                self._workers.put(Ticket(partial(sums.fold, org=org), None))
            except RpcError:
                # It is being closed, or has more to do: whoever writes next folds.
                return

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
        """A page of records and the position to go on after; see Ledger."""
        query = partial(
            listing.list_usage,
            where=where,
            sort=sort,
            descending=descending,
            limit=limit,
            after=after,
            offset=offset,
        )
        return await self.read(query, context)

    async def get_cost(self, organization_id: str, usage_id: str, context: CallContext) -> Recorded | None:
        """A record and its cost in force; see Ledger."""
        query = partial(revisions.get_cost, organization_id=organization_id, usage_id=usage_id)
        return await self.read(query, context)

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
        """Add revisions to the next records whose cost is another one; see Ledger."""
        if dry_run:
            found = partial(revisions.find_changes, where=where, price=price, after=after, limit=limit)
            return await self._workers.run(found, context)
        now = datetime.fromtimestamp(context.runtime.now(), UTC)
        job = partial(
            revisions.reprice, where=where, price=price, after=after, limit=limit, now=now, actor=actor
        )
        return await self._workers.run(job, context, writes=True, repeatable=False)

    async def revise(self, revision: Revision, context: CallContext) -> bool:
        """Add a revision to a record; see Ledger."""

        def job(session: Session) -> bool:
            with session.transaction():
                revised = revise(session, revision)
                if revised:
                    add_events(session, [audit.revised(revision)])
                return revised

        return await self._workers.run(job, context, writes=True, repeatable=False)

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
        """Take a user out of the next records that name them; see Ledger."""
        query = partial(erasing.find_mentions, user_id=user_id, names=organization_ids, after=after)
        found, position = await self.read(query, context)
        if position is None:
            return Erased(0, None)
        records = 0
        for at in range(0, len(found), _ERASED_AT_ONCE):
            some = found[at : at + _ERASED_AT_ONCE]
            job = partial(
                erasing.erase,
                records=some,
                user_id=user_id,
                subject=subject,
                at=context.now(),
                actor=actor,
            )
            records += await self._workers.run(job, context, writes=True)
        return Erased(records, position)

    async def retentions(self, context: CallContext) -> list[Retention]:
        """What holds for each organization; see Ledger."""
        return await self._workers.run(retaining.retentions, context)

    async def set_retention(
        self, organization_id: str, days: int, context: CallContext, *, actor: str = ""
    ) -> None:
        """Keep an organization's records for so many days; see Ledger."""
        job = partial(
            retaining.set_retention, organization=organization_id, days=days, at=context.now(), actor=actor
        )
        await self._workers.run(job, context, writes=True)

    async def remove_older(
        self, organization_id: str, before: datetime, context: CallContext, *, dry_run: bool, actor: str = ""
    ) -> int:
        """Remove some of an organization's records from before a moment; see Ledger."""
        if dry_run:
            count = partial(retaining.count_older, organization=organization_id, before=before)
            return await self._workers.run(count, context)
        job = partial(
            retaining.remove,
            organization=organization_id,
            before=before,
            limit=_REMOVED_AT_ONCE,
            at=context.now(),
            actor=actor,
        )
        return await self._workers.run(job, context, writes=True)

    async def revisions(self, organization_id: str, usage_id: str, context: CallContext) -> list[Revised]:
        """Every revision of a record; see Ledger."""
        query = partial(revisions.revisions, organization_id=organization_id, usage_id=usage_id)
        return await self.read(query, context)

    async def committed(
        self, after: Position | None, limit: int, context: CallContext
    ) -> tuple[list[Committed], Position | None]:
        """What was committed after a position; see Ledger."""
        return await self.read(partial(listing.committed, after=after, limit=limit), context)

    async def consumer_position(self, name: str, context: CallContext) -> Position | None:
        """Where a consumer goes on; see Ledger."""
        return await self._workers.run(partial(listing.consumer_position, name=name), context)

    async def move_consumer(self, name: str, position: Position, context: CallContext) -> None:
        """Keep where a consumer goes on; see Ledger."""
        job = partial(listing.move_consumer, name=name, position=position)
        await self._workers.run(job, context, writes=True)

    async def add_card(
        self, card: RateCard, key: str, fingerprint: bytes, context: CallContext, *, actor: str = ""
    ) -> tuple[RateCard, SubmitStatus]:
        """Keep a card under its next version; see Ledger."""
        job = partial(
            cards.add_card, card=card, key=key, fingerprint=fingerprint, at=context.now(), actor=actor
        )
        return await self._workers.run(job, context, writes=True, repeatable=bool(key))

    async def get_card(self, card_id: str, context: CallContext) -> RateCard | None:
        """The card with an id, or None."""
        return await self._workers.run(partial(cards.get_card, card_id=card_id), context)

    async def all_cards(
        self, context: CallContext, known: Mapping[str, RateCard] = MappingProxyType({})
    ) -> list[RateCard]:
        """Every card, by provider, model, date and version; those that are `known`, as they are."""
        return await self._workers.run(partial(cards.all_cards, known=known), context)

    async def cards_revision(self, context: CallContext) -> int:
        """A number that grows when a card is added, by any process."""
        return await self._workers.run(cards.revision, context)

    async def audit_events(
        self, where: AuditFilter, limit: int, after: Position | None, offset: int | None, context: CallContext
    ) -> tuple[list[AuditEvent], Position | None]:
        """A page of the audit log; see Ledger."""
        query = partial(audit_events, where=where, limit=limit, after=after, offset=offset)
        return await self.read(query, context)

    @property
    def sums(self) -> PostgresSums:
        """The sums over this ledger's records."""
        return PostgresSums(self)

    @property
    def keys(self) -> PostgresKeys:
        """The API keys of whoever may call the server over this ledger."""
        return self._keys

    async def check(self, context: CallContext) -> None:
        """Write and commit a mark."""

        def job(session: Session) -> None:
            with session.transaction():
                session.run("UPDATE llm_cost_ops.meta SET checks = checks + 1")

        await self._workers.run(job, context, writes=True)

    async def figures(self, context: CallContext) -> LedgerFigures:
        """What an operator watches; see Ledger."""
        unfolded, size = await self.read(sums.figures, context)
        appender = self._appender
        return LedgerFigures(
            commits=appender.commits, queued=appender.waiting, unfolded_rows=unfolded, bytes=size
        )

    async def find_faults(self, context: CallContext) -> list[str]:
        """What is inconsistent in the whole database, in words; it reads all of it."""
        return await self._workers.run(lambda session: list(integrity.find_faults(session)), context)

    async def aclose(self) -> None:
        """Finish what was begun and let go of connections and threads. May be called twice."""
        self._appender.close()
        self._workers.close()

    async def read(self, query: Callable[[Session], T], context: CallContext) -> T:
        """Run a query in a snapshot."""

        def job(session: Session) -> T:
            with session.snapshot():
                return query(session)

        return await self.run(job, context)

    async def run(self, job: Callable[[Session], T], context: CallContext) -> T:
        """Run a job that reads, in transactions of its own."""
        return await self._workers.run(job, context)

    def __repr__(self) -> str:
        return f"PostgresLedger({self._database.name!r}, durability={self._database.durability!r})"


class PostgresSums:
    """The Sums of a PostgresLedger."""

    __slots__ = ("_ledger",)

    def __init__(self, ledger: PostgresLedger) -> None:
        self._ledger = ledger

    async def summarize(
        self,
        where: Filter,
        group_by: tuple[str, ...],
        buckets: Sequence[tuple[datetime, datetime]] | None,
        context: CallContext,
    ) -> list[tuple[tuple[str, ...], int, Amounts]]:
        """Exact sums per group, bucket and currency; see Sums."""
        job = partial(summaries.summarize, where=where, group_by=group_by, buckets=buckets)
        return await self._ledger.run(job, context)

    async def occupied(self, where: Filter, width: int, context: CallContext) -> list[int]:
        """The stretches of time that hold records; see Sums."""
        return await self._ledger.read(partial(listing.occupied, where=where, width=width), context)

    async def count(self, where: Filter, context: CallContext, max_rows: int | None = None) -> int:
        """How many records the filter lets through, however many have to be read; see Sums."""
        return await self._ledger.read(partial(summaries.count, where=where), context)
