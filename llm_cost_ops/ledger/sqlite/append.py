"""Appending usage: the jobs that write rows, and the terms that rows share."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from llm_cost_ops._gen.messages import CostStatus, SubmitStatus
from llm_cost_ops.ledger.ids import as_text
from llm_cost_ops.ledger.sqlite import cards
from llm_cost_ops.ledger.sqlite import sums as rollups
from llm_cost_ops.ledger.sqlite.rows import SeriesKey, decode_usage, prepare, units_of
from llm_cost_ops.ledger.types import Appended, Entry
from llm_cost_ops.pricing.pricebook import Pricing
from llm_cost_ops.rules.times import from_micros

__all__ = ["AppendMany", "AppendOne", "Interner"]

Ids = tuple[int, int, int]

_MARKS = ", ".join(f"?{at}" for at in range(1, 19))
# Where the key was used before, the index refuses the row.
_INSERT = f"INSERT INTO usage VALUES ({_MARKS})"
_INSERT_AT = f"INSERT INTO usage SELECT {_MARKS} WHERE ?19 = (SELECT ifnull(max(seq), 0) FROM card)"
_INSERT_NEW = (
    f"INSERT INTO usage SELECT {_MARKS} WHERE NOT EXISTS (SELECT 1 FROM earlier WHERE id = ?5) "
    "ON CONFLICT (id) DO NOTHING"
)
_FIND = (
    "SELECT u.record, u.id, u.micro, u.rest, s.currency, s.status, u.ingested, u.ts "
    "FROM usage u JOIN series s ON s.id = u.series "
    "WHERE u.id = ?1 OR u.seq = (SELECT e.usage FROM earlier e WHERE e.id = ?1)"
)
_IS_EARLIER = "SELECT 1 FROM earlier WHERE id = ?"
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

    __slots__ = ("_fresh", "_known", "_most", "earlier")

    def __init__(self, most: int = 20_000) -> None:
        self._known: dict[SeriesKey, Ids] = {}
        self._fresh: dict[SeriesKey, Ids] = {}
        self._most = most
        self.earlier: bool | None = None

    def ids(self, cursor: sqlite3.Cursor, terms: SeriesKey) -> Ids:
        """The ids of organization, series and pricing, which are added where they are new.

        With a new pricing its card is kept.
        """
        return self._known.get(terms) or self._fresh.get(terms) or self._intern(cursor, terms)

    def known(self, terms: SeriesKey) -> Ids | None:
        """The ids, if nothing has to be added for them."""
        return self._known.get(terms)

    def look_for_earlier(self, cursor: sqlite3.Cursor) -> bool:
        """Whether there are keys in `earlier`, to which none is ever added; `earlier` knows from then on."""
        [found] = cursor.execute("SELECT EXISTS (SELECT 1 FROM earlier)").fetchone()
        self.earlier = bool(found)
        return self.earlier

    def keep(self) -> None:
        """The transaction was committed."""
        if self._fresh:
            if len(self._known) + len(self._fresh) > self._most:
                self._known.clear()
            self._known.update(self._fresh)
            self._fresh.clear()

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._fresh.clear()

    def _intern(self, cursor: sqlite3.Cursor, terms: SeriesKey) -> Ids:
        by: Pricing = terms[8]
        organization, *series = (str(term) for term in (*terms[:8], by.currency, by.status))
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
        self._fresh[terms] = ids
        return ids


def _id(cursor: sqlite3.Cursor, find: str, add: str, values: Sequence[Any]) -> int:
    row = cursor.execute(find, values).fetchone()
    if row is None:
        cursor.execute(add, values)
        return int(cursor.lastrowid or 0)
    return int(row[0])


class AppendOne:
    """Appends an entry, as a job: what `AppendMany` of one does, in half the time.

    Its answer is None when the cards are of another `revision`, where one is given.
    """

    __slots__ = ("_entry", "_ids", "_made", "_revision", "_terms", "_values", "is_statement")

    def __init__(self, entry: Entry, revision: int | None, interner: Interner) -> None:
        self._entry = entry
        self._revision = revision
        self._terms, self._values, self._made = prepare(entry)
        self._ids = interner.known(self._terms)
        self.is_statement = self._ids is not None
        """Whether this is a single statement, since no term has to be added."""

    def __call__(self, cursor: sqlite3.Cursor, interner: Interner) -> list[Appended] | None:
        """Append the entry."""
        values = self._values
        earlier = interner.look_for_earlier(cursor) if interner.earlier is None else interner.earlier
        if earlier and cursor.execute(_IS_EARLIER, values[:1]).fetchone():
            return [_first(cursor, values)]
        row = (None, *(self._ids or interner.ids(cursor, self._terms)), *values)
        try:
            if self._revision is None:
                cursor.execute(_INSERT, row)
            else:
                cursor.execute(_INSERT_AT, (*row, self._revision))
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise
            return [_first(cursor, values)]
        if cursor.rowcount != 1:
            return None
        seq = cursor.lastrowid or 0
        if not seq % rollups.FOLD_EVERY:
            rollups.fold_if_due(cursor, seq, seq)
        return [_created(self._made, self._entry)]


class AppendMany:
    """Appends entries, as a job; each may turn out to be a duplicate or a conflict, of a neighbour even.

    Its answer is None when the cards are of another `revision`, where one is given.
    """

    __slots__ = ("_entries", "_prepared", "_revision")

    def __init__(self, entries: Sequence[Entry], revision: int | None) -> None:
        self._entries = entries
        self._revision = revision
        self._prepared = [prepare(entry) for entry in entries]

    def __call__(self, cursor: sqlite3.Cursor, interner: Interner) -> list[Appended] | None:
        """Append the entries."""
        if self._revision is not None and cards.revision(cursor) != self._revision:
            return None
        [first] = cursor.execute("SELECT ifnull(max(seq), 0) + 1 FROM usage").fetchone()
        rows = [
            (seq, *interner.ids(cursor, terms), *values)
            for seq, (terms, values, _) in enumerate(self._prepared, first)
        ]
        earlier = interner.look_for_earlier(cursor) if interner.earlier is None else interner.earlier
        complete = _insert(cursor, rows, careful=earlier)
        rollups.fold_if_due(cursor, first, first + len(rows) - 1)
        answers = zip(self._prepared, self._entries, strict=True)
        if complete:
            return [_created(made, entry) for (_, _, made), entry in answers]
        # Rows were numbered here, so that those that were not inserted can be told by their absence.
        inserted = {seq for (seq,) in cursor.execute("SELECT seq FROM usage WHERE seq >= ?", (first,))}
        return [
            _created(made, entry) if seq in inserted else _first(cursor, values)
            for seq, ((_, values, made), entry) in enumerate(answers, first)
        ]


def _insert(cursor: sqlite3.Cursor, rows: list[tuple[Any, ...]], *, careful: bool) -> bool:
    """Insert rows but for those whose keys were used before; whether there were none of these."""
    try:
        cursor.executemany(_INSERT_NEW if careful else _INSERT, rows)
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise
        # Those before the one that was refused are in.
        [done] = cursor.execute("SELECT count(*) FROM usage WHERE seq >= ?", rows[0][:1]).fetchone()
        cursor.executemany(_INSERT_NEW, rows[done:])
        return False
    return cursor.rowcount == len(rows)


def _created(usage_id: str, entry: Entry) -> Appended:
    by = entry.by
    return Appended(SubmitStatus.CREATED, usage_id, entry.units, by.currency, by.status, entry.ingested_at)


def _first(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> Appended:
    """The answer that the first entry with the key was given."""
    usage_id, _, _, ts, *_, sent = values
    row = cursor.execute(_FIND, (usage_id,)).fetchone()
    kept, first_id, micro, rest, currency, cost_status, ingested, first_ts = row
    same = sent == kept or (ts == first_ts and _same_but_for_time(sent, kept))
    return Appended(
        SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT,
        as_text(first_id),
        units_of(micro, rest),
        currency,
        CostStatus(cost_status),
        from_micros(ingested),
    )


def _same_but_for_time(sent: bytes, kept: bytes) -> bool:
    """Whether one record has a time and the other none, and they are alike otherwise.

    So a record that was sent without a time is also the one with the time that it was given since.
    """
    one, other = decode_usage(sent), decode_usage(kept)
    one.timestamp = other.timestamp = None
    return one == other
