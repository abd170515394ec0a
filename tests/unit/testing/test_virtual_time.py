from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time

import pytest

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.testing import AsyncVirtualRuntime, VirtualRuntime
from tests.waiting import MAX_WAIT, in_threads


def test_sleeping_moves_the_clock_and_takes_no_time() -> None:
    runtime = VirtualRuntime()
    begun = time.monotonic()
    drive(runtime.sleep(3600))
    assert (runtime.monotonic(), runtime.now()) == (3600, 1_767_225_600 + 3600)
    assert time.monotonic() - begun < MAX_WAIT
    runtime.advance(5)
    assert runtime.monotonic() == 3605
    assert runtime.slept == [3600]


@pytest.mark.parametrize("kind", [VirtualRuntime, AsyncVirtualRuntime])
def test_chance_is_the_same_in_every_run(kind: type[VirtualRuntime]) -> None:
    assert [kind(7).random() for _ in range(2)] == [kind(7).random() for _ in range(2)]
    assert kind(7).random() != kind(8).random()


def test_threads_share_a_clock() -> None:
    runtime = VirtualRuntime()
    in_threads([lambda: drive(runtime.sleep(1))] * 50)
    assert runtime.monotonic() == 50


def test_waiting_for_another_thread_is_real() -> None:
    runtime = VirtualRuntime(real_timeout=0.05)
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    threading.Timer(0.01, future.set_result, [1]).start()
    assert drive(runtime.wait(future, 100)) == 1
    assert runtime.monotonic() == 0
    with pytest.raises(TimeoutError):
        drive(runtime.wait(concurrent.futures.Future(), 100))
    assert runtime.monotonic() == 100
    with pytest.raises(TimeoutError):
        drive(runtime.wait(concurrent.futures.Future(), 0))
    assert drive(runtime.offload(max, 1, 2)) == 2


async def test_sleepers_wake_in_order_each_at_its_time() -> None:
    runtime = AsyncVirtualRuntime()
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await runtime.sleep(seconds)
        woken.append((seconds, runtime.monotonic()))
        await runtime.sleep(0)
        await runtime.sleep(100)
        woken.append((seconds + 100, runtime.monotonic()))

    begun = time.monotonic()
    await asyncio.gather(*(sleeper(n) for n in (5, 1, 3600, 1.5, 30)))
    assert woken == sorted(woken)
    assert all(expected == at for expected, at in woken)
    assert time.monotonic() - begun < MAX_WAIT


async def test_a_thousand_sleepers() -> None:
    runtime = AsyncVirtualRuntime()
    await asyncio.gather(*(runtime.sleep(n % 10) for n in range(1000)))
    assert runtime.monotonic() == 9


async def test_waiting_ends_with_the_result_or_the_timeout() -> None:
    runtime = AsyncVirtualRuntime()
    future: concurrent.futures.Future[int] = concurrent.futures.Future()

    async def later() -> None:
        await runtime.sleep(3)
        future.set_result(9)

    answers = await asyncio.gather(
        runtime.wait(future, 2),
        runtime.wait(future, 4),
        runtime.wait(future),
        later(),
        return_exceptions=True,
    )
    assert isinstance(answers[0], TimeoutError)
    assert answers[1:3] == [9, 9]
    assert runtime.monotonic() == 3
    assert not future.cancelled()
    assert await runtime.offload(max, 1, 2) == 2


async def test_a_cancelled_sleeper_holds_nobody_up() -> None:
    runtime = AsyncVirtualRuntime()
    cancelled = asyncio.ensure_future(runtime.sleep(10))
    await asyncio.sleep(0)
    cancelled.cancel()
    await runtime.sleep(20)
    assert runtime.monotonic() == 20
    assert cancelled.cancelled()


async def test_time_waits_for_tasks_that_are_busy() -> None:
    runtime = AsyncVirtualRuntime()
    sleeping = asyncio.ensure_future(runtime.sleep(50))
    for _ in range(10):
        await asyncio.sleep(0)
        assert runtime.monotonic() == 0
    await sleeping
