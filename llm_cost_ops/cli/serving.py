"""The `serve` command."""

from __future__ import annotations

import argparse

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.server import serve as run
from llm_cost_ops.server.app import ServerTls

__all__ = ["serve", "tls_of"]


def serve(options: argparse.Namespace) -> int:
    """Run the service; it ends on SIGTERM or SIGINT, when calls in flight have been answered."""
    run(
        options.db,
        http=options.http,
        grpc=options.grpc,
        durability=options.durability,
        require_keys=options.require_keys,
        max_calls=options.max_calls,
        reported_providers=options.reported_providers,
        tls=tls_of(options),
        announce=lambda text: print(f"llm-cost-ops: {text}", flush=True),
    )
    return 0


def tls_of(options: argparse.Namespace) -> ServerTls | None:
    """The certificate that the options name; ConfigurationError for half of one."""
    if options.tls_cert is None and options.tls_key is None and options.tls_client_ca is None:
        return None
    for option in ("tls-cert", "tls-key"):
        if getattr(options, option.replace("-", "_")) is None:
            raise ConfigurationError(f"TLS needs --{option}", parameter=option)
    return ServerTls(
        cert_file=options.tls_cert, key_file=options.tls_key, client_ca_file=options.tls_client_ca
    )
