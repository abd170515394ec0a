"""The ledger on SQLite: one file that several processes may open, or private memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from msgspec.structs import replace

from llm_cost_ops._gen.messages import AuditEvent, RateCard, SubmitStatus, UsageRecord
from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.batches import append_as_batch
from llm_cost_ops.ledger.day_spans import Fold, dimensions_of
from llm_cost_ops.ledger.sqlite import (
    cards,
    commits,
    day_sums,
    erasing,
    retaining,
    revisions,
    summaries,
    sums,
)
from llm_cost_ops.ledger.sqlite import listing as history
from llm_cost_ops.ledger.sqlite.api_keys import SqliteKeys
from llm_cost_ops.ledger.sqlite.append import INSERT, MARKS, SqliteBatch, settle
from llm_cost_ops.ledger.sqlite.audit import add_events, audit_events
from llm_cost_ops.ledger.sqlite.connection import Database, Job, Writer
from llm_cost_ops.ledger.sqlite.errors import closed_error
from llm_cost_ops.ledger.sqlite.files import refuse_in_this_process
from llm_cost_ops.ledger.sqlite.group_commit import GroupCommit
from llm_cost_ops.ledger.sqlite.readers import Query, Readers
from llm_cost_ops.ledger.sqlite.revise import revise
from llm_cost_ops.ledger.sqlite.rows import NULL, Interner, Row, created, prepare
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
from llm_cost_ops.rpc.forks import quiesce_for_forks
from llm_cost_ops.rpc.status import RpcError

__all__ = ["AppendOne", "SqliteLedger"]

T = TypeVar("T")

_CLOSING = 30.0
_ERASED_AT_ONCE = _REMOVED_AT_ONCE = 250
_LOG_TRIES = 100
_LOG_WAIT = 0.05
_INSERT_AT = f"INSERT INTO usage SELECT {MARKS} WHERE ? = (SELECT ifnull(max(seq), 0) FROM card)"


class SqliteLedger:
    """A Ledger in a SQLite file, or in memory that only this object sees when `path` is None, "" or
    ":memory:".

    The file is opened, and created or migrated, by the first call. It is in WAL mode: readers do not wait
    for writers, and several processes may use it.

    `durability` "disk" means that a commit is on disk when it is acknowledged; "process" is faster, and
    survives the end of the process but not always a loss of power. With `group_commit` a thread commits
    to disk for all that call at the same time, as servers and asyncio need it; where no commit waits for a
    disk it does nothing.

    No connection is open across a fork: `os.fork` waits for what is under way, up to `forks.FORK_WAIT`
    seconds, and both processes open the file anew. Queries that take longer are stopped and run again after
    it. Where a transaction takes longer, the child may not use the file. Memory stays with the parent, and
    is refused in the child. Both are FAILED_PRECONDITION.

    Raises ValueError for another durability.
    """

    def __init__(
        self, path: str | None = None, *, durability: str = "disk", group_commit: bool = False
    ) -> None:
        self._database = Database(None if path in ("", ":memory:") else path, durability)
        self._grouped = group_commit and self._database.path is not None and durability == "disk"
        self._closed = False
        self._begin()
        quiesce_for_forks(self)

    def _begin(self) -> None:
        self._writer = Writer(self._database)
        self._readers = Readers(self._database, self._writer)
        self._group = GroupCommit(self._writer) if self._grouped else None
        self._added_cards = 0
        self._at_rest = (True, True)

    def before_fork(self, until: float) -> None:
        """Close every connection, and keep them closed."""
        self._at_rest = self._writer.rest(until), self._readers.rest(until)

    def after_fork_in_parent(self) -> None:
        """Let connections be opened again."""
        if self._at_rest[0]:
            self._writer.go_on()
        self._readers.go_on()

    def after_fork_in_child(self) -> None:
        """Start again without what belongs to the parent's threads."""
        if self._database.path is None:
            # Kept, since another thread of the parent may be in the middle of it.
            _inherited.append((self._writer, self._readers))
            self._begin()
            self._writer.is_childs = True
            return
        if not all(self._at_rest):
            # Its connections may be neither used nor closed here: both would go to the parent's locks.
            _inherited.append((self._writer, self._readers))
            refuse_in_this_process(self._database.path)
        self._begin()

    def append(
        self, entries: Sequence[Entry], context: CallContext, revision: int | None = None
    ) -> Awaitable[list[Appended] | None]:
        """Write usage and costs in one transaction; see Ledger."""
        if len(entries) != 1:
            return append_as_batch(self.batch(), entries, context, revision)
        if revision is not None and self._database.path is None:
            # In private memory nobody else adds any.
            if revision != self._added_cards:
                return _other_cards()
            revision = None
        job = AppendOne(entries[0], revision, self._writer.interner)
        if self._group is None and not self._closed:
            return self._writer.run(job, context, statement=job.is_statement)
        return self._write(job, context)

    def batch(self, key: str = "") -> SqliteBatch:
        """An empty batch; see Ledger."""
        return SqliteBatch(self._write_batch, self._writer.interner, key)

    async def _write_batch(
        self, batch: SqliteBatch, context: CallContext, revision: int | None
    ) -> dict[int, Appended] | None:
        if not len(batch):
            return {}
        if revision is not None and self._database.path is None:
            if revision != self._added_cards:
                return None
            revision = None
        return await self._write(partial(batch.insert, revision=revision), context, len(batch))

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
        query: Query[tuple[list[UsageRecord], Position | None]] = partial(
            history.list_usage,
            where=where,
            sort=sort,
            descending=descending,
            limit=limit,
            after=after,
            offset=offset,
        )
        return await self._readers.read(query, context, quick=history.is_quick(where, sort, limit, offset))

    async def get_cost(self, organization_id: str, usage_id: str, context: CallContext) -> Recorded | None:
        """A record and its cost in force; see Ledger."""
        query = partial(revisions.get_cost, organization_id=organization_id, usage_id=usage_id)
        return await self._readers.read(query, context, quick=True)

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
        matching = partial(revisions.matching, where=where, after=after, limit=limit)
        seqs = await self._readers.read(matching, context)
        if not seqs:
            return Repriced(0, [], None)
        if dry_run:
            found = partial(revisions.find_changes, seqs=seqs, price=price)
            changes = await self._readers.read(found, context)
        else:
            now = datetime.fromtimestamp(context.runtime.now(), UTC)
            job = partial(revisions.reprice, seqs=seqs, price=price, now=now, actor=actor)
            changes = await self._write(job, context, len(seqs))
        return Repriced(len(seqs), changes, str(seqs[-1]))

    async def revise(self, revision: Revision, context: CallContext) -> bool:
        """Add a revision to a record; see Ledger."""

        def job(cursor: sqlite3.Cursor, interner: Interner) -> bool:
            revised = revise(cursor, interner.ids, revision)
            if revised:
                add_events(cursor, [audit.revised(revision)])
            return revised

        return await self._write(job, context)

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
        first = revisions.number_of(after)
        query = partial(
            erasing.find_mentions, user_id=user_id, organization_ids=organization_ids, after=first
        )
        seqs, last = await self._readers.read(query, context)
        if last is None:
            await self._empty_log(context)
            return Erased(0, None)
        records = 0
        for at in range(0, len(seqs), _ERASED_AT_ONCE):
            some = seqs[at : at + _ERASED_AT_ONCE]

            def job(cursor: sqlite3.Cursor, _: Interner, some: list[int] = some) -> int:
                return erasing.erase(cursor, some, user_id, subject, context.now(), actor)

            records += await self._write(job, context, len(some))
        return Erased(records, str(last))

    async def _empty_log(self, context: CallContext) -> None:
        """Leave nothing in the log of what was overwritten, unless it is in use for seconds."""
        if self._database.path is None:
            return
        for _ in range(_LOG_TRIES):
            if await self._readers.run_apart(erasing.empty_log, context):
                return
            await context.runtime.sleep(_LOG_WAIT)
            context.check_deadline()

    async def retentions(self, context: CallContext) -> list[Retention]:
        """What holds for each organization; see Ledger."""
        return await self._readers.read_now(retaining.retentions, context)

    async def set_retention(
        self, organization_id: str, days: int, context: CallContext, *, actor: str = ""
    ) -> None:
        """Keep an organization's records for so many days; see Ledger."""

        def job(cursor: sqlite3.Cursor, _: Interner) -> None:
            retaining.set_retention(cursor, organization_id, days, context.now(), actor)

        await self._write(job, context)

    async def remove_older(
        self, organization_id: str, before: datetime, context: CallContext, *, dry_run: bool, actor: str = ""
    ) -> int:
        """Remove some of an organization's records from before a moment; see Ledger."""
        if dry_run:
            query = partial(retaining.count_older, organization=organization_id, before=before)
            return await self._readers.read(query, context)

        def job(cursor: sqlite3.Cursor, _: Interner) -> int:
            return retaining.remove(cursor, organization_id, before, _REMOVED_AT_ONCE, context.now(), actor)

        return await self._write(job, context, _REMOVED_AT_ONCE)

    async def revisions(self, organization_id: str, usage_id: str, context: CallContext) -> list[Revised]:
        """Every revision of a record; see Ledger."""
        query = partial(revisions.revisions, organization_id=organization_id, usage_id=usage_id)
        return await self._readers.read(query, context)

    async def committed(
        self, after: Position | None, limit: int, context: CallContext
    ) -> tuple[list[Committed], Position | None]:
        """What was committed after a position; see Ledger."""
        return await self._readers.read(partial(commits.committed, after=after, limit=limit), context)

    async def consumer_position(self, name: str, context: CallContext) -> Position | None:
        """Where a consumer goes on; see Ledger."""
        return await self._readers.read_now(partial(commits.consumer_position, name=name), context)

    async def move_consumer(self, name: str, position: Position, context: CallContext) -> None:
        """Keep where a consumer goes on; see Ledger."""

        def job(cursor: sqlite3.Cursor, _: Interner) -> None:
            commits.move_consumer(cursor, name, position)

        await self._write(job, context)

    async def add_card(
        self, card: RateCard, key: str, fingerprint: bytes, context: CallContext, *, actor: str = ""
    ) -> tuple[RateCard, SubmitStatus]:
        """Keep a card under its next version; see Ledger."""

        def job(cursor: sqlite3.Cursor, _: Interner) -> tuple[RateCard, SubmitStatus]:
            added = cards.add_card(cursor, card, key, fingerprint)
            if added[1] == SubmitStatus.CREATED:
                add_events(cursor, [audit.card_added(added[0], context.now(), actor)])
            return added

        added = await self._write(job, context)
        self._added_cards += 1
        return added

    async def get_card(self, card_id: str, context: CallContext) -> RateCard | None:
        """The card with an id, or None."""
        return await self._readers.read_now(partial(cards.get_card, card_id=card_id), context)

    async def all_cards(
        self, context: CallContext, known: Mapping[str, RateCard] = MappingProxyType({})
    ) -> list[RateCard]:
        """Every card, by provider, model, date and version; those that are `known`, as they are."""
        return await self._readers.read(partial(cards.all_cards, known=known), context)

    async def cards_revision(self, context: CallContext) -> int:
        """A number that grows when a card is added, by any process."""
        if self._database.path is None:
            # In private memory nobody else adds any.
            return self._added_cards
        return await self._readers.read_now(cards.revision, context)

    async def audit_events(
        self, where: AuditFilter, limit: int, after: Position | None, offset: int | None, context: CallContext
    ) -> tuple[list[AuditEvent], Position | None]:
        """A page of the audit log; see Ledger."""
        query = partial(audit_events, where=where, limit=limit, after=after, offset=offset)
        return await self._readers.read(query, context)

    @property
    def sums(self) -> SqliteSums:
        """The sums over this ledger's records."""
        return SqliteSums(self._readers, self._write)

    @property
    def keys(self) -> SqliteKeys:
        """The API keys of whoever may call the server over this ledger."""
        return SqliteKeys(self._read_now, self._write)

    async def check(self, context: CallContext) -> None:
        """Write and commit a mark."""

        def job(cursor: sqlite3.Cursor, _: Interner) -> None:
            cursor.execute("UPDATE health SET checks = checks + 1")

        await self._write(job, context)

    async def figures(self, context: CallContext) -> LedgerFigures:
        """What an operator watches; see Ledger."""
        unfolded, size = await self._readers.read(sums.figures, context)
        queued = 0 if self._group is None else self._group.waiting
        return LedgerFigures(commits=self._writer.commits, queued=queued, unfolded_rows=unfolded, bytes=size)

    async def aclose(self) -> None:
        """Finish what was begun and let go of files and threads. May be called twice."""
        self._closed = True
        if self._group is not None:
            self._group.close()
        writer = self._writer
        if not writer.closed:
            try:
                if not writer.turn.try_acquire(self):
                    writer.turn.take_blocking(self, _CLOSING, self._database.name)
                writer.close()
            finally:
                writer.turn.release(self)
        self._readers.close()

    async def _read_now(self, query: Query[T], context: CallContext) -> T:
        return await self._readers.read_now(query, context)

    async def _write(self, job: Job[T], context: CallContext, weight: int = 1) -> T:
        if self._closed:
            raise closed_error()
        if self._group is not None:
            return await self._group.run(job, weight, context)
        return await self._writer.run(job, context)

    def __repr__(self) -> str:
        return f"SqliteLedger({self._database.path!r}, durability={self._database.durability!r})"


async def _other_cards() -> None:
    """The answer where the cards are those of another revision."""


_FOLD_ROWS = 100_000
_FOLD_WAIT = 0.25

# In a transaction that others wait for.
_DELETED_AT_ONCE = 5000

Write = Callable[[Job[bool], CallContext], Awaitable[bool]]


class SqliteSums:
    """The Sums of a SqliteLedger, read on its connections; the sums of days that it keeps are written."""

    __slots__ = ("_readers", "_write")

    def __init__(self, readers: Readers, write: Write) -> None:
        self._readers = readers
        self._write = write

    async def summarize(
        self,
        where: Filter,
        group_by: tuple[str, ...],
        buckets: Sequence[tuple[datetime, datetime]] | None,
        context: CallContext,
    ) -> list[tuple[tuple[str, ...], int, Amounts]]:
        """Exact sums per group, bucket and currency; see Sums."""
        await self._fold(where, group_by, buckets, context)
        query = partial(summaries.summarize, where=where, group_by=group_by, buckets=buckets)
        return await self._readers.read(query, context)

    async def _fold(
        self,
        where: Filter,
        group_by: tuple[str, ...],
        buckets: Sequence[tuple[datetime, datetime]] | None,
        context: CallContext,
    ) -> None:
        """Keep the sums of days that a query is about to read: of single ones, some at a time, then spans.

        The query is exact without them: what can't be written now is left to the next one.
        """
        dimensions = dimensions_of(where, group_by)
        if dimensions is None or not summaries.needs_rows(where, group_by):
            return
        query = partial(summaries.to_keep, where=where, group_by=group_by, buckets=buckets)
        plan = await self._readers.read(query, context)
        if plan.used and not await self._keep(partial(day_sums.use, groupings=plan.used), context):
            return
        if plan.single:
            if not await self._fold_some(dimensions, plan.single, context):
                return
            plan = await self._readers.read(query, context)
        await self._fold_some(dimensions, plan.long, context)

    async def _fold_some(self, dimensions: tuple[str, ...], left: list[Fold], context: CallContext) -> bool:
        """Keep what is worth it of some days, or spans; False where nothing can be written."""
        while left:
            size = rows = 0
            while size < len(left) and (not size or rows + left[size].rows <= _FOLD_ROWS):
                rows += left[size].rows
                size += 1
            folds, left = left[:size], left[size:]
            found = partial(summaries.fold, folds=folds, dimensions=dimensions)
            try:
                folded = await self._readers.read(found, context)
            except RpcError:
                context.check_deadline()
                return False
            if not await self._keep(partial(day_sums.store, dimensions=dimensions, folded=folded), context):
                return False
            if all(each.sums is None for each in folded):
                # What can't be kept would be read twice: the others are left to later queries.
                break
        return True

    async def _keep(self, keep: Callable[[sqlite3.Cursor], bool], context: CallContext) -> bool:
        """Write what is kept, and delete what gave way to it; False where nothing can be written now."""
        try:
            while await self._write_soon(keep, context):
                keep = partial(day_sums.delete_some, most=_DELETED_AT_ONCE)
        except RpcError:
            context.check_deadline()
            return False
        return True

    async def _write_soon(self, keep: Callable[[sqlite3.Cursor], bool], context: CallContext) -> bool:
        def job(cursor: sqlite3.Cursor, _: Interner) -> bool:
            return keep(cursor)

        # Writers come first: a query does not wait long for its turn.
        soon = context.runtime.monotonic() + _FOLD_WAIT
        deadline = soon if context.deadline is None else min(soon, context.deadline)
        return await self._write(job, replace(context, deadline=deadline))

    async def occupied(self, where: Filter, width: int, context: CallContext) -> list[int]:
        """The stretches of time that hold records; see Sums."""
        return await self._readers.read(partial(history.occupied, where=where, width=width), context)

    async def count(self, where: Filter, context: CallContext, max_rows: int | None = None) -> int | None:
        """How many records the filter lets through; see Sums."""
        return await self._readers.read(partial(summaries.count, where=where, max_rows=max_rows), context)


_inherited: list[Any] = []


class AppendOne:
    """Appends an entry, as a job: what a batch of one does, in half the time.

    Its answer is None when the cards are of another `revision`, where one is given.
    """

    __slots__ = (
        "_columns",
        "_entry",
        "_ids",
        "_interner",
        "_made",
        "_revision",
        "_series_key",
        "is_statement",
    )

    def __init__(self, entry: Entry, revision: int | None, interner: Interner) -> None:
        self._entry = entry
        self._revision = revision
        self._series_key, self._columns, self._made = prepare(entry, NULL)
        self._interner = interner
        self._ids = interner.known(self._series_key)
        self.is_statement = self._ids is not None
        """Whether this is a single statement, since series and pricing are known."""

    def __call__(self, cursor: sqlite3.Cursor, interner: Interner) -> list[Appended] | None:
        """Append the entry."""
        ids = (interner is self._interner and self._ids) or interner.ids(cursor, self._series_key)
        row = (*ids, *self._columns)
        try:
            appended = self._insert(cursor, row)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise
            settled = settle(cursor, interner, row, self._entry, self._insert, self._revision)
            return None if settled is None else [settled]
        if not appended:
            return None
        seq = cursor.lastrowid or 0
        if not seq % sums.FOLD_EVERY:
            sums.fold_if_due(cursor, seq, seq)
        return [created(self._made, self._entry)]

    def _insert(self, cursor: sqlite3.Cursor, row: Row) -> bool:
        """Insert a row; whether the cards are still those of the revision."""
        if self._revision is None:
            cursor.execute(INSERT, row)
        else:
            cursor.execute(_INSERT_AT, (*row, self._revision))
        return cursor.rowcount == 1
