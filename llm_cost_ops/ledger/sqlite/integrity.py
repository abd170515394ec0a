"""Whether what a database holds is consistent: SQLite's own structures, and our sums, ids and rows.

A copy that was made with `cp` while a process writes may open, and be wrong: pages of different moments. The
quick look when a file is opened finds most such copies; `find_faults` finds all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec

from llm_cost_ops.ledger.day_spans import Fold
from llm_cost_ops.ledger.encoding import as_text, usage_id
from llm_cost_ops.ledger.sqlite import summaries, sums

__all__ = ["find_faults"]


def find_faults(connection: sqlite3.Connection) -> Iterator[str]:
    """Everything that is wrong with a database, in words; reads all of it, in one transaction."""
    for statement in sums.TEMPORARY:
        connection.execute(statement)
    connection.execute("BEGIN")
    try:
        for (text,) in connection.execute("PRAGMA integrity_check(20)"):
            if text != "ok":
                yield f"SQLite: {text}"
        yield from _wrong_sums(connection)
        yield from _wrong_days(connection)
        yield from _wrong_ids(connection)
        [last, number] = connection.execute("SELECT ifnull(max(seq), 0), count(*) FROM audit").fetchone()
        if last != number:
            yield f"audit log: {last - number} of its {last} events are missing"
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _wrong_sums(connection: sqlite3.Connection) -> Iterator[str]:
    [folded] = connection.execute("SELECT seq FROM rollup_watermark").fetchone()
    [last] = connection.execute("SELECT ifnull(max(seq), 0) FROM usage").fetchone()
    if folded > last:
        yield f"sums: they hold rows up to number {folded}, and the last row is number {last}"
    sums.load_tail(connection)
    rows, kept = sums.recalculated(connection), sums.KEPT
    for text, one, other in (("are not those of the rows", kept, rows), ("are missing", rows, kept)):
        [count] = connection.execute(f"SELECT count(*) FROM ({one} EXCEPT {other})").fetchone()
        if count:
            yield f"sums: {count} {text}"


_SPANS = (
    "SELECT g.dimensions, o.id, o.name, s.id, s.first, s.last, s.revision, s.counts FROM day_span s "
    "JOIN day_grouping g ON g.id = s.grouping JOIN organization o ON o.id = g.org "
    "WHERE s.groups NOTNULL AND g.dimensions NOTNULL"
)
_OF_SPAN = (
    f"SELECT k.keys, k.currency, {', '.join(f'd.{name}' for name in sums.TOTALS)} FROM day_sum d "
    "JOIN day_group k ON k.id = d.grp WHERE d.span = ?"
)


def _wrong_days(connection: sqlite3.Connection) -> Iterator[str]:
    """Kept sums of days that hold all of their records, and are not what these add up to."""
    wrong = 0
    for text, org, organization, span, first, last, revision, counts in connection.execute(_SPANS):
        dimensions = msgspec.json.decode(text, type=sums.Keys)
        fold = Fold(org, organization, first, last, 2**62, [])
        [now] = summaries.fold(connection, [fold], dimensions, kept=False)
        holds_all = now.revision == revision and now.counts == msgspec.json.decode(
            counts, type=dict[int, int]
        )
        if not holds_all or now.sums is None:
            continue
        kept = {
            (keys, currency): _normalized(amounts)
            for keys, currency, *amounts in connection.execute(_OF_SPAN, (span,))
        }
        wrong += kept != {
            (msgspec.json.encode(keys).decode(), currency): _normalized(amounts)
            for (keys, _, currency), amounts in now.sums.items()
        }
    if wrong:
        yield f"sums: those of {wrong} kept days are not those of the rows"


def _normalized(amounts: list[int]) -> tuple[int, ...]:
    """Amounts in the order of sums.TOTALS, with each cost as one number."""
    *counts, micros, picos, reported, of_micros, of_picos = amounts
    return (*counts, micros * sums.PICOS + picos, reported, of_micros * sums.PICOS + of_picos)


_WITH_KEYS = (
    "SELECT u.id, u.key, u.org, o.name FROM usage u LEFT JOIN organization o ON o.id = u.org "
    "WHERE u.key NOTNULL"
)
_TAKEN = "SELECT 1 FROM usage WHERE org = ? AND id = ? AND key IS NOT ?"


def _wrong_ids(connection: sqlite3.Connection) -> Iterator[str]:
    """Records whose ids do not follow from their organizations and keys: resent, they would count again."""
    wrong = 0
    for stored, key, org, organization in connection.execute(_WITH_KEYS):
        wrong += organization is None or not _follows(connection, stored, key, org, organization)
    if wrong:
        yield f"ids: {wrong} do not follow from their keys"


def _follows(
    connection: sqlite3.Connection, stored: bytes, key: str | bytes, org: int, organization: str
) -> bool:
    """Whether an id is that of the first attempt whose id no other key of the organization has."""
    attempt = 0
    while True:
        _, made, _ = usage_id(organization, as_text(key), attempt)
        if made == stored:
            return True
        if connection.execute(_TAKEN, (org, made, key)).fetchone() is None:
            return False
        attempt += 1
