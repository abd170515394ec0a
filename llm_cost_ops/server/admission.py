"""Refuses at once what can't be served in time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import Any

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["Admission"]

_RETRY_AFTER = 0.5


class Admission:
    """Lets at most `limit` calls be in flight; a further one is UNAVAILABLE, with `retry_after`.

    It stands outermost, so that a refusal costs neither a look at the key nor one at the store. The paths
    in `exempt` always pass, and count nothing: health must answer when nothing else does. The hints differ
    from call to call, lest all that were refused come back together.
    """

    def __init__(self, limit: int, *, exempt: Collection[str] = ()) -> None:
        if limit < 1:
            raise ValueError("the limit must be at least 1")
        self._limit = limit
        self._exempt = frozenset(exempt)
        self.in_flight = 0

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        if context.method.path in self._exempt:
            return await continuation(request, context)
        self._enter(context)
        try:
            return await continuation(request, context)
        finally:
            self.in_flight -= 1

    async def intercept_unary_stream(
        self, continuation: Callable[..., AsyncGenerator[Any, None]], request: Any, context: CallContext
    ) -> AsyncGenerator[Any, None]:
        self._enter(context)
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        finally:
            self.in_flight -= 1

    intercept_stream_stream = intercept_unary_stream

    def _enter(self, context: CallContext) -> None:
        if self.in_flight >= self._limit:
            raise RpcError(
                StatusCode.UNAVAILABLE,
                "the server has as many calls in flight as it takes",
                retry_after=round(_RETRY_AFTER * (1 + context.runtime.random()), 3),
                error_code="OVERLOADED",
            )
        self.in_flight += 1
