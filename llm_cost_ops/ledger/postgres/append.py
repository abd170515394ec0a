"""Appending usage: the rows of all calls that wait at the same time share a transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from copy import copy
from datetime import datetime
from typing import Any, NamedTuple

from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus, RevisionKind, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.duplicates import is_duplicate, supersedes, superseding
from llm_cost_ops.ledger.encoding import NumberedIds, decode_usage, from_micros, to_micros, usage_id
from llm_cost_ops.ledger.erasure import as_erased
from llm_cost_ops.ledger.postgres import cards, schema
from llm_cost_ops.ledger.postgres.connection import Database, Session
from llm_cost_ops.ledger.postgres.errors import busy_error, closed_error
from llm_cost_ops.ledger.postgres.interning import organization_ids
from llm_cost_ops.ledger.postgres.revise import revise
from llm_cost_ops.ledger.postgres.rows import Row, row_of, series_of, units_sql
from llm_cost_ops.ledger.postgres.workers import IDLE, Connected, Ticket, serve_here
from llm_cost_ops.ledger.postgres.writing import write
from llm_cost_ops.ledger.protocols import Alike
from llm_cost_ops.ledger.retention import removed_duplicate
from llm_cost_ops.ledger.types import Appended, Entry, Revision
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rpc.threads import started
from llm_cost_ops.rpc.wake import waking_once

__all__ = ["Answer", "Appender", "PostgresBatch"]

# More rows in a transaction take no less of the database for each, and its calls wait longer.
_MAX_ROWS = 4000
# So many do not wait for the commit that is under way, to share the next.
_MIN_ROWS = 100
# Rows for one are made while the other waits for the database.
_CONNECTIONS = 2
_MAX_WAITING = 10_000
_CLOSING = 30.0
# What fails for these reasons fails for each of a group.
_OF_THE_DATABASE = (
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.RESOURCE_EXHAUSTED,
)

# With the record as it was sent, or as it superseded one without counts; the number of the revision in force
# where the record may be superseded itself, else NULL; and whether a user was erased from it. A record
# that was removed is of no series. LATERAL with a limit: each is looked for by its id. Joined, all records of
# the organization are read.
_FIND = f"""
    SELECT u.id::text, u.key, coalesce(v.record, f.record, u.record),
        {units_sql("CASE WHEN v.id IS NULL THEN u.cost ELSE v.cost END")}, s.currency, s.status,
        u.ingested, u.ts,
        (SELECT CASE WHEN bool_or(w.kind <> 'repriced') THEN NULL ELSE coalesce(max(w.number), 1) END
        FROM llm_cost_ops.revision w WHERE w.org = u.org AND w.id = u.id),
        e.id IS NOT NULL
    FROM unnest(%(ids)s::uuid[]) AS n (id)
    CROSS JOIN LATERAL (
        SELECT * FROM llm_cost_ops.usage l WHERE l.org = %(org)s AND l.id = n.id LIMIT 1
    ) AS u
    LEFT JOIN LATERAL (
        SELECT l.record FROM llm_cost_ops.first_record l WHERE l.org = u.org AND l.id = u.id LIMIT 1
    ) AS f ON true
    LEFT JOIN LATERAL (
        SELECT * FROM llm_cost_ops.revision l
        WHERE l.org = u.org AND l.id = u.id AND l.kind = 'superseded' LIMIT 1
    ) AS v ON true
    LEFT JOIN LATERAL (
        SELECT l.currency, l.status FROM llm_cost_ops.series l
        WHERE l.org = u.org AND l.id = coalesce(v.series, u.series) LIMIT 1
    ) AS s ON true
    LEFT JOIN LATERAL (
        SELECT l.id FROM llm_cost_ops.erased l WHERE l.org = u.org AND l.id = u.id LIMIT 1
    ) AS e ON true
"""

Answer = dict[int, Appended] | None
"""As Batch.write has it."""
WriteBatch = Callable[["PostgresBatch", CallContext, "int | None"], Awaitable[Answer]]


class PostgresBatch:
    """A Batch, whose rows are made as entries come; and what is known of them while they are written."""

    __slots__ = (
        "_attempts",
        "_ids",
        "_ingested",
        "_key",
        "_organization",
        "_series",
        "_taken",
        "_write_batch",
        "open",
        "other_cards",
        "revision",
        "rows",
        "settled",
    )

    def __init__(self, write_batch: WriteBatch, key: str) -> None:
        self._write_batch = write_batch
        self._key = key
        # Those of numbered entries of the organization that came last.
        self._ids: NumberedIds | None = None
        self._organization = ""
        self._taken: datetime | None = None
        self._ingested = 0
        # Rows share what is equal: see writing.py.
        self._series: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._attempts: dict[int, int] = {}
        self.rows: list[Row] = []
        self.revision: int | None = None
        """That of the cards which priced the entries."""
        self.open: set[int] = set()
        """The numbers of entries of which nobody knows yet what becomes of them."""
        self.settled: dict[int, Appended] = {}
        """What became of those that were not created with their first id."""
        self.other_cards = False
        """Whether the cards were of another revision, so that nothing was written."""

    def add(
        self,
        record: UsageRecord,
        key: str | int,
        ingested_at: datetime,
        units: int | None,
        by: Pricing,
        alike: Alike | None = None,
    ) -> str:
        """Take one more entry; see Batch."""
        if ingested_at is not self._taken:
            # Entries of a batch share the object.
            self._ingested = to_micros(ingested_at)
            self._taken = ingested_at
        organization = record.organization_id
        if isinstance(key, int):
            if organization != self._organization:
                self._organization = organization
                self._ids = NumberedIds.of(organization, self._key)
            number, key = key, f"{self._key}:{key}"
            made = usage_id(organization, key)[0] if self._ids is None else self._ids.at(number)[0]
        else:
            made = usage_id(organization, key)[0]
        series: tuple[str, ...] | None = None if alike is None else alike.get(by)
        if series is None:
            series = series_of(record, by)
            series = self._series.setdefault(series, series)
            if alike is not None:
                alike[by] = series
        self.rows.append(row_of(record, series, made, key, self._ingested, units, by))
        return made

    def write(
        self, context: CallContext, revision: int | None = None
    ) -> Awaitable[dict[int, Appended] | None]:
        """Write the entries; see Batch."""
        return self._write_batch(self, context, revision)

    def entry(self, at: int) -> Entry:
        """An entry as it came."""
        row = self.rows[at]
        record = decode_usage(row.record)
        return Entry(record, row.key or "", from_micros(row.ingested), row.units, row.by)

    def created(self, at: int) -> None:
        """Note that an entry was written."""
        self.open.discard(at)
        if at in self._attempts:
            entry, by = self.entry(at), self.rows[at].by
            self.settled[at] = Appended(
                SubmitStatus.CREATED,
                self.rows[at].id,
                entry.units,
                by.currency,
                by.status,
                entry.ingested_at,
            )

    def answer(self, at: int, answer: Appended) -> None:
        """Note what became of an entry that was there already."""
        self.open.discard(at)
        self.settled[at] = answer

    def retry(self, at: int, *, free: bool) -> None:
        """Have an entry written again, under the id of its next attempt unless its id is `free`."""
        if not free:
            row, attempt = self.rows[at], self._attempts.get(at, 0) + 1
            self._attempts[at] = attempt
            made = usage_id(row.series[0], row.key or "", attempt)[0]
            self.rows[at] = replace(row, id=made)


class Appender:
    """Threads that commit what waits together, and acknowledge it after that.

    A few rows wait for the commit that is under way, to share the next; many do not.

    The same rows may be written again, after a connection was lost in the middle of a commit: their ids are
    made before, so that they are found then.
    """

    def __init__(self, database: Database, written: Callable[[int, int], None]) -> None:
        self._database = database
        self._written = written
        self._closed = False
        self.commits = 0
        """How many transactions wrote usage."""
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[PostgresBatch, Ticket[Answer]]] = deque()
        self._waiting_rows = 0
        self._threads: list[threading.Thread] = []
        self._committing = 0

    def forget(self) -> None:
        """In a forked child: the threads and their connections are the parent's."""
        self._begin()

    def put(self, batch: PostgresBatch, until: float | None) -> Ticket[Answer]:
        """Queue what is to be appended; where no thread can be started, append it."""
        ticket: Ticket[Answer] = Ticket(lambda session: self._alone(session, batch), until, writes=True)
        with self._changed:
            if self._closed:
                raise closed_error()
            if len(self._waiting) >= _MAX_WAITING:
                raise busy_error()
            self._waiting.append((batch, ticket))
            self._waiting_rows += len(batch.rows)
            if self._is_due() and len(self._threads) == self._committing < _CONNECTIONS:
                thread = started(self._work, "llm-cost-ops-commit")
                if thread is not None:
                    self._threads.append(thread)
            if self._threads:
                self._changed.notify()
                return ticket
            self._waiting.pop()
            self._waiting_rows -= len(batch.rows)
        serve_here(self._database, ticket)
        return ticket

    @property
    def waiting(self) -> int:
        """How many calls wait for a commit."""
        return len(self._waiting)

    def close(self) -> None:
        """Commit what is queued, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(_CLOSING)

    def _work(self) -> None:
        connected = Connected(self._database)
        try:
            while group := self._next_group():
                try:
                    self._commit(connected, group)
                finally:
                    self._end_commit()
                del group
        finally:
            connected.close()

    def _is_due(self) -> bool:
        """Whether what waits is to be committed now, and not together with what comes meanwhile."""
        return bool(self._waiting) and (not self._committing or self._waiting_rows >= _MIN_ROWS)

    def _has_news(self) -> bool:
        return self._is_due() or (self._closed and not self._waiting)

    def _next_group(self) -> list[tuple[PostgresBatch, Ticket[Answer]]]:
        """Wait for tickets, and take those that were priced with the same cards; none to end the thread."""
        group: list[tuple[PostgresBatch, Ticket[Answer]]] = []
        with self._changed:
            while not group and (self._waiting or not self._closed):
                if not self._changed.wait_for(self._has_news, IDLE):
                    # Gone from now on, although its connection is still to be closed.
                    self._threads.remove(threading.current_thread())
                    break
                self._take(group)
            self._committing += bool(group)
        return group

    def _end_commit(self) -> None:
        with self._changed:
            self._committing -= 1
            # One that waited for this.
            self._changed.notify()

    def _take(self, group: list[tuple[PostgresBatch, Ticket[Answer]]]) -> None:
        rows = 0
        while self._waiting and rows < _MAX_ROWS:
            batch, ticket = self._waiting[0]
            if group and batch.revision != group[0][0].revision:
                return
            self._waiting.popleft()
            self._waiting_rows -= len(batch.rows)
            if ticket.is_late() or not ticket.future.set_running_or_notify_cancel():
                _fail(ticket, busy_error())
                continue
            group.append((batch, ticket))
            rows += len(batch.rows)

    def _commit(self, connected: Connected, group: list[tuple[PostgresBatch, Ticket[Answer]]]) -> None:
        """Commit a group; where some of it is refused, each alone, so that none harms its neighbours."""
        if len(group) > 1:
            batches = [batch for batch, _ in group]
            untils = [ticket.until for _, ticket in group]
            until = None if None in untils else max(until for until in untils if until is not None)
            together = Ticket(lambda session: self._together(session, batches), until)
            try:
                answers = connected.attempt(together)
            except Exception as error:  # noqa: BLE001 - nobody may wait for ever, and who caused it is seen next
                if isinstance(error, RpcError) and error.code in _OF_THE_DATABASE:
                    for _, ticket in group:
                        _fail(ticket, copy(error))
                    return
            else:
                with waking_once():
                    for (_, ticket), answer in zip(group, answers, strict=True):
                        ticket.future.set_result(answer)
                return
        for _, ticket in group:
            connected.serve(ticket)

    def _alone(self, session: Session, batch: PostgresBatch) -> Answer:
        return self._together(session, [batch])[0]

    def _together(self, session: Session, batches: list[PostgresBatch]) -> list[Answer]:
        """Write what several calls append, and settle what was there already."""
        for batch in batches:
            batch.other_cards = False
        while still_open := [batch for batch in batches if batch.open and not batch.other_cards]:
            self._write(session, still_open)
            _settle(session, still_open)
        return [None if batch.other_cards else batch.settled for batch in batches]

    def _write(self, session: Session, batches: list[PostgresBatch]) -> None:
        """Commit the open rows of batches, and note which of them were new."""
        numbers = [sorted(batch.open) for batch in batches]
        rows = [batch.rows[at] for batch, some in zip(batches, numbers, strict=True) for at in some]
        written = write(session, rows, batches[0].revision)
        if written is None:
            for batch in batches:
                batch.other_cards = True
            return
        new = {place for places in written.values() for place in places}
        place = 0
        for batch, some in zip(batches, numbers, strict=True):
            for at in some:
                if place in new:
                    batch.created(at)
                place += 1
        with self._changed:
            self.commits += 1
            for org, places in written.items():
                self._written(org, len(places))


def _settle(session: Session, batches: list[PostgresBatch]) -> None:
    """Answer what was not created with what is there; what stays open is to be written with another id.

    Under the same key it is a duplicate or a conflict, or supersedes what was found. Under another one the
    two have one id by chance, or by somebody's design: the entry gets the id of the next attempt, until one
    is free or has its key.
    """
    open_places: dict[str, list[tuple[PostgresBatch, int]]] = {}
    for batch in batches:
        if not batch.other_cards:
            for at in sorted(batch.open):
                open_places.setdefault(batch.rows[at].series[0], []).append((batch, at))
    for name, places in open_places.items():
        [org] = organization_ids(session, [name])
        found = _found(session, org, {batch.rows[at].id for batch, at in places})
        for batch, at in places:
            row = batch.rows[at]
            first = found.get(row.id)
            if first is not None and first.currency is None:
                batch.answer(at, removed_duplicate(row.id, from_micros(row.ingested)))
                continue
            while first is not None and first.key == row.key and _supersede(session, batch, at, first):
                found |= _found(session, org, {row.id})
                first = found[row.id]
            if at not in batch.open or batch.other_cards:
                continue
            if first is None or first.key != row.key:
                batch.retry(at, free=first is None)
            elif row.key is None:
                # Its id is its own: it was committed before the connection was lost.
                batch.created(at)
            else:
                batch.answer(at, _first(row, first))


class _First(NamedTuple):
    """What is kept under a key, as duplicates are told by it.

    `number` where it may be superseded, and whether a user was erased from it.
    """

    id: str
    key: str | None
    record: str
    units: int | None
    currency: str | None
    status: str
    ingested: int
    ts: int
    number: int | None
    erased: bool

    def compared(self, sent: UsageRecord, kept: UsageRecord) -> UsageRecord:
        """What is compared of a record that is sent under the key."""
        return as_erased(sent, kept) if self.erased else sent


def _found(session: Session, org: int, ids: set[str]) -> dict[str, _First]:
    rows = session.run_planned(_FIND, org=org, ids=list(ids))
    return {row[0]: _First._make(row) for row in rows}


def _supersede(session: Session, batch: PostgresBatch, at: int, first: _First) -> bool:
    """Have an entry with counts take the place of an observation without; whether to look again.

    Rows that the same call created stay, though cards were added since: then this one is written too.
    """
    if at not in batch.open or first.number is None or batch.rows[at].key is None:
        return False
    kept, entry = decode_usage(first.record), batch.entry(at)
    sent = first.compared(entry.record, kept)
    if not supersedes(sent, kept):
        return False
    revision = Revision(
        organization_id=entry.record.organization_id,
        usage_id=first.id,
        after=first.number,
        kind=RevisionKind.SUPERSEDED,
        record=superseding(sent, kept),
        units=entry.units,
        by=entry.by,
        reason="",
        actor="",
        made_at=entry.ingested_at,
    )
    with session.transaction():
        session.run("SELECT pg_advisory_xact_lock_shared(%s)", schema.LOCK_CARDS)
        if batch.revision not in (None, cards.revision(session)) and len(batch.open) == len(batch.rows):
            batch.other_cards = True
            return False
        if revise(session, revision):
            batch.created(at)
    return True


def _first(row: Row, first: _First) -> Appended:
    """The answer that the first entry with the key was given."""
    same = row.record == first.record
    if not same:
        kept = decode_usage(first.record)
        sent = first.compared(decode_usage(row.record), kept)
        same = is_duplicate(sent, kept, from_micros(row.ts), from_micros(first.ts))
    return Appended(
        SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT,
        first.id,
        first.units,
        first.currency or "",
        CostStatus(first.status),
        from_micros(first.ingested),
    )


def _fail(ticket: Ticket[Any], error: Exception) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)
