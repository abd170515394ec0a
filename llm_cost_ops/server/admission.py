"""Limits the calls in flight: further ones wait for a moment, and are refused if none ends meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.fifo import Fifo, TaskTurn
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.runtime import Runtime
from llm_cost_ops.rpc.status import OVERLOADED, RpcError, StatusCode

__all__ = ["MAX_WAIT", "Admission", "overloaded"]

MAX_WAIT = 1.0
"""Seconds that a call waits for room before it is refused."""

_RETRY_AFTER = 0.5

# A call that was let in begins within so many seconds, unless its caller is slow to send it.
_SETTLING = 0.05


class Admission:
    """Lets at most `limit` calls be in flight; a further one waits, and is UNAVAILABLE with `retry_after`.

    Calls wait for room for MAX_WAIT seconds, and for half of their own time at most, first come, first
    served. A refusal costs nearly as much as a short call, and whoever is refused comes again: calls that
    could be served within a second would otherwise take turns at being refused. (Measured with 5 times as
    many callers as `limit`: 60 % of the calls that the same computing time serves without refusals.)

    It stands outermost, so that a refusal costs neither a look at the key nor one at the store. The paths
    in `exempt` always pass, and count nothing: health must answer when nothing else does. The hints differ
    from call to call, lest all that were refused come back together. For use in one event loop.
    """

    def __init__(self, limit: int, *, exempt: Collection[str] = ()) -> None:
        if limit < 1:
            raise ValueError("the limit must be at least 1")
        self._limit = limit
        self.exempt = frozenset(exempt)
        self.in_flight = 0
        self.refused = 0
        """How many calls were refused since the start."""
        self._waiting = Fifo[TaskTurn]()
        # When calls that waited were let in that have not begun yet: their bodies are being read.
        self._coming: deque[float] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many calls wait for room."""
        return len(self._waiting)

    def full(self) -> bool:
        """Whether a further call would have to wait."""
        return bool(self._waiting) or self._room() <= 0

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        if context.method.path in self.exempt:
            return await continuation(request, context)
        await self._enter(context)
        try:
            return await continuation(request, context)
        finally:
            self._leave()

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        await self._enter(context)
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        finally:
            self._leave()

    intercept_stream_stream = intercept_unary_stream

    async def refusal(self, runtime: Runtime, left: float | None) -> RpcError | None:
        """Wait until a call may begin: None then, or the error to answer with when the wait was too long.

        `left` is what the caller still waits, in seconds: it is told within half of that.
        """
        return await self._wait(runtime, left) if self.full() else None

    async def _wait(self, runtime: Runtime, left: float | None) -> RpcError | None:
        turn = TaskTurn()
        self._waiting.join(turn)
        self._let_in()
        seconds = MAX_WAIT if left is None else min(MAX_WAIT, max(0.0, left / 2))
        try:
            await runtime.within(turn.wait(), seconds)
        except TimeoutError:
            if self._waiting.withdraw(turn):
                return None
            self.refused += 1
            return overloaded(runtime)
        except BaseException:
            if self._waiting.withdraw(turn):
                self._begun()
                self._let_in()
            raise
        return None

    async def _enter(self, context: CallContext) -> None:
        self._begun()
        # Looked at again: the call may have been read for long since it was let in.
        while self.in_flight >= self._limit:
            refusal = await self._wait(context.runtime, context.remaining())
            if refusal is not None:
                raise refusal
            self._begun()
        self.in_flight += 1

    def _begun(self) -> None:
        if self._coming:
            self._coming.popleft()

    def _leave(self) -> None:
        self.in_flight -= 1
        if self._waiting:
            self._let_in()

    def _room(self) -> int:
        settled = asyncio.get_running_loop().time() - _SETTLING
        while self._coming and self._coming[0] <= settled:
            self._coming.popleft()
        return self._limit - self.in_flight - len(self._coming)

    def _let_in(self) -> None:
        """Let in who waits longest, as long as there is room."""
        loop = asyncio.get_running_loop()
        for _ in range(self._room()):
            if not self._waiting.grant_next():
                return
            self._coming.append(loop.time())
        if self._waiting and self._coming and self._timer is None:
            # Nobody may leave until those have settled.
            self._timer = loop.call_later(_SETTLING, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._let_in()


def overloaded(runtime: Runtime) -> RpcError:
    """The error for a call over the limit."""
    return RpcError(
        StatusCode.UNAVAILABLE,
        "the server has as many calls in flight as it takes",
        retry_after=round(_RETRY_AFTER * (1 + runtime.random()), 3),
        error_code=OVERLOADED,
    )
