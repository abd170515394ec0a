"""Appending usage inside a transaction: rows, interned terms, and the sums they add to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from llm_cost_ops._gen.messages import CostStatus, RateCard, SubmitStatus
from llm_cost_ops.engine.ledger import Appended, Entry
from llm_cost_ops.engine.windows import QUARTER, QUARTERS_A_DAY
from llm_cost_ops.stores.cards import keep_card
from llm_cost_ops.stores.rows import Prepared, Terms, as_text, ingested_at, units_of

__all__ = ["ADD_SUMS", "INSERT_USAGE", "Interner", "append_many", "append_one"]

Ids = tuple[int, int, int]

_COLUMNS = (
    "org, series, pricing, id, key, fingerprint, ts, requests, input, output, cached, micro, rest, user, tags"
)
INSERT_USAGE = (
    f"INSERT INTO usage (seq, {_COLUMNS}, labels, record) "
    f"VALUES ({', '.join('?' * 18)}) ON CONFLICT (org, key) DO NOTHING"
)
_ADD = (
    " ON CONFLICT (series, level, bucket) DO UPDATE SET records = records + excluded.records, "
    "requests = requests + excluded.requests, input = input + excluded.input, "
    "output = output + excluded.output, cached = cached + excluded.cached, "
    "unpriced = unpriced + excluded.unpriced, "
    "micro = micro + excluded.micro + (rest + excluded.rest) / 1000000, "
    "rest = (rest + excluded.rest) % 1000000"
)
ADD_SUMS = f"INSERT INTO rollup VALUES ({', '.join('?' * 11)}){_ADD}"
_ADD_ONE = (
    "INSERT INTO rollup VALUES (?1, 0, ?2, 1, ?4, ?5, ?6, ?7, ?8, ?9, ?10), "
    f"(?1, 1, ?3, 1, ?4, ?5, ?6, ?7, ?8, ?9, ?10){_ADD}"
)
_FIND = (
    "SELECT u.fingerprint, u.id, u.micro, u.rest, s.currency, s.status, u.record "
    "FROM usage u JOIN series s ON s.id = u.series WHERE u.org = ? AND u.key = ?"
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
_MICRO = 1_000_000


class Interner:
    """The ids of what many rows share. What a transaction added counts from its commit on.

    Rows of these tables are never changed, so what one process knows stays true whatever others write.
    """

    __slots__ = ("_fresh", "_known", "_most")

    def __init__(self, most: int = 20_000) -> None:
        self._known: dict[Terms, Ids] = {}
        self._fresh: dict[Terms, Ids] = {}
        self._most = most

    def ids(self, cursor: sqlite3.Cursor, terms: Terms, card: RateCard | None = None) -> Ids:
        """The ids of organization, series and pricing, which are added where they are new.

        With a new pricing its card is kept.
        """
        found = self._known.get(terms)
        if found is None:
            found = self._fresh.get(terms) or self._intern(cursor, terms, card)
        return found

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

    def _intern(self, cursor: sqlite3.Cursor, terms: Terms, card: RateCard | None = None) -> Ids:
        organization, *series = (str(term) for term in terms[:10])
        card_id, card_version, origin_version, fallbacks, digest = terms[10:]
        find, add = "SELECT id FROM organization WHERE name = ?", "INSERT INTO organization (name) VALUES (?)"
        org = _id(cursor, find, add, (organization,))
        ids = (
            org,
            _id(cursor, _FIND_SERIES, _ADD_SERIES, (org, *series)),
            _id(
                cursor,
                _FIND_PRICING,
                _ADD_PRICING,
                (card_id, card_version, origin_version, ",".join(fallbacks), digest),
            ),
        )
        if digest and card is not None:
            keep_card(cursor, digest, card)
        self._fresh[terms] = ids
        return ids


def _id(cursor: sqlite3.Cursor, find: str, add: str, values: Sequence[Any]) -> int:
    row = cursor.execute(find, values).fetchone()
    if row is None:
        cursor.execute(add, values)
        return int(cursor.lastrowid or 0)
    return int(row[0])


def append_one(cursor: sqlite3.Cursor, interner: Interner, prepared: Prepared) -> list[Appended]:
    """Append an entry: the same as `append_many` of one, in half the time."""
    terms, values, entry = prepared
    ids = interner.ids(cursor, terms, entry.card)
    cursor.execute(INSERT_USAGE, (None, *ids, *values))
    if cursor.rowcount != 1:
        return [_earlier(cursor, ids[0], values, entry)]
    _id, _key, _print, ts, requests, put_in, put_out, cached, micro, rest, *_ = values
    quarter = ts // QUARTER
    day = quarter // QUARTERS_A_DAY
    if micro is None:
        cursor.execute(_ADD_ONE, (ids[1], quarter, day, requests, put_in, put_out, cached, requests, 0, 0))
    else:
        cursor.execute(_ADD_ONE, (ids[1], quarter, day, requests, put_in, put_out, cached, 0, micro, rest))
    return [_created(entry)]


def append_many(cursor: sqlite3.Cursor, interner: Interner, prepared: Sequence[Prepared]) -> list[Appended]:
    """Append entries, each of which may turn out to be a duplicate or a conflict, of a neighbour even."""
    [first] = cursor.execute("SELECT ifnull(max(seq), 0) + 1 FROM usage").fetchone()
    rows = [
        (seq, *interner.ids(cursor, terms, entry.card), *values)
        for seq, (terms, values, entry) in enumerate(prepared, first)
    ]
    cursor.executemany(INSERT_USAGE, rows)
    if cursor.rowcount == len(rows):
        cursor.executemany(ADD_SUMS, _sums(rows))
        return [_created(entry) for _, _, entry in prepared]
    # Rows were numbered here, so that those that were not inserted can be told by their absence.
    inserted = {seq for (seq,) in cursor.execute("SELECT seq FROM usage WHERE seq >= ?", (first,))}
    cursor.executemany(ADD_SUMS, _sums(row for row in rows if row[0] in inserted))
    return [
        _created(entry) if row[0] in inserted else _earlier(cursor, row[1], values, entry)
        for row, (_, values, entry) in zip(rows, prepared, strict=True)
    ]


def _sums(rows: Iterable[tuple[Any, ...]]) -> list[tuple[int, ...]]:
    """What rows add to the quarters and the days, in the order of the table."""
    sums: dict[tuple[int, int, int], list[int]] = {}
    for row in rows:
        (
            _seq,
            _org,
            series,
            _pricing,
            _id,
            _key,
            _print,
            ts,
            requests,
            put_in,
            put_out,
            cached,
            micro,
            rest,
        ) = row[:14]
        place = (series, 0, ts // QUARTER)
        found = sums.get(place)
        if found is None:
            found = sums[place] = [0, 0, 0, 0, 0, 0, 0]
        found[0] += 1
        found[1] += requests
        found[2] += put_in
        found[3] += put_out
        found[4] += cached
        if micro is None:
            found[5] += requests
        else:
            found[6] += micro * _MICRO + rest
    for (series, _, quarter), found in list(sums.items()):
        day = sums.setdefault((series, 1, quarter // QUARTERS_A_DAY), [0, 0, 0, 0, 0, 0, 0])
        for at, value in enumerate(found):
            day[at] += value
    return [(*place, *found[:6], *divmod(found[6], _MICRO)) for place, found in sorted(sums.items())]


def _created(entry: Entry) -> Appended:
    taken = entry.record.ingested_at
    assert taken is not None
    return _answer(SubmitStatus.CREATED, entry.record.id, entry.units, entry.currency, entry.status, taken)


def _earlier(cursor: sqlite3.Cursor, org: int, values: tuple[Any, ...], entry: Entry) -> Appended:
    """The answer that the first entry with the key was given."""
    row = cursor.execute(_FIND, (org, values[1])).fetchone()
    fingerprint, usage_id, micro, rest, currency, cost_status, record = row
    status = SubmitStatus.DUPLICATE if fingerprint == entry.fingerprint else SubmitStatus.CONFLICT
    return _answer(
        status,
        as_text(usage_id),
        units_of(micro, rest),
        currency,
        CostStatus(cost_status),
        ingested_at(record),
    )


def _answer(
    status: SubmitStatus,
    usage_id: str,
    units: int | None,
    currency: str,
    cost_status: CostStatus,
    processed_at: datetime,
) -> Appended:
    return Appended(
        status=status,
        usage_id=usage_id,
        units=units,
        currency=currency,
        cost_status=cost_status,
        processed_at=processed_at,
    )
