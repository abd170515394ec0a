"""The check that an interceptor keeps the rules, in the sync client and in the async one."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from llm_cost_ops._gen.messages import (
    ExportUsageRequest,
    ExportUsageResponse,
    StreamUsageRequest,
    StreamUsageResponse,
    SubmitUsageRequest,
    SubmitUsageResponse,
    UsageReceipt,
    UsageRecord,
)
from llm_cost_ops._gen.methods import EXPORT_USAGE, STREAM_USAGE, SUBMIT_USAGE
from llm_cost_ops.exceptions import CostOpsError, ServerError, error_from_rpc
from llm_cost_ops.rpc.channel import AsyncChannel, Channel
from llm_cost_ops.rpc.context import CallContext, ForeignAwaitError, drive
from llm_cost_ops.rpc.interceptor import AnyInterceptor, Transport
from llm_cost_ops.testing.scripted import Fault, ScriptedTransport
from llm_cost_ops.testing.virtual_time import AsyncVirtualRuntime, VirtualRuntime

__all__ = ["InterceptorCheckError", "check_interceptor"]

_METHODS = tuple(f"intercept_{kind}" for kind in ("unary_unary", "unary_stream", "stream_stream"))


class InterceptorCheckError(AssertionError):
    """An interceptor breaks a rule; the message says which, and how to keep it."""


def check_interceptor(
    interceptor: AnyInterceptor | Callable[[], AnyInterceptor],
    *,
    concurrent_calls: int = 8,
    timeout: float = 5.0,
) -> None:
    """Raise InterceptorCheckError unless an interceptor keeps the rules.

    It may be an interceptor, or a class or function that makes one, which gives each check a new
    one. Checked are, sync and async: a call goes through and may fail, without awaiting anything
    but the continuation and `context.runtime`; what goes wrong below comes out as a CostOpsError;
    calls at the same time are all under way at once, which a lock held across an await would
    prevent; and a cancelled call ends cancelled, without keeping the next from going through. Of its
    stream methods also that a stream which is left early is closed below.
    An interceptor that bounds calls in flight is checked with as many `concurrent_calls` as it
    admits. `timeout` is the real seconds after which calls count as stuck.
    """
    made = not isinstance(interceptor, type) and any(hasattr(interceptor, name) for name in _METHODS)
    given: Any = interceptor
    make: Callable[[], Any] = given if callable(given) and not made else lambda: given
    _check_shape(make())
    _within(timeout, "a sync call", lambda: _check_sync(make()))
    _within(timeout, "an async call", lambda: asyncio.run(_check_async(make())))
    _within(timeout, "a thread", lambda: _check_threads(make(), concurrent_calls, timeout))
    _within(timeout, "a task", lambda: asyncio.run(_check_tasks(make(), concurrent_calls)))
    _within(timeout, "a cancelled call", lambda: asyncio.run(_check_cancelling(make())))
    _within(timeout, "a sync stream", lambda: _check_sync_streams(make(), concurrent_calls))
    _within(timeout, "an async stream", lambda: asyncio.run(_check_async_streams(make(), concurrent_calls)))


def _check_shape(interceptor: AnyInterceptor) -> None:
    found = [getattr(interceptor, name) for name in _METHODS if hasattr(interceptor, name)]
    if not found:
        raise InterceptorCheckError(f"{interceptor!r} has none of the methods {', '.join(_METHODS)}")
    for method in found:
        if "stream" in method.__name__ or inspect.iscoroutinefunction(method):
            continue
        # One that returns the continuation's awaitable is no coroutine function, and its annotation says so.
        if "Awaitable" not in str(inspect.signature(method).return_annotation):
            raise InterceptorCheckError(
                f"{method.__qualname__} must be `async def`, or say `-> Awaitable[…]`"
            )


def _record(number: int = 1) -> UsageRecord:
    return UsageRecord(organization_id="check", provider="openai", model_id="gpt-4o", input_tokens=number)


def _request(number: int = 0) -> SubmitUsageRequest:
    return SubmitUsageRequest(usage=_record(number))


def _response() -> SubmitUsageResponse:
    return SubmitUsageResponse(data=UsageReceipt(usage_id="check"))


def _sync(interceptor: AnyInterceptor, transport: Transport) -> Channel:
    return Channel(
        transport, [interceptor], runtime=VirtualRuntime(), timeout=3600, public_error=error_from_rpc
    )


def _async(interceptor: AnyInterceptor, transport: Transport) -> AsyncChannel:
    return AsyncChannel(
        transport, [interceptor], runtime=AsyncVirtualRuntime(), timeout=3600, public_error=error_from_rpc
    )


def _check_sync(interceptor: AnyInterceptor) -> None:
    try:
        _sync(interceptor, ScriptedTransport([_response()], forever=True)).unary_unary(
            SUBMIT_USAGE, _request()
        )
        failing = _sync(interceptor, ScriptedTransport([Fault(500)], forever=True))
        try:
            failing.unary_unary(SUBMIT_USAGE, _request())
        except CostOpsError:
            pass
    except ForeignAwaitError as error:
        raise InterceptorCheckError(f"it works only in the async client: {error}") from error


async def _check_async(interceptor: AnyInterceptor) -> None:
    await _async(interceptor, ScriptedTransport([_response()], forever=True)).unary_unary(
        SUBMIT_USAGE, _request()
    )
    failing = _async(interceptor, ScriptedTransport([Fault(500)], forever=True))
    try:
        await failing.unary_unary(SUBMIT_USAGE, _request())
    except CostOpsError as error:
        if not isinstance(error, ServerError):
            raise InterceptorCheckError(f"a failed server came out as {type(error).__name__}") from error


def _check_threads(interceptor: AnyInterceptor, calls: int, timeout: float) -> None:
    together = threading.Barrier(calls)

    def meet(_asked: object, _context: CallContext) -> SubmitUsageResponse:
        together.wait(timeout / 2)
        return _response()

    channel = _sync(interceptor, ScriptedTransport([meet], forever=True))
    failures: list[BaseException] = []

    def call(number: int) -> None:
        try:
            channel.unary_unary(SUBMIT_USAGE, _request(number))
        except BaseException as error:  # noqa: BLE001  # told by the thread that checks
            failures.append(error)

    threads = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if any(isinstance(error, threading.BrokenBarrierError) for error in failures):
        raise InterceptorCheckError(
            f"{calls} threads were not all under way at once: is a lock held across an await?"
        )
    if failures:
        raise InterceptorCheckError(f"a call in a thread failed: {failures[0]!r}") from failures[0]


async def _check_tasks(interceptor: AnyInterceptor, calls: int) -> None:
    arrived = 0
    together = asyncio.Event()

    async def meet(_asked: object, _context: CallContext) -> SubmitUsageResponse:
        nonlocal arrived
        arrived += 1
        if arrived == calls:
            together.set()
        await together.wait()
        return _response()

    channel = _async(interceptor, ScriptedTransport([meet], forever=True))
    await asyncio.gather(*(channel.unary_unary(SUBMIT_USAGE, _request(n)) for n in range(calls)))


async def _check_cancelling(interceptor: AnyInterceptor) -> None:
    started = asyncio.Event()

    async def hang(_asked: object, _context: CallContext) -> SubmitUsageResponse:
        started.set()
        await asyncio.Event().wait()
        return _response()

    channel = _async(interceptor, ScriptedTransport([hang, _response()], forever=True))
    call = asyncio.ensure_future(channel.unary_unary(SUBMIT_USAGE, _request()))
    await started.wait()
    call.cancel()
    outcome = await asyncio.gather(call, return_exceptions=True)
    if not isinstance(outcome[0], asyncio.CancelledError):
        raise InterceptorCheckError(f"a cancelled call ended with {outcome[0]!r}: let CancelledError through")
    await channel.unary_unary(SUBMIT_USAGE, _request(1))


def _check_sync_streams(interceptor: AnyInterceptor, calls: int) -> None:
    try:
        drive(_check_streams(interceptor, partial(_sync, interceptor), calls))
    except ForeignAwaitError as error:
        raise InterceptorCheckError(f"a stream works only in the async client: {error}") from error


async def _check_async_streams(interceptor: AnyInterceptor, calls: int) -> None:
    await _check_streams(interceptor, partial(_async, interceptor), calls)


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

    def __init__(self, name: str, channel_of: Callable[[Any], Any]) -> None:
        self._name = name
        self._channel_of = channel_of
        self._both_ways = name == "intercept_stream_stream"
        answer = StreamUsageResponse() if self._both_ways else ExportUsageResponse(records=[_record()])
        self._answers = [answer] * 3

    def _begin(self, transport: ScriptedTransport) -> object:
        channel = self._channel_of(transport)
        if self._both_ways:
            return channel.stream_stream(STREAM_USAGE, [StreamUsageRequest(records=[_record()])] * 2)
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
            raise InterceptorCheckError(f"{self._name}: no message came through")

    async def check_failing(self, after: int) -> None:
        try:
            await self._received(_OpenStreams([*self._answers[:after], Fault(500)]))
        except CostOpsError as error:
            if isinstance(error, ServerError):
                return
            kind = type(error).__name__
            raise InterceptorCheckError(f"{self._name}: a failed server came out as {kind}") from error
        raise InterceptorCheckError(f"{self._name}: a failure after {after} messages did not come through")

    async def check_leaving(self, calls: int) -> None:
        transport = _OpenStreams(self._answers)
        streams = [self._begin(transport) for _ in range(calls)]
        for stream in streams:
            await _next(stream)
        for stream in streams:
            await _close(stream)
        if transport.open:
            raise InterceptorCheckError(
                f"{self._name}: a stream that was left early is still open below: "
                "use `async with aclosing(continuation(request, context))`"
            )


async def _check_streams(interceptor: object, channel_of: Callable[[Any], Any], calls: int) -> None:
    for name in ("intercept_unary_stream", "intercept_stream_stream"):
        method = getattr(interceptor, name, None)
        if method is None:
            continue
        if inspect.iscoroutinefunction(method):
            raise InterceptorCheckError(f"{method.__qualname__} must be an async generator: it has no yield")
        stream = _Calls(name, channel_of)
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


def _within(timeout: float, what: str, check: Callable[[], Any]) -> None:
    """Run a check in a daemon thread, as a loop that is stuck can't be interrupted."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            check()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True, name="check-interceptor")
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise InterceptorCheckError(f"{what} got stuck: is a lock held across an await?")
    if failures:
        raise failures[0]
