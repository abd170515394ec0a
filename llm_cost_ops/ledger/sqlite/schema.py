"""The tables, and how a file comes to have those of this version.

`PRAGMA user_version` is the version of the schema, `PRAGMA application_id` says that the file is ours. A
change of the schema is a new entry in MIGRATIONS, and never an edit of an old one: files are in the world.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from llm_cost_ops.ledger.sqlite.rekeying import move_usage, sum_users
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["APPLICATION_ID", "MIGRATIONS", "VERSION", "identify", "migrate"]

APPLICATION_ID = 0x4C434F50  # "LCOP"

_VERSION_1 = (
    "CREATE TABLE organization (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    # What sums are kept by: a row per combination that occurs.
    """CREATE TABLE series (
        id INTEGER PRIMARY KEY, org INTEGER NOT NULL REFERENCES organization,
        provider TEXT NOT NULL, model TEXT NOT NULL, project TEXT NOT NULL, operation TEXT NOT NULL,
        service_tier TEXT NOT NULL, processing TEXT NOT NULL, region TEXT NOT NULL,
        currency TEXT NOT NULL, status TEXT NOT NULL,
        UNIQUE (org, provider, model, project, operation, service_tier, processing, region, currency, status)
    ) STRICT""",
    # What priced a record.
    """CREATE TABLE pricing (
        id INTEGER PRIMARY KEY, card_id TEXT NOT NULL, card_version INTEGER NOT NULL,
        origin_version TEXT NOT NULL, fallbacks TEXT NOT NULL,
        UNIQUE (card_id, card_version, origin_version, fallbacks)
    ) STRICT""",
    # id and key: 16 bytes where they are UUIDs, text where not; key is NULL where there is none. ts is in
    # microseconds. A cost is micro + rest / 10^6 millionths of its currency; both are NULL when unpriced.
    # The columns that queries add up come before the record, which is the whole struct as JSON.
    """CREATE TABLE usage (
        seq INTEGER PRIMARY KEY, org INTEGER NOT NULL, series INTEGER NOT NULL, pricing INTEGER NOT NULL,
        id ANY NOT NULL, key ANY, fingerprint BLOB NOT NULL, ts INTEGER NOT NULL,
        requests INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
        cached INTEGER NOT NULL, micro INTEGER, rest INTEGER,
        user TEXT, tags TEXT, labels TEXT, record BLOB NOT NULL
    ) STRICT""",
    "CREATE UNIQUE INDEX usage_key ON usage (org, key)",
    "CREATE UNIQUE INDEX usage_id ON usage (org, id)",
    "CREATE INDEX usage_time ON usage (org, ts)",
    "CREATE INDEX usage_user ON usage (org, user, ts) WHERE user IS NOT NULL",
    # level 0: bucket is a quarter of an hour since 1970; level 1: a day of UTC. STRICT refuses a sum that
    # leaves 64 bits, where SQLite would go on in floating point.
    """CREATE TABLE rollup (
        series INTEGER NOT NULL, level INTEGER NOT NULL, bucket INTEGER NOT NULL,
        records INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER NOT NULL,
        output INTEGER NOT NULL, cached INTEGER NOT NULL, unpriced INTEGER NOT NULL,
        micro INTEGER NOT NULL, rest INTEGER NOT NULL,
        PRIMARY KEY (series, level, bucket)
    ) STRICT, WITHOUT ROWID""",
    # line is what a card is a version of: everything but its dates and prices.
    """CREATE TABLE card (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, line TEXT NOT NULL, version INTEGER NOT NULL,
        fingerprint BLOB NOT NULL, card BLOB NOT NULL, UNIQUE (line, version)
    ) STRICT""",
    """CREATE TABLE card_key (
        org TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, card INTEGER NOT NULL,
        PRIMARY KEY (org, key)
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE health (id INTEGER PRIMARY KEY CHECK (id = 1), checks INTEGER NOT NULL) STRICT",
    "INSERT INTO health VALUES (1, 0)",
)

_VERSION_2 = (
    # hash is keyed with the secret; organizations is a JSON list, or NULL for all of them. Times are in
    # microseconds.
    """CREATE TABLE api_key (
        id TEXT PRIMARY KEY, hash BLOB NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL, organizations TEXT,
        created INTEGER NOT NULL, expires INTEGER, revoked INTEGER
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
)

_VERSION_3 = (
    # digest is that of the card, empty where the card was not kept. Ids stay, so that what other
    # processes remember of them stays true.
    """CREATE TABLE pricing_2 (
        id INTEGER PRIMARY KEY, card_id TEXT NOT NULL, card_version INTEGER NOT NULL,
        origin_version TEXT NOT NULL, fallbacks TEXT NOT NULL, digest BLOB NOT NULL DEFAULT x'',
        UNIQUE (card_id, card_version, origin_version, fallbacks, digest)
    ) STRICT""",
    "INSERT INTO pricing_2 SELECT id, card_id, card_version, origin_version, fallbacks, x'' FROM pricing",
    "DROP TABLE pricing",
    "ALTER TABLE pricing_2 RENAME TO pricing",
    # Each card that priced a record, once: receipts outlive the catalog that the card came from.
    "CREATE TABLE kept_card (digest BLOB PRIMARY KEY, card BLOB NOT NULL) STRICT, WITHOUT ROWID",
    # What repricing found. usage holds the first cost, which is number 1 and never changes; the
    # highest number is in force, and rollup follows it. made is in microseconds.
    """CREATE TABLE revision (
        usage INTEGER NOT NULL REFERENCES usage, number INTEGER NOT NULL CHECK (number > 1),
        series INTEGER NOT NULL, pricing INTEGER NOT NULL, micro INTEGER, rest INTEGER,
        made INTEGER NOT NULL, PRIMARY KEY (usage, number)
    ) STRICT, WITHOUT ROWID""",
)

_VERSION_4 = (
    # id: 16 bytes that follow from organization and key. key: 16 bytes where it is a UUID, text where not,
    # NULL where there is none. record is what the caller sent, as JSON; ts (the caller's, or ingested) and
    # ingested are in microseconds. The rest as in version 1.
    """CREATE TABLE usage_4 (
        seq INTEGER PRIMARY KEY, org INTEGER NOT NULL, series INTEGER NOT NULL, pricing INTEGER NOT NULL,
        id ANY NOT NULL, key ANY, ingested INTEGER NOT NULL, ts INTEGER NOT NULL,
        requests INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
        cached INTEGER NOT NULL, micro INTEGER, rest INTEGER,
        user TEXT, tags TEXT, labels TEXT, record BLOB NOT NULL
    ) STRICT""",
    # Records from before keep their ids; this finds them by the ids that their keys would give them.
    "CREATE TABLE earlier (id BLOB PRIMARY KEY, usage INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    move_usage,
    "DROP TABLE usage",
    "ALTER TABLE usage_4 RENAME TO usage",
    "CREATE UNIQUE INDEX usage_id ON usage (id)",
    # With all that a page, or a user's sums, need to find their rows.
    "CREATE INDEX usage_time ON usage (org, ts, seq, user)",
    # Level 2: a day of UTC and a user; user is '' on the other levels. Where a sum would leave 64 bits it
    # goes on in a row of another part.
    """CREATE TABLE rollup_4 (
        series INTEGER NOT NULL, level INTEGER NOT NULL, bucket INTEGER NOT NULL, user TEXT NOT NULL,
        part INTEGER NOT NULL, records INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER NOT NULL,
        output INTEGER NOT NULL, cached INTEGER NOT NULL, unpriced INTEGER NOT NULL,
        micro INTEGER NOT NULL, rest INTEGER NOT NULL,
        PRIMARY KEY (series, level, bucket, user, part)
    ) STRICT, WITHOUT ROWID""",
    """INSERT INTO rollup_4 SELECT series, level, bucket, '', 0, records, requests, input, output, cached,
        unpriced, micro, rest FROM rollup""",
    sum_users,
    "DROP TABLE rollup",
    "ALTER TABLE rollup_4 RENAME TO rollup",
    # The last row that is in the sums, and the part that they are added to.
    """CREATE TABLE folded (
        id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, part INTEGER NOT NULL
    ) STRICT""",
    "INSERT INTO folded SELECT 1, ifnull(max(seq), 0), 0 FROM usage",
)

MIGRATIONS: tuple[tuple[str | Callable[[sqlite3.Connection], None], ...], ...] = (
    _VERSION_1,
    _VERSION_2,
    _VERSION_3,
    _VERSION_4,
)
"""The steps that lead from each version to the next."""

VERSION = len(MIGRATIONS)


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
        for steps in MIGRATIONS[identify(connection, name) :]:
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
