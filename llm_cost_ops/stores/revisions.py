"""Costs after the first: one record's cost with what priced it, and repricing.

The usage row keeps the first cost for ever. A revision is a row beside it; the sums move from the cost
before to the cost after in the same transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.engine.ledger import Change, Entry, Filter, Recorded
from llm_cost_ops.engine.pricebook import Priced
from llm_cost_ops.engine.windows import QUARTER, QUARTERS_A_DAY, from_micros, to_micros
from llm_cost_ops.stores import Price
from llm_cost_ops.stores.append import ADD_SUMS, Interner
from llm_cost_ops.stores.cards import kept_card
from llm_cost_ops.stores.newest import newest
from llm_cost_ops.stores.rows import Prepared, as_key, decode_record, prepare, units_of
from llm_cost_ops.stores.summing import per_record_conditions, pick_series

__all__ = ["find_changes", "get_cost", "matching", "reprice"]

_MICRO = 1_000_000
_ADD_REVISION = (
    "INSERT INTO revision (usage, number, series, pricing, micro, rest, made) VALUES (?, ?, ?, ?, ?, ?, ?)"
)


def get_cost(connection: sqlite3.Connection, usage_id: str) -> Recorded | None:
    """A record and the revision of its cost that is in force; None when there is no such record."""
    cost = newest(connection)
    made = "v.made" if cost.join else "NULL"
    # A probe of the index by organization and id, for each organization.
    row = connection.execute(
        f"SELECT u.record, {cost.micro}, {cost.rest}, s.currency, s.status, {cost.number}, {made}, "
        "p.card_id, p.card_version, p.origin_version, p.fallbacks, p.digest "
        f"FROM organization o CROSS JOIN usage u ON u.org = o.id AND u.id = ?{cost.join} "
        f"JOIN series s ON s.id = {cost.series} JOIN pricing p ON p.id = {cost.pricing}",
        (as_key(usage_id),),
    ).fetchone()
    if row is None:
        return None
    data, micro, rest, currency, status, number, at, card_id, version, origin, fallbacks, digest = row
    record = decode_record(data, micro, rest, currency, status)
    taken = record.ingested_at
    assert taken is not None
    return Recorded(
        record=record,
        revision=number,
        status=CostStatus(status),
        currency=currency,
        units=units_of(micro, rest),
        card_id=card_id,
        card_version=version,
        origin_version=origin,
        fallbacks=tuple(filter(None, fallbacks.split(","))),
        card=kept_card(connection, digest) if digest else None,
        digest=digest,
        calculated_at=taken if at is None else from_micros(at),
    )


def matching(connection: sqlite3.Connection, where: Filter, after: int, limit: int) -> list[int]:
    """The numbers of the first records after a number that the filter lets through, ascending."""
    if not pick_series(connection, where):
        return []
    cost = newest(connection)
    conditions, parameters = per_record_conditions(where)
    for moment, comparison in ((where.start, ">="), (where.end, "<")):
        if moment is not None:
            conditions.append(f"u.ts {comparison} ?")
            parameters.append(to_micros(moment))
    more = "".join(f" AND {condition}" for condition in conditions)
    # In the order of the table, so that pages of it read it once in all.
    rows = connection.execute(
        f"SELECT u.seq FROM usage u NOT INDEXED{cost.join} WHERE u.seq > ? "
        f"AND {cost.series} IN (SELECT id FROM temp.picked){more} ORDER BY u.seq LIMIT ?",
        (after, *parameters, limit),
    )
    return [seq for (seq,) in rows]


class _Found(NamedTuple):
    """A record whose cost is not what it would be today: its row, and what is to be written."""

    row: tuple[Any, ...]
    prepared: Prepared
    change: Change


def _find(connection: sqlite3.Connection, seqs: Sequence[int], price: Price) -> list[_Found]:
    cost = newest(connection)
    rows = connection.execute(
        f"SELECT u.record, {cost.micro}, {cost.rest}, s.currency, s.status, u.seq, {cost.number}, s.id, "
        f"u.ts, u.requests, u.input, u.output, u.cached FROM usage u{cost.join} "
        f"JOIN series s ON s.id = {cost.series} WHERE u.seq IN ({', '.join('?' * len(seqs))})",
        tuple(seqs),
    ).fetchall()
    found = []
    for row in rows:
        data, micro, rest, currency, status = row[:5]
        record = decode_record(data, None, None, "", status)
        priced = price(record)
        units = units_of(micro, rest)
        if (priced.status, priced.currency, priced.units) == (status, currency, units):
            continue
        change = Change(
            provider=record.provider,
            model_id=record.model_id,
            units_before=units,
            currency_before=currency,
            units_after=priced.units,
            currency_after=priced.currency,
        )
        found.append(_Found(row, prepare(_entry(record, priced)), change))
    return found


def _entry(record: UsageRecord, priced: Priced) -> Entry:
    return Entry(
        record=record,
        fingerprint=b"",
        status=priced.status,
        currency=priced.currency,
        units=priced.units,
        card_id=priced.card_id,
        card_version=priced.card_version,
        fallbacks=priced.fallbacks,
        origin_version=priced.origin_version,
        card=priced.card,
        digest=priced.digest,
    )


def find_changes(connection: sqlite3.Connection, seqs: Sequence[int], price: Price) -> list[Change]:
    """What `reprice` would do, without doing it."""
    return [found.change for found in _find(connection, seqs, price)]


def reprice(
    cursor: sqlite3.Cursor, interner: Interner, seqs: Sequence[int], price: Price, now: datetime
) -> list[Change]:
    """Add a revision to each of the records whose status, currency or cost is not what `price` says."""
    sums: dict[tuple[int, int, int], list[int]] = {}
    revisions = []
    found = _find(cursor.connection, seqs, price)
    for row, (terms, values, entry), _ in found:
        _, micro, rest, _, _, seq, number, before, ts, *counts = row
        _, after, pricing = interner.ids(cursor, terms, entry.card)
        revisions.append((seq, number + 1, after, pricing, *values[8:10], to_micros(now)))
        for series, sign, units in ((before, -1, units_of(micro, rest)), (after, 1, entry.units)):
            amounts = [1, *counts, counts[0] if units is None else 0, units or 0]
            for level, bucket in ((0, ts // QUARTER), (1, ts // QUARTER // QUARTERS_A_DAY)):
                place = sums.setdefault((series, level, bucket), [0] * 7)
                for at, amount in enumerate(amounts):
                    place[at] += sign * amount
    cursor.executemany(_ADD_REVISION, revisions)
    moved = [(place, amounts) for place, amounts in sorted(sums.items()) if any(amounts)]
    rows = [(*place, *amounts[:6], *divmod(amounts[6], _MICRO)) for place, amounts in moved]
    cursor.executemany(ADD_SUMS, rows)
    return [change for _, _, change in found]
