"""The ledger on SQLite: a file that several processes of one machine may share, or private memory."""

from __future__ import annotations

from llm_cost_ops.ledger.sqlite.ledger import SqliteLedger
from llm_cost_ops.ledger.sqlite.url import path_of

__all__ = ["SqliteLedger", "open"]


def open(url: str, *, durability: str, group_commit: bool) -> SqliteLedger:  # noqa: A001 - each backend has it
    """The ledger at `sqlite:///path`, or in memory at `sqlite://`; `?durability=` goes before the argument.

    Raises ConfigurationError for a host in the URL, another option or another durability.
    """
    path, durability = path_of(url, durability)
    return SqliteLedger(path, durability=durability, group_commit=group_commit)
