"""API keys in SQLite: what is kept of them, and the secret that their hashes are keyed with."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any

from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import key_columns, key_of, to_micros
from llm_cost_ops.ledger.sqlite.audit import add_events
from llm_cost_ops.ledger.types import ApiKey
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["SqliteKeys"]

_SECRET_BYTES = 32
_COLUMNS = "id, hash, name, role, organizations, created, expires, revoked"


class SqliteKeys:
    """The KeyStore of a SqliteLedger: `read_now` reads on one of its connections, `write` in a transaction.

    No key is remembered between calls, so that what another process revoked is revoked here. The secret
    is, once there is a key: before that, a copy of another ledger may bring its own.
    """

    def __init__(self, read_now: Callable[..., Awaitable[Any]], write: Callable[..., Awaitable[Any]]) -> None:
        self._read_now = read_now
        self._write = write
        self._known: bytes | None = None

    async def any(self, context: CallContext) -> bool:
        """Whether there is or was a key; see KeyStore."""
        found: bool = await self._read_now(_any, context)
        return found

    async def find(self, key_id: str, context: CallContext) -> ApiKey | None:
        """The key with an id; see KeyStore."""
        found: ApiKey | None = await self._read_now(partial(_find, key_id=key_id), context)
        return found

    async def all(self, context: CallContext) -> list[ApiKey]:
        """Every key; see KeyStore."""
        found: list[ApiKey] = await self._read_now(_all, context)
        return found

    async def secret(self, context: CallContext) -> bytes:
        """The secret of this database; see KeyStore."""
        if self._known is not None:
            return self._known
        secret: bytes
        secret, kept = await self._read_now(_secret, context) or await self._write(_make_secret, context)
        if kept:
            self._known = secret
        return secret

    async def add(self, key: ApiKey, context: CallContext, *, actor: str = "") -> None:
        """Keep a key; see KeyStore."""

        def job(cursor: sqlite3.Cursor, _: object) -> None:
            if _find(cursor, key.id) is not None:
                raise RpcError(StatusCode.ALREADY_EXISTS, f"there is a key {key.id!r} already")
            cursor.execute(
                f"INSERT INTO api_key ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", key_columns(key)
            )
            add_events(cursor, audit.key_added(key, actor))

        await self._write(job, context)

    async def revoke(
        self, key_id: str, at: datetime, context: CallContext, *, actor: str = ""
    ) -> ApiKey | None:
        """Revoke a key; see KeyStore."""

        def job(cursor: sqlite3.Cursor, _: object) -> ApiKey | None:
            cursor.execute(
                "UPDATE api_key SET revoked = ? WHERE id = ? AND revoked IS NULL", (to_micros(at), key_id)
            )
            is_news = cursor.rowcount == 1
            key = _find(cursor, key_id)
            if is_news and key is not None:
                add_events(cursor, audit.key_revoked(key, at, actor))
            return key

        revoked: ApiKey | None = await self._write(job, context)
        return revoked


def _any(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM api_key LIMIT 1").fetchone() is not None


def _find(connection: sqlite3.Connection | sqlite3.Cursor, key_id: str) -> ApiKey | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM api_key WHERE id = ?", (key_id,)).fetchone()
    return None if row is None else key_of(row)


def _all(connection: sqlite3.Connection) -> list[ApiKey]:
    return [
        key_of(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM api_key ORDER BY created, rowid")
    ]


def _secret(connection: sqlite3.Connection | sqlite3.Cursor) -> tuple[bytes, bool] | None:
    """The secret, and whether there is a key, so that it is the secret for ever."""
    find = "SELECT value, EXISTS (SELECT 1 FROM api_key) FROM secret WHERE name = 'api_key'"
    row = connection.execute(find).fetchone()
    return None if row is None else (bytes(row[0]), bool(row[1]))


def _make_secret(cursor: sqlite3.Cursor, _: object) -> tuple[bytes, bool] | None:
    made = secrets.token_bytes(_SECRET_BYTES)
    # Another process may have made one in between.
    cursor.execute("INSERT OR IGNORE INTO secret VALUES ('api_key', ?)", (made,))
    return _secret(cursor)
