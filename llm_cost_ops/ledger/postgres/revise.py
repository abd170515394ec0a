"""Writing revisions: a row beside that of the record, and the sums moved from what counted before.

Repricing changes what a record costs, voiding its status. Correcting and superseding change the record too:
its row then holds what is in force, so that queries read one table, and the record as it was sent is kept in
first_record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llm_cost_ops._gen.messages import RevisionKind
from llm_cost_ops.ledger.encoding import as_key, check_cost, decode_usage, to_micros
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.interning import intern, organization_ids
from llm_cost_ops.ledger.postgres.rows import cost_text, prepare, series_of, text_array, units_sql
from llm_cost_ops.ledger.postgres.sums import newest
from llm_cost_ops.ledger.types import Entry, Revision
from llm_cost_ops.rules.times import QUARTER

__all__ = [
    "Counted",
    "Name",
    "NewRevision",
    "add_revisions",
    "after_revision",
    "lock_records",
    "names_of",
    "revise",
]

Name = tuple[int, str]
"""Of a record, the number of its organization and its id."""

_REVISION = {
    "org": "int",
    "id": "uuid",
    "number": "int",
    "series": "bigint",
    "pricing": "bigint",
    "cost": "numeric",
    "made": "bigint",
    "kind": "text",
    "reason": "text",
    "actor": "text",
    "record": "text",
}
_DELTA = {
    "org": "int",
    "bucket": "int",
    "series": "bigint",
    "records": "bigint",
    "requests": "bigint",
    "input": "bigint",
    "output": "bigint",
    "cached": "bigint",
    "unpriced": "bigint",
    "cost": "numeric",
    "revisions": "bigint",
}


def _insert(table: str, columns: dict[str, str]) -> str:
    arrays = ", ".join(f"%({name})s::{kind}[]" for name, kind in columns.items())
    names = ", ".join(columns)
    return f"INSERT INTO llm_cost_ops.{table} ({names}) SELECT {names} FROM unnest({arrays}) AS n ({names})"


_ADD_REVISIONS = _insert("revision", _REVISION)
_ADD_DELTAS = _insert("delta", _DELTA)
# In one order, so that two of these wait for each other in one direction only.
_LOCK = (
    "SELECT u.org, u.id::text FROM llm_cost_ops.usage u "
    "JOIN unnest(%(orgs)s::int[], %(ids)s::uuid[]) AS n (org, id) ON u.org = n.org AND u.id = n.id "
    "WHERE u.series > 0 ORDER BY u.org, u.id FOR UPDATE OF u"
)
_KEEP_FIRST = (
    "INSERT INTO llm_cost_ops.first_record (org, id, record) SELECT u.org, u.id, u.record "
    "FROM llm_cost_ops.usage u WHERE u.org = %(org)s AND u.id = %(id)s::uuid ON CONFLICT DO NOTHING"
)
_REPLACE = (
    "UPDATE llm_cost_ops.usage u SET requests = %(requests)s, input = %(input)s, output = %(output)s, "
    "cached = %(cached)s, usr = %(usr)s, tags = %(tags)s::jsonb, labels = %(labels)s::jsonb, "
    "record = %(record)s WHERE u.org = %(org)s AND u.id = %(id)s::uuid"
)


class Counted(NamedTuple):
    """What a record counts as in the sums: its series, counts, and its cost in 10^-12 or None."""

    series: int
    requests: int
    input: int
    output: int
    cached: int
    units: int | None


class NewRevision(NamedTuple):
    """A revision of the record `name`, whose time is `ts`; times are in microseconds since 1970.

    `content` has the user, tags, labels and the record as JSON where the record changes, which then counts as
    `after` says.
    """

    name: Name
    ts: int
    number: int
    before: Counted
    after: Counted
    pricing: int
    made: int
    kind: RevisionKind
    reason: str = ""
    actor: str = ""
    content: dict[str, str | None] | None = None


def names_of(records: Sequence[Name]) -> dict[str, object]:
    """The records as the parameters orgs and ids."""
    return {"orgs": [org for org, _ in records], "ids": [made for _, made in records]}


def lock_records(session: Session, records: Sequence[Name]) -> list[Name]:
    """Have whoever else changes one of the records wait until the transaction ends.

    What they did is seen by the statements after this one. Returns the records that are there: a retention
    may have removed some since they were found.
    """
    return [(org, made) for org, made in session.rows(_LOCK, **names_of(records))]


def revise(session: Session, revision: Revision) -> bool:
    """Add a revision to a record, if it comes after the one in force; within a transaction."""
    orgs = organization_ids(session, [revision.organization_id])
    if not orgs or type(as_key(revision.usage_id)) is not bytes:
        return False
    name = (orgs[0], revision.usage_id)
    if not lock_records(session, [name]):
        return False
    cost = newest(session, orgs)
    rows = session.rows(
        f"SELECT {cost.number}, u.ts, u.record, {cost.series}, u.requests, u.input, "
        f"u.output, u.cached, {units_sql(cost.cost)} FROM llm_cost_ops.usage u{cost.join} "
        "WHERE u.org = %(org)s AND u.id = %(id)s::uuid",
        org=name[0],
        id=name[1],
    )
    number, ts, data, *counted = rows[0]
    if number != revision.after:
        return False
    before = Counted._make(counted)
    after, pricing, content = after_revision(session, revision, data, before)
    new = NewRevision(
        name=name,
        ts=ts,
        number=number + 1,
        before=before,
        after=after,
        pricing=pricing,
        made=to_micros(revision.made_at),
        kind=revision.kind,
        reason=revision.reason,
        actor=revision.actor,
        content=content,
    )
    add_revisions(session, [new])
    return True


def after_revision(
    session: Session, revision: Revision, data: str, before: Counted
) -> tuple[Counted, int, dict[str, str | None] | None]:
    """What the record counts as from now on, by which pricing, and its new content if it changes."""
    record, by = revision.record, revision.by
    check_cost(revision.units, by.currency)
    if record is None:
        [(_, series, pricing)] = intern(session, [(series_of(decode_usage(data), by), by)])
        return before._replace(series=series, units=revision.units), pricing, None
    row = prepare(Entry(record, "", revision.made_at, revision.units, by))
    [(_, series, pricing)] = intern(session, [(row.series, by)])
    after = Counted(series, row.requests, row.input, row.output, row.cached, revision.units)
    return after, pricing, {"usr": row.usr, "tags": row.tags, "labels": row.labels, "record": row.record}


def add_revisions(session: Session, revisions: Sequence[NewRevision]) -> None:
    """Write revisions, each of another record, in the transaction of the caller."""
    if not revisions:
        return
    for each in revisions:
        if each.content is not None:
            _replace(session, each, each.content)
    session.run(_ADD_REVISIONS, **_columns(_REVISION, [_row(each) for each in revisions]))
    _move_sums(session, [(each.name[0], each.ts, each.before, each.after) for each in revisions])


def _move_sums(session: Session, moves: Sequence[tuple[int, int, Counted, Counted]]) -> None:
    """Have the sums follow records of organizations, by their times, from what they counted as before to what
    they count as after their revisions.
    """
    sums: dict[tuple[int, int, int], list[int]] = {}
    for org, ts, before, after in moves:
        for counted, sign in ((before, -1), (after, 1)):
            series, *counts, units = counted
            amounts = [1, *counts, counts[0] if units is None else 0, units or 0]
            totals = sums.setdefault((org, ts // QUARTER, series), [0] * 8)
            for at, amount in enumerate(amounts):
                totals[at] += sign * amount
            totals[7] += sign == 1
    changed = sorted((place, amounts) for place, amounts in sums.items() if any(amounts))
    if changed:
        rows = [(*place, *amounts[:6], cost_text(amounts[6]), amounts[7]) for place, amounts in changed]
        session.run(_ADD_DELTAS, **_columns(_DELTA, rows))


def _replace(session: Session, new: NewRevision, content: dict[str, str | None]) -> None:
    org, made = new.name
    after = new.after
    session.run(_KEEP_FIRST, org=org, id=made)
    session.run(
        _REPLACE,
        org=org,
        id=made,
        requests=after.requests,
        input=after.input,
        output=after.output,
        cached=after.cached,
        **content,
    )


def _row(new: NewRevision) -> tuple[object, ...]:
    record = None if new.content is None else new.content["record"]
    cost = cost_text(new.after.units)
    said = (str(new.kind), new.reason, new.actor, record)
    return (*new.name, new.number, new.after.series, new.pricing, cost, new.made, *said)


def _columns(names: dict[str, str], rows: Sequence[tuple[object, ...]]) -> dict[str, object]:
    return dict(zip(names, map(text_array, zip(*rows, strict=True)), strict=True))
