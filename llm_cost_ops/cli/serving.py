"""Runs the service."""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from typing import Any

from llm_cost_ops._gen.messages import GetReadinessRequest
from llm_cost_ops._gen.methods import GET_READINESS
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.server.asgi import AsgiApp
from llm_cost_ops.server.serve import HttpServer, Server
from llm_cost_ops.server.serve import serve as run
from llm_cost_ops.service import Service, open_service

__all__ = ["serve"]

_PORTS = {"http": 8080, "grpc": 50051}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(options: argparse.Namespace) -> int:
    """The `serve` command; it ends on SIGTERM or SIGINT, when calls in flight have been answered."""
    asyncio.run(_serve(options))
    return 0


async def _serve(options: argparse.Namespace) -> None:
    http = options.http or (None if options.grpc else "127.0.0.1:8080")
    where_http = _address("http", http) if http else None
    where_grpc = _address("grpc", options.grpc) if options.grpc else None
    service = open_service(options.db, durability=options.durability, group_commit=True)
    servers: list[Server] = []
    if where_http is not None:
        servers.append(HttpServer(AsgiApp(service.handler), **where_http))
    if where_grpc is not None:
        from llm_cost_ops.server.grpc import GrpcServer

        servers.append(GrpcServer(service.handler, ready=partial(_ready, service), **where_grpc))
    await run(
        servers,
        on_drain=service.drain,
        close=service.aclose,
        announce=lambda text: print(f"llm-cost-ops: {text}, {options.db}", flush=True),
    )


async def _ready(service: Service) -> bool:
    runtime = AsyncRuntime()
    context = CallContext(GET_READINESS, runtime, Metadata(), runtime.monotonic() + 1.0)
    try:
        await service.health.get_readiness(GetReadinessRequest(), context)
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
    if host not in _LOOPBACK:
        raise ConfigurationError(
            f"--{option} {text}: without authentication the service listens on loopback only "
            "(127.0.0.1, [::1] or a Unix socket); put a proxy that authenticates in front of it",
            parameter=option,
        )
    return {"host": host, "port": int(port)}
