"""Writing revisions: a row beside that of the record, and the sums moved from what counted before.

Repricing changes what a record costs, voiding its status. Correcting and superseding change the record too:
its row then holds what is in force, so that queries read one table, and the record as it was sent is kept in
first_record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm_cost_ops._gen.messages import RevisionKind
from llm_cost_ops.ledger.encoding import as_key, decode_usage, to_micros
from llm_cost_ops.ledger.sqlite.rows import (
    Columns,
    Ids,
    SeriesKey,
    columns_of,
    prepare,
    series_key_of,
    units_of,
)
from llm_cost_ops.ledger.sqlite.sums import Place, add, fold, newest, places
from llm_cost_ops.ledger.types import Entry, Revision

__all__ = ["OF_RECORD", "Counted", "NewRevision", "add_revisions", "revise"]

OF_RECORD = "u.org = (SELECT id FROM organization WHERE name = ?) AND u.id = ? AND u.series > 0"
"""SQL on `usage u` for the record with an id of an organization by its name."""

_ADD = (
    "INSERT INTO revision (usage, number, behind, series, pricing, cost_micros, cost_picos, made, kind, "
    "reason, actor, record) VALUES (?, ?, (SELECT max(seq) FROM usage), ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_KEEP_FIRST = "INSERT INTO first_record SELECT seq, record FROM usage WHERE seq = ? ON CONFLICT DO NOTHING"
_REPLACE = (
    "UPDATE usage SET requests = ?, input = ?, output = ?, cached = ?, user = ?, tags = ?, labels = ?, "
    "record = ? WHERE seq = ?"
)


class Counted(NamedTuple):
    """What a record counts as in the sums: its series, user, counts, and its cost in 10^-12 or None."""

    series: int
    user: str
    requests: int
    input: int
    output: int
    cached: int
    units: int | None


class NewRevision(NamedTuple):
    """A revision of the row `seq`, whose time is `ts`; times are in microseconds since 1970.

    `cost` are the two columns of the cost. `content` are tags, labels and the record as JSON where the
    record changes, which then counts as `after` says.
    """

    seq: int
    ts: int
    number: int
    before: Counted
    after: Counted
    pricing: int
    cost: tuple[int | None, int | None]
    made: int
    kind: RevisionKind
    reason: str = ""
    actor: str = ""
    content: tuple[object, ...] | None = None


def _changed_to(series: int, columns: Columns, units: int | None) -> tuple[Counted, tuple[object, ...]]:
    """What a row counts as, and its `content`, once its record is the one that `columns` are of."""
    _, _, _, _, *counts, _, _, user, tags, labels, record = columns
    return Counted._make((series, user or "", *counts, units)), (tags, labels, record)


def revise(
    cursor: sqlite3.Cursor, ids: Callable[[sqlite3.Cursor, SeriesKey], Ids], revision: Revision
) -> bool:
    """Add a revision to a record, if it comes after the one in force. `ids` is that of the Interner."""
    cost = newest(cursor.connection)
    row = cursor.execute(
        f"SELECT {cost.number}, u.seq, u.ts, u.record, {cost.micros}, {cost.picos}, {cost.series}, "
        f"ifnull(u.user, ''), u.requests, u.input, u.output, u.cached FROM usage u{cost.join} "
        f"WHERE {OF_RECORD}",
        (revision.organization_id, as_key(revision.usage_id)),
    ).fetchone()
    if row is None or row[0] != revision.after:
        return False
    number, seq, ts, data, micros, picos, *counted = row
    before = Counted._make((*counted, units_of(micros, picos)))
    record, by = revision.record, revision.by
    content = None
    if record is None:
        _, series, pricing = ids(cursor, series_key_of(decode_usage(data), by))
        after = before._replace(series=series, units=revision.units)
    else:
        series_key, columns, _ = prepare(Entry(record, "", revision.made_at, revision.units, by))
        _, series, pricing = ids(cursor, series_key)
        after, content = _changed_to(series, columns, revision.units)
    new = NewRevision(
        seq=seq,
        ts=ts,
        number=number + 1,
        before=before,
        after=after,
        pricing=pricing,
        cost=columns_of(revision.units, by),
        made=to_micros(revision.made_at),
        kind=revision.kind,
        reason=revision.reason,
        actor=revision.actor,
        content=content,
    )
    add_revisions(cursor, [new])
    return True


def add_revisions(cursor: sqlite3.Cursor, revisions: Sequence[NewRevision]) -> None:
    """Write revisions, each of another record, in the transaction of the caller."""
    if any(each.content is not None for each in revisions):
        # Rows that are not in the sums yet are added to them as they stand.
        fold(cursor)
    # What is added is after - before, whether the cost before is in the sums already or in the tail.
    sums: dict[Place, list[int]] = {}
    for each in revisions:
        for counted, sign in ((each.before, -1), (each.after, 1)):
            series, _, *counts, units = counted
            amounts = [1, *counts, counts[0] if units is None else 0, units or 0]
            for place in places(series, each.ts):
                totals = sums.setdefault(place, [0] * 7)
                for at, amount in enumerate(amounts):
                    totals[at] += sign * amount
        if each.content is not None:
            _, user, *counts, _ = each.after
            cursor.execute(_KEEP_FIRST, (each.seq,))
            cursor.execute(_REPLACE, (*counts, user or None, *each.content, each.seq))
    cursor.executemany(_ADD, map(_row, revisions))
    add(cursor, {place: amounts for place, amounts in sums.items() if any(amounts)})


def _row(new: NewRevision) -> tuple[object, ...]:
    record = None if new.content is None else new.content[-1]
    said = (str(new.kind), new.reason, new.actor, record)
    return (new.seq, new.number, new.after.series, new.pricing, *new.cost, new.made, *said)
