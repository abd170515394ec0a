"""Where a command sends its calls."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from urllib.parse import quote, unquote

from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.config import EMBEDDED, SCHEMES, ClientConfig, RetryConfig, without_password
from llm_cost_ops.exceptions import ConfigurationError

__all__ = ["open_client", "url_of"]


def open_client(
    options: argparse.Namespace, *, create: bool = False, without: str | None = None
) -> CostOpsClient:
    """A client for --db or --base-url, or for what the environment says.

    Where that is a database file that does not exist, it is made with `create`, and `without` is used
    instead when that is given. Raises ConfigurationError otherwise: a question to a misspelt file would be
    answered with nothing.
    """
    base_url = getattr(options, "base_url", None)
    if options.db:
        base_url = url_of(options.db)
    config = ClientConfig.from_env(**({"base_url": base_url} if base_url else {}))
    reported = getattr(options, "reported_providers", None)
    if reported is not None:
        if config.base_url.partition(":")[0] not in EMBEDDED:
            raise ConfigurationError(
                "--reported-providers goes with --db: a server has its own setting",
                parameter="reported_providers",
            )
        config = config.replace(reported_providers=reported)
    path = _file_of(config.base_url)
    if path is not None and not create and not path.exists():
        if without is None:
            raise ConfigurationError(f"there is no database {without_password(str(path))}", parameter="db")
        config = config.replace(base_url=without)
    # A command has nobody waiting behind it: it may be more patient than a service.
    return CostOpsClient(config=config.replace(timeout=120.0, retry=RetryConfig(max_retries=6)))


def _file_of(base_url: str) -> Path | None:
    scheme, _, path = base_url.partition("?")[0].partition(":///")
    return Path(unquote(path)).expanduser() if scheme == "sqlite" and path else None


def url_of(path: str) -> str:
    """The base URL of a database file: what stands in a path for itself would mean something in a URL.

    A URL of a known scheme is taken as it is, and a path under ~ is one's own.
    """
    scheme, separator, _ = path.partition("://")
    if separator and scheme in SCHEMES:
        return path
    return "sqlite:///" + quote(os.fspath(Path(path).expanduser()))
