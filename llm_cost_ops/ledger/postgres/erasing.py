"""Erasing a user from rows: looked for some rows at a time, and rewritten where they are found.

The counts, costs and keys of a row stay, and so do its sums; the kept sums of days, which may have users, go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import decode_usage, encode_struct
from llm_cost_ops.ledger.erasure import HAS_UNKNOWN, entry_to_rewrite, erased_reason, mention_of, without_user
from llm_cost_ops.ledger.postgres.audit import add_events
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.day_sums import forget
from llm_cost_ops.ledger.postgres.interning import organization_ids
from llm_cost_ops.ledger.postgres.listing import two_numbers
from llm_cost_ops.ledger.postgres.revise import Name, lock_records, names_of
from llm_cost_ops.ledger.postgres.rows import prepare

__all__ = ["erase", "find_mentions"]

_EXAMINED = 10_000
_NAMES = "(strpos({0}.record, %(mention)s) > 0 OR strpos({0}.record, %(unknown)s) > 0)"
_MENTIONS = f"""
    WITH page AS MATERIALIZED (
        SELECT u.org, u.id, u.xid, u.seq, u.record FROM llm_cost_ops.usage u WHERE u.org = ANY(%(orgs)s)
        AND (u.xid, u.seq) > (%(xid)s::text::xid8, %(seq)s) ORDER BY u.xid, u.seq LIMIT {_EXAMINED}
    )
    SELECT p.org, p.id::text, p.xid, p.seq, {_NAMES.format("p")}
        OR EXISTS (SELECT 1 FROM llm_cost_ops.first_record f
            WHERE f.org = p.org AND f.id = p.id AND {_NAMES.format("f")})
        OR EXISTS (SELECT 1 FROM llm_cost_ops.revision v WHERE v.org = p.org AND v.id = p.id
            AND ({_NAMES.format("v")} OR strpos(v.reason, %(user)s) > 0))
    FROM page p ORDER BY p.xid, p.seq
"""
_WANTED = "unnest(%(orgs)s::int[], %(ids)s::uuid[]) AS n (org, id)"
_COPIES = (
    f"SELECT v.org, v.id::text, 0, f.record, '' FROM {_WANTED.replace('n (', 'v (')} "
    "JOIN llm_cost_ops.first_record f ON f.org = v.org AND f.id = v.id UNION ALL "
    f"SELECT v.org, v.id::text, v.number, v.record, v.reason FROM {_WANTED} "
    "JOIN llm_cost_ops.revision v ON v.org = n.org AND v.id = n.id"
)


def find_mentions(
    session: Session, user_id: str, names: Sequence[str], after: str | None
) -> tuple[list[Name], str | None]:
    """The records behind a position that may name a user, of some thousands, and the position of the last of
    these; None where there are no more.
    """
    xid, seq = (0, 0) if after is None else two_numbers(after, "position")
    rows = session.rows(
        _MENTIONS,
        orgs=organization_ids(session, names),
        xid=xid,
        seq=seq,
        mention=mention_of(user_id).decode(),
        unknown=HAS_UNKNOWN.decode(),
        user=user_id,
    )
    return [row[:2] for row in rows if row[4]], f"{rows[-1][2]}.{rows[-1][3]}" if rows else None


def erase(
    session: Session, records: Sequence[Name], user_id: str, subject: str, at: datetime, actor: str
) -> int:
    """Erase a user from records, and tell of it under a subject; how many named them."""
    with session.transaction():
        records = lock_records(session, records)
        changed = _erase_copies(session, records, user_id) | _erase_records(session, records, user_id)
        for org, made in sorted(changed):
            session.run(
                "INSERT INTO llm_cost_ops.erased (org, id) VALUES (%s, %s::uuid) ON CONFLICT DO NOTHING",
                org,
                made,
            )
        named = dict(
            session.rows(
                "SELECT id, name FROM llm_cost_ops.organization WHERE id = ANY(%s)",
                list({org for org, _ in changed}),
            )
        )
        touched = Counter(named[org] for org, _ in changed)
        forget(session, named)
        add_events(session, audit.erased(touched, subject, at, actor))
    return len(changed)


def _erase_records(session: Session, records: Sequence[Name], user_id: str) -> set[Name]:
    rows = session.rows(
        f"SELECT u.org, u.id::text, u.record FROM {_WANTED} "
        "JOIN llm_cost_ops.usage u ON u.org = n.org AND u.id = n.id",
        **names_of(records),
    )
    changed: set[Name] = set()
    for org, made, data in rows:
        before = decode_usage(data)
        record = without_user(before, user_id)
        if record is before:
            continue
        row = prepare(entry_to_rewrite(record))
        session.run(
            "UPDATE llm_cost_ops.usage SET usr = %(usr)s, tags = %(tags)s::jsonb, "
            "labels = %(labels)s::jsonb, record = %(record)s WHERE org = %(org)s AND id = %(id)s::uuid",
            org=org,
            id=made,
            usr=row.usr,
            tags=row.tags,
            labels=row.labels,
            record=row.record,
        )
        changed.add((org, made))
    return changed


def _erase_copies(session: Session, records: Sequence[Name], user_id: str) -> set[Name]:
    """Erase a user from what records were before, and from the reasons for it."""
    changed: set[Name] = set()
    for org, made, number, data, reason in session.rows(_COPIES, **names_of(records)):
        place: dict[str, Any] = {"org": org, "id": made, "number": number}
        whose = "org = %(org)s AND id = %(id)s::uuid"
        table = f"revision SET record = %(record)s WHERE number = %(number)s AND {whose}"
        if not number:
            table = f"first_record SET record = %(record)s WHERE {whose}"
        before = None if data is None else decode_usage(data)
        record = None if before is None else without_user(before, user_id)
        if record is not None and record is not before:
            changed.add((org, made))
            session.run(f"UPDATE llm_cost_ops.{table}", **place, record=encode_struct(record).decode())
        said = erased_reason(reason, user_id)
        if said != reason:
            changed.add((org, made))
            reasons = f"revision SET reason = %(reason)s WHERE number = %(number)s AND {whose}"
            session.run(f"UPDATE llm_cost_ops.{reasons}", **place, reason=said)
    return changed
