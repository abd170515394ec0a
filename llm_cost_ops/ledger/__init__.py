"""Where usage, costs and price cards are kept: the contract of a ledger, and `open_ledger(url)`.

`Ledger` and `Sums` in protocols.py are what a backend has, types.py what they take and give. Each backend is
a package of its own; whoever uses a ledger knows only this contract.
"""

from __future__ import annotations

import os
from importlib import import_module
from urllib.parse import quote

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger.protocols import Alike, Batch, KeyStore, Ledger, Sums
from llm_cost_ops.ledger.types import (
    Amounts,
    ApiKey,
    Appended,
    AuditFilter,
    Change,
    Committed,
    Entry,
    Erased,
    Filter,
    LedgerFigures,
    Position,
    Price,
    Recorded,
    Repriced,
    Retention,
    Revised,
    Revision,
)

__all__ = [
    "Alike",
    "Amounts",
    "ApiKey",
    "Appended",
    "AuditFilter",
    "Batch",
    "Change",
    "Committed",
    "Entry",
    "Erased",
    "Filter",
    "KeyStore",
    "Ledger",
    "LedgerFigures",
    "Position",
    "Price",
    "Recorded",
    "Repriced",
    "Retention",
    "Revised",
    "Revision",
    "Sums",
    "backend_of",
    "open_ledger",
]

# The package of each backend; it has a function open(url, *, durability, group_commit).
_BACKENDS = {
    "sqlite": "llm_cost_ops.ledger.sqlite",
    "postgresql": "llm_cost_ops.ledger.postgres",
    "postgres": "llm_cost_ops.ledger.postgres",
}


def open_ledger(url: str, *, durability: str = "disk", group_commit: bool = False) -> Ledger:
    """The ledger at a URL: `sqlite:///costs.db` is a file, `sqlite://` private memory, and
    `postgresql://user@host/database` a database that servers share.

    What has no `://` is the path of a SQLite file.

    Nothing is opened or connected before the first call. With durability "disk" a write is on disk when it is
    acknowledged; "process" is faster, and survives the end of the process but not always a loss of power.
    With `group_commit` concurrent writes share a commit, as servers need it.

    Raises ConfigurationError for an unknown scheme, and for a URL or durability that its backend refuses.
    """
    url, package = backend_of(url)
    opened: Ledger = import_module(package).open(url, durability=durability, group_commit=group_commit)
    return opened


def backend_of(url: str) -> tuple[str, str]:
    """A URL, also where the path of a file was given, and the package of its backend.

    Raises ConfigurationError for an unknown scheme.
    """
    if "://" not in url:
        url = f"sqlite:///{quote(os.fsencode(url))}"
    scheme = url.partition("://")[0]
    if scheme not in _BACKENDS:
        known = ", ".join(f"{name}://" for name in sorted(_BACKENDS))
        raise ConfigurationError(
            f"there is no ledger at {scheme[:64]}://: its scheme must be one of {known}",
            parameter="url",
        )
    return url, _BACKENDS[scheme]
