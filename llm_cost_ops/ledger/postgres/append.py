"""Appending usage: the rows of all calls that wait at the same time share a transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg

from llm_cost_ops._gen.messages import CostStatus, RevisionKind, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.duplicates import is_duplicate, supersedes, superseding
from llm_cost_ops.ledger.encoding import decode_usage, from_micros, usage_id
from llm_cost_ops.ledger.erasure import as_erased
from llm_cost_ops.ledger.postgres import cards, schema
from llm_cost_ops.ledger.postgres.connection import Database, Session
from llm_cost_ops.ledger.postgres.errors import busy_error, closed_error, is_lost
from llm_cost_ops.ledger.postgres.interning import intern, organization_ids
from llm_cost_ops.ledger.postgres.revise import revise
from llm_cost_ops.ledger.postgres.rows import Row, prepare, text_array, units_sql
from llm_cost_ops.ledger.postgres.sums import quarter_sql
from llm_cost_ops.ledger.postgres.workers import Connected, Ticket
from llm_cost_ops.ledger.retention import removed_duplicate
from llm_cost_ops.ledger.types import Appended, Entry, Revision
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["Append", "Appender"]

# More rows in a transaction make it no faster, and its calls wait longer.
_MAX_ROWS = 2000
_MAX_WAITING = 10_000
_CLOSING = 30.0
# What fails for these reasons fails for each of a group.
_OF_THE_DATABASE = (
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.RESOURCE_EXHAUSTED,
)

_TYPES = {
    "seq": "bigint",
    "series": "bigint",
    "pricing": "bigint",
    "id": "uuid",
    "key": "text",
    "ingested": "bigint",
    "ts": "bigint",
    "requests": "bigint",
    "input": "bigint",
    "output": "bigint",
    "cached": "bigint",
    "cost": "numeric",
    "usr": "text",
    "tags": "jsonb",
    "labels": "jsonb",
    "record": "text",
}
_COLUMNS = ", ".join(_TYPES)
_ARRAYS = ", ".join(f"%({name})s::{kind}[]" for name, kind in _TYPES.items())
_COUNTS = "sum({0}requests), sum({0}input), sum({0}output), sum({0}cached)"
# Rows are inserted in the order of their ids: two transactions that share some wait for each other in one
# direction only.
_INSERT = f"""
    WITH at AS (SELECT coalesce(max(seq), 0) AS revision FROM llm_cost_ops.card),
    sent AS MATERIALIZED (
        SELECT n.* FROM unnest({_ARRAYS}) AS n ({_COLUMNS})
        WHERE %(revision)s::bigint IS NULL OR %(revision)s::bigint = (SELECT revision FROM at)
    ), new AS (
        INSERT INTO llm_cost_ops.usage (org, {_COLUMNS})
        SELECT %(org)s, {_COLUMNS} FROM sent ORDER BY id, seq
        ON CONFLICT (org, id) DO NOTHING
        RETURNING id, series, ts, requests, input, output, cached, cost, usr
    ), added AS (
        INSERT INTO llm_cost_ops.delta
        SELECT %(org)s, {quarter_sql("ts")}, series, coalesce(usr, ''), count(*), {_COUNTS.format("")},
            coalesce(sum(requests) FILTER (WHERE cost IS NULL), 0), coalesce(sum(cost), 0)
        FROM new GROUP BY 2, 3, 4
    )
    SELECT (SELECT revision FROM at), array(SELECT id::text FROM new)
"""
# With the record as it was sent, or as it superseded one without counts; the number of the revision in force
# where the record may be superseded itself, else NULL; and whether a user was erased from it. A record
# that was removed is of no series.
_FIND = f"""
    SELECT u.id::text, u.key, coalesce(v.record, f.record, u.record),
        {units_sql("CASE WHEN v.id IS NULL THEN u.cost ELSE v.cost END")}, s.currency, s.status,
        u.ingested, u.ts,
        (SELECT CASE WHEN bool_or(w.kind <> 'repriced') THEN NULL ELSE coalesce(max(w.number), 1) END
        FROM llm_cost_ops.revision w WHERE w.org = u.org AND w.id = u.id),
        EXISTS (SELECT 1 FROM llm_cost_ops.erased e WHERE e.org = u.org AND e.id = u.id)
    FROM llm_cost_ops.usage u
    LEFT JOIN llm_cost_ops.first_record f ON f.org = u.org AND f.id = u.id
    LEFT JOIN llm_cost_ops.revision v ON v.org = u.org AND v.id = u.id AND v.kind = 'superseded'
    LEFT JOIN llm_cost_ops.series s ON s.org = u.org AND s.id = coalesce(v.series, u.series)
    WHERE u.org = %(org)s AND u.id = ANY(%(ids)s::uuid[])
"""

Answer = list[Appended] | None


class Append:
    """Entries that one call appends, and what is known of them so far."""

    __slots__ = ("_attempts", "answers", "entries", "other_cards", "revision", "rows")

    def __init__(self, entries: Sequence[Entry], revision: int | None) -> None:
        self.revision = revision
        self.rows = [prepare(entry) for entry in entries]
        self.answers: list[Appended | None] = [None] * len(entries)
        self.other_cards = False
        """Whether the cards were of another revision, so that nothing was written."""
        self.entries = entries
        self._attempts: dict[int, int] = {}

    def created(self, at: int) -> None:
        """Note that an entry was written."""
        entry, by = self.entries[at], self.entries[at].by
        self.answers[at] = Appended(
            SubmitStatus.CREATED,
            self.rows[at].id,
            entry.units,
            by.currency,
            by.status,
            entry.ingested_at,
        )

    def retry(self, at: int, *, free: bool) -> None:
        """Have an entry written again, under the id of its next attempt unless its id is `free`."""
        if not free:
            row, attempt = self.rows[at], self._attempts.get(at, 0) + 1
            self._attempts[at] = attempt
            made = usage_id(row.series[0], row.key or "", attempt)[0]
            self.rows[at] = row._replace(id=made)

    def answer(self) -> Answer:
        """What the call is answered."""
        answers = [answer for answer in self.answers if answer is not None]
        return None if self.other_cards else answers


Place = tuple[Append, int]
"""An entry: what appends it, and its number there."""


class Appender:
    """A thread that commits what waits together, and acknowledges it after that.

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
        self._waiting: deque[tuple[Append, Ticket[Answer]]] = deque()
        self._thread: threading.Thread | None = None

    def forget(self) -> None:
        """In a forked child: the thread and its connection are the parent's."""
        self._begin()

    def put(self, append: Append, until: float | None) -> Ticket[Answer]:
        """Queue what is to be appended."""
        ticket: Ticket[Answer] = Ticket(lambda session: self._alone(session, append), until, writes=True)
        with self._changed:
            if self._closed:
                raise closed_error()
            if len(self._waiting) >= _MAX_WAITING:
                raise busy_error()
            self._waiting.append((append, ticket))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="llm-cost-ops-commit", daemon=True)
                self._thread.start()
            self._changed.notify()
        return ticket

    @property
    def waiting(self) -> int:
        """How many calls wait for a commit."""
        return len(self._waiting)

    def close(self) -> None:
        """Commit what is queued, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSING)

    def _work(self) -> None:
        connected = Connected(self._database)
        try:
            while group := self._next_group():
                self._commit(connected, group)
                del group
        finally:
            connected.close()

    def _next_group(self) -> list[tuple[Append, Ticket[Answer]]]:
        """Wait for tickets, and take those that were priced with the same cards; none when it is closed."""
        group: list[tuple[Append, Ticket[Answer]]] = []
        with self._changed:
            while not group and (self._waiting or not self._closed):
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._take(group)
        return group

    def _take(self, group: list[tuple[Append, Ticket[Answer]]]) -> None:
        rows = 0
        while self._waiting and rows < _MAX_ROWS:
            append, ticket = self._waiting[0]
            if group and append.revision != group[0][0].revision:
                return
            self._waiting.popleft()
            if ticket.is_late() or not ticket.future.set_running_or_notify_cancel():
                _fail(ticket, busy_error())
                continue
            group.append((append, ticket))
            rows += len(append.rows)

    def _commit(self, connected: Connected, group: list[tuple[Append, Ticket[Answer]]]) -> None:
        """Commit a group; where some of it is refused, each alone, so that none harms its neighbours."""
        if len(group) > 1:
            appends = [append for append, _ in group]
            untils = [ticket.until for _, ticket in group]
            until = None if None in untils else max(until for until in untils if until is not None)
            together = Ticket(lambda session: self._together(session, appends), until)
            try:
                answers = connected.attempt(together)
            except Exception as error:  # noqa: BLE001 - nobody may wait for ever, and who caused it is seen next
                if isinstance(error, RpcError) and error.code in _OF_THE_DATABASE:
                    for _, ticket in group:
                        _fail(ticket, error)
                    return
            else:
                for (_, ticket), answer in zip(group, answers, strict=True):
                    ticket.future.set_result(answer)
                return
        for _, ticket in group:
            connected.serve(ticket)

    def _alone(self, session: Session, append: Append) -> Answer:
        return self._together(session, [append])[0]

    def _together(self, session: Session, appends: list[Append]) -> list[Answer]:
        """Write what several calls append, and settle what was there already."""
        places = [(append, at) for append in appends for at in range(len(append.rows))]
        while places:
            self._write(session, places)
            places = _settle(session, appends)
        return [append.answer() for append in appends]

    def _write(self, session: Session, places: list[Place]) -> None:
        """Commit rows, and note which of them were new."""
        rows = [append.rows[at] for append, at in places]
        ids = intern(session, [(row.series, row.by) for row in rows])
        numbers_of: dict[int, list[int]] = {}
        for number, (org, _, _) in enumerate(ids):
            numbers_of.setdefault(org, []).append(number)
        revision = places[0][0].revision
        seqs = session.numbers(len(rows))
        answers: list[tuple[int, list[int], psycopg.Cursor[Any]]] = []
        try:
            with session.connection.pipeline():
                session.run("BEGIN")
                session.settings()
                if revision is not None:
                    session.run("SELECT pg_advisory_xact_lock_shared(%s)", schema.LOCK_CARDS)
                for org, numbers in sorted(numbers_of.items()):
                    columns = _columns(
                        [(seqs[number], *ids[number][1:], *rows[number][2:]) for number in numbers]
                    )
                    cursor = session.run(_INSERT, org=org, revision=revision, **columns)
                    answers.append((org, numbers, cursor))
                session.begin_commit()
                session.run("COMMIT")
            session.end_commit()
            self.commits += 1
        except psycopg.Error as error:
            if not is_lost(error):
                session.committing = False
            session.roll_back()
            raise
        for org, numbers, cursor in answers:
            [(at, created)] = cursor.fetchall()
            _note(places, numbers, set(created), other_cards=revision not in (None, at))
            self._written(org, len(created))


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, str]:
    return dict(zip(_TYPES, map(text_array, zip(*rows, strict=True)), strict=True))


def _note(places: list[Place], numbers: list[int], created: set[str], *, other_cards: bool) -> None:
    for number in numbers:
        append, at = places[number]
        append.other_cards = other_cards
        made = append.rows[at].id
        if made in created:
            # The first one, where the same id was there twice.
            created.discard(made)
            append.created(at)


def _settle(session: Session, appends: list[Append]) -> list[Place]:
    """Answer what was not created with what is there, and return what is to be written with another id.

    Under the same key it is a duplicate or a conflict, or supersedes what was found. Under another one the
    two have one id by chance, or by somebody's design: the entry gets the id of the next attempt, until one
    is free or has its key.
    """
    open_places: dict[str, list[Place]] = {}
    for append in appends:
        for at, answer in enumerate(append.answers):
            if answer is None and not append.other_cards:
                open_places.setdefault(append.rows[at].series[0], []).append((append, at))
    again: list[Place] = []
    for name, places in open_places.items():
        [org] = organization_ids(session, [name])
        found = _found(session, org, {append.rows[at].id for append, at in places})
        for append, at in places:
            row = append.rows[at]
            first = found.get(row.id)
            if first is not None and first.currency is None:
                append.answers[at] = removed_duplicate(append.entries[at], row.id)
                continue
            while first is not None and first.key == row.key and _supersede(session, append, at, first):
                found |= _found(session, org, {row.id})
                first = found[row.id]
            if append.answers[at] is not None or append.other_cards:
                continue
            if first is None or first.key != row.key:
                append.retry(at, free=first is None)
                again.append((append, at))
            elif row.key is None:
                # Its id is its own: it was committed before the connection was lost.
                append.created(at)
            else:
                append.answers[at] = _first(row, first)
    return again


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
    rows = session.rows(_FIND, org=org, ids=list(ids))
    return {row[0]: _First._make(row) for row in rows}


def _supersede(session: Session, append: Append, at: int, first: _First) -> bool:
    """Have an entry with counts take the place of an observation without; whether to look again.

    Rows that the same call created stay, though cards were added since: then this one is written too.
    """
    if append.answers[at] is not None or first.number is None or append.rows[at].key is None:
        return False
    kept, entry = decode_usage(first.record), append.entries[at]
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
        if append.revision not in (None, cards.revision(session)) and not any(append.answers):
            append.other_cards = True
            return False
        if revise(session, revision):
            append.created(at)
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
