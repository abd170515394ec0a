"""Removing rows that are past an organization's retention, some at a time.

What is left of a row keeps its id, so that the primary key still refuses a key that was used, and nothing
else: its series is 0, its time before every other. The sums stay, and what rows were part of them is added to
removed_sum, so that sums can still be checked against rows.
"""

from __future__ import annotations

from datetime import datetime

from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import from_micros, to_micros
from llm_cost_ops.ledger.postgres.audit import add_events
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.day_sums import forget_before
from llm_cost_ops.ledger.postgres.interning import organization_ids
from llm_cost_ops.ledger.postgres.revise import lock_records, names_of
from llm_cost_ops.ledger.postgres.sums import newest, quarter_sql
from llm_cost_ops.ledger.retention import REMOVED_AT
from llm_cost_ops.ledger.types import Retention

__all__ = ["count_older", "remove", "retentions", "set_retention"]

_OLDER = f"FROM llm_cost_ops.usage u WHERE u.org = %(org)s AND u.ts > {REMOVED_AT} AND u.ts < %(before)s"
_WANTED = "unnest(%(orgs)s::int[], %(ids)s::uuid[]) AS n (org, id)"
_COUNTS = ("requests", "input", "output", "cached")


def retentions(session: Session) -> list[Retention]:
    """What holds for each organization that has a retention, or had one."""
    rows = session.rows('SELECT org, days, removed FROM llm_cost_ops.retention ORDER BY org COLLATE "C"')
    return [
        Retention(
            organization_id=org, days=days, removed_before=None if removed is None else from_micros(removed)
        )
        for org, days, removed in rows
    ]


def set_retention(session: Session, organization: str, days: int, at: datetime, actor: str) -> None:
    """Keep an organization's records for so many days, 0 for ever."""
    with session.transaction():
        session.run(
            "INSERT INTO llm_cost_ops.retention VALUES (%s, 0, NULL) ON CONFLICT DO NOTHING", organization
        )
        changed = session.rows(
            "UPDATE llm_cost_ops.retention SET days = %s WHERE org = %s AND days <> %s RETURNING org",
            days,
            organization,
            days,
        )
        if changed:
            add_events(session, [audit.retention_set(organization, days, at, actor)])


def count_older(session: Session, organization: str, before: datetime) -> int:
    """How many records of an organization are from before a moment."""
    found = 0
    for org in organization_ids(session, [organization]):
        [(found,)] = session.rows(f"SELECT count(*) {_OLDER}", org=org, before=to_micros(before))
    return found


def remove(
    session: Session, organization: str, before: datetime, limit: int, at: datetime, actor: str
) -> int:
    """Remove at most so many of an organization's records from before a moment; how many it were.

    The first says from when on older ones are missing, and tells of it.
    """
    moment = to_micros(before)
    for org in organization_ids(session, [organization]):
        number = None
        while number is None:
            # Another one each time: the rows that were removed meanwhile stay locked until the end of this.
            with session.transaction():
                number = _remove(session, org, moment, limit)
                if number and _begins(session, organization, moment):
                    add_events(session, [audit.retention_applied(organization, before, at, actor)])
                if number:
                    forget_before(session, org, moment)
        return number
    return 0


def _begins(session: Session, organization: str, moment: int) -> bool:
    return bool(
        session.rows(
            "UPDATE llm_cost_ops.retention SET removed = %(moment)s WHERE org = %(org)s "
            f"AND coalesce(removed, {REMOVED_AT}) < %(moment)s RETURNING org",
            org=organization,
            moment=moment,
        )
    )


def _remove(session: Session, org: int, moment: int, limit: int) -> int | None:
    """How many were removed; None where another retention had removed all that were found."""
    oldest = f"SELECT u.id::text {_OLDER} ORDER BY u.ts LIMIT %(limit)s"
    older = session.rows(oldest, org=org, before=moment, limit=limit)
    found = lock_records(session, [(org, made) for (made,) in older])
    if not found:
        return None if older else 0
    names = names_of(found)
    cost = newest(session, [org])
    unpriced = f"sum(CASE WHEN {cost.cost} IS NULL THEN u.requests ELSE 0 END)"
    session.run(
        f"INSERT INTO llm_cost_ops.removed_sum AS r SELECT u.org, {quarter_sql('u.ts')}, {cost.series}, "
        f"count(*), {', '.join(f'sum(u.{name})' for name in _COUNTS)}, {unpriced}, "
        f"coalesce(sum({cost.cost}), 0) FROM {_WANTED} "
        f"JOIN llm_cost_ops.usage u ON u.org = n.org AND u.id = n.id{cost.join} GROUP BY 1, 2, 3 "
        "ORDER BY 1, 2, 3 ON CONFLICT (org, bucket, series) DO UPDATE SET "
        + ", ".join(
            f"{name} = r.{name} + excluded.{name}" for name in ("records", *_COUNTS, "unpriced", "cost")
        ),
        **names,
    )
    for table in ("first_record", "erased", "revision"):
        session.run(
            f"DELETE FROM llm_cost_ops.{table} x USING {_WANTED} WHERE x.org = n.org AND x.id = n.id", **names
        )
    session.run(
        "UPDATE llm_cost_ops.usage u SET series = 0, pricing = 0, key = NULL, ingested = 0, "
        f"ts = {REMOVED_AT}, requests = 0, input = 0, output = 0, cached = 0, cost = NULL, usr = NULL, "
        f"tags = NULL, labels = NULL, record = '' FROM {_WANTED} WHERE u.org = n.org AND u.id = n.id",
        **names,
    )
    return len(found)
