"""A ledger that a command asks itself, without a client between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.config import without_password
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rpc.status import RpcError

__all__ = ["check_file", "opened_ledger"]


def check_file(path: str, *, url: bool = True) -> None:
    """ConfigurationError where there is no such file; with `url`, a URL is not looked at."""
    if not (url and "://" in path) and not Path(path).is_file():
        raise ConfigurationError(f"there is no database {without_password(path)}", parameter="db")


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
