"""Overload: what is refused, when, and with what hint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from llm_cost_ops._gen.methods import GET_COST_SUMMARY, GET_HEALTH, SUBMIT_USAGE
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.service import Service
from llm_cost_ops.service.access.tenancy import OPEN
from llm_cost_ops.testing import AsyncVirtualRuntime


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
        assert 0.4 <= caught.value.retry_after <= 1, "a little less than half a second for who was held"
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


async def refused(admission: Admission, runtime: Any, left: float | None = None) -> tuple[float, float]:
    """When a refusal was told, and its hint."""
    error = await admission.refusal(runtime, left)
    assert error is not None
    assert error.retry_after is not None
    return float(runtime.monotonic()), error.retry_after


async def test_a_storm_of_refusals_is_told_at_a_pace() -> None:
    admission, runtime = Admission(1), AsyncVirtualRuntime()
    admission.in_flight = 1
    assert (await refused(admission, runtime))[0] == 0, "the first one at once"
    told = await asyncio.gather(*(refused(admission, runtime) for _ in range(2000)))
    moments = sorted(moment for moment, _ in told)
    for start in range(0, 400, 50):
        assert moments[start + 50] - moments[start] == pytest.approx(0.1), "500 in a second"
    assert moments[-1] == 1, "and no one is held for longer than a second"
    for moment, hint in told:
        assert max(0.1, 0.5 - moment) - 0.001 <= hint <= max(0.1, 1 - moment) + 0.001, "the wait counts"
    runtime.advance(5)
    assert (await refused(admission, runtime))[0] == runtime.monotonic(), "it is over at once"


async def test_who_has_little_time_is_told_within_half_of_it() -> None:
    admission, runtime = Admission(1), AsyncVirtualRuntime()
    admission.in_flight = 1
    told = await asyncio.gather(*(refused(admission, runtime, 0.1) for _ in range(500)))
    assert max(moment for moment, _ in told) == 0.05
    assert (await refused(admission, runtime, -1))[0] == runtime.monotonic()


async def test_who_is_held_is_served_when_there_is_room() -> None:
    admission, runtime = Admission(1), AsyncVirtualRuntime()
    admission.in_flight = 1

    async def leave() -> None:
        await runtime.sleep(0.05)
        admission.in_flight = 0

    async def serve(request: Any, context: CallContext) -> str:
        return "done"

    def call() -> Any:
        return admission.intercept_unary_unary(serve, None, CallContext(SUBMIT_USAGE, runtime, Metadata()))

    told = await asyncio.gather(leave(), *(call() for _ in range(100)), return_exceptions=True)
    assert told.count("done") == pytest.approx(75, abs=1), "those whose turn was not before 0.05 s"
    assert admission.in_flight == 0


async def test_over_http_nothing_of_a_refused_call_is_looked_at_but_its_path() -> None:
    admission = Admission(1, exempt=OPEN)
    store = SqliteLedger(None)
    looked: list[str] = []

    async def admit(context: CallContext) -> None:
        looked.append(context.method.name)

    service = Service(store, [admission])
    app = AsgiApp(service.handler, admit=admit, admission=admission)

    async def body() -> AsyncIterator[bytes]:
        looked.append("body")
        yield b"{"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        admission.in_flight = 1
        told = await client.post(
            "/api/v1/usage", content=body(), headers={"x-request-id": "r-1", "content-type": "text/html"}
        )
        assert (told.status_code, told.json()["error"]["code"]) == (503, "OVERLOADED")
        assert 1 <= int(told.headers["retry-after"]) <= 2
        assert told.headers["x-request-id"] == "r-1"
        assert looked == [], "neither the key nor the body"
        assert (await client.get("/api/v1/usage")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        admission.in_flight = 0
        assert (await client.post("/api/v1/usage", content=b"{}")).status_code == 400
    await service.aclose()


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
