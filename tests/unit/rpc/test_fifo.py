"""The queue in front of a server: its bound, its order, and its window while a server refuses."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.rpc.fifo import CallQueue, Fifo, RuntimeTurn
from tests.waiting import MAX_WAIT, until


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

    await asyncio.wait_for(asyncio.gather(*(call() for _ in range(500))), MAX_WAIT)
    assert served == 500
    assert refused < 500, "without the window it is about 10 refusals a call"


@pytest.mark.parametrize("limit", [1, 3])
def test_threads_give_up_in_time(limit: int) -> None:
    queue = CallQueue(limit)
    assert all(queue.enter(0) for _ in range(limit))
    assert not queue.enter(0.01)
    queue.leave()
    assert queue.enter(0)


def test_threads_and_tasks_of_two_loops_share_one_queue() -> None:
    """A turn crosses from a thread into an event loop and back; none is lost, at most two are in."""
    queue = CallQueue(2)
    served, inside, most = [], set(), 0

    def enter(name: str) -> None:
        nonlocal most
        inside.add(name)
        most = max(most, len(inside))

    def leave(name: str) -> None:
        inside.discard(name)
        served.append(name)
        queue.leave()

    def thread(number: int) -> None:
        for call in range(50):
            assert queue.enter(MAX_WAIT)
            enter(f"thread {number}.{call}")
            leave(f"thread {number}.{call}")

    def loop(number: int) -> None:
        async def task(of: int) -> None:
            for call in range(50):
                await queue.enter_async()
                enter(f"task {number}.{of}.{call}")
                await asyncio.sleep(0)
                leave(f"task {number}.{of}.{call}")

        async def all_tasks() -> None:
            async with asyncio.timeout(MAX_WAIT):
                await asyncio.gather(*map(task, range(4)))

        asyncio.run(all_tasks())

    threads = [threading.Thread(target=thread, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=loop, args=(n,)) for n in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(2 * MAX_WAIT)
    assert len(served) == len(set(served)) == 4 * 50 + 2 * 4 * 50
    assert most == 2
    assert queue.enter_now()
    assert queue.enter_now()
    assert not queue.enter_now()


async def test_a_thread_that_leaves_wakes_a_loop_that_sleeps() -> None:
    queue = CallQueue(1)
    assert queue.enter_now()
    threading.Timer(0.1, queue.leave).start()
    async with asyncio.timeout(MAX_WAIT):
        await queue.enter_async()


def test_a_turn_is_not_given_to_a_loop_that_is_gone() -> None:
    queue, order = CallQueue(1), []
    assert queue.enter_now()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(queue.enter_async())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    thread = threading.Thread(target=lambda: order.append(queue.enter(MAX_WAIT)))
    thread.start()
    until(lambda: len(queue._waiting) == 2)
    queue.leave()
    thread.join(MAX_WAIT)
    assert order == [True]
    assert not waiting.done()


@given(st.lists(st.sampled_from(["join", "grant", "withdraw"]), max_size=100), st.randoms())
def test_turns_are_granted_in_the_order_of_those_who_stayed(
    steps: Sequence[str], chance: random.Random
) -> None:
    fifo, model = Fifo[RuntimeTurn](), []
    for step in steps:
        if step == "join":
            model.append(RuntimeTurn())
            fifo.join(model[-1])
        elif step == "grant":
            first = model.pop(0) if model else None
            assert fifo.grant_next() is (first is not None)
            assert first is None or first.granted
        elif model:
            gone = model.pop(chance.randrange(len(model)))
            assert not fifo.withdraw(gone)
        assert len(fifo) == len(model)
    assert fifo.take_all() == model
