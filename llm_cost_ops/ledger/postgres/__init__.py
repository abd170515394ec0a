"""The ledger in PostgreSQL: a database that any number of servers share.

Needs the extra `postgres`. Importing this loads the driver, so the registry does it when a URL asks for it.
"""

from __future__ import annotations

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.lazy import missing_library

try:
    import psycopg  # noqa: F401  # the rest of the package needs it
except ImportError as error:
    raise ConfigurationError(str(missing_library(error, "postgresql://")), parameter="base_url") from None

from llm_cost_ops.ledger.postgres.ledger import PostgresLedger
from llm_cost_ops.ledger.postgres.url import database

__all__ = ["PostgresLedger", "open"]


def open(  # noqa: A001 - each backend has it
    url: str,
    *,
    durability: str,
    group_commit: bool,  # noqa: ARG001 - as above
) -> PostgresLedger:
    """The ledger at `postgresql://user@host/database`; `?durability=` goes before the argument.

    The other options are libpq's, such as sslmode; so are the variables of the environment and the files that
    it reads, such as PGPASSWORD. Writes always share commits, whatever `group_commit` says.

    Raises ConfigurationError for an option that libpq does not know, or another durability.
    """
    return PostgresLedger(database(url, durability))
