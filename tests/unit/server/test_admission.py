"""Overload: what is refused, when, and with what hint."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from llm_cost_ops._gen.methods import GET_COST_SUMMARY, GET_HEALTH, SUBMIT_USAGE
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.admission import Admission


def context(method: Any = SUBMIT_USAGE) -> CallContext:
    return CallContext(method, AsyncRuntime(), Metadata())


async def test_calls_over_the_limit_are_refused_before_anything_is_done() -> None:
    admission, going, served = Admission(3, exempt={GET_HEALTH.path}), asyncio.Event(), []

    async def serve(request: Any, context: CallContext) -> str:
        served.append(request)
        await going.wait()
        return "done"

    calls = [
        asyncio.create_task(admission.intercept_unary_unary(serve, n, context(method)))
        for n, method in enumerate([SUBMIT_USAGE, GET_COST_SUMMARY] * 5)
    ]
    await asyncio.sleep(0)
    assert served == [0, 1, 2]
    assert admission.in_flight == 3
    hints = set()
    for call in calls[3:]:
        with pytest.raises(RpcError) as caught:
            await call
        assert caught.value.code is StatusCode.UNAVAILABLE
        assert caught.value.retry_after is not None
        assert 0.5 <= caught.value.retry_after <= 1
        assert not caught.value.maybe_applied
        hints.add(caught.value.retry_after)
    assert len(hints) > 1, "those refused do not come back together"
    health = asyncio.create_task(admission.intercept_unary_unary(serve, "health", context(GET_HEALTH)))
    await asyncio.sleep(0)
    assert served[-1] == "health"
    going.set()
    assert await asyncio.gather(*calls[:3], health) == ["done"] * 4
    assert admission.in_flight == 0
    assert await admission.intercept_unary_unary(serve, 11, context()) == "done"


async def test_calls_that_fail_or_are_cancelled_make_room() -> None:
    admission = Admission(1)

    async def fail(request: Any, context: CallContext) -> None:
        raise ValueError(request)

    async def hang(request: Any, context: CallContext) -> None:
        await asyncio.sleep(60)

    with pytest.raises(ValueError, match="x"):
        await admission.intercept_unary_unary(fail, "x", context())
    task = asyncio.create_task(admission.intercept_unary_unary(hang, None, context()))
    await asyncio.sleep(0)
    assert admission.in_flight == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert admission.in_flight == 0


async def test_a_stream_counts_until_it_ends() -> None:
    admission = Admission(1)

    async def numbers(request: Any, context: CallContext) -> Any:
        for number in range(3):
            yield number

    async with aclosing(admission.intercept_unary_stream(numbers, None, context())) as stream:
        assert await anext(stream) == 0
        assert admission.in_flight == 1
        with pytest.raises(RpcError, match="as many calls in flight"):
            await anext(admission.intercept_stream_stream(numbers, None, context()))
        assert admission.in_flight == 1
    assert admission.in_flight == 0
    assert [n async for n in admission.intercept_stream_stream(numbers, None, context())] == [0, 1, 2]
    assert admission.in_flight == 0


def test_the_limit_must_let_something_through() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Admission(0)
