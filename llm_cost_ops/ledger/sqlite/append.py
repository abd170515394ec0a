"""Appending usage: the jobs that write rows, and the series and pricings that rows share."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
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
    Ids,
    Row,
    SeriesKey,
    own_columns,
    prepare,
    series_key_of,
    units_of,
)
from llm_cost_ops.ledger.types import Appended, Entry, Revision
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rules.times import QUARTER

__all__ = ["AppendOne", "Interner", "SqliteBatch"]

# Those of a Row.
_COLUMNS = 17
_MARKS = f"NULL{', ?' * _COLUMNS}"
# Where the organization has a record with the id already, the index refuses the row.
_INSERT = f"INSERT INTO usage VALUES ({_MARKS})"
# A statement of many rows takes three quarters of the time of as many statements. Where one is refused, none
# of its statement is inserted.
_ROWS_AT_ONCE = 50
_AT_ONCE = _ROWS_AT_ONCE * _COLUMNS
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
        organization, *series = map(str.__str__, (*series_key[:8], by.currency, by.status))
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
    """Appends an entry, as a job: what a batch of one does, in half the time.

    Its answer is None when the cards are of another `revision`, where one is given.
    """

    __slots__ = ("_columns", "_entry", "_ids", "_made", "_revision", "_series_key", "is_statement")

    def __init__(self, entry: Entry, revision: int | None, interner: Interner) -> None:
        self._entry = entry
        self._revision = revision
        self._series_key, self._columns, self._made = prepare(entry)
        self._ids = interner.known(self._series_key)
        self.is_statement = self._ids is not None
        """Whether this is a single statement, since series and pricing are known."""

    def __call__(self, cursor: sqlite3.Cursor, interner: Interner) -> list[Appended] | None:
        """Append the entry."""
        ids = self._ids or interner.ids(cursor, self._series_key)
        row = (*ids, *self._columns)
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
        stored_key: str | bytes | None
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
        columns = own_columns(record, stored_id, stored_key, self._ingested, units, by)
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
        ids = {each: each.ids or interner.ids(cursor, each.series_key) for each in self._shared.values()}
        if not all(each.ids for each in ids):
            for at, each in enumerate(self._shared_of):
                self._values[at * _COLUMNS : at * _COLUMNS + 3] = ids[each]
        last = _last(cursor)
        done = self._insert_rows(cursor, last)
        if done == len(self):
            added = [
                (series, quarter, amounts)
                for each, (_, series, _) in ids.items()
                for quarter, amounts in each.sums.items()
            ]
            rollups.fold_added(cursor, last + 1, last + done, added)
            return {}
        settled = self._insert_singly(cursor, interner, done)
        rollups.fold_if_due(cursor, last + 1, _last(cursor))
        return settled

    def _insert_rows(self, cursor: sqlite3.Cursor, last: int) -> int:
        """Insert rows until one is refused since its id is taken; how many are inserted. `last` is before."""
        values, at = self._values, 0
        try:
            for at in range(_AT_ONCE, len(values) + 1, _AT_ONCE):
                cursor.execute(_INSERT_ROWS, values[at - _AT_ONCE : at])
            rest = range(len(values) - len(values) % _AT_ONCE, len(values), _COLUMNS)
            cursor.executemany(_INSERT, (values[at : at + _COLUMNS] for at in rest))
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise
            return _last(cursor) - last
        return len(self)

    def _insert_singly(self, cursor: sqlite3.Cursor, interner: Interner, done: int) -> dict[int, Appended]:
        """Insert the rows behind the first `done`; what became of those whose ids are taken."""
        settled: dict[int, Appended] = {}
        for at in range(done, len(self)):
            row = tuple(self._values[at * _COLUMNS : (at + 1) * _COLUMNS])
            cursor.execute(_INSERT_NEW, row)
            if cursor.rowcount != 1:
                found = _settle(cursor, interner, row, self._entry(at, row), _insert_row)
                assert found is not None
                settled[at] = found
        return settled

    def _entry(self, at: int, row: Row) -> Entry:
        """The entry that a row was made of."""
        key = "" if row[4] is None else as_text(row[4])
        by: Pricing = self._shared_of[at].series_key[8]
        return Entry(decode_usage(row[-1]), key, from_micros(row[5]), units_of(row[11], row[12]), by)


def _last(cursor: sqlite3.Cursor) -> int:
    [last] = cursor.execute("SELECT ifnull(max(seq), 0) FROM usage").fetchone()
    return int(last)


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
        found = cursor.execute(_FIND, (row[0], row[3])).fetchone()
        if found is None:
            with suppress(sqlite3.IntegrityError):  # another process may take the id in between
                return _created(as_text(row[3]), entry) if insert(cursor, row) else None
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
            return _created(supersede.usage_id, entry)
        else:
            attempt += 1
            row = (*row[:3], usage_id(entry.record.organization_id, entry.key, attempt)[1], *row[4:])


def _created(usage_id: str, entry: Entry) -> Appended:
    by = entry.by
    return Appended(SubmitStatus.CREATED, usage_id, entry.units, by.currency, by.status, entry.ingested_at)


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
