from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from llm_cost_ops import RateLimitConfig, RateLimitError
from llm_cost_ops.interceptors.rate_limit import RateLimit, TokenBucket, _seconds
from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime, SyncRuntime
from llm_cost_ops.testing import Fault
from tests.calls import DONE, async_channel, context_of, put, sync_channel
from tests.waiting import in_threads


class BucketMachine(RuleBasedStateMachine):
    """Whatever is asked when: in every window at most capacity + rate x window tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.granted, self.promised = 0.0, [], None
        self.capacity, self.rate, self.bucket = 0, 0.0, None

    @precondition(lambda self: self.bucket is None)
    @rule(capacity=st.integers(1, 5), rate=st.sampled_from([0.1, 1.0, 3.0, 1000.0]))
    def make(self, capacity: int, rate: float) -> None:
        self.capacity, self.rate = capacity, rate
        self.bucket = TokenBucket(capacity, rate, self.now)

    @precondition(lambda self: self.bucket)
    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.bucket)
    @rule(back=st.floats(0, 0.01), patient=st.booleans())
    def take(self, back: float, patient: bool) -> None:
        assert self.bucket is not None
        wait = self.bucket.take(self.now - back)
        assert wait >= 0
        if wait and patient:
            self.now += wait
            wait = self.bucket.take(self.now)
            assert wait == 0, "it is there when it was said to be"
        if not wait:
            self.granted.append(self.now)
        self.check()

    @precondition(lambda self: self.bucket)
    @rule(seconds=st.floats(0.1, 30))
    def pause(self, seconds: float) -> None:
        assert self.bucket is not None
        self.bucket.pause(self.now, seconds)
        assert self.bucket.take(self.now) >= seconds

    def check(self) -> None:
        last = self.granted[-1] if self.granted else 0.0
        for at, first in enumerate(self.granted):
            count = len(self.granted) - at
            assert count <= self.capacity + self.rate * (last - first + 0.01) + 1e-3


TestBucket = BucketMachine.TestCase
TestBucket.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.slow
@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="minutes; set LONG_TESTS=1")
class TestBucketLong(BucketMachine.TestCase):
    settings = settings(max_examples=10_000, stateful_step_count=40, deadline=None)


@given(st.integers(1, 1000), st.floats(1e-3, 1e6), st.integers(1, 50))
def test_a_burst_waits_evenly_and_no_longer_than_needed(capacity: int, window: float, extra: int) -> None:
    bucket = TokenBucket(capacity, capacity / window, 0.0)
    assert [bucket.take(0.0) for _ in range(capacity)] == [0.0] * capacity
    now = 0.0
    for _ in range(extra):
        wait = bucket.take(now)
        assert wait == pytest.approx(window / capacity)
        now += wait
        assert bucket.take(now) == 0.0


def test_the_clock_may_be_read_out_of_order() -> None:
    bucket = TokenBucket(2, 1.0, 10.0)
    assert bucket.take(10.0) == 0.0
    assert bucket.take(9.999) == 0.0
    assert bucket.take(9.0) == pytest.approx(1.0)


def limited(config: RateLimitConfig, script: Any = None, colour: Any = sync_channel, **options: Any) -> Any:
    return colour(script or [DONE] * 2000, RateLimit(config), **options)


def test_calls_beyond_the_limit_wait_their_turn() -> None:
    channel = limited(RateLimitConfig(max_requests=2, time_window=10))
    for _ in range(5):
        put(channel)
    assert channel.core.runtime.monotonic() == pytest.approx(15)
    assert context_of(channel).waited == pytest.approx(5)


def test_no_call_waits_for_a_token_that_comes_after_its_deadline() -> None:
    channel = limited(RateLimitConfig(max_requests=1, time_window=60))
    put(channel)
    with pytest.raises(RateLimitError, match="own rate limit") as caught:
        put(channel, timeout=59)
    error = caught.value
    assert (error.limit, error.attempts, error.status_code, error.code) == (1, 0, None, "RATE_LIMITED")
    assert error.retry_after == pytest.approx(60)
    assert channel.core.runtime.slept == []
    put(channel, timeout=61)


async def test_tasks_go_in_the_order_in_which_they_came() -> None:
    channel = limited(RateLimitConfig(max_requests=10, time_window=10), colour=async_channel)
    order: list[int] = []

    async def call(number: int) -> None:
        await put(channel)
        order.append(number)

    await asyncio.gather(*(call(n) for n in range(60)))
    assert order == list(range(60))
    assert channel.core.runtime.monotonic() == pytest.approx(50)


@settings(max_examples=60)
@given(st.data())
def test_whoever_gives_up_the_others_move_up(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    leaving = data.draw(st.sets(st.integers(1, count - 1), max_size=count - 1))
    assume(leaving)

    async def scene() -> None:
        channel = limited(RateLimitConfig(max_requests=1, time_window=10), colour=async_channel)
        runtime = channel.core.runtime
        done: list[tuple[int, float]] = []

        async def call(number: int) -> None:
            await put(channel)
            done.append((number, runtime.monotonic()))

        tasks = [asyncio.ensure_future(call(n)) for n in range(count)]
        for _ in range(5):
            await asyncio.sleep(0)
        for number in leaving:
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        staying = [n for n in range(count) if n not in leaving]
        assert [number for number, _ in done] == staying
        assert [at for _, at in done] == pytest.approx([10.0 * n for n in range(len(staying))])

    asyncio.run(scene())


def test_threads_take_turns_and_all_get_through() -> None:
    limit = RateLimit(RateLimitConfig(max_requests=10, time_window=0.1))
    channel = sync_channel([DONE] * 200, limit, runtime=SyncRuntime())
    begun = time.monotonic()

    def call() -> None:
        for _ in range(2):
            put(channel)

    in_threads([call] * 20)
    assert len(channel.core.transport.calls) == 40
    assert time.monotonic() - begun >= 0.3, "40 calls: 10 at once, 30 more at 100 a second"
    assert (len(limit._line), limit._watched) == (0, False)


async def test_the_loop_is_free_while_many_wait() -> None:
    limit = RateLimit(RateLimitConfig(max_requests=1, time_window=3600))
    channel = async_channel([DONE] * 10, limit, runtime=AsyncRuntime())
    await put(channel)
    waiting = [asyncio.ensure_future(put(channel)) for _ in range(1000)]
    for _ in range(5):
        await asyncio.sleep(0)
    cpu = time.thread_time()
    await asyncio.sleep(0.3)
    assert time.thread_time() - cpu < 0.15, "nobody polls"
    for task in reversed(waiting):
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (len(limit._line), limit._watched) == (0, False)


def test_a_deadline_that_passes_in_line_is_told() -> None:
    limit = RateLimit(RateLimitConfig(max_requests=1, time_window=10))
    channel = sync_channel([DONE] * 5, limit)
    put(channel)
    runtime = channel.core.runtime
    turn = limit._enter(0.0, context_of(channel))
    assert turn is not None
    runtime._real_timeout = 0.01
    with pytest.raises(RateLimitError, match="beyond its deadline"):
        put(channel, timeout=25)
    limit._leave(turn)
    put(channel)


def test_a_forked_child_does_not_stand_behind_its_parents_threads() -> None:
    limit = RateLimit(RateLimitConfig(max_requests=1, time_window=10))
    channel = sync_channel([DONE] * 5, limit)
    put(channel)
    assert limit._enter(0.0, context_of(channel)) is not None
    limit.forget()
    put(channel, timeout=11)


def test_it_follows_the_server_when_asked_to() -> None:
    def used_up(request: Any, context: Any) -> Any:
        context.response_metadata = Metadata({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "20"})
        return DONE

    config = RateLimitConfig(max_requests=100, time_window=1, adaptive=True)
    channel = limited(
        config, [used_up, DONE, Fault(429, retry_after=50), DONE, Fault(429, retry_after=1e9), DONE]
    )
    clock = channel.core.runtime.monotonic
    put(channel)
    put(channel)
    assert clock() == pytest.approx(20.01)
    with pytest.raises(RateLimitError):
        put(channel)
    put(channel)
    assert clock() == pytest.approx(70.02, abs=0.02)
    with pytest.raises(RateLimitError):
        put(channel)
    put(channel)
    assert clock() < 400, "no hint holds a client for ever"


@given(st.text(max_size=20))
def test_any_reset_header_is_survived(text: str) -> None:
    seconds = _seconds(text, 1_767_225_600.0)
    assert seconds is None or seconds >= 0


def test_reset_is_seconds_or_a_moment() -> None:
    assert _seconds("30", 1_767_225_600.0) == 30
    assert _seconds("1767225630", 1_767_225_600.0) == 30
    assert _seconds("1767225000", 1_767_225_600.0) == 0
    assert _seconds("²", 0.0) is None
