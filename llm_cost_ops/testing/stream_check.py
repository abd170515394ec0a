"""The check that an interceptor's stream methods keep the rules, in either client."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from typing import Any

from llm_cost_ops._gen.messages import (
    ExportUsageRequest,
    ExportUsageResponse,
    StreamUsageRequest,
    StreamUsageResponse,
    UsageRecord,
)
from llm_cost_ops._gen.methods import EXPORT_USAGE, STREAM_USAGE
from llm_cost_ops.exceptions import CostOpsError, ServerError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.testing.scripted import Fault, ScriptedTransport

__all__ = ["check_streams"]

_RECORD = UsageRecord(organization_id="check", provider="openai", model_id="gpt-4o", input_tokens=1)


class _OpenStreams(ScriptedTransport):
    """Counts the streams that are open."""

    def __init__(self, *script: object) -> None:
        super().__init__(script, forever=True)
        self.open: list[AsyncGenerator[Any, None]] = []

    def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        return self._counted(super().unary_stream(request, context))

    def stream_stream(
        self, requests: AsyncIterable[object], context: CallContext
    ) -> AsyncGenerator[object, None]:
        return self._counted(super().stream_stream(requests, context))

    def _counted(self, stream: AsyncGenerator[object, None]) -> AsyncGenerator[object, None]:
        async def counted() -> AsyncGenerator[object, None]:
            try:
                async with aclosing(stream):
                    async for message in stream:
                        yield message
            finally:
                self.open.remove(made)

        made = counted()
        self.open.append(made)  # kept, so that nothing but closing ends it
        return made


class _Calls:
    """The calls of one stream method over a scripted transport, through a channel of either client."""

    def __init__(self, name: str, channel_of: Callable[[Any], Any], fail: Callable[[str], Exception]) -> None:
        self._name = name
        self._channel_of = channel_of
        self._fail = fail
        self._both_ways = name == "intercept_stream_stream"
        answer = StreamUsageResponse() if self._both_ways else ExportUsageResponse(records=[_RECORD])
        self._answers = [answer] * 3

    def _begin(self, transport: ScriptedTransport) -> object:
        channel = self._channel_of(transport)
        if self._both_ways:
            return channel.stream_stream(STREAM_USAGE, [StreamUsageRequest(records=[_RECORD])] * 2)
        return channel.unary_stream(EXPORT_USAGE, ExportUsageRequest())

    async def _received(self, transport: ScriptedTransport) -> int:
        stream, count = self._begin(transport), 0
        try:
            while await _next(stream) is not None:
                count += 1
        finally:
            await _close(stream)
        return count

    async def check_whole(self) -> None:
        if not await self._received(_OpenStreams(self._answers)):
            raise self._fail(f"{self._name}: no message came through")

    async def check_failing(self, after: int) -> None:
        try:
            await self._received(_OpenStreams([*self._answers[:after], Fault(500)]))
        except CostOpsError as error:
            if isinstance(error, ServerError):
                return
            kind = type(error).__name__
            raise self._fail(f"{self._name}: a failed server came out as {kind}") from error
        raise self._fail(f"{self._name}: a failure after {after} messages did not come through")

    async def check_leaving(self, calls: int) -> None:
        transport = _OpenStreams(self._answers)
        streams = [self._begin(transport) for _ in range(calls)]
        for stream in streams:
            await _next(stream)
        for stream in streams:
            await _close(stream)
        if transport.open:
            raise self._fail(
                f"{self._name}: a stream that was left early is still open below: "
                "use `async with aclosing(continuation(request, context))`"
            )


async def check_streams(
    interceptor: object, channel_of: Callable[[Any], Any], fail: Callable[[str], Exception], calls: int
) -> None:
    """Run an interceptor's stream methods, `calls` at a time; `fail` makes the error for a broken rule."""
    for name in ("intercept_unary_stream", "intercept_stream_stream"):
        method = getattr(interceptor, name, None)
        if method is None:
            continue
        if inspect.iscoroutinefunction(method):
            raise fail(f"{method.__qualname__} must be an async generator: it has no yield")
        stream = _Calls(name, channel_of, fail)
        await stream.check_whole()
        await stream.check_failing(0)
        await stream.check_failing(2)
        await stream.check_leaving(calls)


async def _next(stream: Any) -> object:
    if hasattr(stream, "__anext__"):
        return await anext(stream, None)
    return next(stream, None)


async def _close(stream: Any) -> None:
    if hasattr(stream, "aclose"):
        await stream.aclose()
    else:
        stream.close()
