"""Appending usage: batches, and what becomes of an entry whose id is there already."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from llm_cost_ops._gen.messages import CostStatus, RevisionKind, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.duplicates import is_duplicate, supersedes, superseding
from llm_cost_ops.ledger.encoding import (
    NumberedIds,
    as_text,
    decode_usage,
    from_micros,
    to_micros,
    usage_id,
)
from llm_cost_ops.ledger.erasure import as_erased
from llm_cost_ops.ledger.protocols import Alike
from llm_cost_ops.ledger.retention import removed_duplicate
from llm_cost_ops.ledger.sqlite import cards
from llm_cost_ops.ledger.sqlite import sums as rollups
from llm_cost_ops.ledger.sqlite.revise import revise
from llm_cost_ops.ledger.sqlite.rows import (
    NO_IDS,
    NULL,
    Ids,
    Interner,
    Row,
    SeriesKey,
    created,
    own_columns,
    series_key_of,
    units_of,
)
from llm_cost_ops.ledger.types import Appended, Entry, Revision
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rules.times import QUARTER

__all__ = ["INSERT", "MARKS", "SqliteBatch", "settle"]

# Those of a Row.
_COLUMNS = 17
MARKS = f"NULL{', ?' * _COLUMNS}"
# Where the organization has a record with the id already, the index refuses the row.
INSERT = f"INSERT INTO usage VALUES ({MARKS})"
# In one statement 64 rows take two thirds of the time of as many statements.
_ROWS_AT_ONCE = 64
_INSERT_NEW = f"{INSERT} ON CONFLICT (org, id) DO NOTHING"
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


class _Shared:
    """What rows of a batch share: their series key, its ids once they are known, and sums by quarters."""

    __slots__ = ("ids", "series_key", "sums")

    def __init__(self, series_key: SeriesKey, ids: Ids | None) -> None:
        self.series_key = series_key
        self.ids = ids
        self.sums: dict[int, list[int]] = {}


WriteBatch = Callable[["SqliteBatch", CallContext, "int | None"], Awaitable["dict[int, Appended] | None"]]


class SqliteBatch:
    """A Batch, whose rows are made as entries come. `write_batch` runs `insert` in a transaction."""

    __slots__ = (
        "_ids",
        "_ingested",
        "_interner",
        "_key",
        "_organization",
        "_shared",
        "_shared_of",
        "_taken",
        "_values",
        "_write_batch",
    )

    def __init__(self, write_batch: WriteBatch, interner: Interner, key: str) -> None:
        self._write_batch = write_batch
        self._interner = interner
        self._key = key
        # Those of numbered entries of the organization that came last.
        self._ids: NumberedIds | None = None
        self._organization = ""
        self._values: list[Any] = []
        # Of all rows behind each other: a tuple for each would be built only to be taken apart.
        self._shared: dict[SeriesKey, _Shared] = {}
        self._shared_of: list[_Shared] = []
        self._taken: datetime | None = None
        self._ingested = 0

    def __len__(self) -> int:
        return len(self._shared_of)

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
        stored_key: str | bytes | bytearray | None
        organization = record.organization_id
        if organization != self._organization:
            self._organization, self._ids = organization, NumberedIds.of(organization, self._key)
        if type(key) is int and self._ids is not None:
            stored_key = f"{self._key}:{key}"
            made, stored_id = self._ids.at(key)
        else:
            key = key if isinstance(key, str) else f"{self._key}:{key}"
            made, stored_id, stored_key = usage_id(organization, key)
        shared: _Shared | None = None if alike is None else alike.get(by)
        if shared is None:
            shared = self._shared_by(series_key_of(record, by))
            if alike is not None:
                alike[by] = shared
        if type(stored_key) is bytes:
            stored_key = bytearray(stored_key)
        columns = own_columns(record, bytearray(stored_id), stored_key, self._ingested, units, by, NULL)
        self._values += shared.ids or NO_IDS
        self._values += columns
        self._shared_of.append(shared)
        _, _, _, ts, requests, read, written, cached, _, _, _, _, _, _ = columns
        amounts = shared.sums.get(ts // QUARTER)
        if amounts is None:
            amounts = shared.sums[ts // QUARTER] = [0] * 7
        amounts[0] += 1
        amounts[1] += requests
        amounts[2] += read
        amounts[3] += written
        amounts[4] += cached
        if units is None:
            amounts[5] += requests
        else:
            amounts[6] += units
        return made

    def _shared_by(self, series_key: SeriesKey) -> _Shared:
        shared = self._shared.get(series_key)
        if shared is None:
            shared = self._shared[series_key] = _Shared(series_key, self._interner.known(series_key))
        return shared

    def write(
        self, context: CallContext, revision: int | None = None
    ) -> Awaitable[dict[int, Appended] | None]:
        """Write the entries; see Batch."""
        return self._write_batch(self, context, revision)

    def insert(
        self, cursor: sqlite3.Cursor, interner: Interner, revision: int | None
    ) -> dict[int, Appended] | None:
        """What `write` does, in the transaction of the caller. May be done again after a rollback."""
        if revision is not None and cards.revision(cursor) != revision:
            return None
        shared = self._shared.values()
        is_known = interner is self._interner and all(each.ids for each in shared)
        ids = {each: (is_known and each.ids) or interner.ids(cursor, each.series_key) for each in shared}
        if not is_known:
            for at, each in enumerate(self._shared_of):
                self._values[at * _COLUMNS : at * _COLUMNS + 3] = ids[each]
        done = self._insert_rows(cursor)
        if done == len(self):
            # Of the last row: nobody else writes, so that those before it have the numbers before it.
            last = int(cursor.lastrowid or 0) - done
            added = [
                (series, quarter, amounts)
                for each, (_, series, _) in ids.items()
                for quarter, amounts in each.sums.items()
            ]
            rollups.fold_added(cursor, last + 1, last + done, added, interner.tail)
            return {}
        first = _last(cursor) - done + 1
        settled = self._insert_rest(cursor, interner, done)
        rollups.fold_if_due(cursor, first, _last(cursor))
        return settled

    def _insert_rows(self, cursor: sqlite3.Cursor) -> int:
        """Insert rows until one is refused, since its id is taken; how many are inserted."""
        for at in range(0, len(self), _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, len(self) - at)
            inserted = self._insert_some(cursor, at, rows)
            if inserted < rows:
                return at + inserted
        return len(self)

    def _insert_some(self, cursor: sqlite3.Cursor, at: int, rows: int) -> int:
        """Insert so many rows in one statement, until one is refused; how many are inserted."""
        before = cursor.connection.total_changes
        try:
            cursor.execute(_insert_of(rows), self._values[at * _COLUMNS : (at + rows) * _COLUMNS])
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise
            return cursor.connection.total_changes - before
        return rows

    def _insert_rest(self, cursor: sqlite3.Cursor, interner: Interner, done: int) -> dict[int, Appended]:
        """Insert the rows behind the first `done`; what became of those whose ids are taken.

        Behind each of these, rows are inserted one by one, then ever more at once: where many are taken, it
        would be in vain.
        """
        settled: dict[int, Appended] = {}
        at, rows = done, 1
        while at < len(self):
            rows = min(rows, _ROWS_AT_ONCE, len(self) - at)
            if rows > 1:
                inserted = self._insert_some(cursor, at, rows)
                at += inserted
                rows = 2 * rows if inserted == rows else 1
                continue
            row = self._row(at)
            cursor.execute(_INSERT_NEW, row)
            if cursor.rowcount == 1:
                rows = 2
            else:
                found = settle(cursor, interner, row, self._entry(at, row), _insert_row)
                assert found is not None
                settled[at] = found
            at += 1
        return settled

    def _row(self, at: int) -> Row:
        values = self._values[at * _COLUMNS : (at + 1) * _COLUMNS]
        return tuple(None if value is NULL else value for value in values)

    def _entry(self, at: int, row: Row) -> Entry:
        """The entry that a row was made of."""
        key = "" if row[4] is None else as_text(row[4])
        by: Pricing = self._shared_of[at].series_key[8]
        return Entry(decode_usage(row[-1]), key, from_micros(row[5]), units_of(row[11], row[12]), by)


@lru_cache(maxsize=_ROWS_AT_ONCE)
def _insert_of(rows: int) -> str:
    # FAIL: the rows before one that is refused stay. Else SQLite would copy each page before it changes it.
    return f"INSERT OR FAIL INTO usage VALUES {', '.join([f'({MARKS})'] * rows)}"


def _last(cursor: sqlite3.Cursor) -> int:
    [last] = cursor.execute("SELECT ifnull(max(seq), 0) FROM usage").fetchone()
    return int(last)


def _insert_row(cursor: sqlite3.Cursor, row: Row) -> bool:
    cursor.execute(INSERT, row)
    return True


class _NeedsTransactionError(Exception):
    """What is to be written takes more than one statement."""


def settle(
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
    """As `settle`, in the transaction of the caller if there is one.

    Under the same key it is a duplicate or a conflict, or supersedes what was found. Under another one the
    two have one id by chance, or by somebody's design: the entry gets the id of the next attempt, until one
    is free or has its key.
    """
    attempt = 0
    while True:
        found = cursor.execute(_FIND, (row[0], row[3])).fetchone()
        if found is None:
            with suppress(sqlite3.IntegrityError):  # another process may take the id in between
                return created(as_text(row[3]), entry) if insert(cursor, row) else None
        elif found[4] is None:
            return removed_duplicate(as_text(row[3]), entry.ingested_at)
        elif found[0] is not None and found[0] == row[4]:
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
                usage_id=as_text(row[3]),
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
            return created(supersede.usage_id, entry)
        else:
            attempt += 1
            row = (*row[:3], usage_id(entry.record.organization_id, entry.key, attempt)[1], *row[4:])


def _first(row: Row, sent: UsageRecord, kept: UsageRecord, found: tuple[Any, ...]) -> Appended:
    """The answer that the first entry with the key was given, which `kept` is."""
    _, data, micros, picos, currency, cost_status, ingested, first_ts, *_ = found
    same = row[-1] == data or is_duplicate(sent, kept, from_micros(row[6]), from_micros(first_ts))
    return Appended(
        SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT,
        as_text(row[3]),
        units_of(micros, picos),
        currency,
        CostStatus(cost_status),
        from_micros(ingested),
    )
