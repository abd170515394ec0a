"""The schema of a database, which of its versions a database has, and how one comes to have this version."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from llm_cost_ops.rpc.status import RpcError, StatusCode

if TYPE_CHECKING:
    from llm_cost_ops.ledger.postgres.connection import Session

__all__ = [
    "LOCK_CARDS",
    "LOCK_FOLD",
    "LOCK_SCHEMA",
    "LOCK_SPANS",
    "MIGRATIONS",
    "RESTORED",
    "VERSION",
    "adopt",
    "identify",
    "migrate",
]

MIGRATIONS: tuple[str, ...] = ()
"""The SQL that leads from each version to the next, from version 1 on."""

VERSION = 1 + len(MIGRATIONS)

LOCK_SCHEMA, LOCK_CARDS, LOCK_FOLD, LOCK_SPANS = 0x4C434F01, 0x4C434F02, 0x4C434F03, 0x4C434F04
"""Advisory locks: whoever makes or migrates tables; appends (shared) and adding a card; folding sums; adding
up sums of days."""

_LOOK = """
    SELECT EXISTS (
            SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('llm_cost_ops.meta')
            AND attname = 'version' AND atttypid = 'int'::regtype
        ),
        to_regnamespace('llm_cost_ops') IS NOT NULL,
        EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace('llm_cost_ops'))
"""


RESTORED = (
    "SELECT coalesce((SELECT xid FROM llm_cost_ops.usage ORDER BY xid DESC, seq DESC LIMIT 1) "
    ">= pg_snapshot_xmax(pg_current_snapshot()), false) OR EXISTS (SELECT 1 FROM llm_cost_ops.day_span "
    "WHERE pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot()))"
)
"""Whether rows or kept sums say that they are of transactions which are still to come: those of the server
that a dump was made of. (An index answers about rows, by the last: whether there is any, PostgreSQL may look
for in the whole table. It asks about every organization.)"""

_BEHIND = "(x.xid, x.seq) > (c.xid, c.seq)"
# In the order of their numbers, which rows of one transaction have; consumers go on before the first row that
# they have not seen, and see some again.
_RENUMBER = f"""
    UPDATE llm_cost_ops.consumer c SET seq = least(
        (SELECT min(x.seq) - 1 FROM llm_cost_ops.usage x WHERE {_BEHIND}),
        (SELECT min(x.seq) - 1 FROM llm_cost_ops.revision x WHERE {_BEHIND}), {2**62}
    );
    UPDATE llm_cost_ops.consumer SET xid = '3';
    UPDATE llm_cost_ops.usage SET xid = '3';
    UPDATE llm_cost_ops.revision SET xid = '3';
    DELETE FROM llm_cost_ops.day_span
"""


def adopt(session: Session) -> bool:
    """Make a database that was restored from a dump follow the transactions of this server; whether it was.

    It rewrites every row: nobody else may use the database meanwhile.
    """
    if not session.rows(RESTORED)[0][0]:
        return False
    with session.transaction():
        session.run("LOCK TABLE llm_cost_ops.usage, llm_cost_ops.revision IN ACCESS EXCLUSIVE MODE")
        session.run(_RENUMBER)
    return True


def identify(session: Session) -> int:
    """The version of the schema in a database, 0 where there is none.

    Raises FAILED_PRECONDITION for a newer schema, and for one of that name that is somebody else's.
    """
    [(ours, _, used)] = session.rows(_LOOK)
    if not ours:
        if used:
            raise _unusable("the schema llm_cost_ops in the database is another application's")
        return 0
    versions = session.rows("SELECT version FROM llm_cost_ops.meta")
    if len(versions) != 1:
        raise _unusable("the table llm_cost_ops.meta in the database is not a ledger's: it needs one row")
    [(version,)] = versions
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
