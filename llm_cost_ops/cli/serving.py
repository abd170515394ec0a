"""Runs the service."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

from llm_cost_ops._gen.messages import GetReadinessRequest
from llm_cost_ops._gen.methods import GET_HEALTH, GET_READINESS
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.server.app import HttpServer, Server, ServerTls
from llm_cost_ops.server.app import serve as run
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.service import Service
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.tenancy import OPEN

__all__ = ["serve"]

_PORTS = {"http": 8080, "grpc": 50051}
_REQUIRED = "every call but health needs an API key"
_UNASKED = (
    "NO API KEYS: whoever can connect may read and write everything; "
    "from the first `llm-cost-ops keys create` on, every call needs a key"
)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(options: argparse.Namespace) -> int:
    """The `serve` command; it ends on SIGTERM or SIGINT, when calls in flight have been answered."""
    if "://" in options.db:
        raise ConfigurationError(f"--db must be the path of a file, not {options.db!r}", parameter="db")
    # A file that is not there is not made before the addresses are found good.
    asyncio.run(_serve(options, exists=Path(options.db).exists()))
    return 0


async def _serve(options: argparse.Namespace, *, exists: bool) -> None:
    http = options.http or (None if options.grpc else "127.0.0.1:8080")
    where_http = _address("http", http) if http else None
    where_grpc = _address("grpc", options.grpc) if options.grpc else None
    tls = _tls(options)
    required = options.require_keys or (exists and await _holds_keys(options))
    for option, where in (("http", where_http), ("grpc", where_grpc)):
        _check_reach(option, where, required=required, secret=tls is not None)
    ledger = await _opened(options)
    print(f"llm-cost-ops: {_REQUIRED if required else _UNASKED}", flush=True)
    keys = Authentication(ledger.keys, required=required)
    admission = Admission(options.max_calls, exempt=OPEN)
    service = Service(ledger, [admission, keys], reported_providers=options.reported_providers)
    servers: list[Server] = []
    if where_http is not None:
        app = AsgiApp(service.handler, admit=keys.admit, admission=admission)
        servers.append(HttpServer(app, tls=tls, **where_http))
    if where_grpc is not None:
        from llm_cost_ops.server.grpc import GrpcServer

        ready = partial(_ready, service)
        servers.append(
            GrpcServer(
                service.handler, ready=ready, admit=keys.admit, admission=admission, tls=tls, **where_grpc
            )
        )
    await run(
        servers,
        on_drain=service.drain,
        close=service.aclose,
        announce=lambda text: print(f"llm-cost-ops: {text}, {options.db}", flush=True),
    )


async def _opened(options: argparse.Namespace) -> Ledger:
    """The ledger, which has shown that it can be written."""
    ledger = open_ledger(options.db, durability=options.durability, group_commit=True)
    try:
        await ledger.check(_context(GET_READINESS))
    except RpcError as error:
        await ledger.aclose()
        raise ConfigurationError(f"--db {options.db}: {error.message}", parameter="db") from error
    return ledger


async def _holds_keys(options: argparse.Namespace) -> bool:
    ledger = open_ledger(options.db)
    try:
        return await ledger.keys.any(_context(GET_HEALTH))
    except RpcError as error:
        raise error_from_rpc(error) from error
    finally:
        await ledger.aclose()


def _context(method: MethodDescriptor[Any, Any], timeout: float = 30.0) -> CallContext:
    runtime = AsyncRuntime()
    return CallContext(method, runtime, Metadata(), runtime.monotonic() + timeout)


async def _ready(service: Service) -> bool:
    try:
        await service.health.get_readiness(GetReadinessRequest(), _context(GET_READINESS, 1.0))
    except RpcError:
        return False
    return True


def _address(option: str, text: str) -> dict[str, Any]:
    if text.startswith("unix:"):
        return {"uds": text.removeprefix("unix:")}
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigurationError(
            f"--{option} must be HOST:PORT such as 127.0.0.1:{_PORTS[option]}, or unix:PATH, not {text!r}",
            parameter=option,
        )
    return {"host": host, "port": int(port)}


def _tls(options: argparse.Namespace) -> ServerTls | None:
    if options.tls_cert is None and options.tls_key is None and options.tls_client_ca is None:
        return None
    for option in ("tls-cert", "tls-key"):
        if getattr(options, option.replace("-", "_")) is None:
            raise ConfigurationError(f"TLS needs --{option}", parameter=option)
    return ServerTls(
        cert_file=options.tls_cert, key_file=options.tls_key, client_ca_file=options.tls_client_ca
    )


def _check_reach(option: str, where: dict[str, object] | None, *, required: bool, secret: bool) -> None:
    """Without keys, whoever can connect may do everything: so only this machine may connect."""
    host = (where or {}).get("host", "localhost")
    if host in _LOOPBACK:
        return
    if not required:
        raise ConfigurationError(
            f"--{option} {host}: without API keys the service listens on loopback only (127.0.0.1, [::1] or "
            "a Unix socket); make a key with `llm-cost-ops keys create`, or start with --require-keys",
            parameter=option,
        )
    if secret:
        return
    print(
        f"llm-cost-ops: --{option} {host} takes keys and data in plain text: give --tls-cert and --tls-key, "
        "or let a proxy speak TLS to others",
        file=sys.stderr,
        flush=True,
    )
