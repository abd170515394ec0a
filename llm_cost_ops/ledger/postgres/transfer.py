"""A PostgreSQL database that a ledger is copied from or to; see ledger/transfer.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from msgspec.structs import replace

from llm_cost_ops._gen.messages import RevisionKind
from llm_cost_ops.ledger.encoding import decode_usage, from_micros, to_micros
from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.errors import rpc_error
from llm_cost_ops.ledger.postgres.interning import Ids, intern, organization_ids
from llm_cost_ops.ledger.postgres.listing import two_numbers
from llm_cost_ops.ledger.postgres.revise import (
    Counted,
    NewRevision,
    add_revisions,
    after_revision,
    lock_records,
    names_of,
    revise,
)
from llm_cost_ops.ledger.postgres.rows import Row, prepare, series_of, text_array, units_sql, written
from llm_cost_ops.ledger.postgres.sums import quarter_sql
from llm_cost_ops.ledger.postgres.url import database
from llm_cost_ops.ledger.transfer import (
    Added,
    Moved,
    Pricings,
    SharedRows,
    check_same,
    missing_rows,
    other_cards,
)
from llm_cost_ops.ledger.types import Entry, Revision
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["PostgresTransfer", "open"]

_PRICING = "s.currency, s.status, p.card_id, p.card_version, p.origin_version, p.fallbacks, p.digest"
_ERASED = "EXISTS (SELECT 1 FROM llm_cost_ops.erased e WHERE e.org = u.org AND e.id = u.id)"
# As `committed` reads: what is visible of transactions before the oldest that is under way. The page comes
# first, since of tables without statistics more would be joined than it has.
_RECORDS = (
    "WITH page AS MATERIALIZED (SELECT u.* FROM llm_cost_ops.usage u "
    "WHERE u.org = ANY(%(orgs)s) AND (u.xid, u.seq) > (%(xid)s::text::xid8, %(seq)s) "
    "AND u.xid < pg_snapshot_xmin(pg_current_snapshot()) AND u.series > 0 "
    "ORDER BY u.xid, u.seq LIMIT %(limit)s) "
    "SELECT u.xid, u.seq, u.org, u.id::text, u.key, u.ingested, coalesce(f.record, u.record), "
    f"{units_sql('u.cost')}, {_ERASED}, {_PRICING} FROM page u "
    "JOIN llm_cost_ops.series s ON s.org = u.org AND s.id = u.series "
    "JOIN llm_cost_ops.pricing p ON p.id = u.pricing "
    "LEFT JOIN llm_cost_ops.first_record f ON f.org = u.org AND f.id = u.id ORDER BY u.xid, u.seq"
)
_WANTED = "unnest(%(orgs)s::int[], %(ids)s::uuid[]) AS n (org, id)"
_REVISIONS = (
    "SELECT v.org, v.id::text, v.number, v.kind, v.reason, v.actor, v.made, v.record, "
    f"{units_sql('v.cost')}, {_PRICING} FROM {_WANTED} "
    "JOIN llm_cost_ops.revision v ON v.org = n.org AND v.id = n.id "
    "JOIN llm_cost_ops.series s ON s.org = v.org AND s.id = v.series "
    "JOIN llm_cost_ops.pricing p ON p.id = v.pricing ORDER BY v.org, v.id, v.number"
)
_THERE = (
    "SELECT u.org, u.id::text, u.key, coalesce(f.record, u.record), (SELECT coalesce(max(v.number), 1) "
    f"FROM llm_cost_ops.revision v WHERE v.org = u.org AND v.id = u.id), {_ERASED} FROM {_WANTED} "
    "JOIN llm_cost_ops.usage u ON u.org = n.org AND u.id = n.id "
    "LEFT JOIN llm_cost_ops.first_record f ON f.org = u.org AND f.id = u.id"
)
_TYPES = {
    "org": "int",
    "seq": "bigint",
    "series": "bigint",
    "pricing": "bigint",
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
_INSERT = f"""
    WITH new AS (
        INSERT INTO llm_cost_ops.usage (org, {_COLUMNS.removeprefix("org, ")})
        SELECT n.* FROM unnest({_ARRAYS}) AS n ({_COLUMNS}) ORDER BY n.org, n.id
        ON CONFLICT (org, id) DO NOTHING
        RETURNING org, id, series, ts, requests, input, output, cached, cost
    ), added AS (
        INSERT INTO llm_cost_ops.delta (org, bucket, series, records, requests, input, output, cached,
            unpriced, cost)
        SELECT org, {quarter_sql("ts")}, series, count(*), sum(requests), sum(input), sum(output),
            sum(cached), coalesce(sum(requests) FILTER (WHERE cost IS NULL), 0), coalesce(sum(cost), 0)
        FROM new GROUP BY 1, 2, 3
    )
    SELECT org, id::text FROM new
"""

_ADD_ERASED = f"INSERT INTO llm_cost_ops.erased (org, id) SELECT n.org, n.id FROM {_WANTED}"

_SHARED = {
    "kept_card": "SELECT digest, card FROM llm_cost_ops.kept_card ORDER BY digest",
    "card": "SELECT id, line, version, fingerprint, card FROM llm_cost_ops.card ORDER BY seq",
    "card_key": (
        "SELECT k.org, k.key, k.fingerprint, c.id FROM llm_cost_ops.card_key k "
        "JOIN llm_cost_ops.card c ON c.seq = k.card ORDER BY 1, 2"
    ),
    "secret": "SELECT name, value FROM llm_cost_ops.secret ORDER BY name",
    "api_key": (
        "SELECT id, hash, name, role, organizations, created, expires, revoked FROM llm_cost_ops.api_key "
        "ORDER BY created, seq"
    ),
    "audit": "SELECT made, actor, org, action, subject, details FROM llm_cost_ops.audit ORDER BY seq",
    # Of a ledger of which nothing was removed: others are not copied.
    "retention": "SELECT org, days FROM llm_cost_ops.retention ORDER BY org",
}
_ADD_SHARED = {
    "kept_card": "INSERT INTO llm_cost_ops.kept_card VALUES (%s, %s) ON CONFLICT DO NOTHING",
    "card": (
        "INSERT INTO llm_cost_ops.card (id, line, version, fingerprint, card) VALUES (%s, %s, %s, %s, %s) "
        "ON CONFLICT DO NOTHING"
    ),
    "card_key": (
        "INSERT INTO llm_cost_ops.card_key SELECT %s, %s, %s, c.seq FROM llm_cost_ops.card c WHERE c.id = %s "
        "ON CONFLICT DO NOTHING"
    ),
    "secret": (
        "INSERT INTO llm_cost_ops.secret VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    ),
    "api_key": (
        "INSERT INTO llm_cost_ops.api_key AS k (id, hash, name, role, organizations, created, expires, "
        "revoked) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) "
        "ON CONFLICT (id) DO UPDATE SET revoked = coalesce(k.revoked, excluded.revoked)"
    ),
    "audit": (
        "INSERT INTO llm_cost_ops.audit (made, actor, org, action, subject, details) "
        "VALUES (%s, %s, %s, %s, %s, %s)"
    ),
    "retention": (
        "INSERT INTO llm_cost_ops.retention (org, days) VALUES (%s, %s) "
        "ON CONFLICT (org) DO UPDATE SET days = excluded.days"
    ),
}


def open(url: str, *, make: bool) -> PostgresTransfer:  # noqa: A001 - each backend has it
    """The database at a URL; its tables are made if `make` says so."""
    with _translated():
        session = database(url).connect(prepare=make)
        try:
            if not schema.identify(session):
                raise RpcError(
                    StatusCode.FAILED_PRECONDITION,
                    "the database holds no ledger to copy",
                    error_code="STORAGE_UNUSABLE",
                )
        except BaseException:
            session.close()
            raise
    # The plan of a prepared statement holds for any parameters: without statistics of new tables that was one
    # that took seconds a page.
    session.connection.prepare_threshold = None
    return PostgresTransfer(session)


class _Placed(NamedTuple):
    """A record with its row and the ids of what it shares."""

    moved: Moved
    row: Row
    ids: Ids

    @property
    def name(self) -> tuple[int, str]:
        return self.ids[0], self.moved.usage_id


class PostgresTransfer:
    """The Transfer of a PostgreSQL database, over one connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pricings = Pricings()

    def shared(self) -> SharedRows:
        """What belongs to no record; see Transfer."""
        with _translated(), self._session.snapshot():
            return self._shared()

    def _shared(self) -> SharedRows:
        return {name: self._session.rows(sql) for name, sql in _SHARED.items()}

    def add_shared(self, rows: SharedRows) -> bool:
        """Add what is not there yet; see Transfer."""
        session = self._session
        with _translated(), session.transaction():
            session.run("SELECT pg_advisory_xact_lock(%s)", schema.LOCK_CARDS)
            missing, complete = missing_rows(rows, self._shared())
            for name, sql in _ADD_SHARED.items():
                for row in missing[name]:
                    session.run(sql, *row)
            if not set(rows["card"]).issubset(self._shared()["card"]):
                raise other_cards()
        return complete

    def read(self, after: str | None, limit: int) -> tuple[list[Moved], str | None]:
        """The next records; see Transfer."""
        session = self._session
        xid, seq = (0, 0) if after is None else two_numbers(after, "position")
        with _translated(), session.snapshot():
            orgs = organization_ids(session, ())
            rows = session.rows(_RECORDS, orgs=orgs, xid=xid, seq=seq, limit=limit)
            revisions = session.rows(_REVISIONS, **names_of([row[2:4] for row in rows]))
        found: dict[tuple[int, str], Moved] = {}
        for _, _, org, made, key, ingested, data, units, erased, *priced in rows:
            entry = Entry(
                decode_usage(data), key or "", from_micros(ingested), units, self._pricings.of(*priced)
            )
            found[org, made] = Moved(made, entry, erased, [])
        for org, made, number, kind, reason, actor, at, data, units, *priced in revisions:
            moved = found[org, made]
            revision = Revision(
                organization_id=moved.entry.record.organization_id,
                usage_id=made,
                after=number - 1,
                kind=RevisionKind(kind),
                record=None if data is None else decode_usage(data),
                units=units,
                by=self._pricings.of(*priced),
                reason=reason,
                actor=actor,
                made_at=from_micros(at),
            )
            moved.revisions.append(revision)
        return list(found.values()), f"{rows[-1][0]}.{rows[-1][1]}" if rows else after

    def add(self, moved: Sequence[Moved]) -> Added:
        """Add records and revisions in one transaction; see Transfer."""
        session = self._session
        rows = [replace(prepare(each.entry), id=each.usage_id) for each in moved]
        with _translated():
            pairs = [(row.series, row.by) for row in rows]
            ids = intern(session, [*pairs, *_series_of_revisions(moved)])
            placed = [_Placed(*each) for each in zip(moved, rows, ids[: len(rows)], strict=True)]
            seqs = session.numbers(len(rows))
            with session.transaction():
                created = self._insert(placed, seqs)
                erased = [each.name for each in placed if each.moved.erased and each.name in created]
                session.run(_ADD_ERASED, **names_of(erased))
                later = self._find_later([each for each in placed if each.name not in created])
                revised = sum(revise(session, revision) for revision in later)
                revised += self._revise([each for each in placed if each.name in created])
        return Added(len(created), revised)

    def _insert(self, placed: Sequence[_Placed], seqs: Sequence[int]) -> set[tuple[int, str]]:
        """Insert what is not there yet, and return what was inserted."""
        values = [
            (each.ids[0], seq, *each.ids[1:], *written(each.row))
            for each, seq in zip(placed, seqs, strict=True)
        ]
        columns: dict[str, object] = dict(
            zip(_TYPES, map(text_array, zip(*values, strict=True)), strict=True)
        )
        return set(self._session.rows(_INSERT, **columns))

    def _find_later(self, placed: Sequence[_Placed]) -> list[Revision]:
        """The revisions that records which were there already do not have."""
        if not placed:
            return []
        # All at once, in the order in which others lock them: revise takes one after the other.
        lock_records(self._session, [each.name for each in placed])
        rows = self._session.rows(_THERE, **names_of([each.name for each in placed]))
        there = {(org, made): found for org, made, *found in rows}
        later: list[Revision] = []
        for each in placed:
            key, record, number, erased = there[each.name]
            check_same(each.moved, same=(key, record) == (each.row.key, each.row.record), erased=erased)
            later += each.moved.revisions[number - 1 :]
        return later

    def _revise(self, placed: Sequence[_Placed]) -> int:
        """Add all revisions of new records: the first of each together, then the second, and so on."""
        states = [_counted(each) for each in placed]
        number = 1
        while todo := [at for at, each in enumerate(placed) if len(each.moved.revisions) >= number]:
            new = []
            for at in todo:
                each, before = placed[at], states[at]
                revision = each.moved.revisions[number - 1]
                data = _content_before(each, number)
                after, pricing, content = after_revision(self._session, revision, data, before)
                states[at] = after
                new.append(
                    NewRevision(
                        name=each.name,
                        ts=each.row.ts,
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
                )
            add_revisions(self._session, new)
            number += 1
        return sum(len(each.moved.revisions) for each in placed)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def _counted(placed: _Placed) -> Counted:
    row = placed.row
    counts = (row.requests, row.input, row.output, row.cached)
    return Counted(placed.ids[1], *counts, placed.moved.entry.units)


def _content_before(placed: _Placed, number: int) -> str:
    """The record as JSON that a revision of this place in the list comes after."""
    for revision in reversed(placed.moved.revisions[: number - 1]):
        if revision.record is not None:
            return prepare(Entry(revision.record, "", revision.made_at, None, revision.by)).record
    return placed.row.record


def _series_of_revisions(moved: Sequence[Moved]) -> Iterator[tuple[tuple[str, ...], Pricing]]:
    for each in moved:
        record = each.entry.record
        for revision in each.revisions:
            record = revision.record or record
            yield series_of(record, revision.by), revision.by


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise rpc_error(error) from error
