"""Writing rows of usage and what they add to the sums, in one transaction that leaves out what is there.

All is one query: what has to hold, a COPY of the rows and one of their sums, and COMMIT. COPY fails at a row
that is there: then, and for some writes after that, the query looks for rows first, and only the others are
copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import psycopg

from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.errors import is_lost
from llm_cost_ops.ledger.postgres.interning import intern
from llm_cost_ops.ledger.postgres.rows import PICO, Row, copied, copied_json, cost_text, text_array
from llm_cost_ops.rules.times import QUARTER

__all__ = ["write"]

_LOOKS = 16
"""After rows that were there already, so many writes look for theirs first.

To look takes an eighth of what a write of many rows takes, and to copy in vain about as long as to copy.
"""

# The database works at the first lines while the next are made.
_LINES_AT_ONCE = 250
_BACKSLASH = "\\"

# No card is added until the end of the transaction. (max(seq) takes twice as long to plan.)
_REVISION = (
    f"SELECT pg_advisory_xact_lock_shared({schema.LOCK_CARDS})",
    "SELECT seq FROM llm_cost_ops.card ORDER BY seq DESC LIMIT 1",
)
# LATERAL with a limit: joined, a table of some 100,000 rows is read whole.
_LOOK = """
    SELECT n.place FROM unnest('{orgs}'::int[], '{ids}'::uuid[]) WITH ORDINALITY AS n (org, id, place)
    CROSS JOIN LATERAL (
        SELECT 1 FROM llm_cost_ops.usage u WHERE u.org = n.org AND u.id = n.id LIMIT 1
    ) AS u
"""
_COPY = (
    "COPY llm_cost_ops.usage (org, series, pricing, seq, id, key, ingested, ts, requests, input, output, "
    "cached, cost, usr, tags, labels, record) FROM STDIN"
)
_COPY_SUMS = (
    "COPY llm_cost_ops.delta (org, bucket, series, records, requests, input, output, cached, unpriced, cost) "
    "FROM STDIN"
)

Found = dict[int, list[int]]
"""By the number of an organization, the places of rows in the list that they came in."""

# By organization and series, and by quarter of an hour: what is in the columns of delta behind those.
_Sums = dict[tuple[int, int], dict[int, list[int]]]


def write(session: Session, rows: Sequence[Row], revision: int | None) -> Found | None:
    """Commit rows that are not there yet, and give the places of those that were not.

    None, and nothing is written, when the cards are of another revision by now.
    """
    sent = _Sent(session, rows)
    for _ in rows:
        try:
            return _write(session, sent, revision)
        except psycopg.errors.UniqueViolation:
            # One that was there, or that somebody committed after the look: the next look finds it.
            session.looks = _LOOKS
    return _write(session, sent, revision)


class _Sent:
    """Rows with their numbers, and what they refer to."""

    def __init__(self, session: Session, rows: Sequence[Row]) -> None:
        # By identity: rows that are alike share the objects, and to hash a series takes longer. No object for
        # each row is kept that the garbage collector has to look at.
        kinds = {(id(row.series), id(row.by)): (row.series, row.by) for row in rows}
        known = dict(zip(kinds, intern(session, kinds.values()), strict=True))
        self._rows = rows
        self._ids = [known[id(row.series), id(row.by)] for row in rows]
        self._seqs = session.numbers(len(rows))
        firsts: dict[int, dict[str, int]] = {org: {} for org, _, _ in sorted(known.values())}
        for place, (org, _, _) in enumerate(self._ids):
            firsts[org].setdefault(rows[place].id, place)
        self.places: Found = {
            org: [places[made] for made in sorted(places)] for org, places in firsts.items()
        }
        """Those of the first row with each id, in the order of ids: of two transactions that share some, one
        waits for the other."""

    def look(self) -> str:
        """The query that gives, counted from 1, which of all `places` have rows that are there already."""
        orgs = [org for org, places in self.places.items() for _ in places]
        ids = [self._rows[place].id for places in self.places.values() for place in places]
        return _LOOK.format(orgs=text_array(orgs), ids=text_array(ids))

    def lines(self, places: Sequence[int], sums: _Sums) -> Iterator[str]:
        """What _COPY takes for some rows, many lines at once; they are added to the sums on the way."""
        rows, ids, seqs, nothing = self._rows, self._ids, self._seqs, copied(None)
        kinds = {
            (org, series, pricing): (f"{org}\t{series}\t{pricing}", sums.setdefault((org, series), {}))
            for org, series, pricing in set(ids)
        }
        users: dict[str | None, str] = {None: nothing}
        for at in range(0, len(places), _LINES_AT_ONCE):
            lines = []
            for place in places[at : at + _LINES_AT_ONCE]:
                row = rows[place]
                beginning, quarters = kinds[ids[place]]
                ts, requests, put_in, put_out = row.ts, row.requests, row.input, row.output
                cached, units, record = row.cached, row.units, row.record
                cost = nothing if units is None else cost_text(units)
                added = quarters.get(ts // QUARTER)
                if added is None:
                    added = quarters[ts // QUARTER] = [0] * 7
                added[0] += 1
                added[1] += requests
                added[2] += put_in
                added[3] += put_out
                added[4] += cached
                if units is None:
                    added[5] += requests
                else:
                    added[6] += units
                user = users.get(row.usr)
                if user is None:
                    user = users[row.usr] = copied(row.usr)
                lines.append(
                    f"{beginning}\t{seqs[place]}\t{row.id}\t{copied(row.key)}\t{row.ingested}\t{ts}\t{requests}\t"
                    f"{put_in}\t{put_out}\t{cached}\t{cost}\t{user}\t"
                    f"{nothing if row.tags is None else copied_json(row.tags)}\t"
                    f"{nothing if row.labels is None else copied_json(row.labels)}\t"
                    f"{copied_json(record) if _BACKSLASH in record else record}\n"
                )
            yield "".join(lines)


def _lines_of_sums(sums: _Sums) -> Iterator[str]:
    """What _COPY_SUMS takes, once all rows are in the sums."""
    for (org, series), quarters in sums.items():
        for quarter, added in quarters.items():
            yield "\t".join(map(str, (org, quarter, series, *added))) + f"{PICO}\n"


def _write(session: Session, sent: _Sent, revision: int | None) -> Found | None:
    found, looks = sent.places, session.looks > 0

    def lines(said: Sequence[Sequence[bytes]]) -> list[Iterator[str]] | None:
        nonlocal found
        if revision is not None and revision != int(said[1][0] if said[1] else 0):
            return None
        if looks:
            found = _without(found, {int(number) for number in said[-1]})
            session.looks = session.looks - 1 if found == sent.places else _LOOKS
        sums: _Sums = {}
        new = [place for places in found.values() for place in places]
        return [sent.lines(new, sums), _lines_of_sums(sums)]

    statements = [*(() if revision is None else _REVISION), *([sent.look()] if looks else [])]
    with _undone_when_it_fails(session):
        if session.copy(statements, [_COPY, _COPY_SUMS], lines):
            return found
    session.roll_back()
    return None


def _without(found: Found, taken: set[int]) -> Found:
    """Those of some places whose numbers, counted from 1, are not taken."""
    numbers = count(1)
    left = {org: [place for place in places if next(numbers) not in taken] for org, places in found.items()}
    return {org: places for org, places in left.items() if places}


@contextmanager
def _undone_when_it_fails(session: Session) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if not is_lost(error):
            session.committing = False
        session.roll_back()
        raise
