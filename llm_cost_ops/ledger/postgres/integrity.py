"""Whether what a database holds is consistent: sums against rows, series and ids."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from llm_cost_ops.ledger.day_spans import Fold, Keys
from llm_cost_ops.ledger.encoding import usage_id
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.day_sums import counted, decode_counts, decode_sums
from llm_cost_ops.ledger.postgres.interning import organization_ids
from llm_cost_ops.ledger.postgres.summaries import add_up
from llm_cost_ops.ledger.postgres.sums import DAYS, QUARTERS, day_sql, newest, quarter_sql

__all__ = ["find_faults"]

_COUNTS = ("requests", "input", "output", "cached")
_AMOUNTS = ("records", *_COUNTS, "unpriced", "cost")
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in _AMOUNTS)
_KEYS = "level, bucket, series"


def find_faults(session: Session) -> Iterator[str]:
    """Everything that is wrong, in words; reads all of it, one organization after the other."""
    with session.snapshot():
        for org in organization_ids(session, ()):
            [(name,)] = session.rows("SELECT name FROM llm_cost_ops.organization WHERE id = %s", org)
            yield from (f"{name}: {fault}" for fault in _faults_of(session, org, name))


def _faults_of(session: Session, org: int, name: str) -> Iterator[str]:
    yield from _wrong_sums(session, org)
    yield from _wrong_days(session, org, name)
    yield from _wrong_rows(session, org, name)


def _wrong_sums(session: Session, org: int) -> Iterator[str]:
    cost = newest(session, [org])
    unpriced = f"CASE WHEN {cost.cost} IS NULL THEN u.requests ELSE 0 END"
    rows = (
        f"SELECT {quarter_sql('u.ts')} AS bucket, {cost.series} AS series, "
        f"1 AS records, {', '.join(f'u.{name}' for name in _COUNTS)}, {unpriced} AS unpriced, "
        f"coalesce({cost.cost}, 0) AS cost FROM llm_cost_ops.usage u{cost.join} WHERE u.org = %(org)s"
    )
    rows += (
        f" AND u.series > 0 UNION ALL SELECT bucket, series, {', '.join(_AMOUNTS)} "
        "FROM llm_cost_ops.removed_sum WHERE org = %(org)s"
    )
    delta = f"SELECT bucket, series, {', '.join(_AMOUNTS)} FROM llm_cost_ops.delta WHERE org = %(org)s"
    kept = f"SELECT {_KEYS}, {', '.join(_AMOUNTS)} FROM llm_cost_ops.rollup WHERE org = %(org)s"
    kept = f"{kept} UNION ALL {_levels(delta)}"
    wanted, found = (_grouped(part) for part in (_levels(rows), kept))
    for text, one, other in (("are not those of the rows", found, wanted), ("are missing", wanted, found)):
        [(count,)] = session.rows(f"SELECT count(*) FROM ({one} EXCEPT {other}) x", org=org)
        if count:
            yield f"{count} sums {text}"


_SPANS = (
    "SELECT g.dimensions, d.first, d.last, d.counts, d.sums FROM llm_cost_ops.day_span d "
    "JOIN llm_cost_ops.day_grouping g ON g.org = d.org AND g.id = d.grouping "
    "WHERE d.org = %s AND d.groups IS NOT NULL"
)


def _wrong_days(session: Session, org: int, name: str) -> Iterator[str]:
    """Kept sums of days that hold all of their records, and are not what these add up to."""
    wrong = 0
    for dimensions, first, last, counts, kept in session.rows(_SPANS, org):
        if decode_counts(counts) != counted(session, [org], first, last)[org]:
            continue
        fold = Fold(org, name, first, last, 2**62, [])
        found = add_up(session, fold, msgspec.json.decode(dimensions, type=Keys)) or {}
        wrong += {(group.keys, group.currency): group.amounts for group in decode_sums(kept)} != {
            (keys, currency): amounts for (keys, _, currency), amounts in found.items()
        }
    if wrong:
        yield f"the sums of {wrong} kept days are not those of the rows"


def _levels(quarters: str) -> str:
    """SQL for the levels of sums that rows with quarters of an hour add to."""
    amounts = ", ".join(_AMOUNTS)
    return " UNION ALL ".join(
        f"SELECT {level} AS level, {bucket} AS bucket, series, {amounts} FROM ({quarters}) q{level}"
        for level, bucket in ((QUARTERS, "bucket"), (DAYS, day_sql("bucket")))
    )


def _grouped(part: str) -> str:
    return f"SELECT {_KEYS}, {_SUMS} FROM ({part}) p GROUP BY {_KEYS} HAVING sum(records) <> 0"


def _wrong_rows(session: Session, org: int, name: str) -> Iterator[str]:
    """Rows without series, and ids that do not follow from their keys: resent, they would count again."""
    [(orphans,)] = session.rows(
        "SELECT count(*) FROM llm_cost_ops.usage u LEFT JOIN llm_cost_ops.series s "
        "ON s.org = u.org AND s.id = u.series WHERE u.org = %(org)s AND u.series > 0 AND s.id IS NULL",
        org=org,
    )
    if orphans:
        yield f"{orphans} records are of no series"
    wrong: list[tuple[str, str]] = []
    query = "SELECT u.id::text, u.key FROM llm_cost_ops.usage u WHERE u.org = %(org)s AND u.key IS NOT NULL"
    for made, key in session.each(query, {"org": org}):
        if usage_id(name, key)[0] != made:
            wrong.append((made, key))
    count = sum(not _follows(session, org, name, *each) for each in wrong)
    if count:
        yield f"{count} ids do not follow from their keys"


def _follows(session: Session, org: int, name: str, made: str, key: str) -> bool:
    """Whether an id is that of the first attempt whose id no other key of the organization has."""
    taken = (
        "SELECT 1 FROM llm_cost_ops.usage u WHERE u.org = %(org)s AND u.id = %(id)s::uuid "
        "AND u.key IS DISTINCT FROM %(key)s"
    )
    attempt = 0
    while True:
        attempted = usage_id(name, key, attempt)[0]
        if attempted == made:
            return True
        if not session.rows(taken, org=org, id=attempted, key=key):
            return False
        attempt += 1
