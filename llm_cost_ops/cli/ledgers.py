"""A ledger that a command asks itself, without a client between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.config import EMBEDDED, without_password
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rpc.status import RpcError

__all__ = ["check_file", "database_of", "file_of", "opened_ledger"]


def check_file(path: str, *, url: bool = True) -> None:
    """ConfigurationError where there is no such file; with `url` it is that of --db, and may be a URL."""
    if not (url and "://" in path) and not Path(path).is_file():
        meant = ": name one by --db" if url else ""
        raise ConfigurationError(f"there is no database {without_password(path)}{meant}", parameter="db")


def file_of(base_url: str) -> Path | None:
    """The path of the SQLite file that a base URL names, if it names one."""
    scheme, _, path = base_url.partition("?")[0].partition(":///")
    if scheme != "sqlite" or not path:
        return None
    return Path(os.fsdecode(unquote_to_bytes(path.encode("utf-8", "surrogateescape")))).expanduser()


def database_of(given: str | None, *, beside_server: bool = False) -> str:
    """The database that a command works on itself: the one given, else that of LLM_COST_OPS_BASE_URL.

    Where that names nothing it is llm_cost_ops.db. Where it names a server, whose database may be any other,
    that is a ConfigurationError, and with `beside_server` llm_cost_ops.db as well.
    """
    base_url = given or os.environ.get("LLM_COST_OPS_BASE_URL", "")
    is_server = not given and bool(base_url) and base_url.partition(":")[0] not in EMBEDDED
    if is_server and not beside_server:
        raise ConfigurationError(
            "LLM_COST_OPS_BASE_URL names a server: name its database by --db, where it is", parameter="db"
        )
    database = "llm_cost_ops.db" if is_server or not base_url else base_url
    path = file_of(database)
    return database if path is None else str(path)


@contextmanager
def opened_ledger(url: str, timeout: float) -> Iterator[tuple[Ledger, CallContext]]:
    """The ledger of a URL or path, and a context for what is asked of it within `timeout` seconds.

    What it refuses in the block is raised as a CostOpsError.
    """
    runtime = SyncRuntime()
    context = CallContext(GET_HEALTH, runtime, Metadata(), runtime.monotonic() + timeout)
    ledger = open_ledger(url)
    try:
        yield ledger, context
    except RpcError as error:
        raise error_from_rpc(error) from error
    finally:
        drive(ledger.aclose())
