"""Tells whether the service works."""

from __future__ import annotations

import time

from llm_cost_ops import __version__
from llm_cost_ops._gen.messages import (
    ComponentHealth,
    GetHealthRequest,
    GetHealthResponse,
    GetReadinessRequest,
    GetReadinessResponse,
    HealthStatus,
)
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["HealthService"]

_FRESH = 0.2


class HealthService:
    """Asks the store whether it can write. A server that drains sets `draining`.

    Asking costs a write, and anybody may ask: so that it could counts for a fifth of a second.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # Of the process's clock: a runtime's may be a test's own.
        self._started = time.monotonic()
        self.draining = False
        self._could_write = float("-inf")

    async def get_health(self, request: GetHealthRequest, context: CallContext) -> GetHealthResponse:
        """Tell how the parts are."""
        store, _ = await self._store_health(context)
        return GetHealthResponse(
            status=store.status, version=__version__, uptime_seconds=self._uptime(), components=[store]
        )

    async def get_readiness(self, request: GetReadinessRequest, context: CallContext) -> GetReadinessResponse:
        """Answer, or fail with UNAVAILABLE."""
        store, detail = await self._store_health(context)
        if self.draining:
            raise RpcError(StatusCode.UNAVAILABLE, "the server is shutting down", retry_after=1.0)
        if store.status == HealthStatus.UNHEALTHY:
            message = f"the store can't write: {store.message}"
            raise RpcError(StatusCode.UNAVAILABLE, message, local_detail=detail)
        return GetReadinessResponse(
            status=store.status, version=__version__, uptime_seconds=self._uptime(), components=[store]
        )

    async def _store_health(self, context: CallContext) -> tuple[ComponentHealth, str]:
        """How the store is, and what only who runs the service should read of that."""
        now = context.runtime.monotonic()
        healthy = ComponentHealth(name="store", status=HealthStatus.HEALTHY)
        if now - self._could_write < _FRESH:
            return healthy, ""
        try:
            await self._ledger.check(context)
        except RpcError as error:
            # Not remembered: it may have been the caller's own deadline.
            unhealthy = ComponentHealth(name="store", status=HealthStatus.UNHEALTHY, message=error.message)
            return unhealthy, error.local_detail
        self._could_write = now
        return healthy, ""

    def _uptime(self) -> float:
        return round(time.monotonic() - self._started, 3)
