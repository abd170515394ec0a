"""Where a command sends its calls."""

from __future__ import annotations

import argparse
import os
import re
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

from llm_cost_ops.cli.ledgers import file_of
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.config import EMBEDDED, SCHEMES, ClientConfig, RetryConfig, base_urls, without_password
from llm_cost_ops.exceptions import ConfigurationError, NetworkError
from llm_cost_ops.ledger import backend_of

__all__ = ["open_client", "url_of"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_PORTS = {"http": 80, "https": 443, "grpc": 50051, "grpcs": 443}
_PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def open_client(
    options: argparse.Namespace, *, create: bool = False, without: str | None = None, waits: bool = False
) -> CostOpsClient:
    """A client for --db or --base-url, or for what the environment says.

    Where that is a database file that does not exist, it is made with `create`, and `without` is used
    instead when that is given. Raises ConfigurationError otherwise: a question to a misspelt file would be
    answered with nothing. NetworkError where no server listens, unless the command `waits` for one.
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
    path = file_of(config.base_url)
    if path is not None and not create and not path.exists():
        if without is None:
            raise ConfigurationError(
                f"there is no database {without_password(str(path))}: name one by --db, "
                "or a server by --base-url",
                parameter="db",
            )
        config = config.replace(base_url=without)
    if not waits:
        _check_reachable(config)
    # A command has nobody waiting behind it: it may be more patient than a service.
    return CostOpsClient(config=config.replace(timeout=120.0, retry=RetryConfig(max_retries=6)))


def _check_reachable(config: ClientConfig) -> None:
    """NetworkError, at once and with what to do, where nothing listens at the address of any server.

    Once a command has begun it is patient with a server that restarts; one that was never there is
    somebody's mistake.
    """
    servers = list(map(urlsplit, base_urls(config.base_url)))
    port = _PORTS.get(servers[0].scheme)
    if port is None or not servers[0].hostname or config.proxy or any(map(os.environ.get, _PROXIES)):
        return
    for url in servers:
        try:
            socket.create_connection((url.hostname or "", url.port or port), timeout=0.5).close()
        except ConnectionRefusedError:
            continue
        except OSError:
            # A name that is not known yet, or a network that is slow: the call itself says what is wrong.
            return
        return
    names = " or ".join(f"{url.scheme}://{url.hostname}:{url.port or port}" for url in servers)
    raise NetworkError(
        f"nothing listens at {names}: start a server with `llm-cost-ops serve`, or name another by "
        "--base-url or LLM_COST_OPS_BASE_URL, or a file by --db"
    )


def url_of(path: str) -> str:
    """The base URL of a database file: what stands in a path for itself would mean something in a URL.

    A URL of a known scheme is taken as it is, and a path under ~ is one's own. Raises ConfigurationError for
    a URL of another scheme: as the path of a file it would be shown, and it may hold a password.
    """
    scheme, separator, _ = path.partition("://")
    if separator and scheme in SCHEMES:
        return path
    if separator and _SCHEME.fullmatch(scheme):
        backend_of(path)
    return "sqlite:///" + quote(os.fsencode(Path(path).expanduser()))
