"""Appending usage: the jobs that write rows, and the series and pricings that rows share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from llm_cost_ops._gen.messages import CostStatus, RevisionKind, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.duplicates import is_duplicate, supersedes, superseding
from llm_cost_ops.ledger.encoding import as_text, decode_usage, from_micros, usage_id
from llm_cost_ops.ledger.erasure import as_erased
from llm_cost_ops.ledger.retention import removed_duplicate
from llm_cost_ops.ledger.sqlite import cards
from llm_cost_ops.ledger.sqlite import sums as rollups
from llm_cost_ops.ledger.sqlite.revise import revise
from llm_cost_ops.ledger.sqlite.rows import SeriesKey, prepare, prepare_all, units_of
from llm_cost_ops.ledger.types import Appended, Entry, Revision
from llm_cost_ops.pricing.pricebook import Pricing

__all__ = ["AppendMany", "AppendOne", "Interner"]

Ids = tuple[int, int, int]
Row = tuple[Any, ...]

_MARKS = ", ".join("?" * 18)
# Where the organization has a record with the id already, the index refuses the row.
_INSERT = f"INSERT INTO usage VALUES ({_MARKS})"
# A statement of many rows takes three quarters of the time of as many statements. Where one is refused, none
# of its statement is inserted.
_ROWS_AT_ONCE = 50
_INSERT_ROWS = f"INSERT INTO usage VALUES {', '.join([f'({_MARKS})'] * _ROWS_AT_ONCE)}"
_INSERT_AT = f"INSERT INTO usage SELECT {_MARKS} WHERE ? = (SELECT ifnull(max(seq), 0) FROM card)"
_INSERT_NEW = f"{_INSERT} ON CONFLICT (org, id) DO NOTHING"
# With the record as it was sent, or as it superseded one without counts; the number of the revision in force
# where the record may be superseded itself, else NULL; and whether a user was erased from it. A record
# that was removed is of no series.
_FIND = (
    "SELECT u.key, coalesce(v.record, f.record, u.record), "
    "iif(v.usage IS NULL, u.cost_micros, v.cost_micros), "
    "iif(v.usage IS NULL, u.cost_picos, v.cost_picos), s.currency, s.status, u.ingested, u.ts, "
    "(SELECT iif(sum(w.kind <> 'repriced') > 0, NULL, ifnull(max(w.number), 1)) FROM revision w "
    "WHERE w.usage = u.seq), EXISTS (SELECT 1 FROM erased e WHERE e.usage = u.seq) "
    "FROM usage u LEFT JOIN first_record f ON f.usage = u.seq "
    "LEFT JOIN revision v ON v.usage = u.seq AND v.kind = 'superseded' "
    "LEFT JOIN series s ON s.id = ifnull(v.series, u.series) WHERE u.org = ? AND u.id = ?"
)
_FIND_SERIES = (
    "SELECT id FROM series WHERE org = ? AND provider = ? AND model = ? AND project = ? AND operation = ? "
    "AND service_tier = ? AND processing = ? AND region = ? AND currency = ? AND status = ?"
)
_ADD_SERIES = (
    "INSERT INTO series (org, provider, model, project, operation, service_tier, processing, region, "
    f"currency, status) VALUES ({', '.join('?' * 10)})"
)
_FIND_PRICING = (
    "SELECT id FROM pricing WHERE card_id = ? AND card_version = ? AND origin_version = ? AND fallbacks = ? "
    "AND digest = ?"
)
_ADD_PRICING = (
    "INSERT INTO pricing (card_id, card_version, origin_version, fallbacks, digest) VALUES (?, ?, ?, ?, ?)"
)


class Interner:
    """The ids of what many rows share. What a transaction added counts from its commit on.

    Rows of these tables are never changed, so what one process knows stays true whatever others write.
    """

    __slots__ = ("_fresh", "_known", "_max_known")

    def __init__(self, max_known: int = 20_000) -> None:
        self._known: dict[SeriesKey, Ids] = {}
        self._fresh: dict[SeriesKey, Ids] = {}
        self._max_known = max_known

    def ids(self, cursor: sqlite3.Cursor, series_key: SeriesKey) -> Ids:
        """The ids of organization, series and pricing, which are added where they are new.

        With a new pricing its card is kept.
        """
        return self._known.get(series_key) or self._fresh.get(series_key) or self._intern(cursor, series_key)

    def known(self, series_key: SeriesKey) -> Ids | None:
        """The ids, if nothing has to be added for them."""
        return self._known.get(series_key)

    def keep(self) -> None:
        """The transaction was committed."""
        if self._fresh:
            if len(self._known) + len(self._fresh) > self._max_known:
                self._known.clear()
            self._known.update(self._fresh)
            self._fresh.clear()

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._fresh.clear()

    def _intern(self, cursor: sqlite3.Cursor, series_key: SeriesKey) -> Ids:
        by: Pricing = series_key[8]
        organization, *series = (str(part) for part in (*series_key[:8], by.currency, by.status))
        find, add = "SELECT id FROM organization WHERE name = ?", "INSERT INTO organization (name) VALUES (?)"
        org = _id(cursor, find, add, (organization,))
        pricing = (by.card_id, by.card_version, by.origin_version, ",".join(by.fallbacks), by.digest)
        ids = (
            org,
            _id(cursor, _FIND_SERIES, _ADD_SERIES, (org, *series)),
            _id(cursor, _FIND_PRICING, _ADD_PRICING, pricing),
        )
        if by.digest and by.card is not None:
            cards.keep_card(cursor, by.digest, by.card)
        self._fresh[series_key] = ids
        return ids


def _id(cursor: sqlite3.Cursor, find: str, add: str, values: Sequence[object]) -> int:
    row = cursor.execute(find, values).fetchone()
    if row is None:
        cursor.execute(add, values)
        return int(cursor.lastrowid or 0)
    return int(row[0])


class AppendOne:
    """Appends an entry, as a job: what `AppendMany` of one does, in half the time.

    Its answer is None when the cards are of another `revision`, where one is given.
    """

    __slots__ = ("_entry", "_ids", "_made", "_revision", "_series_key", "_values", "is_statement")

    def __init__(self, entry: Entry, revision: int | None, interner: Interner) -> None:
        self._entry = entry
        self._revision = revision
        self._series_key, self._values, self._made = prepare(entry)
        self._ids = interner.known(self._series_key)
        self.is_statement = self._ids is not None
        """Whether this is a single statement, since series and pricing are known."""

    def __call__(self, cursor: sqlite3.Cursor, interner: Interner) -> list[Appended] | None:
        """Append the entry."""
        row = (None, *(self._ids or interner.ids(cursor, self._series_key)), *self._values)
        try:
            appended = self._insert(cursor, row)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise
            settled = _settle(cursor, interner, row, self._entry, self._insert, self._revision)
            return None if settled is None else [settled]
        if not appended:
            return None
        seq = cursor.lastrowid or 0
        if not seq % rollups.FOLD_EVERY:
            rollups.fold_if_due(cursor, seq, seq)
        return [_created(self._made, self._entry)]

    def _insert(self, cursor: sqlite3.Cursor, row: Row) -> bool:
        """Insert a row; whether the cards are still those of the revision."""
        if self._revision is None:
            cursor.execute(_INSERT, row)
        else:
            cursor.execute(_INSERT_AT, (*row, self._revision))
        return cursor.rowcount == 1


class AppendMany:
    """Appends entries, as a job; each may turn out to be a duplicate or a conflict, of a neighbour even.

    Its answer is None when the cards are of another `revision`, where one is given.
    """

    __slots__ = ("_entries", "_prepared", "_revision")

    def __init__(self, entries: Sequence[Entry], revision: int | None) -> None:
        self._entries = entries
        self._revision = revision
        self._prepared = prepare_all(entries)

    def __call__(self, cursor: sqlite3.Cursor, interner: Interner) -> list[Appended] | None:
        """Append the entries."""
        if self._revision is not None and cards.revision(cursor) != self._revision:
            return None
        [first] = cursor.execute("SELECT ifnull(max(seq), 0) + 1 FROM usage").fetchone()
        ids: dict[SeriesKey, Ids] = {}
        rows: list[Row] = []
        for seq, (series_key, values, _) in enumerate(self._prepared, first):
            known = ids.get(series_key)
            if known is None:
                known = ids[series_key] = interner.ids(cursor, series_key)
            rows.append((seq, *known, *values))
        complete = _insert_rows(cursor, rows)
        answers = zip(rows, self._prepared, self._entries, strict=True)
        if complete:
            rollups.fold_if_due(cursor, first, first + len(rows) - 1)
            return [_created(made, entry) for _, (_, _, made), entry in answers]
        # Rows were numbered here, so that those that were not inserted can be told by their absence.
        inserted = {seq for (seq,) in cursor.execute("SELECT seq FROM usage WHERE seq >= ?", (first,))}
        settled: list[Appended | None] = [
            _created(made, entry)
            if row[0] in inserted
            else _settle(cursor, interner, (None, *row[1:]), entry, _insert_row)
            for row, (_, _, made), entry in answers
        ]
        rollups.fold_if_due(cursor, first, first + len(rows) - 1)
        return [answer for answer in settled if answer is not None]


def _insert_rows(cursor: sqlite3.Cursor, rows: list[Row]) -> bool:
    """Insert rows but for those whose ids are taken; whether there were none of these."""
    whole = len(rows) - len(rows) % _ROWS_AT_ONCE
    try:
        for at in range(0, whole, _ROWS_AT_ONCE):
            cursor.execute(_INSERT_ROWS, list(chain.from_iterable(rows[at : at + _ROWS_AT_ONCE])))
        cursor.executemany(_INSERT, rows[whole:])
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise
        # Those before the one that was refused are in.
        [done] = cursor.execute("SELECT count(*) FROM usage WHERE seq >= ?", rows[0][:1]).fetchone()
        cursor.executemany(_INSERT_NEW, rows[done:])
        return False
    return True


def _insert_row(cursor: sqlite3.Cursor, row: Row) -> bool:
    cursor.execute(_INSERT, row)
    return True


class _NeedsTransactionError(Exception):
    """What is to be written takes more than one statement."""


def _settle(
    cursor: sqlite3.Cursor,
    interner: Interner,
    row: Row,
    entry: Entry,
    insert: Callable[[sqlite3.Cursor, Row], bool],
    revision: int | None = None,
) -> Appended | None:
    """What becomes of an entry whose id the organization has already; None when the cards are others.

    `revision` is that of the cards, where they were not looked at in this transaction.
    """
    try:
        return _look(cursor, interner, row, entry, insert, revision)
    except _NeedsTransactionError:
        # What was found may be another by now: it is looked up again.
        cursor.execute("BEGIN IMMEDIATE")
        settled = _look(cursor, interner, row, entry, insert, revision)
        cursor.execute("COMMIT")
        interner.keep()
        return settled


def _look(
    cursor: sqlite3.Cursor,
    interner: Interner,
    row: Row,
    entry: Entry,
    insert: Callable[[sqlite3.Cursor, Row], bool],
    revision: int | None,
) -> Appended | None:
    """As `_settle`, in the transaction of the caller if there is one.

    Under the same key it is a duplicate or a conflict, or supersedes what was found. Under another one the
    two have one id by chance, or by somebody's design: the entry gets the id of the next attempt, until one
    is free or has its key.
    """
    attempt = 0
    while True:
        found = cursor.execute(_FIND, (row[1], row[4])).fetchone()
        if found is None:
            with suppress(sqlite3.IntegrityError):  # another process may take the id in between
                return _created(as_text(row[4]), entry) if insert(cursor, row) else None
        elif found[4] is None:
            return removed_duplicate(entry, as_text(row[4]))
        elif found[0] is not None and found[0] == row[5]:
            kept = decode_usage(found[1])
            number, sent = found[8], entry.record
            if found[9]:
                sent = as_erased(sent, kept)
            if number is None or not supersedes(sent, kept):
                return _first(row, sent, kept, found)
            if not cursor.connection.in_transaction:
                raise _NeedsTransactionError
            if revision is not None and cards.revision(cursor) != revision:
                return None
            supersede = Revision(
                organization_id=entry.record.organization_id,
                usage_id=as_text(row[4]),
                after=number,
                kind=RevisionKind.SUPERSEDED,
                record=superseding(sent, kept),
                units=entry.units,
                by=entry.by,
                reason="",
                actor="",
                made_at=entry.ingested_at,
            )
            revise(cursor, interner.ids, supersede)
            return _created(supersede.usage_id, entry)
        else:
            attempt += 1
            row = (*row[:4], usage_id(entry.record.organization_id, entry.key, attempt)[1], *row[5:])


def _created(usage_id: str, entry: Entry) -> Appended:
    by = entry.by
    return Appended(SubmitStatus.CREATED, usage_id, entry.units, by.currency, by.status, entry.ingested_at)


def _first(row: Row, sent: UsageRecord, kept: UsageRecord, found: tuple[Any, ...]) -> Appended:
    """The answer that the first entry with the key was given, which `kept` is."""
    _, data, micros, picos, currency, cost_status, ingested, first_ts, *_ = found
    same = row[-1] == data or is_duplicate(sent, kept, from_micros(row[7]), from_micros(first_ts))
    return Appended(
        SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT,
        as_text(row[4]),
        units_of(micros, picos),
        currency,
        CostStatus(cost_status),
        from_micros(ingested),
    )
