"""Makes, shows, checks and backs up a database, also while it is in use."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm_cost_ops.cli.ledgers import check_file, opened_ledger
from llm_cost_ops.exceptions import ConfigurationError, CostOpsError, error_from_rpc
from llm_cost_ops.ledger.sqlite import schema
from llm_cost_ops.ledger.sqlite.errors import rpc_error
from llm_cost_ops.ledger.sqlite.integrity import find_faults
from llm_cost_ops.ledger.sqlite.url import path_of
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError

__all__ = ["database"]

_BUSY_SECONDS = 30.0


def database(options: argparse.Namespace) -> int:
    """The `db` command; the exit status is 1 when something is wrong with the database."""
    if options.action == "backup":
        return _backup(_file_of(options.source), _file_of(options.target))
    if options.action == "copy":
        from llm_cost_ops.cli.copying import copy

        return copy(options)
    if options.path.startswith(("postgres://", "postgresql://")):
        from llm_cost_ops.cli.postgres import ask

        return ask(options.action, options.path)
    path = _file_of(options.path)
    if options.action == "check":
        return _check(path)
    return _status(path) if options.action == "status" else _make(path, options.action)


def _file_of(database: str) -> str:
    """The path of a database that is named by its path or by a sqlite:/// URL."""
    if not database.startswith("sqlite://"):
        return database
    path, _ = path_of(database, "disk")
    if path is None:
        raise ConfigurationError("sqlite:// is private memory: name a file", parameter="db")
    return path


def _make(path: str, action: str) -> int:
    """Make a file, or bring one to this version: what opening it does."""
    if action == "migrate":
        check_file(path, url=False)
    with opened_ledger(path, _BUSY_SECONDS) as (ledger, context):
        drive(ledger.check(context))
    print(f"{path}: its tables are of version {schema.VERSION}")
    return 0


def _status(path: str) -> int:
    with _opened(path) as connection:
        [records] = connection.execute("SELECT count(*) FROM usage WHERE series > 0").fetchone()
        [organizations] = connection.execute("SELECT count(*) FROM organization").fetchone()
    size = Path(path).stat().st_size
    print(
        f"{path}: SQLite {sqlite3.sqlite_version}, tables of version {schema.VERSION}, {records:,} records "
        f"of {organizations:,} organizations, {size / 2**20:,.1f} MiB"
    )
    return 0


def _check(path: str) -> int:
    faults = _faults_of(path)
    for fault in faults:
        print(f"{path}: {fault}")
    if not faults:
        with _opened(path) as connection:
            [events] = connection.execute("SELECT count(*) FROM audit").fetchone()
        print(f"{path}: ok: its structure, its sums, its ids and {events:,} events of its audit log")
    return 1 if faults else 0


def _backup(source: str, target: str) -> int:
    if "://" in source or "://" in target:
        # The URL is not shown: it may hold a password.
        raise ConfigurationError(
            "db backup copies a SQLite file into another: PostgreSQL has pg_dump for it, and "
            "`llm-cost-ops db copy` copies between the two",
            parameter="source" if "://" in source else "target",
        )
    where = Path(target)
    if where.exists():
        raise ConfigurationError(f"{target} is there already, and is not replaced", parameter="target")
    if not where.parent.is_dir():
        raise ConfigurationError(f"there is no folder {where.parent}", parameter="target")
    # mkstemp makes it for this user alone.
    descriptor, temporary = tempfile.mkstemp(dir=where.parent, prefix=f".{where.name}.")
    os.close(descriptor)
    try:
        _copy(source, temporary)
        faults = _faults_of(temporary)
        for fault in faults:
            print(f"{source}: {fault}; no backup was made", file=sys.stderr)
        if faults:
            return 1
        _publish(temporary, where)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(temporary + suffix).unlink(missing_ok=True)
    print(f"{source} is backed up in {target}, which was checked")
    return 0


def _copy(source: str, target: str) -> None:
    """Copy the state of one moment: in one step, which holds a reader's snapshot and no writer up."""
    with _opened(source) as origin, contextlib.closing(sqlite3.connect(target)) as copy:
        try:
            origin.backup(copy, pages=-1)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            # It is not the source that is written.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(Path(target).parent)) from error


def _publish(temporary: str, where: Path) -> None:
    """Give a complete file its name, on the disk when this returns; FileExistsError when it is taken."""
    with open(temporary, "rb") as file:  # noqa: PTH123 - no connection to it is open
        os.fsync(file.fileno())
    try:
        os.link(temporary, where)
    except OSError as error:
        # FAT, as on a memory stick, and some network file systems have no links.
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
        if where.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(where)) from None
        Path(temporary).rename(where)
    folder = os.open(where.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _faults_of(path: str) -> list[str]:
    with _opened(path) as connection:
        try:
            return list(find_faults(connection))
        except sqlite3.DatabaseError as error:
            # So damaged that it can't be read to its end.
            return [f"SQLite: {error}"]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    """A connection to a file that must be there, and of this version."""
    check_file(path, url=False)
    connection = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
    )
    try:
        if schema.identify(connection, f"the database {path}") != schema.VERSION:
            raise CostOpsError(f"the database {path} is of an earlier version: open it once to update it")
        yield connection
    except RpcError as error:
        raise error_from_rpc(error) from error
    except sqlite3.Error as error:
        raise error_from_rpc(rpc_error(error, "the database", path)) from error
    finally:
        connection.close()
