"""The queue in front of a server: its bound, its order, and its window while a server refuses."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.rpc.fifo import CallQueue, Fifo, RuntimeTurn
from tests.waiting import MAX_WAIT, until


@given(st.integers(1, 50), st.lists(st.sampled_from(["enter", "leave", "refused"]), max_size=300))
def test_no_more_are_in_flight_than_may_be(limit: int, steps: Sequence[str]) -> None:
    queue, inside = CallQueue(limit), []
    for number, step in enumerate(steps):
        if step == "enter":
            room = len(inside) < queue.window
            assert queue.enter_now(number) is room
            inside += [number] * room
        elif inside:
            queue.leave(inside.pop(), refused=step == "refused")
        assert 1 <= queue.window <= limit
        assert len(inside) <= limit


def test_one_round_of_refusals_halves_the_window_once() -> None:
    queue = CallQueue(100)
    assert [queue.enter_now(number) for number in range(101)] == [True] * 100 + [False]
    for number in range(100):
        queue.leave(number, refused=True)
    assert queue.window == 50


def test_the_window_comes_back_with_answers() -> None:
    queue = CallQueue(100)
    for _ in range(50):
        assert queue.enter_now("call")
        queue.leave("call", refused=True)
    assert queue.window == 1
    calls = 0
    while queue.window < 100:
        assert queue.enter_now("call")
        queue.leave("call")
        calls += 1
    assert calls < 100 * 100


async def test_tasks_go_in_their_order_and_who_is_cancelled_takes_no_turn() -> None:
    queue, order = CallQueue(2), []
    chance = random.Random(7)

    async def call(number: int) -> None:
        await queue.enter_async(number)
        try:
            order.append(number)
            await asyncio.sleep(0)
        finally:
            queue.leave(number)

    tasks = [asyncio.create_task(call(number)) for number in range(400)]
    await asyncio.sleep(0)
    gone = set(chance.sample(range(100, 400), 150))
    for number in gone:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [number for number in range(400) if number not in gone]
    assert [queue.enter_now(name) for name in ("a", "b", "c")] == [True, True, False]


async def test_a_window_that_shrinks_lets_in_what_it_holds() -> None:
    """A server that takes 5 calls at a time: nobody starves, and it is not asked for much more than that."""
    queue = CallQueue(64)
    served = refused = in_flight = 0

    async def call() -> None:
        nonlocal served, refused, in_flight
        owner = object()
        while True:
            await queue.enter_async(owner)
            in_flight += 1
            too_many = in_flight > 5
            await asyncio.sleep(0.001)
            in_flight -= 1
            queue.leave(owner, refused=too_many)
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
    assert all(queue.enter(number, 0) for number in range(limit))
    assert not queue.enter("late", 0.01)
    queue.leave("late")  # as it does although it was never let in
    assert not queue.enter("late", 0)
    queue.leave(0)
    queue.leave(0)
    assert queue.enter("next", 0)
    assert not queue.enter("late", 0)


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
        queue.leave(name)

    def thread(number: int) -> None:
        for call in range(50):
            assert queue.enter(f"thread {number}.{call}", MAX_WAIT)
            enter(f"thread {number}.{call}")
            leave(f"thread {number}.{call}")

    def loop(number: int) -> None:
        async def task(of: int) -> None:
            for call in range(50):
                await queue.enter_async(f"task {number}.{of}.{call}")
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
    assert [queue.enter_now(name) for name in ("a", "b", "c")] == [True, True, False]


async def test_a_thread_that_leaves_wakes_a_loop_that_sleeps() -> None:
    queue = CallQueue(1)
    assert queue.enter_now("thread")
    threading.Timer(0.1, queue.leave, ("thread",)).start()
    async with asyncio.timeout(MAX_WAIT):
        await queue.enter_async("task")


def test_a_turn_is_not_given_to_a_loop_that_is_gone() -> None:
    queue, order = CallQueue(1), []
    assert queue.enter_now("first")
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(queue.enter_async("gone"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    thread = threading.Thread(target=lambda: order.append(queue.enter("thread", MAX_WAIT)))
    thread.start()
    until(lambda: len(queue._waiting) == 2)
    queue.leave("first")
    thread.join(MAX_WAIT)
    assert order == [True]
    assert not waiting.done()


INTERRUPTED = """
import sys, threading
from llm_cost_ops.rpc.fifo import CallQueue
from tests.interrupted_client import interrupted, run
from tests.waiting import MAX_WAIT, until

def call(queue, owner):
    try:
        try:
            assert queue.enter(owner, 0.01) is (owner != "late")
        finally:
            queue.leave(owner)
    except BaseException:
        queue.leave(owner)
        raise

def leave_to_others(queue):
    def wait(number):
        queue.enter(number, MAX_WAIT)
        queue.leave(number)
    threads = [threading.Thread(target=wait, args=(number,), daemon=True) for number in range(3)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda: len(queue._waiting) == number + 1)
    return threads

for name in ("only", "late", "others"):
    point = 0
    while not point or place:
        point += 1
        queue, before = CallQueue(1), CallQueue(1)
        others = []
        def leave(queue):
            try:
                queue.leave("first")
            except BaseException:
                queue.leave("first")
                raise
        if name != "only":
            queue.enter_now("first")
            before.enter_now("first")
        if name == "others":
            others = leave_to_others(queue)
            leave_to_others(before)
            place = run(point, lambda: leave(queue), interrupted, lambda: leave(before))
        else:
            place = run(point, lambda: call(queue, name), interrupted)
        queue.leave("first")
        for other in others:
            other.join(MAX_WAIT)
            assert not other.is_alive(), place
        assert queue.enter("next", 0), (name, place)
    print(name, point)
"""


def test_who_is_interrupted_at_any_point_keeps_no_turn() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    points = {name: int(point) for name, point in map(str.split, done.stdout.splitlines())}
    assert points["only"] >= 5 < min(points["late"], points["others"])


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
