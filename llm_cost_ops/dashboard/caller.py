"""Calls of the service's methods, as whoever looks at a page."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.runtime import AsyncRuntime, Runtime
from llm_cost_ops.service.access.tenancy import Principal, Role

__all__ = ["PAGE_SECONDS", "Caller"]

Req = TypeVar("Req")
Res = TypeVar("Res")

PAGE_SECONDS = 60.0
"""The deadline of all calls that a page needs."""


class Caller:
    """Who looks at a page, and what the service answers them.

    `principal` None is whoever looks at a server that asks for no keys: the handler itself decides whether
    it may, for each call.
    """

    def __init__(self, handler: ServiceHandler, principal: Principal | None, request_id: str) -> None:
        self._handler = handler
        self.principal = principal
        self._request_id = request_id
        self._runtime: Runtime = AsyncRuntime()
        self._deadline = self._runtime.monotonic() + PAGE_SECONDS

    @property
    def is_admin(self) -> bool:
        """Whether they may keep prices and keys."""
        return self.principal is None or self.principal.role >= Role.ADMIN

    def context(self, method: MethodDescriptor[Req, Res]) -> CallContext:
        """The context of a call as this caller."""
        return CallContext(
            method,
            self._runtime,
            Metadata(),
            self._deadline,
            request_id=self._request_id,
            principal=self.principal,
        )

    def extend(self) -> None:
        """Give the calls from here on as much time as those of a page that begins now."""
        self._deadline = self._runtime.monotonic() + PAGE_SECONDS

    async def call(self, method: MethodDescriptor[Req, Res], request: Req, *, key: str = "") -> Res:
        """The service's answer; RpcError as it raises it. `key` is the idempotency key of a write."""
        context = self.context(method)
        context.idempotency_key = key
        context.check_deadline()
        try:
            async with asyncio.timeout(context.remaining()):
                answer: Res = await self._handler.answers[method.path](request, context)
        except TimeoutError:
            context.check_deadline(maybe_applied=True)
            raise
        return answer
