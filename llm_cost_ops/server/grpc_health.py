"""grpc.health.v1: what Kubernetes, Envoy and load balancers ask a gRPC server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc

from llm_cost_ops.transports.grpc_wire import fields_of, number
from llm_cost_ops.wire import DecodeError

__all__ = ["HealthDoor"]

SERVICE = "grpc.health.v1.Health"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

# Asking the store costs a write, so an answer counts for so many seconds.
FRESH = 0.2


class HealthDoor:
    """Check and Watch for the server as a whole ("") and each of `services`.

    `ready()` tells whether the service takes traffic. `stop` ends the watches: an open one would
    hold up a server that drains.
    """

    def __init__(self, services: Iterable[str], ready: Callable[[], Awaitable[bool]]) -> None:
        self._services = {"", SERVICE, *services}
        self._ready = ready
        self._status = NOT_SERVING
        self._asked = float("-inf")
        self._stopped = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """What grpcio calls."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def check(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """The status of a service now; NOT_FOUND for one that is not here."""
        status = await self._status_of(await _service(request, context))
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return number(1, status)

    async def watch(
        self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """The status of a service now, and whenever it changes."""
        service = await _service(request, context)
        told = 0
        while True:
            status = await self._status_of(service)
            if status != told:
                told = status
                yield number(1, status)
            if self._stopped.is_set():
                return
            try:
                async with asyncio.timeout(FRESH):
                    await self._stopped.wait()
            except TimeoutError:
                pass

    def stop(self) -> None:
        """Say NOT_SERVING to everybody, and end the watches."""
        self._stopped.set()

    async def _status_of(self, service: str) -> int:
        if service not in self._services:
            return SERVICE_UNKNOWN
        if self._stopped.is_set():
            return NOT_SERVING
        now = time.monotonic()
        if now - self._asked >= FRESH:
            self._asked = now
            self._status = SERVING if await self._ready() else NOT_SERVING
        return self._status


async def _service(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> str:
    try:
        return str(dict(fields_of(request)).get(1, b""), "utf-8")
    except (DecodeError, UnicodeDecodeError, TypeError) as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"HealthCheckRequest: {error}")
        raise
