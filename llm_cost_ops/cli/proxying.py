"""The `proxy` command."""

from __future__ import annotations

import argparse
import os
from typing import Literal

from llm_cost_ops.cli.options import pairs
from llm_cost_ops.cli.serving import settings_of, tls_of
from llm_cost_ops.cli.settings import PROXY
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.client.spool import Spool
from llm_cost_ops.config import RecorderConfig, without_password
from llm_cost_ops.exceptions import ConfigurationError, ServerError
from llm_cost_ops.proxy import ProxyLimits
from llm_cost_ops.proxy import serve as run

__all__ = ["proxy"]

_STREAM_USAGE: dict[str, bool | Literal["auto"]] = {"auto": "auto", "always": True, "never": False}


def proxy(options: argparse.Namespace) -> int:
    """Run the proxy; it ends on SIGTERM or SIGINT, when calls in flight have been answered."""
    if "upstream" in options:
        options.upstream = pairs(options.upstream, "upstream", "NAME=URL")
    found = settings_of(PROXY, options)
    if found.db is None and found.base_url is None and not os.environ.get("LLM_COST_OPS_BASE_URL"):
        found.db = "llm_cost_ops.db"
    tls = tls_of(found)
    _check_spool(found.spool)
    with open_client(found, create=True, waits=True) as client:
        config = client.config.replace(recorder=RecorderConfig(spool=found.spool))
        if found.organization:
            config = config.replace(organization_id=found.organization)
        with type(client)(config=config) as recording:
            if found.db:
                _check_database(recording, found.db)
            run(
                found.upstream,
                recording,
                http=found.http,
                keys=found.keys or found.db,
                require_keys=found.require_keys,
                stream_usage=_STREAM_USAGE[found.stream_usage],
                limits=ProxyLimits(max_calls=found.max_calls),
                tls=tls,
                announce=lambda text: print(f"llm-cost-ops: {text}", flush=True),
                check=options.check,
            )
    return 0


def _check_spool(folder: str) -> None:
    """Refuse a folder that can't keep records; what lies in it stays there."""
    try:
        Spool(folder).close()
    except OSError as error:
        raise ConfigurationError(f"spool {folder}: {error.strerror}", parameter="spool") from error


def _check_database(client: CostOpsClient, db: str) -> None:
    """Refuse a database that can't be used: a service may be away for a while, this is a mistake."""
    try:
        client.with_options(retry=None).ready()
    except ServerError as error:
        raise ConfigurationError(f"db {without_password(db)}: {error.message}", parameter="db") from error
