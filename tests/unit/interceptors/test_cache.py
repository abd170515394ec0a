from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import CacheConfig, ClientConfig, CostOpsClient, RetryConfig, ServerError, exceptions
from llm_cost_ops.interceptors.cache import Cache, ExpiringEntries
from llm_cost_ops.testing import Delay, Fault, ScriptedTransport
from llm_cost_ops.types import GetHealthResponse, HealthStatus
from tests.calls import DONE, async_channel, context_of, put, sync_channel
from tests.tiny_service import GET_NOTE, GetNoteRequest, Note
from tests.waiting import in_threads


def get(channel: Any, name: str = "a", **options: Any) -> Any:
    return channel.unary_unary(GET_NOTE, GetNoteRequest(id=name), **options)


def numbering() -> Any:
    """Answer with the number of the call."""
    calls = count(1)
    return lambda request, context: Note(count=next(calls))


def cached(script: Any = None, config: CacheConfig | None = None, colour: Any = sync_channel) -> Any:
    return colour(ScriptedTransport(script or [numbering()], forever=True), Cache(config or CacheConfig()))


def asked(channel: Any) -> int:
    return len(channel.core.transport.calls)


def test_an_answer_is_kept_for_its_time() -> None:
    channel = cached(config=CacheConfig(ttl=30))
    first = get(channel)
    again = get(channel)
    assert first == again
    assert first is not again, "nobody shares an object"
    channel.core.runtime.advance(29.9)
    get(channel)
    assert asked(channel) == 1
    channel.core.runtime.advance(0.2)
    assert get(channel).count == 2


def test_a_raw_answer_says_that_nothing_was_sent() -> None:
    channel = cached().derived(raw=True)
    assert (get(channel).attempts, get(channel).attempts) == (1, 0)
    assert get(channel).status == 200


def test_the_request_the_headers_and_the_method_are_part_of_the_key() -> None:
    channel = cached()
    get(channel, "a")
    get(channel, "b")
    get(channel, "a", headers={"authorization": "Bearer one"})
    get(channel, "a", headers={"authorization": "Bearer two"})
    get(channel, "a", headers={"authorization": "Bearer one"})
    assert asked(channel) == 4
    get(channel, "a", headers={"traceparent": "00-1-2-01"})
    assert asked(channel) == 4, "a trace is no other question"


def test_the_health_of_a_service_is_asked_of_it_each_time() -> None:
    transport = ScriptedTransport([GetHealthResponse(status=HealthStatus.HEALTHY), Fault(503)])
    config = ClientConfig(base_url="http://test", cache=CacheConfig(), retry=RetryConfig(max_retries=0))
    with CostOpsClient(config=config, transport=transport) as client:
        assert client.health().status == HealthStatus.HEALTHY
        with pytest.raises(ServerError):
            client.health()


def test_a_write_clears_and_is_never_answered_from_memory() -> None:
    channel = cached()
    get(channel)
    put(channel)
    put(channel)
    get(channel)
    assert asked(channel) == 4


def test_a_read_that_began_before_a_write_is_not_kept() -> None:
    channel: Any = None

    def overtaken(request: Any, context: Any) -> Note:
        put(channel)
        return Note(text="before")

    channel = sync_channel([overtaken, DONE, Note(text="after")], Cache(CacheConfig()))
    assert get(channel).text == "before"
    assert get(channel).text == "after"


def test_errors_are_not_kept() -> None:
    channel = cached([Fault(503), Note(), Note()])
    with pytest.raises(ServerError):
        get(channel)
    get(channel)
    get(channel)
    assert asked(channel) == 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=60), st.integers(1, 4))
def test_memory_is_bounded_and_never_older_than_its_time(steps: list[tuple[int, int]], limit: int) -> None:
    entries, now, put_at = ExpiringEntries(limit, 3.0), 0.0, {}
    for key, seconds in steps:
        now += seconds
        found = entries.get(key, now)
        if found is not None:
            assert found == b"%d" % key
            assert now - put_at[key] < 3
        else:
            entries.put(key, b"%d" % key, now)
            put_at[key] = now
        assert len(entries) <= limit


def test_the_least_recently_used_goes_first() -> None:
    entries = ExpiringEntries(2, 10)
    entries.put("a", b"a", 0)
    entries.put("b", b"b", 0)
    entries.get("a", 1)
    entries.put("c", b"c", 1)
    assert [entries.get(key, 2) for key in "abc"] == [b"a", None, b"c"]
    entries.clear()
    assert len(entries) == 0


async def test_tasks_that_ask_the_same_share_one_call() -> None:
    channel = cached([Delay(1, Note(text="shared"))], colour=async_channel)
    answers = await asyncio.gather(*(get(channel) for _ in range(50)))
    assert {answer.text for answer in answers} == {"shared"}
    assert len({id(answer) for answer in answers}) == 50
    assert asked(channel) == 1


def test_threads_that_ask_the_same_share_one_call() -> None:
    def slow(request: Any, context: Any) -> Note:
        time.sleep(0.1)
        return Note(text="shared")

    channel = cached([slow])
    answers: list[Any] = []
    in_threads([lambda: answers.append(get(channel))] * 20)
    assert {answer.text for answer in answers} == {"shared"}
    assert len(answers) == 20
    assert asked(channel) == 1


async def test_when_the_first_is_cancelled_another_asks() -> None:
    asking = asyncio.Event()

    async def hang(request: Any, context: Any) -> None:
        asking.set()
        await asyncio.Event().wait()

    channel = async_channel([hang, Note(text="second")], Cache(CacheConfig()))
    first = asyncio.ensure_future(get(channel))
    await asking.wait()
    others = [asyncio.ensure_future(get(channel)) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert {answer.text for answer in await asyncio.gather(*others)} == {"second"}
    assert asked(channel) == 2


async def test_when_the_first_fails_the_others_ask_themselves() -> None:
    script = [Delay(1, Fault(503)), *[Delay(1, Note(text="own"))] * 5]
    channel = async_channel(script, Cache(CacheConfig()))
    outcomes = await asyncio.gather(*(get(channel) for _ in range(6)), return_exceptions=True)
    assert isinstance(outcomes[0], ServerError)
    assert [outcome.text for outcome in outcomes[1:]] == ["own"] * 5
    assert channel.core.runtime.monotonic() == 2, "at the same time, not one after the other"


async def test_waiting_for_another_ends_at_the_own_deadline() -> None:
    channel = async_channel([Delay(100, Note())], Cache(CacheConfig()))
    slow = asyncio.ensure_future(get(channel))
    await asyncio.sleep(0)
    with pytest.raises(exceptions.TimeoutError) as caught:
        await get(channel, timeout=5)
    assert (caught.value.attempts, caught.value.maybe_applied) == (0, False)
    assert channel.core.runtime.monotonic() == 5
    await slow


async def test_nothing_stays_under_way() -> None:
    cache = Cache(CacheConfig())
    channel = async_channel([Delay(1, Note()), Fault(500), Delay(9, Note())], cache)
    tasks = [asyncio.ensure_future(get(channel, name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert cache._under_way == {}


def test_a_forked_child_does_not_wait_for_its_parents_calls() -> None:
    cache = Cache(CacheConfig())
    channel = sync_channel([Note()], cache)
    from concurrent.futures import Future

    class Everything(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return Future()

    cache._under_way = Everything()
    cache.forget()
    get(channel)
    assert context_of(channel).attempt == 1
