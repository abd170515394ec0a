"""Runs the service."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.server.asgi import AsgiApp
from llm_cost_ops.server.serve import HttpServer, Server
from llm_cost_ops.server.serve import serve as run
from llm_cost_ops.service import open_service

__all__ = ["serve"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(options: argparse.Namespace) -> int:
    """The `serve` command; it ends on SIGTERM or SIGINT, when calls in flight have been answered."""
    asyncio.run(_serve(options))
    return 0


async def _serve(options: argparse.Namespace) -> None:
    where = _address("http", options.http or "127.0.0.1:8080")
    service = open_service(options.db, durability=options.durability, group_commit=True)
    servers: list[Server] = [HttpServer(AsgiApp(service.handler), **where)]
    await run(
        servers,
        on_drain=service.drain,
        close=service.aclose,
        announce=lambda text: print(f"llm-cost-ops: {text}, {options.db}", flush=True),
    )


def _address(option: str, text: str) -> dict[str, Any]:
    if text.startswith("unix:"):
        return {"uds": text.removeprefix("unix:")}
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigurationError(
            f"--{option} must be HOST:PORT such as 127.0.0.1:8080, or unix:PATH, not {text!r}",
            parameter=option,
        )
    if host not in _LOOPBACK:
        raise ConfigurationError(
            f"--{option} {text}: without authentication the service listens on loopback only "
            "(127.0.0.1, [::1] or a Unix socket); put a proxy that authenticates in front of it",
            parameter=option,
        )
    return {"host": host, "port": int(port)}
