"""The schema of a file, which of its versions a file has, and how one comes to have this version.

`PRAGMA user_version` is the version of the schema, `PRAGMA application_id` says that the file is ours.
schema.sql makes the tables of this version; a change of it is also a new entry in MIGRATIONS, and never an
edit of an old one: files are in the world.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from importlib.resources import files

from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["APPLICATION_ID", "MIGRATIONS", "VERSION", "identify", "migrate"]

APPLICATION_ID = 0x4C434F53  # "LCOS"
_BEFORE_RELEASE = 0x4C434F50  # "LCOP"

MIGRATIONS: tuple[tuple[str | Callable[[sqlite3.Connection], None], ...], ...] = ()
"""The steps that lead from each version to the next, from version 1 on."""

VERSION = 1 + len(MIGRATIONS)


def _statements() -> Iterator[str]:
    """The statements of schema.sql."""
    text = (files(__package__) / "schema.sql").read_text(encoding="utf-8")
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def identify(connection: sqlite3.Connection, name: str) -> int:
    """The version of the schema in a file, 0 in an empty one.

    Raises FAILED_PRECONDITION for a newer schema, and for a database that is somebody else's.
    """
    application, version, tables = _marks(connection)
    if application == APPLICATION_ID:
        if version > VERSION:
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                f"{name} was written by a newer llm-cost-ops: its schema is version {version}, and this one "
                f"knows up to {VERSION}. Upgrade llm-cost-ops to open it.",
            )
        return int(version)
    if application == _BEFORE_RELEASE:
        raise RpcError(
            StatusCode.FAILED_PRECONDITION,
            f"{name} was made by a llm-cost-ops from before the first release, which no later one reads: "
            f"export its records with the version that made it, and import them here.",
        )
    if application or version or tables:
        raise RpcError(StatusCode.FAILED_PRECONDITION, f"{name} is the database of another application")
    return 0


def _marks(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Whose file it is, of what version, and how many tables it has: all of one moment."""
    apart = not connection.in_transaction
    if apart:
        # Else another process may make the tables in between.
        connection.execute("BEGIN")
    try:
        asked = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        application, version, tables = (connection.execute(sql).fetchone()[0] for sql in asked)
    finally:
        if apart:
            connection.execute("ROLLBACK")
    return application, version, tables


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring a file to this version, in one transaction. Another process may have done so in between."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = identify(connection, name)
        if not version:
            for statement in _statements():
                connection.execute(statement)
        for steps in MIGRATIONS[version - 1 :] if version else ():
            for step in steps:
                if isinstance(step, str):
                    connection.execute(step)
                else:
                    step(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
