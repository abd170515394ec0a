from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import RetryConfig, ValidationError, exceptions
from llm_cost_ops.rpc.channel import Channel
from llm_cost_ops.rpc.context import ForeignAwaitError, Metadata, drive
from llm_cost_ops.rpc.raw import RawResponse
from llm_cost_ops.rpc.runtime import AsyncRuntime, SyncRuntime
from llm_cost_ops.testing import Delay, Fault, ScriptedTransport
from tests.calls import DONE, PUT_KEYED, async_channel, context_of, put, sync_channel
from tests.tiny_service import PUT_NOTE, PutNoteRequest


async def _value() -> int:
    return 3


def test_drive_runs_what_never_suspends() -> None:
    assert drive(_value()) == 3


@pytest.mark.parametrize("wait", [lambda: asyncio.sleep(0), lambda: asyncio.sleep(1)])
def test_drive_refuses_a_foreign_await_and_cleans_up(wait: Any) -> None:
    closed = []

    async def waits() -> None:
        try:
            await wait()
        finally:
            closed.append(True)

    with pytest.raises(ForeignAwaitError, match=r"only its continuation and context\.runtime"):
        drive(waits())
    assert closed == [True]


def test_drive_lets_errors_through() -> None:
    async def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        drive(fails())


def test_a_foreign_await_in_an_interceptor_names_the_rule() -> None:
    class Foreign:
        async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
            await asyncio.sleep(0)
            return await continuation(request, context)

    with pytest.raises(ForeignAwaitError, match="interceptor"):
        put(sync_channel([DONE], Foreign()))


def test_the_sync_runtime_waits_for_other_threads() -> None:
    import concurrent.futures

    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    threading.Timer(0.02, future.set_result, [5]).start()
    assert drive(SyncRuntime().wait(future, 5)) == 5
    with pytest.raises(TimeoutError):
        drive(SyncRuntime().wait(concurrent.futures.Future(), 0.01))
    assert drive(SyncRuntime().offload(max, 1, 2)) == 2


async def test_the_async_runtime_waits_without_cancelling_the_work() -> None:
    import concurrent.futures

    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    waiting = asyncio.ensure_future(AsyncRuntime().wait(future, 5))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not future.cancelled()
    future.set_result(1)
    assert await AsyncRuntime().wait(future) == 1


def test_an_interceptor_sees_the_call_from_outside_in() -> None:
    seen: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
            seen.append(self.name)
            try:
                return await continuation(request, context)
            finally:
                seen.append(f"/{self.name}")

    class Streams:
        """Implements nothing that a unary call passes."""

    put(sync_channel([DONE], Named("a"), Streams(), Named("b")))
    assert seen == ["a", "b", "/b", "/a"]


def test_the_timeout_is_one_deadline_and_zero_means_zero() -> None:
    channel = sync_channel([DONE] * 4, timeout=30.0)
    put(channel)
    assert context_of(channel).deadline == 30.0
    put(channel, timeout=None)
    assert context_of(channel).deadline is None
    put(channel, timeout=1e300)
    assert context_of(channel).deadline is None
    with pytest.raises(exceptions.TimeoutError) as caught:
        put(channel, timeout=0)
    assert not caught.value.maybe_applied


async def test_a_slow_answer_ends_at_the_deadline() -> None:
    channel = async_channel([Delay(10, DONE)], timeout=3)
    with pytest.raises(exceptions.TimeoutError) as caught:
        await put(channel)
    assert caught.value.maybe_applied
    assert channel.core.runtime.monotonic() == 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout": "1"}, "timeout"),
        ({"timeout": -0.1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"headers": {"a b": "c"}}, "headers"),
        ({"headers": {"a": "b\n"}}, "headers"),
        ({"headers": {"a": 1}}, "headers"),
        ({"headers": {1: "a"}}, "headers"),
        ({"headers": 5}, "headers"),
        ({"retry": 5}, "retry"),
        ({"retry": True}, "retry"),
    ],
)
def test_wrong_options_are_named_before_anything_is_sent(options: dict[str, Any], field: str) -> None:
    transport = ScriptedTransport([DONE])
    with pytest.raises(ValidationError) as caught:
        put(sync_channel(transport), **options)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert transport.calls == []


def test_headers_add_to_those_of_the_channel_and_win_over_them() -> None:
    channel = sync_channel([DONE, DONE], metadata=Metadata({"x-team": "a", "x-env": "test"}))
    put(channel, headers={"X-Team": "b"})
    put(channel)
    first, second = channel.core.transport.calls
    assert (first.headers.get("x-team"), first.headers.get("x-env")) == ("b", "test")
    assert second.headers.get("x-team") == "a"


def test_the_key_is_made_once_and_an_explicit_one_wins() -> None:
    from llm_cost_ops.interceptors.retry import Retry

    channel = sync_channel([Fault("network", times=2), DONE, DONE], Retry(RetryConfig()))
    channel.unary_unary(PUT_KEYED, PutNoteRequest())
    channel.unary_unary(PUT_KEYED, PutNoteRequest(), idempotency_key="mine")
    keys = [call.idempotency_key for call in channel.core.transport.calls]
    assert len(set(keys[:3])) == 1
    assert len(keys[0]) == 36
    assert keys[3] == "mine"
    assert [call.attempt for call in channel.core.transport.calls] == [1, 2, 3, 1]


def test_a_raw_answer_has_all_that_came_with_it() -> None:
    from llm_cost_ops.interceptors.retry import Retry

    def answer(request: Any, context: Any) -> Any:
        context.request_id = "r-1"
        context.response_metadata = Metadata({"x-ratelimit-limit": "5"})
        return DONE

    channel = sync_channel([Fault(503), answer], Retry(RetryConfig(jitter=False))).derived(raw=True)
    raw = channel.unary_unary(PUT_KEYED, PutNoteRequest())
    assert isinstance(raw, RawResponse)
    assert raw.parsed is raw.data is DONE
    assert raw.message.data is DONE
    assert (raw.status, raw.attempts, raw.waited, raw.request_id) == (200, 2, 0.5, "r-1")
    assert raw.headers.get("x-ratelimit-limit") == "5"
    assert "r-1" in repr(raw)


def test_a_derived_channel_closes_nothing() -> None:
    transport = ScriptedTransport([DONE])
    channel = Channel(transport, timeout=5)
    derived = channel.derived(timeout=7, headers={"a": "b"})
    assert derived.unary_unary(PUT_NOTE, PutNoteRequest()) is DONE
    assert transport.calls[0].headers.get("a") == "b"
    derived.close()
    assert transport.closed == 0
    channel.close()
    assert transport.closed == 1


@given(st.lists(st.tuples(st.text(max_size=5), st.one_of(st.text(max_size=5), st.binary(max_size=5)))))
def test_metadata_takes_text_or_says_why_not(pairs: list[tuple[str, Any]]) -> None:
    try:
        metadata = Metadata(pairs)
    except ValueError as error:
        assert "metadata" in str(error)  # noqa: PT017
        return
    assert [key for key, _ in metadata] == [key.lower() for key, _ in pairs]
    for _, value in metadata:
        assert isinstance(value, bytes) or not set(value) & set("\r\n\0")


def test_metadata_is_a_multi_map_that_knows_no_case() -> None:
    metadata = Metadata([("A", "1"), ("b-bin", b"\0"), ("a", "2")])
    assert metadata.get_all("a") == ["1", "2"]
    assert "A" in metadata
    assert "c" not in metadata
    copied = metadata.copy()
    copied.set("A", "3")
    assert (copied.get_all("a"), metadata.get_all("a")) == (["3"], ["1", "2"])
    assert metadata.get("b-bin", "none") == "none"
    assert metadata == Metadata(metadata)
    assert len(metadata) == 3
    with pytest.raises(ValueError, match="at most 64"):
        Metadata([("a", "b")] * 65)
    with pytest.raises(ValueError, match="16384 bytes"):
        Metadata({"a": "b" * 17000})


def test_metadata_shows_no_secret() -> None:
    names = ["authorization", "x-api-key", "cookie", "x-auth-token", "client-secret", "password"]
    assert "s3cret" not in repr(Metadata(dict.fromkeys(names, "s3cret")))
