"""A thread that sets the results of many futures wakes each event loop once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import Any

import pytest

from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.wake import waking_once
from tests.wakes import Wakes

RUNTIME = AsyncRuntime()


async def waiting(futures: list[concurrent.futures.Future[Any]]) -> asyncio.Future[list[Any]]:
    """Tasks that wait for the futures, begun."""
    gathered = asyncio.gather(*(RUNTIME.wait(each) for each in futures), return_exceptions=True)
    await asyncio.sleep(0)
    return gathered


async def test_many_results_come_with_one_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    futures = [concurrent.futures.Future[int]() for _ in range(100)]
    wakes = Wakes(monkeypatch)
    answers = await waiting(futures)

    def work() -> None:
        with waking_once():
            for number, future in enumerate(futures):
                if number % 10:
                    future.set_result(number)
                else:
                    future.set_exception(KeyError(number))

    await asyncio.to_thread(work)
    got = await answers
    assert [each for each in got if isinstance(each, int)] == [n for n in range(100) if n % 10]
    assert [each.args for each in got if isinstance(each, KeyError)] == [(n,) for n in range(0, 100, 10)]
    assert wakes.count == 1


async def test_results_that_are_set_one_by_one_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    futures = [concurrent.futures.Future[int]() for _ in range(3)]
    wakes = Wakes(monkeypatch)
    answers = await waiting(futures)
    for future in futures:
        await asyncio.to_thread(future.set_result, 7)
    assert await answers == [7, 7, 7]
    assert wakes.count == 3


async def test_what_came_before_an_error_of_the_thread_is_not_lost() -> None:
    future = concurrent.futures.Future[int]()
    answers = await waiting([future])

    def work() -> None:
        with waking_once():
            future.set_result(1)
            raise LookupError

    with pytest.raises(LookupError):
        await asyncio.to_thread(work)
    assert await answers == [1]


async def test_a_loop_that_was_closed_keeps_no_other_from_its_results() -> None:
    abandoned, wanted = concurrent.futures.Future[int](), concurrent.futures.Future[int]()

    async def gone() -> None:
        with pytest.raises(TimeoutError):
            await RUNTIME.wait(abandoned, 0.001)

    await asyncio.to_thread(asyncio.run, gone())
    answers = await waiting([wanted])

    def work() -> None:
        with waking_once():
            abandoned.set_result(1)
            wanted.set_result(2)

    await asyncio.to_thread(work)
    assert await answers == [2]


async def test_each_of_two_loops_gets_its_own() -> None:
    here, there = concurrent.futures.Future[int](), concurrent.futures.Future[int]()
    other = asyncio.create_task(asyncio.to_thread(asyncio.run, RUNTIME.wait(there)))
    answers = await waiting([here])

    def work() -> None:
        with waking_once():
            there.set_result(1)
            here.set_result(2)

    await asyncio.to_thread(work)
    assert await answers == [2]
    assert await other == 1


async def test_a_result_that_came_in_time_is_given_though_the_loop_is_late() -> None:
    future = concurrent.futures.Future[int]()
    waits = asyncio.ensure_future(RUNTIME.wait(future, 0.01))
    await asyncio.sleep(0)
    future.set_result(7)
    time.sleep(0.02)  # noqa: ASYNC251  # the loop is kept from both, its wake and its timer
    assert await waits == 7


@pytest.mark.parametrize("seconds", [0.01, 0, -1])
async def test_what_does_not_come_in_time_goes_on(seconds: float) -> None:
    future = concurrent.futures.Future[int]()
    with pytest.raises(TimeoutError):
        await RUNTIME.wait(future, seconds)
    assert future.set_running_or_notify_cancel()


async def test_a_wait_that_is_over_leaves_no_timer() -> None:
    future = concurrent.futures.Future[int]()
    waits = asyncio.ensure_future(RUNTIME.wait(future, 3600))
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    timers: Any = asyncio.get_running_loop()
    assert not [timer for timer in timers._scheduled if not timer.cancelled()]  # no public way
