"""Revisions: one record's cost with what priced it, every revision of it, and repricing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from llm_cost_ops._gen.messages import CostStatus, RevisionKind
from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import as_key, check_cost, decode_usage, from_micros, to_micros
from llm_cost_ops.ledger.postgres.audit import add_events
from llm_cost_ops.ledger.postgres.cards import kept_card
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.interning import intern, organization_ids
from llm_cost_ops.ledger.postgres.listing import picked_series, time_conditions, two_numbers
from llm_cost_ops.ledger.postgres.revise import (
    Counted,
    Name,
    NewRevision,
    add_revisions,
    lock_records,
    names_of,
)
from llm_cost_ops.ledger.postgres.rows import RECORD_COLUMNS, decode_record, series_of, units_sql
from llm_cost_ops.ledger.postgres.sums import newest, record_conditions
from llm_cost_ops.ledger.types import Change, Filter, Price, Recorded, Repriced, Revised
from llm_cost_ops.pricing.types import Pricing

__all__ = ["find_changes", "get_cost", "reprice", "revisions"]

_REVISIONS = (
    f"SELECT v.number, v.kind, v.reason, v.actor, v.made, v.record, {RECORD_COLUMNS}, {units_sql('v.cost')}, "
    "s.currency, s.status FROM llm_cost_ops.usage u "
    "JOIN llm_cost_ops.revision v ON v.org = u.org AND v.id = u.id "
    "JOIN llm_cost_ops.series s ON s.org = v.org AND s.id = v.series "
    "WHERE u.org = %(org)s AND u.id = %(id)s::uuid ORDER BY v.number"
)
_FIRST = (
    f"SELECT 1, 'recorded', '', '', u.ingested, f.record, {RECORD_COLUMNS}, {units_sql('u.cost')}, "
    "s.currency, s.status FROM llm_cost_ops.usage u "
    "JOIN llm_cost_ops.series s ON s.org = u.org AND s.id = u.series "
    "LEFT JOIN llm_cost_ops.first_record f ON f.org = u.org AND f.id = u.id "
    "WHERE u.org = %(org)s AND u.id = %(id)s::uuid"
)


def get_cost(session: Session, organization_id: str, usage_id: str) -> Recorded | None:
    """A record and the revision of its cost that is in force; None when the organization has none such."""
    orgs = organization_ids(session, [organization_id])
    if not orgs or type(as_key(usage_id)) is not bytes:
        return None
    cost = newest(session, orgs)
    made = "v.made, v.kind, v.reason" if cost.join else "NULL::bigint, NULL, NULL"
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
    units, currency, status, number, at, kind, reason, *priced = rows[0][5:]
    card_id, version, origin, fallbacks, digest = priced
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
        kind=RevisionKind(kind or "recorded"),
        reason=reason or "",
    )


def revisions(session: Session, organization_id: str, usage_id: str) -> list[Revised]:
    """Every revision of a record; none when the organization has no such record."""
    orgs = organization_ids(session, [organization_id])
    if not orgs or type(as_key(usage_id)) is not bytes:
        return []
    rows = session.rows(_FIRST, org=orgs[0], id=usage_id)
    rows += session.rows(_REVISIONS, org=orgs[0], id=usage_id)
    found = []
    content = None
    for number, kind, reason, actor, made, changed, *row in rows:
        # The row has the record in force; what it was before stands in first_record and in revisions.
        content = changed or content or row[4]
        revised = Revised(
            number=number,
            kind=RevisionKind(kind),
            record=decode_record((*row[:4], content), *row[5:]),
            reason=reason,
            actor=actor,
            made_at=from_micros(made),
        )
        found.append(revised)
    return found


def _matching(
    session: Session, where: Filter, after: str | None, limit: int
) -> tuple[list[Name], str | None]:
    """The first records after a position that the filter lets through, and the position of the last."""
    xid, seq = (0, 0) if after is None else two_numbers(after, "position")
    orgs = organization_ids(session, where.organization_ids)
    cost = newest(session, orgs)
    conditions, parameters = record_conditions(where)
    in_time, times = time_conditions(where)
    in_series, picked = picked_series(session, where, orgs, cost)
    more = "".join(f" AND {condition}" for condition in [*conditions, *in_time, *in_series])
    rows = session.rows(
        f"SELECT u.org, u.id::text, u.xid, u.seq FROM llm_cost_ops.usage u{cost.join} "
        "WHERE u.org = ANY(%(orgs)s) AND (u.xid, u.seq) > (%(xid)s::text::xid8, %(seq)s)"
        f"{more} ORDER BY u.xid, u.seq LIMIT %(limit)s",
        orgs=orgs,
        xid=xid,
        seq=seq,
        limit=limit,
        **parameters,
        **times,
        **picked,
    )
    return [(org, made) for org, made, _, _ in rows], f"{rows[-1][2]}.{rows[-1][3]}" if rows else None


class _Found(NamedTuple):
    """A record whose cost is not what it would be today: its row, and what is to be written."""

    row: tuple[Any, ...]
    series: tuple[str, ...]
    by: Pricing
    units: int | None
    change: Change


_WANTED = "unnest(%(orgs)s::int[], %(ids)s::uuid[]) WITH ORDINALITY AS n (org, id, place)"


def _find(session: Session, records: Sequence[Name], price: Price) -> list[_Found]:
    cost = newest(session, list({org for org, _ in records}))
    rows = session.rows(
        f"SELECT u.ts, u.record, {units_sql(cost.cost)}, s.currency, s.status, u.org, u.id::text, "
        f"{cost.number}, s.id, u.requests, u.input, u.output, u.cached FROM {_WANTED} "
        f"JOIN llm_cost_ops.usage u ON u.org = n.org AND u.id = n.id{cost.join} "
        f"{cost.join_series} ORDER BY n.place",
        **names_of(records),
    )
    found = []
    for ts, data, units, currency, status, *row in rows:
        if status == CostStatus.VOIDED:
            continue
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
    session: Session,
    where: Filter,
    price: Price,
    after: str | None,
    limit: int,
    now: datetime,
    actor: str,
) -> Repriced:
    """Add a revision to each of the next records whose status, currency or cost is not what `price` says."""
    with session.transaction():
        records, position = _matching(session, where, after, limit)
        lock_records(session, records)
        found = _find(session, records, price)
        ids = intern(session, [(each.series, each.by) for each in found])
        new = []
        for each, (_, series, pricing) in zip(found, ids, strict=True):
            org, usage_id, number, *counted, ts = each.row
            before = Counted._make((*counted, each.change.units_before))
            after_it = before._replace(series=series, units=each.units)
            kind, made = RevisionKind.REPRICED, to_micros(now)
            name = (org, usage_id)
            new.append(NewRevision(name, ts, number + 1, before, after_it, pricing, made, kind, actor=actor))
        add_revisions(session, new)
        add_events(session, audit.repriced(Counter(each.series[0] for each in found), now, actor))
    return Repriced(len(records), [each.change for each in found], position)
