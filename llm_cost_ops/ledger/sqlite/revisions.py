"""Revisions: one record's cost with what priced it, every revision of it, repricing, correcting and voiding.

The usage row keeps the first cost for ever. A revision is a row beside it; the sums move from what counted
before to what counts after in the same transaction.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from llm_cost_ops._gen.messages import CostStatus, RevisionKind
from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import as_key, decode_usage, from_micros, to_micros
from llm_cost_ops.ledger.sqlite.audit import add_events
from llm_cost_ops.ledger.sqlite.cards import kept_card
from llm_cost_ops.ledger.sqlite.revise import OF_RECORD, Counted, NewRevision, add_revisions
from llm_cost_ops.ledger.sqlite.rows import (
    RECORD_COLUMNS,
    Interner,
    SeriesKey,
    columns_of,
    decode_record,
    series_key_of,
    units_of,
)
from llm_cost_ops.ledger.sqlite.sums import newest, per_record_conditions, pick_series
from llm_cost_ops.ledger.types import Change, Filter, Price, Recorded, Revised
from llm_cost_ops.rpc.status import invalid_argument

__all__ = ["find_changes", "get_cost", "matching", "number_of", "reprice", "revisions"]

_REVISIONS = (
    f"SELECT v.number, v.kind, v.reason, v.actor, v.made, v.record, {RECORD_COLUMNS}, v.cost_micros, "
    "v.cost_picos, s.currency, s.status FROM usage u JOIN revision v ON v.usage = u.seq "
    f"JOIN series s ON s.id = v.series WHERE {OF_RECORD} ORDER BY v.number"
)
_FIRST = (
    f"SELECT 1, 'recorded', '', '', u.ingested, f.record, {RECORD_COLUMNS}, u.cost_micros, u.cost_picos, "
    "s.currency, s.status FROM usage u JOIN series s ON s.id = u.series "
    f"LEFT JOIN first_record f ON f.usage = u.seq WHERE {OF_RECORD}"
)


def get_cost(connection: sqlite3.Connection, organization_id: str, usage_id: str) -> Recorded | None:
    """A record and the revision of its cost that is in force; None when the organization has none such."""
    cost = newest(connection)
    made = "v.made, v.kind, v.reason" if cost.join else "NULL, NULL, NULL"
    row = connection.execute(
        f"SELECT {RECORD_COLUMNS}, {cost.micros}, {cost.picos}, s.currency, s.status, {cost.number}, {made}, "
        f"p.card_id, p.card_version, p.origin_version, p.fallbacks, p.digest FROM usage u{cost.join} "
        f"JOIN series s ON s.id = {cost.series} JOIN pricing p ON p.id = {cost.pricing} "
        f"WHERE {OF_RECORD}",
        (organization_id, as_key(usage_id)),
    ).fetchone()
    if row is None:
        return None
    micros, picos, currency, status, number, at, kind, reason, *priced = row[5:]
    card_id, version, origin, fallbacks, digest = priced
    record = decode_record(row[:7], currency, status)
    taken = record.ingested_at
    assert taken is not None
    return Recorded(
        record=record,
        revision=number,
        status=CostStatus(status),
        currency=currency,
        units=units_of(micros, picos),
        card_id=card_id,
        card_version=version,
        origin_version=origin,
        fallbacks=tuple(filter(None, fallbacks.split(","))),
        card=kept_card(connection, digest) if digest else None,
        digest=digest,
        calculated_at=taken if at is None else from_micros(at),
        kind=RevisionKind(kind or "recorded"),
        reason=reason or "",
    )


def revisions(connection: sqlite3.Connection, organization_id: str, usage_id: str) -> list[Revised]:
    """Every revision of a record; none when the organization has no such record."""
    asked = (organization_id, as_key(usage_id))
    rows = connection.execute(_FIRST, asked).fetchall()
    rows += connection.execute(_REVISIONS, asked).fetchall()
    found = []
    content = None
    for number, kind, reason, actor, made, changed, *row in rows:
        # The row has the record in force; what it was before stands in first_record and in revisions.
        content = changed or content or row[4]
        record = decode_record((*row[:4], content, *row[5:7]), *row[7:])
        revised = Revised(
            number=number,
            kind=RevisionKind(kind),
            record=record,
            reason=reason,
            actor=actor,
            made_at=from_micros(made),
        )
        found.append(revised)
    return found


def matching(connection: sqlite3.Connection, where: Filter, after: str | None, limit: int) -> list[int]:
    """The numbers of the first records after a position that the filter lets through, ascending."""
    first = number_of(after)
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
        (first, *parameters, limit),
    )
    return [seq for (seq,) in rows]


def number_of(position: str | None) -> int:
    """The row that a position is behind; 0 for the beginning."""
    if position is None:
        return 0
    if not (position.isascii() and position.isdigit() and len(position) < 19):
        raise invalid_argument("position", "is not one that this ledger gave")
    return int(position)


class _Found(NamedTuple):
    """A record whose cost is not what it would be today: its row, and what is to be written."""

    row: tuple[Any, ...]
    series_key: SeriesKey
    cost: tuple[int | None, int | None]
    change: Change


def _find(connection: sqlite3.Connection, seqs: Sequence[int], price: Price) -> list[_Found]:
    cost = newest(connection)
    rows = connection.execute(
        f"SELECT u.ts, u.record, {cost.micros}, {cost.picos}, s.currency, s.status, u.seq, {cost.number}, "
        f"s.id, ifnull(u.user, ''), u.requests, u.input, u.output, u.cached FROM usage u{cost.join} "
        f"JOIN series s ON s.id = {cost.series} WHERE u.seq IN ({', '.join('?' * len(seqs))})",
        tuple(seqs),
    ).fetchall()
    found = []
    for ts, data, micros, picos, currency, status, *row in rows:
        record = decode_usage(data)
        if status == CostStatus.VOIDED:
            continue
        record.timestamp = from_micros(ts)
        priced = price(record)
        by, units = priced.by, units_of(micros, picos)
        if (by.status, by.currency, priced.units) == (status, currency, units):
            continue
        change = Change(
            provider=record.provider,
            model_id=record.model_id,
            units_before=units,
            currency_before=currency,
            units_after=priced.units,
            currency_after=by.currency,
        )
        cost_after = columns_of(priced.units, by)
        found.append(_Found((*row, ts), series_key_of(record, by), cost_after, change))
    return found


def find_changes(connection: sqlite3.Connection, seqs: Sequence[int], price: Price) -> list[Change]:
    """What `reprice` would do, without doing it."""
    return [found.change for found in _find(connection, seqs, price)]


def reprice(
    cursor: sqlite3.Cursor,
    interner: Interner,
    seqs: Sequence[int],
    price: Price,
    now: datetime,
    actor: str,
) -> list[Change]:
    """Add a revision to each of the records whose status, currency or cost is not what `price` says."""
    found = _find(cursor.connection, seqs, price)
    new = []
    for (seq, number, *counted, ts), series_key, cost, change in found:
        _, series, pricing = interner.ids(cursor, series_key)
        before = Counted._make((*counted, change.units_before))
        after = before._replace(series=series, units=change.units_after)
        made, kind = to_micros(now), RevisionKind.REPRICED
        new.append(NewRevision(seq, ts, number + 1, before, after, pricing, cost, made, kind, actor=actor))
    add_revisions(cursor, new)
    add_events(cursor, audit.repriced(Counter(each.series_key[0] for each in found), now, actor))
    return [change for _, _, _, change in found]
