"""The schema of a database, which of its versions a database has, and how one comes to have this version."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from llm_cost_ops.rpc.status import RpcError, StatusCode

if TYPE_CHECKING:
    from llm_cost_ops.ledger.postgres.connection import Session

__all__ = ["LOCK_CARDS", "LOCK_FOLD", "LOCK_SCHEMA", "MIGRATIONS", "VERSION", "identify", "migrate"]

MIGRATIONS: tuple[str, ...] = ()
"""The SQL that leads from each version to the next, from version 1 on."""

VERSION = 1 + len(MIGRATIONS)

LOCK_SCHEMA, LOCK_CARDS, LOCK_FOLD = 0x4C434F01, 0x4C434F02, 0x4C434F03
"""Advisory locks: whoever makes or migrates tables; appends (shared) and adding a card; folding sums."""

_LOOK = """
    SELECT to_regclass('llm_cost_ops.meta') IS NOT NULL,
        to_regnamespace('llm_cost_ops') IS NOT NULL,
        EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace('llm_cost_ops'))
"""


def identify(session: Session) -> int:
    """The version of the schema in a database, 0 where there is none.

    Raises FAILED_PRECONDITION for a newer schema, and for one of that name that is somebody else's.
    """
    [(ours, _, used)] = session.rows(_LOOK)
    if not ours:
        if used:
            raise _unusable("the schema llm_cost_ops in the database is another application's")
        return 0
    [(version,)] = session.rows("SELECT version FROM llm_cost_ops.meta")
    if version > VERSION:
        raise _unusable(
            f"the database was written by a newer llm-cost-ops: its schema is version {version}, and this "
            f"one knows up to {VERSION}. Upgrade llm-cost-ops to open it."
        )
    return int(version)


def migrate(session: Session) -> bool:
    """Bring a database to this version, in one transaction; whether anything had to be done.

    Another process may do so at the same time: the second waits, and finds it done.
    """
    if identify(session) == VERSION:
        return False
    with session.transaction():
        session.rows("SELECT pg_advisory_xact_lock(%s)", LOCK_SCHEMA)
        version = identify(session)
        if version == VERSION:
            return False
        if not version:
            [(_, there, _)] = session.rows(_LOOK)
            if not there:
                session.run("CREATE SCHEMA llm_cost_ops")
            session.run((files(__package__) / "schema.sql").read_text(encoding="utf-8"))
        for step in MIGRATIONS[version - 1 :] if version else ():
            session.run(step)
        session.run(f"UPDATE llm_cost_ops.meta SET version = {VERSION}")
    return True


def _unusable(message: str) -> RpcError:
    return RpcError(StatusCode.FAILED_PRECONDITION, message, error_code="STORAGE_UNUSABLE")
