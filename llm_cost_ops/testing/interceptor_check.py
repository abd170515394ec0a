"""The check that an interceptor keeps the rules, in the sync client and in the async one."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from llm_cost_ops._gen.messages import SubmitUsageRequest, SubmitUsageResponse, UsageReceipt, UsageRecord
from llm_cost_ops._gen.methods import SUBMIT_USAGE
from llm_cost_ops.exceptions import CostOpsError, ServerError, error_from_rpc
from llm_cost_ops.rpc.channel import AsyncChannel, Channel
from llm_cost_ops.rpc.context import CallContext, ForeignAwaitError, drive
from llm_cost_ops.rpc.interceptor import AnyInterceptor, Transport
from llm_cost_ops.testing.scripted import Fault, ScriptedTransport
from llm_cost_ops.testing.stream_check import check_streams
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
        # One that only passes the continuation's result on has no coroutine of its own, and says so.
        if "Awaitable" not in str(inspect.signature(method).return_annotation):
            raise InterceptorCheckError(
                f"{method.__qualname__} must be `async def`, or say `-> Awaitable[…]`"
            )


def _request(number: int = 0) -> SubmitUsageRequest:
    record = UsageRecord(organization_id="check", provider="openai", model_id="gpt-4o", input_tokens=number)
    return SubmitUsageRequest(usage=record)


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
        drive(check_streams(interceptor, partial(_sync, interceptor), InterceptorCheckError, calls))
    except ForeignAwaitError as error:
        raise InterceptorCheckError(f"a stream works only in the async client: {error}") from error


async def _check_async_streams(interceptor: AnyInterceptor, calls: int) -> None:
    await check_streams(interceptor, partial(_async, interceptor), InterceptorCheckError, calls)


def _within(timeout: float, what: str, check: Callable[[], Any]) -> None:
    """Run a check in a thread that can be left behind, because a stuck loop can't be interrupted."""
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
