"""The audit log in SQLite: a table that is only added to, which its triggers hold everybody to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from llm_cost_ops._gen.messages import AuditEvent
from llm_cost_ops.ledger.encoding import audit_event, encode_struct, to_micros
from llm_cost_ops.ledger.types import AuditFilter
from llm_cost_ops.rpc.status import invalid_argument

__all__ = ["add_events", "audit_events"]

_ADD = "INSERT INTO audit (made, actor, org, action, subject, details) VALUES (?, ?, ?, ?, ?, ?)"


def add_events(cursor: sqlite3.Cursor, events: Iterable[AuditEvent]) -> None:
    """Add events, in the transaction of the caller."""
    for event in events:
        assert event.made_at is not None
        details = encode_struct(event.details).decode()
        said = (event.actor, event.organization_id, event.action, event.subject, details)
        cursor.execute(_ADD, (to_micros(event.made_at), *said))


def audit_events(
    connection: sqlite3.Connection, where: AuditFilter, limit: int, after: str | None, offset: int | None
) -> tuple[list[AuditEvent], str | None]:
    """A page of events, the newest first, and the position to go on after."""
    conditions: list[str] = []
    parameters: list[object] = []
    for column, values in (
        ("org", where.organization_ids),
        ("action", where.actions),
        ("actor", where.actors),
        ("subject", where.subjects),
    ):
        if values:
            conditions.append(f"{column} IN ({', '.join('?' * len(values))})")
            parameters += values
    for moment, comparison in ((where.start, ">="), (where.end, "<")):
        if moment is not None:
            conditions.append(f"made {comparison} ?")
            parameters.append(to_micros(moment))
    if after is not None:
        if not (after.isascii() and after.isdigit() and len(after) < 19):
            raise invalid_argument("cursor", "is not one that this ledger gave")
        conditions.append("seq < ?")
        parameters.append(int(after))
    rows = connection.execute(
        f"SELECT seq, made, actor, org, action, subject, details FROM audit "
        f"WHERE {' AND '.join(conditions) or 'true'} ORDER BY seq DESC LIMIT ? OFFSET ?",
        (*parameters, limit + 1, offset or 0),
    ).fetchall()
    events = [audit_event(*row) for row in rows[:limit]]
    return events, str(rows[limit - 1][0]) if len(rows) > limit else None
