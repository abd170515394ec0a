"""Overload: what is refused, when, and with what hint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from unittest import mock

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops._gen.methods import GET_COST_SUMMARY, GET_HEALTH, SUBMIT_USAGE
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.admission import MAX_WAIT, Admission
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.service import Service
from llm_cost_ops.service.access.tenancy import OPEN
from llm_cost_ops.testing import AsyncVirtualRuntime
from tests.waiting import until_async


def context(method: Any = SUBMIT_USAGE) -> CallContext:
    return CallContext(method, AsyncRuntime(), Metadata())


class Calls:
    """A service that serves a call until it is told to end it."""

    def __init__(self, admission: Admission, runtime: Any) -> None:
        self.admission, self.runtime = admission, runtime
        self.begun: list[Any] = []
        self._ends: dict[Any, asyncio.Event] = {}

    async def _serve(self, request: Any, context: CallContext) -> str:
        self.begun.append(request)
        await self._ends.setdefault(request, asyncio.Event()).wait()
        return "done"

    def call(self, request: Any, method: Any = SUBMIT_USAGE, left: float | None = None) -> asyncio.Task[Any]:
        deadline = None if left is None else self.runtime.monotonic() + left
        context = CallContext(method, self.runtime, Metadata(), deadline)
        return asyncio.create_task(self.admission.intercept_unary_unary(self._serve, request, context))

    async def end(self, *requests: Any) -> None:
        for request in requests:
            self._ends[request].set()
        await turns()

    async def refusal_of(self, call: asyncio.Task[Any]) -> tuple[float, RpcError]:
        """When a call was refused, and how."""
        with pytest.raises(RpcError) as caught:
            await call
        return self.runtime.monotonic(), caught.value


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused, and nobody is taken for slow, because the machine is."""
    monkeypatch.setattr("llm_cost_ops.server.admission.MAX_WAIT", 1000.0)
    monkeypatch.setattr("llm_cost_ops.server.admission._SETTLING", 1000.0)


@pytest.mark.usefixtures("slowly")
async def test_calls_over_the_limit_wait_and_begin_in_their_order() -> None:
    calls = Calls(Admission(3, exempt={GET_HEALTH.path}), AsyncRuntime())
    made = [calls.call(n, method) for n, method in enumerate([SUBMIT_USAGE, GET_COST_SUMMARY] * 4)]
    await turns()
    assert calls.begun == [0, 1, 2]
    assert calls.admission.in_flight == 3
    assert calls.admission.full()
    calls.call("health", GET_HEALTH)
    await turns()
    assert calls.begun[-1] == "health"
    await calls.end(1)
    await calls.end(0, 2)
    assert calls.begun[4:] == [3, 4, 5]
    late = calls.call(8)
    await turns()
    assert calls.begun[4:] == [3, 4, 5], "behind those that wait"
    await calls.end(3, 4, 5)
    await calls.end(6, 7, 8)
    assert calls.begun[4:] == [3, 4, 5, 6, 7, 8]
    assert await asyncio.gather(*made, late) == ["done"] * 9
    assert calls.admission.in_flight == 0
    assert not calls.admission.full()


async def test_who_waits_for_a_second_in_vain_is_refused_before_anything_is_done() -> None:
    calls = Calls(Admission(1), AsyncVirtualRuntime())
    calls.call("first")
    await turns()
    refused = [await calls.refusal_of(call) for call in [calls.call(n) for n in range(200)]]
    assert {moment for moment, _ in refused} == {MAX_WAIT}
    hints = [error.retry_after for _, error in refused if error.retry_after is not None]
    assert all(error.code is StatusCode.UNAVAILABLE and not error.maybe_applied for _, error in refused)
    assert len(hints) == 200
    assert all(0.5 <= hint <= 1 for hint in hints)
    assert len(set(hints)) > 100, "those refused do not come back together"
    assert calls.begun == ["first"]


@pytest.mark.parametrize("left", [0.0, 0.1, 1.0, 10.0])
async def test_who_has_little_time_is_told_within_half_of_it(left: float) -> None:
    calls = Calls(Admission(1), AsyncVirtualRuntime())
    calls.call("first")
    await turns()
    moment, _ = await calls.refusal_of(calls.call("second", left=left))
    assert moment == pytest.approx(min(MAX_WAIT, left / 2))


async def test_who_gives_up_leaves_the_turn_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.server.admission.MAX_WAIT", 1000.0)
    calls = Calls(Admission(1), AsyncRuntime())
    calls.call("first")
    await turns()
    waiting = [calls.call(n) for n in range(4)]
    await turns()
    waiting[0].cancel()
    await calls.end("first")
    await turns()
    assert calls.begun == ["first", 1]
    # Cancelled in the moment in which it is let in.
    calls._ends[1].set()
    waiting[1].add_done_callback(lambda _: waiting[2].cancel())
    await until_async(lambda: calls.begun[-1] == 3)
    await calls.end(3)
    assert calls.admission.in_flight == 0
    assert not calls.admission.full()


async def test_a_caller_that_was_let_in_and_sends_nothing_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over HTTP a call is let in before its body is read."""
    monkeypatch.setattr("llm_cost_ops.server.admission.MAX_WAIT", 1000.0)
    monkeypatch.setattr("llm_cost_ops.server.admission._SETTLING", 2.0)
    admission = Admission(2)
    calls = Calls(admission, AsyncRuntime())
    calls.call("a"), calls.call("b")
    await turns()
    slow = [asyncio.create_task(admission.refusal(calls.runtime, None)) for _ in range(2)]
    await turns()
    quick = [calls.call(n) for n in range(2)]
    await calls.end("a", "b")
    assert [task.result() for task in slow] == [None, None]
    assert calls.begun == ["a", "b"]
    await until_async(lambda: calls.begun == ["a", "b", 0, 1])  # let in although nobody left
    await calls.end(0, 1)
    await asyncio.gather(*quick)


@given(
    st.integers(1, 4),
    st.lists(st.sampled_from(["call", "gate", "end", "cancel", "pause"]), max_size=60),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_never_more_than_the_limit_and_nobody_is_forgotten(limit: int, steps: list[str], chance: Any) -> None:
    async def run() -> None:
        calls = Calls(Admission(limit), AsyncRuntime())
        made: dict[int, asyncio.Task[Any]] = {}
        gates: list[asyncio.Task[Any]] = []
        for number, step in enumerate(steps):
            under_way = [n for n, call in made.items() if not call.done()]
            serving = [n for n in under_way if n in calls._ends]
            if step == "call":
                made[number] = calls.call(number)
            elif step == "gate":
                gates.append(asyncio.create_task(calls.admission.refusal(calls.runtime, None)))
            elif step == "end" and serving:
                calls._ends[chance.choice(serving)].set()
            elif step == "cancel" and under_way:
                made[chance.choice(under_way)].cancel()
            else:
                await turns(3)
            assert calls.admission.in_flight <= limit
        for gate in gates:
            gate.cancel()
        while not all(call.done() for call in made.values()):
            for end in calls._ends.values():
                end.set()
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*made.values(), return_exceptions=True)
        assert not [each for each in outcomes if isinstance(each, RpcError)], (
            "refused although there was room"
        )
        assert calls.admission.in_flight == 0
        await asyncio.sleep(0)
        assert not calls.admission._waiting

    with mock.patch("llm_cost_ops.server.admission.MAX_WAIT", 1000.0):
        asyncio.run(run())


async def test_over_http_nothing_of_a_refused_call_is_looked_at_but_its_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm_cost_ops.server.admission.MAX_WAIT", 0.01)
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
