"""Waiting for what another call is doing."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

from llm_cost_ops.exceptions import error_from_rpc
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["outcome_of"]

T = TypeVar("T")


async def outcome_of(future: Future[T], context: CallContext) -> T:
    """The result of a future of another call; the public TimeoutError once the deadline passes."""
    try:
        return await context.runtime.wait(future, context.remaining())
    except TimeoutError:
        passed = RpcError(
            StatusCode.DEADLINE_EXCEEDED, f"the deadline of {context.method.name} passed", origin="client"
        )
        raise error_from_rpc(passed, context.attempt - 1) from None
