"""The `serve` command."""

from __future__ import annotations

import argparse
import os
import re
import threading
import webbrowser

from llm_cost_ops.cli.ledgers import check_file, database_of
from llm_cost_ops.cli.settings import SERVE, Settings, read_settings
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.server import serve as run
from llm_cost_ops.server.app import ServerTls

__all__ = ["dashboard", "serve", "settings_of", "tls_of"]


def settings_of(settings: Settings, options: argparse.Namespace) -> argparse.Namespace:
    """Every setting of a command: of its flags, the environment, or the file that --config names."""
    given = {name: value for name, value in vars(options).items() if name in settings.known}
    return argparse.Namespace(**read_settings(settings, given, os.environ, options.config))


def serve(options: argparse.Namespace) -> int:
    """Run the service; it ends on SIGTERM or SIGINT, when calls in flight have been answered."""
    found = settings_of(SERVE, options)
    run(
        database_of(found.db, beside_server=True),
        http=found.http,
        grpc=found.grpc,
        durability=found.durability,
        require_keys=found.require_keys,
        max_calls=found.max_calls,
        reported_providers=found.reported_providers,
        tls=tls_of(found),
        announce=_announce,
        dashboard=found.dashboard,
        access_log=found.access_log,
        check=options.check,
    )
    return 0


def dashboard(options: argparse.Namespace) -> int:
    """Serve the pages of a file that is there, and open them; it ends as `serve` does."""
    options.db = database_of(options.db)
    check_file(options.db)
    if not 0 <= options.port < 65536:
        raise ConfigurationError(f"port must be 0 to 65535, not {options.port}", parameter="port")
    run(
        options.db,
        http=f"127.0.0.1:{options.port}",
        announce=_announce if options.no_browser else _announce_and_open,
    )
    return 0


def _announce(text: str) -> None:
    print(f"llm-cost-ops: {text}", flush=True)


def _announce_and_open(text: str) -> None:
    _announce(text)
    address = re.match(r"listening on (http://[^ ,]+)", text)
    if address is not None:
        # In a thread, since some browsers are waited for; the server has to answer meanwhile.
        threading.Thread(target=webbrowser.open, args=(f"{address[1]}/",), daemon=True).start()


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
