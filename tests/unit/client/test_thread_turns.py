"""Threads are woken two by two, and the last one ends it, whoever gave up or came early."""

from __future__ import annotations

import random
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.client.thread_turns import ThreadTurn, Waking
from tests.waiting import MAX_WAIT, until


def test_what_comes_is_waited_for() -> None:
    turn = ThreadTurn()
    with pytest.raises(TimeoutError):
        turn.result(0)
    assert not turn.done()
    turn.set_result("it")
    assert turn.done()
    assert [turn.result(), turn.result(0)] == ["it", "it"]


@given(count=st.integers(0, 6), data=st.data())
def test_each_that_is_awake_wakes_the_next_two(count: int, data: st.DataObject) -> None:
    """In any order of those that are called, and of those that see what came before they are called."""
    turns = [ThreadTurn() for _ in range(count)]
    asleep = set(range(count))
    ends: list[set[int]] = []
    waking = Waking(turns, lambda: ends.append(set(asleep)))
    for number, turn in enumerate(turns):
        turn.set_result_of(number, waking)
    early = data.draw(st.permutations(range(count)))[: data.draw(st.integers(0, count))]
    began = data.draw(st.integers(0, len(early)))
    for moment, number in enumerate([*early, *range(count)]):
        if moment == began:
            waking.go_on()
        called = [each for each in asleep if not turns[each]._lock.locked()]
        assert len(called) <= 2 * (1 + count - len(asleep))
        if number in asleep:
            assert moment < len(early) or number in called
            asleep.discard(number)
            assert turns[number].result() == number
    if began == len(early) + count:
        waking.go_on()
    assert ends == [set()]  # once, and when nobody slept any more


def wait(turn: ThreadTurn, seconds: float, lock: threading.Lock, gone: set[ThreadTurn]) -> None:
    """As a caller does, who looks once more when time is up; from then on nothing is brought to them."""
    try:
        turn.result(seconds)
    except TimeoutError:
        with lock:
            came = turn.done()
            if not came:
                gone.add(turn)
        if came:
            turn.result()


@pytest.mark.parametrize("seed", range(20))
def test_threads_that_give_up_at_that_very_moment_hold_up_nobody(seed: int) -> None:
    draw, ended, lock = random.Random(seed), threading.Event(), threading.Lock()
    gone: set[ThreadTurn] = set()
    turns = [ThreadTurn() for _ in range(30)]
    threads = [
        threading.Thread(target=wait, args=(turn, draw.random() * 0.01, lock, gone), daemon=True)
        for turn in turns
    ]
    for thread in threads:
        thread.start()
    until(lambda: bool(gone))
    with lock:
        waiting = [turn for turn in turns if turn not in gone]
        waking = Waking(waiting, ended.set)
        for turn in waiting:
            turn.set_result_of("it", waking)
    waking.go_on()
    assert ended.wait(MAX_WAIT)
    for thread in threads:
        thread.join(MAX_WAIT)
        assert not thread.is_alive()


INTERRUPTED = """
from types import SimpleNamespace
from llm_cost_ops.client.batching import ALONE, Rider
from llm_cost_ops.client.thread_batching import ThreadBatching
from llm_cost_ops.client.thread_turns import ThreadTurn
from llm_cost_ops.config import BatchingConfig, RetryConfig
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.types import UsageRecord
from llm_cost_ops._gen.methods import SUBMIT_USAGE
from tests.interrupted_client import interrupted, run

class Batching(ThreadBatching):
    point = 0
    place = ""

    def _leave(self, group, items=1):
        raise KeyboardInterrupt

    def _begin_anew(self, rider):
        point, self.point = self.point, 0
        if not point:
            return super()._begin_anew(rider)
        alike = ThreadBatching(BatchingConfig(), RetryConfig())
        alike._waiting = {Rider(None, None, None, None, ThreadTurn()): None}
        begin = ThreadBatching._begin_anew
        self.place = run(point, lambda: begin(self, rider), interrupted, lambda: begin(alike, None))
        if self.place:
            raise KeyboardInterrupt

for point in range(1, 100):
    batching = Batching(BatchingConfig(), RetryConfig())
    context = CallContext(SUBMIT_USAGE, SyncRuntime(), Metadata())
    group = batching._of(batching._groups, "key")
    riders = [Rider(group, None, None, context, ThreadTurn()) for _ in range(3)]
    batching._waiting = dict.fromkeys(riders)

    async def send(request, context):
        pass

    batching.point = point
    try:
        drive(batching._submit("key", send, SimpleNamespace(usage=UsageRecord()), context))
    except KeyboardInterrupt:
        pass
    assert [rider.turn.result(0) is ALONE for rider in riders] == [True] * 3, batching.place
    assert not batching._inside, batching.place
    assert not batching._waiting
    if not batching.place:
        break
print(point)
"""


def test_a_second_interrupt_while_others_are_told_of_the_first_leaves_nobody_waiting() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 5
