"""What a URL of a ledger on SQLite says."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger.sqlite.connection import DURABILITIES

__all__ = ["path_of"]


def path_of(url: str, durability: str) -> tuple[str | None, str]:
    """The path of the file that a URL names, None for memory; and its durability.

    Raises ConfigurationError for a host in the URL, another option or another durability.
    """
    parts = urlsplit(url)
    if parts.netloc:
        raise _wrong("has three slashes before the path, as in sqlite:///costs.db")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    durability = options.pop("durability", durability)
    if options:
        raise _wrong(f"has an unknown option {min(options)!r}")
    if durability not in DURABILITIES:
        raise _wrong(f"durability must be {' or '.join(map(repr, DURABILITIES))}, not {durability!r}")
    # As Python has names in its arguments and environment that are not in its own encoding.
    path = os.fsdecode(unquote_to_bytes(parts.path.encode("utf-8", "surrogateescape")))[1:]
    if parts.path and not path:
        raise _wrong("names no file, as sqlite:///costs.db does; private memory is sqlite://")
    return str(Path(path).expanduser()) if path else None, durability


def _wrong(rule: str) -> ConfigurationError:
    return ConfigurationError(f"base_url: {rule}", parameter="base_url")
