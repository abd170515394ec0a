"""A SQLite file that a ledger is copied from or to; see ledger/transfer.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_cost_ops._gen.messages import RevisionKind
from llm_cost_ops.config import without_password
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger.encoding import as_text, decode_usage, from_micros
from llm_cost_ops.ledger.sqlite.connection import Database
from llm_cost_ops.ledger.sqlite.revise import revise
from llm_cost_ops.ledger.sqlite.rows import Interner, SeriesKey, prepare, units_of
from llm_cost_ops.ledger.sqlite.sums import fold
from llm_cost_ops.ledger.sqlite.url import path_of
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

__all__ = ["SqliteTransfer", "open"]

_BUSY_MILLISECONDS = 30_000

_PRICING = "s.currency, s.status, p.card_id, p.card_version, p.origin_version, p.fallbacks, p.digest"
_RECORDS = (
    "SELECT u.seq, u.id, u.key, u.ingested, ifnull(f.record, u.record), u.cost_micros, u.cost_picos, "
    "EXISTS (SELECT 1 FROM erased e WHERE e.usage = u.seq), "
    f"{_PRICING} FROM usage u JOIN series s ON s.id = u.series JOIN pricing p ON p.id = u.pricing "
    "LEFT JOIN first_record f ON f.usage = u.seq WHERE u.seq > ? ORDER BY u.seq LIMIT ?"
)
_REVISIONS = (
    "SELECT v.usage, v.number, v.kind, v.reason, v.actor, v.made, v.record, v.cost_micros, v.cost_picos, "
    f"{_PRICING} FROM revision v JOIN series s ON s.id = v.series JOIN pricing p ON p.id = v.pricing "
    "WHERE v.usage > ? AND v.usage <= ? ORDER BY v.usage, v.number"
)
_THERE = (
    "SELECT u.key, ifnull(f.record, u.record), "
    "(SELECT ifnull(max(v.number), 1) FROM revision v WHERE v.usage = u.seq), "
    "EXISTS (SELECT 1 FROM erased e WHERE e.usage = u.seq) FROM usage u "
    "LEFT JOIN first_record f ON f.usage = u.seq WHERE u.org = ? AND u.id = ?"
)
_INSERT = f"INSERT INTO usage VALUES ({', '.join('?' * 18)})"

_SHARED = {
    "kept_card": "SELECT digest, CAST(card AS TEXT) FROM kept_card ORDER BY digest",
    "card": "SELECT id, line, version, fingerprint, CAST(card AS TEXT) FROM card ORDER BY seq",
    "card_key": (
        "SELECT k.org, k.key, k.fingerprint, c.id FROM card_key k JOIN card c ON c.seq = k.card ORDER BY 1, 2"
    ),
    "secret": "SELECT name, value FROM secret ORDER BY name",
    "api_key": (
        "SELECT id, hash, name, role, organizations, created, expires, revoked FROM api_key "
        "ORDER BY created, rowid"
    ),
    "audit": "SELECT made, actor, org, action, subject, details FROM audit ORDER BY seq",
    # Of a ledger of which nothing was removed: others are not copied.
    "retention": "SELECT org, days FROM retention ORDER BY org",
}
_ADD_SHARED = {
    "kept_card": "INSERT INTO kept_card VALUES (?, CAST(? AS BLOB)) ON CONFLICT DO NOTHING",
    "card": (
        "INSERT INTO card (id, line, version, fingerprint, card) VALUES (?, ?, ?, ?, CAST(? AS BLOB)) "
        "ON CONFLICT DO NOTHING"
    ),
    "card_key": "INSERT INTO card_key SELECT ?, ?, ?, seq FROM card WHERE id = ? ON CONFLICT DO NOTHING",
    "secret": "INSERT INTO secret VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    "api_key": (
        "INSERT INTO api_key (id, hash, name, role, organizations, created, expires, revoked) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET revoked = ifnull(revoked, excluded.revoked)"
    ),
    "audit": ("INSERT INTO audit (made, actor, org, action, subject, details) VALUES (?, ?, ?, ?, ?, ?)"),
    "retention": (
        "INSERT INTO retention (org, days) VALUES (?, ?) ON CONFLICT (org) DO UPDATE SET days = excluded.days"
    ),
}


def open(url: str, *, make: bool) -> SqliteTransfer:  # noqa: A001 - each backend has it
    """The file at a `sqlite://` URL, which is made if `make` says so."""
    path, _ = path_of(url, "disk")
    if path is None:
        raise ConfigurationError("a database in memory is neither copied nor copied to", parameter="db")
    if not make and not Path(path).is_file():
        raise ConfigurationError(f"there is no database {without_password(path)}", parameter="db")
    return SqliteTransfer(path)


class SqliteTransfer:
    """The Transfer of a SQLite file."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, "disk")
        with self._translated():
            self._connection = self._database.connect()
            self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}").fetchone()
        self._interner = Interner()
        self._pricings = Pricings()

    def shared(self) -> SharedRows:
        """What belongs to no record; see Transfer."""
        with self._transaction("BEGIN") as cursor:
            return self._shared(cursor)

    @staticmethod
    def _shared(cursor: sqlite3.Cursor) -> SharedRows:
        return {name: cursor.execute(sql).fetchall() for name, sql in _SHARED.items()}

    def add_shared(self, rows: SharedRows) -> bool:
        """Add what is not there yet; see Transfer."""
        with self._transaction() as cursor:
            missing, complete = missing_rows(rows, self._shared(cursor))
            for name, sql in _ADD_SHARED.items():
                cursor.executemany(sql, missing[name])
            if not set(rows["card"]).issubset(cursor.execute(_SHARED["card"]).fetchall()):
                raise other_cards()
        return complete

    def read(self, after: str | None, limit: int) -> tuple[list[Moved], str | None]:
        """The next records; see Transfer."""
        first = int(after or 0)
        with self._transaction("BEGIN") as cursor:
            rows = cursor.execute(_RECORDS, (first, limit)).fetchall()
            if not rows:
                return [], after
            last = rows[-1][0]
            revisions = cursor.execute(_REVISIONS, (first, last)).fetchall()
        found: dict[int, Moved] = {}
        for seq, made, key, ingested, data, micros, picos, erased, *priced in rows:
            by, text = self._pricings.of(*priced), "" if key is None else as_text(key)
            entry = Entry(decode_usage(data), text, from_micros(ingested), units_of(micros, picos), by)
            found[seq] = Moved(as_text(made), entry, bool(erased), [])
        for seq, number, kind, reason, actor, at, data, micros, picos, *priced in revisions:
            moved = found[seq]
            revision = Revision(
                organization_id=moved.entry.record.organization_id,
                usage_id=moved.usage_id,
                after=number - 1,
                kind=RevisionKind(kind),
                record=None if data is None else decode_usage(data),
                units=units_of(micros, picos),
                by=self._pricings.of(*priced),
                reason=reason,
                actor=actor,
                made_at=from_micros(at),
            )
            moved.revisions.append(revision)
        return list(found.values()), str(last)

    def add(self, moved: Sequence[Moved]) -> Added:
        """Add records and revisions in one transaction; see Transfer."""
        rows = [(each, *prepared) for each, prepared in zip(moved, _prepared(moved), strict=True)]
        try:
            with self._transaction() as cursor:
                [seq] = cursor.execute("SELECT ifnull(max(seq), 0) FROM usage").fetchone()
                first, later = seq, []
                for each, series_key, values in rows:
                    org, series, pricing = self._interner.ids(cursor, series_key)
                    there = cursor.execute(_THERE, (org, values[0])).fetchone()
                    if there is None:
                        seq += 1
                        cursor.execute(_INSERT, (seq, org, series, pricing, *values))
                        if each.erased:
                            cursor.execute("INSERT INTO erased VALUES (?)", (seq,))
                    else:
                        same = (there[0], bytes(there[1])) == (values[1], values[-1])
                        check_same(each, same=same, erased=bool(there[3]))
                    later += each.revisions[(there[2] if there else 1) - 1 :]
                fold(cursor)
                revised = sum(revise(cursor, self._interner.ids, revision) for revision in later)
        except BaseException:
            self._interner.forget()
            raise
        self._interner.keep()
        return Added(seq - first, revised)

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Cursor]:
        cursor = self._connection.cursor()
        with self._translated():
            cursor.execute(begin)
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._database.notice(error)
            raise self._database.translated(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._database.close(self._connection)


def _prepared(moved: Sequence[Moved]) -> Iterator[tuple[SeriesKey, tuple[Any, ...]]]:
    """What the rows are made of: the series keys, and the columns from `id` on, the ids as they were."""
    for each in moved:
        series_key, (_, *columns), _ = prepare(each.entry)
        yield series_key, (bytes.fromhex(each.usage_id.replace("-", "")), *columns)
