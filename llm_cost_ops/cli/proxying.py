"""The `proxy` command."""

from __future__ import annotations

import argparse
from typing import Literal

from llm_cost_ops.cli.options import pairs
from llm_cost_ops.cli.serving import tls_of
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.config import RecorderConfig, without_password
from llm_cost_ops.exceptions import ConfigurationError, ServerError
from llm_cost_ops.proxy import ProxyLimits
from llm_cost_ops.proxy import serve as run

__all__ = ["proxy"]

_STREAM_USAGE: dict[str, bool | Literal["auto"]] = {"auto": "auto", "always": True, "never": False}


def proxy(options: argparse.Namespace) -> int:
    """Run the proxy; it ends on SIGTERM or SIGINT, when calls in flight have been answered."""
    upstreams = pairs(options.upstream, "upstream")
    options.db = options.db or (None if options.base_url else "llm_cost_ops.db")
    with open_client(options, create=True, waits=True) as client:
        config = client.config.replace(recorder=RecorderConfig(spool=options.spool))
        if options.organization:
            config = config.replace(organization_id=options.organization)
        with type(client)(config=config) as recording:
            if options.db:
                _check_database(recording, options.db)
            run(
                upstreams,
                recording,
                http=options.http,
                keys=options.keys or options.db,
                require_keys=options.require_keys,
                stream_usage=_STREAM_USAGE[options.stream_usage],
                limits=ProxyLimits(max_calls=options.max_calls),
                tls=tls_of(options),
                announce=lambda text: print(f"llm-cost-ops: {text}", flush=True),
            )
    return 0


def _check_database(client: CostOpsClient, db: str) -> None:
    """Refuse a database that can't be used: a service may be away for a while, this is a mistake."""
    try:
        client.with_options(retry=None).ready()
    except ServerError as error:
        raise ConfigurationError(f"db {without_password(db)}: {error.message}", parameter="db") from error
