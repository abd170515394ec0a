"""Between entries and rows: what is stored of a record, and the record made of it again.

A row holds the record as the caller sent it, and beside it what the service added: id, times and cost, and
the numbers of what it shares with others: its organization, series and pricing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from math import nan
from typing import Any

from llm_cost_ops._gen.messages import CostStatus, SubmitStatus, UsageRecord
from llm_cost_ops.ledger.encoding import (
    as_text,
    check_cost,
    check_counts,
    decode_usage,
    encode_texts,
    encode_usage,
    from_micros,
    to_micros,
    usage_id,
)
from llm_cost_ops.ledger.sqlite import cards
from llm_cost_ops.ledger.sqlite.tail import Tail
from llm_cost_ops.ledger.types import Appended, Entry
from llm_cost_ops.pricing.money import UNITS, from_units
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST

__all__ = [
    "NO_IDS",
    "NULL",
    "RECORD_COLUMNS",
    "Columns",
    "Ids",
    "Interner",
    "Row",
    "SeriesKey",
    "columns_of",
    "created",
    "decode_record",
    "own_columns",
    "prepare",
    "series_key_of",
    "units_of",
]

SeriesKey = tuple[Any, ...]
"""What is interned of an entry: the organization, seven more columns of series, and the Pricing."""

Ids = tuple[int, int, int]
"""Of what is interned: the organization, the series and the pricing."""

NO_IDS = (0, 0, 0)
"""In the place of Ids that are not known yet."""

NULL = nan
"""What is bound for NULL where there are many rows: SQLite takes NaN for it. Python's sqlite3 looks for an
adapter of None and of bytes, for 0.5 µs each, and of a float and a bytearray it does not.
"""

Columns = tuple[Any, ...]
"""The columns of usage from `id` on."""

Row = tuple[Any, ...]
"""Ids and Columns: all columns of usage but `seq`, which the database numbers."""

RECORD_COLUMNS = "u.id, u.key, u.ingested, u.ts, u.record"
"""Of `usage u`, what `decode_record` needs first."""

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

_PICOS = 1_000_000
_MAX_COST_UNITS = MAX_RECORD_COST * UNITS


def series_key_of(record: UsageRecord, by: Pricing) -> SeriesKey:
    """What a record shares with others."""
    return (
        record.organization_id,
        record.provider,
        record.model_id,
        record.project_id,
        record.operation,
        record.service_tier,
        record.processing,
        record.region,
        by,
    )


def prepare(entry: Entry, null: float | None = None) -> tuple[SeriesKey, Columns, str]:
    """What the transaction needs of an entry: its series key, its `own_columns`, and its id as text."""
    record, by = entry.record, entry.by
    made, stored_id, stored_key = usage_id(record.organization_id, entry.key)
    taken = to_micros(entry.ingested_at)
    columns = own_columns(record, stored_id, stored_key, taken, entry.units, by, null)
    return series_key_of(record, by), columns, made


def own_columns(
    record: UsageRecord,
    stored_id: bytes | bytearray,
    stored_key: str | bytes | bytearray | None,
    ingested: int,
    units: int | None,
    by: Pricing,
    null: float | None = None,
) -> Columns:
    """The columns that an entry has for itself; `ingested` is in microseconds since 1970, and `null` is what
    stands in columns without a value.
    """
    read, written = record.input_tokens or 0, record.output_tokens or 0
    if read > MAX_COUNT or written > MAX_COUNT:
        check_counts(record)
    if units is None:
        micros = picos = null
    else:
        if not -_MAX_COST_UNITS <= units <= _MAX_COST_UNITS:
            check_cost(units, by.currency)
        micros, picos = divmod(units, _PICOS)
    moment, tags, labels = record.timestamp, record.tags, record.labels
    if tags and len(tags) != len(set(tags)):
        # A tag counts a record once, however often it has it.
        tags = list(dict.fromkeys(tags))
    return (
        stored_id,
        stored_key,
        ingested,
        ingested if moment is None else to_micros(moment),
        record.request_count or 1,
        read,
        written,
        record.cached_tokens,
        micros,
        picos,
        record.user_id or null,
        encode_texts(tags).decode() if tags else null,
        encode_texts(labels).decode() if labels else null,
        bytearray(encode_usage(record)),
    )


def columns_of(units: int | None, by: Pricing) -> tuple[int | None, int | None]:
    """The two columns of a cost in 10^-12; INVALID_ARGUMENT when it is larger than MAX_RECORD_COST."""
    if units is None:
        return None, None
    check_cost(units, by.currency)
    return divmod(units, _PICOS)


def units_of(micros: int | None, picos: int | None) -> int | None:
    """The cost in 10^-12 that two columns hold."""
    return None if micros is None or picos is None else micros * _PICOS + picos


def decode_record(row: tuple[Any, ...], currency: str, status: str) -> UsageRecord:
    """The record with all that the service knows of it; `row` holds RECORD_COLUMNS, then the cost."""
    usage_id, key, ingested, ts, data, micros, picos = row
    record = decode_usage(data)
    record.id = as_text(usage_id)
    record.idempotency_key = "" if key is None else as_text(key)
    record.ingested_at = from_micros(ingested)
    record.timestamp = from_micros(ts)
    units = units_of(micros, picos)
    record.estimated_cost = None if units is None else from_units(units)
    record.currency = currency
    record.cost_status = CostStatus(status)
    return record


class Interner:
    """The ids of what many rows share. What a transaction added counts from its commit on.

    Rows of these tables are never changed, so what one process knows stays true whatever others write.
    `tail` is what the newest rows add to the sums.
    """

    __slots__ = ("_fresh", "_known", "_max_known", "tail")

    def __init__(self, max_known: int = 20_000) -> None:
        self._known: dict[SeriesKey, Ids] = {}
        self._fresh: dict[SeriesKey, Ids] = {}
        self._max_known = max_known
        self.tail = Tail()

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
        self.tail.clear()

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


def created(usage_id: str, entry: Entry) -> Appended:
    """The answer for an entry whose row is new."""
    by = entry.by
    return Appended(SubmitStatus.CREATED, usage_id, entry.units, by.currency, by.status, entry.ingested_at)
