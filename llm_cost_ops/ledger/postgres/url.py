"""What a URL of a ledger in PostgreSQL says."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger.postgres.connection import DURABILITIES, Database

__all__ = ["database"]

_DEFAULTS = {"application_name": "llm-cost-ops", "target_session_attrs": "read-write", "connect_timeout": "5"}


def database(url: str, durability: str = "disk") -> Database:
    """The database at a URL; see `open` of this package."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    ends = parts.netloc.count("@")
    cut = not ends and ":" in parts.netloc and ("@" in url or any("@" in name for name in options))
    if ends > 1 or cut:
        # Else a part of the password would be taken, and shown, for a host, a database or an option.
        raise _wrong("signs such as @ : / ? # in a password are percent-encoded (@ is %40)")
    durability = options.pop("durability", durability)
    if durability not in DURABILITIES:
        raise _wrong(f"durability must be {' or '.join(map(repr, DURABILITIES))}, not {durability!r}")
    try:
        named = psycopg.conninfo.conninfo_to_dict(urlunsplit(parts._replace(query=urlencode(options))))
    except psycopg.ProgrammingError as error:
        raise _wrong(f"is not a URL that PostgreSQL's driver reads: {_rule(error)}") from None
    conninfo = psycopg.conninfo.make_conninfo("", **{**_DEFAULTS, **named})
    return Database(conninfo, durability, str(named.get("dbname", "")))


def _rule(error: Exception) -> str:
    """What libpq says, unless it repeats a part of the URL, which may be the password."""
    text = str(error).strip()
    return text if text.startswith("invalid URI query parameter") else "see its parts, hosts and options"


def _wrong(rule: str) -> ConfigurationError:
    return ConfigurationError(f"base_url: {rule}", parameter="base_url")
