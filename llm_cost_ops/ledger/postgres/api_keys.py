"""API keys in PostgreSQL: what is kept of them, and the secret that their hashes are keyed with."""

from __future__ import annotations

import secrets
from datetime import datetime
from functools import partial

from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import key_columns, key_of, to_micros
from llm_cost_ops.ledger.postgres.audit import add_events
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.workers import Workers
from llm_cost_ops.ledger.types import ApiKey
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["PostgresKeys"]

_SECRET_BYTES = 32
_COLUMNS = "id, hash, name, role, organizations, created, expires, revoked"
_ADD = (
    f"INSERT INTO llm_cost_ops.api_key ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) "
    "ON CONFLICT (id) DO NOTHING RETURNING id"
)


class PostgresKeys:
    """The KeyStore of a PostgresLedger.

    No key is remembered between calls, so that what another server revoked is revoked here; calls that wait
    at the same time share a look. The secret is remembered once there is a key: before that, a copy of
    another ledger may bring its own.
    """

    def __init__(self, workers: Workers) -> None:
        self._run = workers.run
        self._known: bytes | None = None

    async def any(self, context: CallContext) -> bool:
        """Whether there is or was a key; see KeyStore."""
        return await self._run(_any, context, kind=_any)

    async def find(self, key_id: str, context: CallContext) -> ApiKey | None:
        """The key with an id; see KeyStore."""
        return await self._run(partial(_find, key_id=key_id), context, kind=(_find, key_id))

    async def all(self, context: CallContext) -> list[ApiKey]:
        """Every key; see KeyStore."""
        return await self._run(_all, context)

    async def secret(self, context: CallContext) -> bytes:
        """The secret of this database; see KeyStore."""
        if self._known is not None:
            return self._known
        secret, kept = await self._run(_secret, context)
        if kept:
            self._known = secret
        return secret

    async def add(self, key: ApiKey, context: CallContext, *, actor: str = "") -> None:
        """Keep a key; see KeyStore."""

        def job(session: Session) -> None:
            with session.transaction():
                if not session.rows(_ADD, *key_columns(key)):
                    raise RpcError(StatusCode.ALREADY_EXISTS, f"there is a key {key.id!r} already")
                add_events(session, audit.key_added(key, actor))

        await self._run(job, context, writes=True, repeatable=False)

    async def revoke(
        self, key_id: str, at: datetime, context: CallContext, *, actor: str = ""
    ) -> ApiKey | None:
        """Revoke a key; see KeyStore."""

        def job(session: Session) -> ApiKey | None:
            with session.transaction():
                news = session.rows(
                    "UPDATE llm_cost_ops.api_key SET revoked = %s WHERE id = %s AND revoked IS NULL "
                    "RETURNING id",
                    to_micros(at),
                    key_id,
                )
                key = _find(session, key_id)
                if news and key is not None:
                    add_events(session, audit.key_revoked(key, at, actor))
                return key

        return await self._run(job, context, writes=True)


def _any(session: Session) -> bool:
    return bool(session.rows("SELECT 1 FROM llm_cost_ops.api_key LIMIT 1"))


def _find(session: Session, key_id: str) -> ApiKey | None:
    rows = session.rows(f"SELECT {_COLUMNS} FROM llm_cost_ops.api_key WHERE id = %s", key_id)
    return key_of(rows[0]) if rows else None


def _all(session: Session) -> list[ApiKey]:
    rows = session.rows(f"SELECT {_COLUMNS} FROM llm_cost_ops.api_key ORDER BY created, seq")
    return [key_of(row) for row in rows]


def _secret(session: Session) -> tuple[bytes, bool]:
    """The secret, and whether there is a key, so that it is the secret for ever."""
    find = (
        "SELECT value, EXISTS (SELECT 1 FROM llm_cost_ops.api_key) "
        "FROM llm_cost_ops.secret WHERE name = 'api_key'"
    )
    rows = session.rows(find)
    if not rows:
        with session.transaction():
            # Another process may have made one in between.
            session.run(
                "INSERT INTO llm_cost_ops.secret VALUES ('api_key', %s) ON CONFLICT DO NOTHING",
                secrets.token_bytes(_SECRET_BYTES),
            )
        rows = session.rows(find)
    return bytes(rows[0][0]), rows[0][1]
