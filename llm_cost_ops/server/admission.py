"""Refuses at once what can't be served in time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import Any

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Req, Res, UnaryContinuation
from llm_cost_ops.rpc.runtime import Runtime
from llm_cost_ops.rpc.status import OVERLOADED, RpcError, StatusCode

__all__ = ["Admission", "overloaded"]

_RETRY_AFTER = 0.5

# So many refusals a second are told at once; what is over that waits, for at most _MAX_HOLD seconds.
_REFUSALS = 500.0
_MAX_HOLD = 1.0


class Admission:
    """Lets at most `limit` calls be in flight; a further one is UNAVAILABLE, with `retry_after`.

    It stands outermost, so that a refusal costs neither a look at the key nor one at the store. The paths
    in `exempt` always pass, and count nothing: health must answer when nothing else does. The hints differ
    from call to call, lest all that were refused come back together. Callers that come back at once all the
    same are told so ever later, up to a second: a refusal costs a part of a call, and too many of them would
    leave no time for calls.
    """

    def __init__(self, limit: int, *, exempt: Collection[str] = ()) -> None:
        if limit < 1:
            raise ValueError("the limit must be at least 1")
        self._limit = limit
        self.exempt = frozenset(exempt)
        self.in_flight = 0
        self._next_refusal = 0.0

    def full(self) -> bool:
        """Whether a further call would be refused."""
        return self.in_flight >= self._limit

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        if context.method.path in self.exempt:
            return await continuation(request, context)
        await self._enter(context)
        try:
            return await continuation(request, context)
        finally:
            self.in_flight -= 1

    async def intercept_unary_stream(
        self, continuation: Callable[..., AsyncGenerator[Any, None]], request: object, context: CallContext
    ) -> AsyncGenerator[object, None]:
        await self._enter(context)
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        finally:
            self.in_flight -= 1

    intercept_stream_stream = intercept_unary_stream

    async def refusal(self, runtime: Runtime, left: float | None) -> RpcError | None:
        """The error for a call that is refused, when its turn has come; None where there is room.

        `left` is what the caller still waits, in seconds: it is told within half of that.
        """
        if not self.full():
            return None
        now = runtime.monotonic()
        held = min(max(0.0, self._next_refusal - now), _MAX_HOLD)
        self._next_refusal = now + held + 1 / _REFUSALS
        if left is not None:
            held = min(held, max(0.0, left / 2))
        if held:
            await runtime.sleep(held)
            if not self.full():
                return None
        return overloaded(runtime, held)

    async def _enter(self, context: CallContext) -> None:
        refusal = await self.refusal(context.runtime, context.remaining())
        if refusal is not None:
            raise refusal
        self.in_flight += 1


def overloaded(runtime: Runtime, held: float = 0.0) -> RpcError:
    """The error for a call that is one too many, and was held for so many seconds before it is told."""
    hint = max(_RETRY_AFTER * (1 + runtime.random()) - held, 0.1)
    return RpcError(
        StatusCode.UNAVAILABLE,
        "the server has as many calls in flight as it takes",
        retry_after=round(hint, 3),
        error_code=OVERLOADED,
    )
