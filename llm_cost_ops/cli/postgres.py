"""What `llm-cost-ops db` does with a database in PostgreSQL."""

from __future__ import annotations

import psycopg

from llm_cost_ops.config import without_password
from llm_cost_ops.exceptions import error_from_rpc
from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.errors import rpc_error
from llm_cost_ops.ledger.postgres.integrity import find_faults
from llm_cost_ops.ledger.postgres.url import database
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["ask"]

_FACTS = """
    SELECT current_setting('server_version'), pg_size_pretty(pg_database_size(current_database())),
        pg_is_in_recovery(), current_setting('synchronous_standby_names')
"""
# All organizations together: an estimate, as PostgreSQL keeps it, since to count them reads every row.
_ESTIMATE = "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass(%s)"


def ask(action: str, url: str) -> int:
    """Make or migrate the tables, show what there is, or check it; 1 when something is wrong."""
    shown = without_password(url)
    try:
        session = database(url).connect(prepare=False)
        try:
            return _ACTIONS[action](session, shown)
        finally:
            session.close()
    except RpcError as error:
        raise error_from_rpc(error) from error
    except psycopg.Error as error:
        raise error_from_rpc(rpc_error(error)) from error


def _init(session: Session, shown: str) -> int:
    made = schema.migrate(session)
    print(
        f"{shown}: its tables {'were made: they' if made else 'are there: they'} are of version "
        f"{schema.VERSION}"
    )
    return 0


def _migrate(session: Session, shown: str) -> int:
    _of_a_ledger(session)
    schema.migrate(session)
    if schema.adopt(session):
        print(f"{shown}: was restored from a dump, and follows this server from now on")
    print(f"{shown}: its tables are of version {schema.VERSION}")
    return 0


def _status(session: Session, shown: str) -> int:
    version = _of_a_ledger(session)
    [(server, size, standby, names)] = session.rows(_FACTS)
    [(records,)] = session.rows(_ESTIMATE, "llm_cost_ops.usage")
    [(organizations,)] = session.rows("SELECT count(*) FROM llm_cost_ops.organization")
    behind = "" if version == schema.VERSION else f" (this llm-cost-ops has {schema.VERSION}: migrate)"
    print(
        f"{shown}: PostgreSQL {server}{', a standby' if standby else ''}, tables of version {version}"
        f"{behind}, about {records:,} records of {organizations:,} organizations, {size}; "
        f"{f'commits wait for {names}' if names else 'no synchronous standby'}"
    )
    return 0


def _check(session: Session, shown: str) -> int:
    _of_a_ledger(session)
    faults = list(find_faults(session))
    for fault in faults:
        print(f"{shown}: {fault}")
    if not faults:
        [(events,)] = session.rows("SELECT count(*) FROM llm_cost_ops.audit")
        print(f"{shown}: ok: its sums, its series, its ids and {events:,} events of its audit log")
    return 1 if faults else 0


def _of_a_ledger(session: Session) -> int:
    version = schema.identify(session)
    if not version:
        raise RpcError(
            StatusCode.FAILED_PRECONDITION,
            "the database holds no ledger: make one with `llm-cost-ops db init`",
            error_code="STORAGE_UNUSABLE",
        )
    return version


_ACTIONS = {"init": _init, "migrate": _migrate, "status": _status, "check": _check}
