"""Writing rows of usage and what they add to the sums, in one transaction that leaves out what is there.

Few rows are inserted, in one round trip. Many are copied, which takes several, and two thirds of the time
for each row. COPY fails at a row that is there: then, and for some writes after that, rows are looked for
first, and the rest is copied; should somebody else commit one of those in between, they are inserted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.errors import is_lost
from llm_cost_ops.ledger.postgres.interning import intern
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
    "coalesce(usr, ''), count(*), sum(requests), sum(input), sum(output), sum(cached), "
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
        SELECT %(org)s, {_COLUMNS} FROM sent ORDER BY id, seq
        ON CONFLICT (org, id) DO NOTHING
        RETURNING id, series, ts, requests, input, output, cached, cost, usr
    ), added AS (
        INSERT INTO llm_cost_ops.delta
        SELECT %(org)s, {_QUARTER}, series, {_ADDED} FROM new GROUP BY {_QUARTER}, series, usr
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
# The rows of this transaction, which usage_commit finds.
_ADD_DELTAS = f"""
    INSERT INTO llm_cost_ops.delta (org, bucket, series, usr, records, requests, input, output, cached,
        unpriced, cost)
    SELECT u.org, {_QUARTER}, series, {_ADDED} FROM llm_cost_ops.usage u
    WHERE u.org = ANY('{{orgs}}'::int[]) AND u.xid = pg_current_xact_id()
        AND u.seq >= {{first}} AND u.seq <= {{last}}
    GROUP BY u.org, {_QUARTER}, series, usr
"""

Found = dict[int, list[int]]
"""By the number of an organization, the places of rows in the list that they came in."""


class _Placed(NamedTuple):
    """A row where it goes to; place is that in the list of all."""

    org: int
    id: str
    place: int
    series: int
    pricing: int
    seq: int
    row: Row


def write(session: Session, rows: Sequence[Row], revision: int | None) -> Found | None:
    """Commit rows that are not there yet, and give the places of those that were not.

    None, and nothing is written, when the cards are of another revision by now.
    """
    placed = _placed(session, rows)
    if len(rows) >= MIN_COPIED:
        for _ in range(2):
            try:
                return _copy(session, placed, revision)
            except psycopg.errors.UniqueViolation:
                session.looks = _LOOKS
    return _insert(session, placed, revision)


def _placed(session: Session, rows: Sequence[Row]) -> list[_Placed]:
    pairs = [(row.series, row.by) for row in rows]
    distinct = list(dict.fromkeys(pairs))
    ids = dict(zip(distinct, intern(session, distinct), strict=True))
    return [
        _Placed(org, row.id, place, series, pricing, seq, row)
        for place, (seq, (org, series, pricing), row) in enumerate(
            zip(session.numbers(len(rows)), [ids[pair] for pair in pairs], rows, strict=True)
        )
    ]


def _insert(session: Session, placed: list[_Placed], revision: int | None) -> Found | None:
    of_org: dict[int, list[_Placed]] = {}
    for each in placed:
        of_org.setdefault(each.org, []).append(each)
    with _undone_when_it_fails(session), session.connection.pipeline():
        session.begin_in_pipeline()
        for lock in _lock(revision):
            session.run(lock)
        answers = {
            org: session.run(_INSERT, org=org, revision=revision, **_columns(of_org[org]))
            for org in sorted(of_org)
        }
        session.commit_in_pipeline()
    session.end_commit()
    found: Found = {}
    for org, cursor in answers.items():
        [(at, ids)] = cursor.fetchall()
        if revision not in (None, at):
            return None
        new = set(ids)
        # The first one, where the same id is there twice.
        firsts = {each.id: each.place for each in reversed(of_org[org]) if each.id in new}
        found[org] = sorted(firsts.values())
    return found


def _copy(session: Session, placed: list[_Placed], revision: int | None) -> Found | None:
    with _undone_when_it_fails(session):
        [(at,)] = session.begin(*_lock(revision), _REVISION).fetchall()
        if revision not in (None, at):
            session.roll_back()
            return None
        taken = _taken(session, placed) if session.looks else set()
        firsts = {each[:2]: each for each in reversed(placed) if each[:2] not in taken}
        new, last = sorted(firsts.values()), []
        if new:
            session.copy(_COPY, _lines(new))
            seqs, orgs = [each.seq for each in new], list({each.org for each in new})
            last = [_ADD_DELTAS.format(orgs=text_array(orgs), first=min(seqs), last=max(seqs))]
        session.commit(*last)
    found: Found = {}
    for each in new:
        found.setdefault(each.org, []).append(each.place)
    return found


def _taken(session: Session, placed: list[_Placed]) -> set[tuple[Any, ...]]:
    """The organizations and ids of those rows that are there already."""
    orgs, ids = text_array([each.org for each in placed]), text_array([each.id for each in placed])
    taken = {placed[place - 1][:2] for (place,) in session.run_planned(_LOOK, orgs=orgs, ids=ids)}
    session.looks = _LOOKS if taken else session.looks - 1
    return taken


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


def _columns(placed: list[_Placed]) -> dict[str, str]:
    rows: list[tuple[Any, ...]] = [
        (each.series, each.pricing, each.seq, each.id, *each.row[3:]) for each in placed
    ]
    return dict(zip(_TYPES, map(text_array, zip(*rows, strict=True)), strict=True))


def _lines(placed: list[_Placed]) -> Iterator[str]:
    for at in range(0, len(placed), _LINES_AT_ONCE):
        yield "".join(
            [
                f"{org}\t{series}\t{pricing}\t{seq}\t{made}\t{copy_line(row)}"
                for org, made, _, series, pricing, seq, row in placed[at : at + _LINES_AT_ONCE]
            ]
        )
