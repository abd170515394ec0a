"""Writing rows of usage and what they add to the sums, in one transaction that leaves out what is there.

Few rows are inserted, in one round trip. Many are copied, which takes several, and two thirds of the time
for each row. COPY fails at a row that is there: then, and for some writes after that, rows are looked for
first, and the rest is copied; should somebody else commit one of those in between, they are inserted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.errors import is_lost
from llm_cost_ops.ledger.postgres.interning import Ids, intern
from llm_cost_ops.ledger.postgres.rows import Row, copy_line, text_array
from llm_cost_ops.ledger.postgres.sums import quarter_sql

__all__ = ["write"]

MIN_COPIED = 100
"""So many rows, and more, are copied."""

_LOOKS = 16
"""After rows that were there already, so many writes that copy look for theirs first.

To look takes an eighth of what a write takes, and to copy in vain about as long as to copy.
"""

# The database works at the first lines while the next are made.
_LINES_AT_ONCE = 250

_TYPES = {
    "series": "bigint",
    "pricing": "bigint",
    "seq": "bigint",
    "id": "uuid",
    "key": "text",
    "ingested": "bigint",
    "ts": "bigint",
    "requests": "bigint",
    "input": "bigint",
    "output": "bigint",
    "cached": "bigint",
    "cost": "numeric",
    "usr": "text",
    "tags": "jsonb",
    "labels": "jsonb",
    "record": "text",
}
_COLUMNS = ", ".join(_TYPES)
_ARRAYS = ", ".join(f"%({name})s::{kind}[]" for name, kind in _TYPES.items())
_QUARTER = quarter_sql("ts")
_ADDED = (
    "count(*), sum(requests), sum(input), sum(output), sum(cached), "
    "coalesce(sum(requests) FILTER (WHERE cost IS NULL), 0), coalesce(sum(cost), 0)"
)
_REVISION = "SELECT coalesce(max(seq), 0) AS revision FROM llm_cost_ops.card"
# Rows are inserted in the order of their ids: two transactions that share some wait for each other in one
# direction only.
_INSERT = f"""
    WITH at AS ({_REVISION}),
    sent AS MATERIALIZED (
        SELECT n.* FROM unnest({_ARRAYS}) AS n ({_COLUMNS})
        WHERE %(revision)s::bigint IS NULL OR %(revision)s::bigint = (SELECT revision FROM at)
    ), new AS (
        INSERT INTO llm_cost_ops.usage (org, {_COLUMNS})
        SELECT %(org)s, {_COLUMNS} FROM sent ORDER BY id
        ON CONFLICT (org, id) DO NOTHING
        RETURNING id, series, ts, requests, input, output, cached, cost
    ), added AS (
        INSERT INTO llm_cost_ops.delta
        SELECT %(org)s, {_QUARTER}, series, {_ADDED} FROM new GROUP BY {_QUARTER}, series
    )
    SELECT (SELECT revision FROM at), array(SELECT id::text FROM new)
"""
# LATERAL with a limit: joined, a table of some 100,000 rows is read whole.
_LOOK = """
    SELECT n.place FROM unnest(%(orgs)s::int[], %(ids)s::uuid[]) WITH ORDINALITY AS n (org, id, place)
    CROSS JOIN LATERAL (
        SELECT 1 FROM llm_cost_ops.usage u WHERE u.org = n.org AND u.id = n.id LIMIT 1
    ) AS u
"""
_COPY = f"COPY llm_cost_ops.usage (org, {_COLUMNS}) FROM STDIN"
# The rows of this transaction, which usage_commit finds. The planner takes them for one, and would sort them.
_ADD_DELTAS = f"""
    SET LOCAL enable_sort = off;
    INSERT INTO llm_cost_ops.delta (org, bucket, series, records, requests, input, output, cached,
        unpriced, cost)
    SELECT u.org, {_QUARTER}, series, {_ADDED} FROM llm_cost_ops.usage u
    WHERE u.org = ANY('{{orgs}}'::int[]) AND u.xid = pg_current_xact_id()
        AND u.seq >= {{first}} AND u.seq <= {{last}}
    GROUP BY u.org, {_QUARTER}, series
"""

Found = dict[int, list[int]]
"""By the number of an organization, the places of rows in the list that they came in."""


class _Sent(NamedTuple):
    """Rows, and at the same places what they refer to and their numbers; and by organization and id, in their
    order, the place of the first row with that id.
    """

    rows: Sequence[Row]
    ids: list[Ids]
    seqs: list[int]
    firsts: dict[int, dict[str, int]]

    def columns(self, places: Iterable[int]) -> dict[str, str]:
        """The parameters of _INSERT for some rows."""
        rows: list[tuple[Any, ...]] = []
        for place in places:
            _, series, pricing = self.ids[place]
            rows.append((series, pricing, self.seqs[place], *self.rows[place][2:]))
        return dict(zip(_TYPES, map(text_array, zip(*rows, strict=True)), strict=True))

    def lines(self, places: Sequence[int]) -> Iterator[str]:
        """What _COPY takes for some rows, many lines at once."""
        rows, ids, seqs = self.rows, self.ids, self.seqs
        for at in range(0, len(places), _LINES_AT_ONCE):
            lines = []
            for place in places[at : at + _LINES_AT_ONCE]:
                org, series, pricing = ids[place]
                lines.append(f"{org}\t{series}\t{pricing}\t{seqs[place]}\t{copy_line(rows[place])}")
            yield "".join(lines)


def write(session: Session, rows: Sequence[Row], revision: int | None) -> Found | None:
    """Commit rows that are not there yet, and give the places of those that were not.

    None, and nothing is written, when the cards are of another revision by now.
    """
    sent = _sent(session, rows)
    if len(rows) >= MIN_COPIED:
        for _ in range(2):
            try:
                return _copy(session, sent, revision)
            except psycopg.errors.UniqueViolation:
                session.looks = _LOOKS
    return _insert(session, sent, revision)


def _sent(session: Session, rows: Sequence[Row]) -> _Sent:
    # No object for each row is kept that the garbage collector has to look at.
    distinct = list({(row.series, row.by): None for row in rows})
    known = dict(zip(distinct, intern(session, distinct), strict=True))
    ids = [known[row.series, row.by] for row in rows]
    places: dict[int, dict[str, int]] = {}
    for place, (row, (org, _, _)) in enumerate(zip(rows, ids, strict=True)):
        places.setdefault(org, {}).setdefault(row.id, place)
    firsts = {org: {made: places[org][made] for made in sorted(places[org])} for org in sorted(places)}
    return _Sent(rows, ids, session.numbers(len(rows)), firsts)


def _insert(session: Session, sent: _Sent, revision: int | None) -> Found | None:
    with _undone_when_it_fails(session), session.pipeline():
        session.begin_in_pipeline()
        for lock in _lock(revision):
            session.run(lock)
        answers = {
            org: session.run(_INSERT, org=org, revision=revision, **sent.columns(firsts.values()))
            for org, firsts in sent.firsts.items()
        }
        session.commit_in_pipeline()
    session.end_commit()
    found: Found = {}
    for org, cursor in answers.items():
        [(at, ids)] = cursor.fetchall()
        if revision not in (None, at):
            return None
        found[org] = sorted(sent.firsts[org][made] for made in ids)
    return found


def _copy(session: Session, sent: _Sent, revision: int | None) -> Found | None:
    with _undone_when_it_fails(session):
        [(at,)] = session.begin(*_lock(revision), _REVISION).fetchall()
        if revision not in (None, at):
            session.roll_back()
            return None
        found = {org: list(firsts.values()) for org, firsts in sent.firsts.items()}
        if session.looks:
            found = _missing(session, sent, found)
        new, last = [place for places in found.values() for place in places], []
        if new:
            session.copy(_COPY, sent.lines(new))
            seqs = [sent.seqs[place] for place in new]
            last = [_ADD_DELTAS.format(orgs=text_array(list(found)), first=min(seqs), last=max(seqs))]
        session.commit(*last)
    return found


def _missing(session: Session, sent: _Sent, found: Found) -> Found:
    """The places of those rows that are not there already."""
    places = [place for some in found.values() for place in some]
    orgs = text_array([sent.ids[place][0] for place in places])
    ids = text_array([sent.rows[place].id for place in places])
    taken = {places[number - 1] for (number,) in session.run_planned(_LOOK, orgs=orgs, ids=ids)}
    session.looks = _LOOKS if taken else session.looks - 1
    missing = {org: [place for place in some if place not in taken] for org, some in found.items()}
    return {org: some for org, some in missing.items() if some}


def _lock(revision: int | None) -> list[str]:
    """SQL by which no card is added until the end of the transaction, where the cards' revision matters."""
    return [] if revision is None else [f"SELECT pg_advisory_xact_lock_shared({schema.LOCK_CARDS})"]


@contextmanager
def _undone_when_it_fails(session: Session) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if not is_lost(error):
            session.committing = False
        session.roll_back()
        raise
