"""Waiting, within a call's deadline, for what is not the call itself."""

from __future__ import annotations

from collections.abc import Awaitable
from concurrent.futures import Future
from typing import TypeVar

from llm_cost_ops.exceptions import CostOpsError, error_from_rpc
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["outcome_of", "within_deadline"]

T = TypeVar("T")


async def outcome_of(future: Future[T], context: CallContext) -> T:
    """The result of a future of another call; the public TimeoutError once the deadline passes."""
    try:
        return await context.runtime.wait(future, context.remaining())
    except TimeoutError:
        raise _deadline_passed(context) from None


async def within_deadline(awaitable: Awaitable[T], context: CallContext) -> T:
    """The result of user code; it is cancelled, with the public TimeoutError, at the deadline.

    In the sync client nothing can be cut short.
    """
    try:
        return await context.runtime.within(awaitable, context.remaining())
    except TimeoutError as error:
        remaining = context.remaining()
        if remaining is None or remaining > 0:
            raise  # its own
        raise _deadline_passed(context) from error


def _deadline_passed(context: CallContext) -> CostOpsError:
    passed = RpcError(
        StatusCode.DEADLINE_EXCEEDED, f"the deadline of {context.method.name} passed", origin="client"
    )
    return error_from_rpc(passed, context.attempt - 1)
