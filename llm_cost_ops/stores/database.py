"""A database: its file or memory, how durable it is, and connections to it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.stores import schema

__all__ = ["DURABILITIES", "Database"]

DURABILITIES = {"disk": "FULL", "process": "NORMAL"}

# The first with STRICT tables.
_OLDEST = (3, 37)

# Of a query: the series that its filter lets through, the pieces of time it sums, and the sums of the rows
# that are not in rollup yet.
_TEMPORARY = (
    "CREATE TEMP TABLE picked (id INTEGER PRIMARY KEY, org INTEGER NOT NULL)",
    """CREATE TEMP TABLE piece (
        n INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL
    )""",
    """CREATE TEMP TABLE tail (
        series INTEGER NOT NULL, level INTEGER NOT NULL, bucket INTEGER NOT NULL, user TEXT NOT NULL,
        records INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER NOT NULL,
        output INTEGER NOT NULL, cached INTEGER NOT NULL, unpriced INTEGER NOT NULL,
        micro INTEGER NOT NULL, rest INTEGER NOT NULL, PRIMARY KEY (series, level, bucket, user)
    ) WITHOUT ROWID""",
)


class Database:
    """A SQLite file, or private memory when `path` is None. Nothing is opened before `connect`.

    With durability "disk" a commit is on disk when it returns; with "process" it survives the end of the
    process, but the last commits may be lost when the machine loses power.
    """

    def __init__(self, path: str | None, durability: str) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, not {durability!r}")
        self.path = path
        self.durability = durability
        self.name = "the database in memory" if path is None else f"the database {path}"

    def connect(self) -> sqlite3.Connection:
        """A connection to the database, which is created, or brought to this version, where it must be.

        Never waits inside SQLite: sqlite3.OperationalError when the file is busy. RpcError as `identify`, and
        for a SQLite that is too old.
        """
        if sqlite3.sqlite_version_info < _OLDEST:
            needed = ".".join(map(str, _OLDEST))
            raise RpcError(
                StatusCode.FAILED_PRECONDITION,
                f"this Python has SQLite {sqlite3.sqlite_version}, and the store needs {needed} or newer",
            )
        connection = sqlite3.connect(
            ":memory:" if self.path is None else str(Path(self.path)),
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = schema.identify(connection, self.name)
        execute = connection.execute
        if self.path is not None:
            execute("PRAGMA journal_mode = WAL").fetchone()
            execute(f"PRAGMA synchronous = {DURABILITIES[self.durability]}")
            execute("PRAGMA fullfsync = ON")
            execute("PRAGMA checkpoint_fullfsync = ON")
            execute("PRAGMA journal_size_limit = 67108864").fetchone()
            execute("PRAGMA cache_size = -16000")
        execute("PRAGMA temp_store = MEMORY")
        # Nothing is deleted, so that nothing deleted needs to be overwritten.
        execute("PRAGMA secure_delete = OFF").fetchone()
        if version < schema.VERSION:
            schema.migrate(connection, self.name)
        for statement in _TEMPORARY:
            execute(statement)
