"""The queue in front of a server: its bound, its order, and its window while a server refuses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.rpc.fifo import CallQueue


@given(st.integers(1, 50), st.lists(st.sampled_from(["enter", "leave", "refused"]), max_size=300))
def test_no_more_are_in_flight_than_may_be(limit: int, steps: Sequence[str]) -> None:
    queue, in_flight = CallQueue(limit), 0
    for step in steps:
        if step == "enter":
            room = in_flight < queue.window
            assert queue.enter_now() is room
            in_flight += room
        elif in_flight:
            queue.leave(refused=step == "refused")
            in_flight -= 1
        assert 1 <= queue.window <= limit
        assert in_flight <= limit


def test_one_round_of_refusals_halves_the_window_once() -> None:
    queue = CallQueue(100)
    while queue.enter_now():
        pass
    for _ in range(100):
        queue.leave(refused=True)
    assert queue.window == 50


def test_the_window_comes_back_with_answers() -> None:
    queue = CallQueue(100)
    for _ in range(50):
        assert queue.enter_now()
        queue.leave(refused=True)
    assert queue.window == 1
    calls = 0
    while queue.window < 100:
        assert queue.enter_now()
        queue.leave()
        calls += 1
    assert calls < 100 * 100


async def test_tasks_go_in_their_order_and_who_is_cancelled_takes_no_turn() -> None:
    queue, order = CallQueue(2), []
    chance = random.Random(7)

    async def call(number: int) -> None:
        await queue.enter_async()
        try:
            order.append(number)
            await asyncio.sleep(0)
        finally:
            queue.leave()

    tasks = [asyncio.create_task(call(number)) for number in range(400)]
    await asyncio.sleep(0)
    gone = set(chance.sample(range(100, 400), 150))
    for number in gone:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [number for number in range(400) if number not in gone]
    assert queue.enter_now()
    assert queue.enter_now()
    assert not queue.enter_now()


async def test_a_window_that_shrinks_lets_in_what_it_holds() -> None:
    """A server that takes 5 calls at a time: nobody starves, and it is not asked for much more than that."""
    queue = CallQueue(64)
    served = refused = in_flight = 0

    async def call() -> None:
        nonlocal served, refused, in_flight
        while True:
            await queue.enter_async()
            in_flight += 1
            too_many = in_flight > 5
            await asyncio.sleep(0.001)
            in_flight -= 1
            queue.leave(refused=too_many)
            if not too_many:
                served += 1
                return
            refused += 1
            await asyncio.sleep(0.002)

    await asyncio.wait_for(asyncio.gather(*(call() for _ in range(500))), 20)
    assert served == 500
    assert refused < 500, "without the window it is about 10 refusals a call"


@pytest.mark.parametrize("limit", [1, 3])
def test_threads_give_up_in_time(limit: int) -> None:
    queue = CallQueue(limit)
    assert all(queue.enter(0) for _ in range(limit))
    assert not queue.enter(0.01)
    queue.leave()
    assert queue.enter(0)
