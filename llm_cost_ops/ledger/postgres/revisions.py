"""Costs after the first: one record's cost with what priced it, and repricing.

The row of usage keeps the first cost for ever. A revision is a row beside it; the sums move from the cost
before to the cost after in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.ledger.ids import as_key
from llm_cost_ops.ledger.postgres.cards import kept_card
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.interning import intern, organization_ids
from llm_cost_ops.ledger.postgres.listing import time_conditions, two_numbers
from llm_cost_ops.ledger.postgres.rows import (
    RECORD_COLUMNS,
    check_cost,
    cost_text,
    decode_record,
    decode_usage,
    series_of,
    text_array,
    units_sql,
)
from llm_cost_ops.ledger.postgres.sums import newest, record_conditions, series_conditions
from llm_cost_ops.ledger.types import Change, Filter, Price, Recorded, Repriced
from llm_cost_ops.pricing.pricebook import Pricing
from llm_cost_ops.rules.times import QUARTER, from_micros, to_micros

__all__ = ["find_changes", "get_cost", "reprice"]

_REVISION = {
    "org": "int",
    "id": "uuid",
    "number": "int",
    "series": "bigint",
    "pricing": "bigint",
    "cost": "numeric",
    "made": "bigint",
}
_DELTA = {
    "org": "int",
    "bucket": "int",
    "series": "bigint",
    "usr": "text",
    "records": "bigint",
    "requests": "bigint",
    "input": "bigint",
    "output": "bigint",
    "cached": "bigint",
    "unpriced": "bigint",
    "cost": "numeric",
}


_Name = tuple[int, str]
"""Of a record, the number of its organization and its id."""


def _insert(table: str, columns: dict[str, str]) -> str:
    arrays = ", ".join(f"%({name})s::{kind}[]" for name, kind in columns.items())
    names = ", ".join(columns)
    return f"INSERT INTO llm_cost_ops.{table} ({names}) SELECT {names} FROM unnest({arrays}) AS n ({names})"


_ADD_REVISIONS = _insert("revision", _REVISION)
_ADD_DELTAS = _insert("delta", _DELTA)


def get_cost(session: Session, organization_id: str, usage_id: str) -> Recorded | None:
    """A record and the revision of its cost that is in force; None when the organization has none such."""
    orgs = organization_ids(session, [organization_id])
    if not orgs or type(as_key(usage_id)) is not bytes:
        return None
    cost = newest(session, orgs)
    made = "v.made" if cost.join else "NULL::bigint"
    rows = session.rows(
        f"SELECT {RECORD_COLUMNS}, {units_sql(cost.cost)}, s.currency, s.status, {cost.number}, {made}, "
        "p.card_id, p.card_version, p.origin_version, p.fallbacks, p.digest "
        f"FROM llm_cost_ops.usage u{cost.join} {cost.join_series} "
        f"JOIN llm_cost_ops.pricing p ON p.id = {cost.pricing} WHERE u.org = %(org)s AND u.id = %(id)s::uuid",
        org=orgs[0],
        id=usage_id,
    )
    if not rows:
        return None
    units, currency, status, number, at, card_id, version, origin, fallbacks, digest = rows[0][5:]
    record = decode_record(rows[0][:5], units, currency, status)
    taken = record.ingested_at
    assert taken is not None
    return Recorded(
        record=record,
        revision=number,
        status=CostStatus(status),
        currency=currency,
        units=units,
        card_id=card_id,
        card_version=version,
        origin_version=origin,
        fallbacks=tuple(filter(None, fallbacks.split(","))),
        card=kept_card(session, digest) if digest else None,
        digest=bytes(digest),
        calculated_at=taken if at is None else from_micros(at),
    )


def _matching(
    session: Session, where: Filter, after: str | None, limit: int
) -> tuple[list[_Name], str | None]:
    """The first records after a position that the filter lets through, and the position of the last."""
    xid, seq = (0, 0) if after is None else two_numbers(after, "position")
    orgs = organization_ids(session, where.organization_ids)
    cost = newest(session, orgs)
    conditions, parameters = record_conditions(where)
    in_time, times = time_conditions(where)
    of_series, named = series_conditions(where)
    more = "".join(f" AND {condition}" for condition in [*conditions, *in_time, *of_series])
    rows = session.rows(
        f"SELECT u.org, u.id::text, u.xid, u.seq FROM llm_cost_ops.usage u{cost.join} "
        f"{cost.join_series} WHERE u.org = ANY(%(orgs)s) "
        f"AND (u.xid, u.seq) > (%(xid)s::text::xid8, %(seq)s){more} ORDER BY u.xid, u.seq LIMIT %(limit)s",
        orgs=orgs,
        xid=xid,
        seq=seq,
        limit=limit,
        **parameters,
        **times,
        **named,
    )
    return [(org, made) for org, made, _, _ in rows], f"{rows[-1][2]}.{rows[-1][3]}" if rows else None


class _Found(NamedTuple):
    """A record whose cost is not what it would be today: its row, and what is to be written."""

    row: tuple[Any, ...]
    series: tuple[str, ...]
    by: Pricing
    units: int | None
    change: Change


def _names(records: Sequence[_Name]) -> dict[str, object]:
    return {"orgs": [org for org, _ in records], "ids": [made for _, made in records]}


_WANTED = "unnest(%(orgs)s::int[], %(ids)s::uuid[]) WITH ORDINALITY AS n (org, id, place)"


def _find(session: Session, records: Sequence[_Name], price: Price) -> list[_Found]:
    cost = newest(session, list({org for org, _ in records}))
    rows = session.rows(
        f"SELECT u.ts, u.record, {units_sql(cost.cost)}, s.currency, s.status, u.org, u.id::text, "
        f"{cost.number}, s.id, coalesce(u.usr, ''), u.requests, u.input, u.output, u.cached FROM {_WANTED} "
        f"JOIN llm_cost_ops.usage u ON u.org = n.org AND u.id = n.id{cost.join} "
        f"{cost.join_series} ORDER BY n.place",
        **_names(records),
    )
    found = []
    for ts, data, units, currency, status, *row in rows:
        record = decode_usage(data)
        record.timestamp = from_micros(ts)
        priced = price(record)
        by = priced.by
        if (by.status, by.currency, priced.units) == (status, currency, units):
            continue
        check_cost(priced.units, by.currency)
        change = Change(
            provider=record.provider,
            model_id=record.model_id,
            units_before=units,
            currency_before=currency,
            units_after=priced.units,
            currency_after=by.currency,
        )
        found.append(_Found((*row, ts), series_of(record, by), by, priced.units, change))
    return found


def find_changes(session: Session, where: Filter, price: Price, after: str | None, limit: int) -> Repriced:
    """What `reprice` would do, without doing it."""
    with session.snapshot():
        records, position = _matching(session, where, after, limit)
        found = _find(session, records, price)
    return Repriced(len(records), [each.change for each in found], position)


def reprice(
    session: Session, where: Filter, price: Price, after: str | None, limit: int, now: datetime
) -> Repriced:
    """Add a revision to each of the next records whose status, currency or cost is not what `price` says."""
    with session.transaction():
        records, position = _matching(session, where, after, limit)
        # Who else reprices one of them waits, and then sees, in a statement of its own, what was done.
        session.run(
            "SELECT 1 FROM llm_cost_ops.usage u JOIN unnest(%(orgs)s::int[], %(ids)s::uuid[]) AS n (org, id) "
            "ON u.org = n.org AND u.id = n.id ORDER BY u.org, u.id FOR UPDATE OF u",
            **_names(records),
        )
        found = _find(session, records, price)
        if found:
            _write(session, found, to_micros(now))
    return Repriced(len(records), [each.change for each in found], position)


def _write(session: Session, found: list[_Found], made: int) -> None:
    ids = intern(session, [(each.series, each.by) for each in found])
    revisions: list[tuple[object, ...]] = []
    sums: dict[tuple[int, int, int, str], list[int]] = {}
    for each, (_, after, pricing) in zip(found, ids, strict=True):
        org, usage_id, number, before, user, *counts, ts = each.row
        revisions.append((org, usage_id, number + 1, after, pricing, cost_text(each.units), made))
        for series, sign, units in ((before, -1, each.change.units_before), (after, 1, each.units)):
            amounts = [1, *counts, counts[0] if units is None else 0, units or 0]
            totals = sums.setdefault((org, ts // QUARTER, series, user), [0] * 7)
            for at, amount in enumerate(amounts):
                totals[at] += sign * amount
    session.run(_ADD_REVISIONS, **_columns(_REVISION, revisions))
    changed = sorted((place, amounts) for place, amounts in sums.items() if any(amounts))
    deltas = [(*place, *amounts[:6], cost_text(amounts[6])) for place, amounts in changed]

    if deltas:
        session.run(_ADD_DELTAS, **_columns(_DELTA, deltas))


def _columns(names: dict[str, str], rows: list[tuple[Any, ...]]) -> dict[str, object]:
    return dict(zip(names, map(text_array, zip(*rows, strict=True)), strict=True))
