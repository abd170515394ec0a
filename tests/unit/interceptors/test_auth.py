from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from llm_cost_ops import AuthenticationError, ConfigurationError, RetryConfig, ServerError
from llm_cost_ops.exceptions import TimeoutError as DeadlinePassed
from llm_cost_ops.interceptors.auth import Auth, redacted
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.rpc.context import ForeignAwaitError
from llm_cost_ops.rpc.runtime import AsyncRuntime, SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.testing import AsyncVirtualRuntime, Delay, Fault, ScriptedTransport, VirtualRuntime
from tests.calls import DONE, async_channel, put, sync_channel
from tests.waiting import MAX_WAIT, in_threads

CANARY = "canary-key-0123456789"


def sent(channel: Any) -> list[str]:
    return [call.headers.get("authorization") for call in channel.core.transport.calls]


class Issuer:
    """Gives a new key each time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return f"key-{self.asked}"

    async def later(self) -> str:
        await asyncio.sleep(0)
        return self()


def accepting(*keys: str) -> Any:
    def answer(request: Any, context: Any) -> Any:
        return DONE if context.metadata.get("authorization") in [f"Bearer {k}" for k in keys] else Fault(401)

    return answer


def test_a_static_key_travels_on_every_attempt() -> None:
    channel = sync_channel([Fault(429), DONE], Retry(RetryConfig()), Auth("secret"))
    assert put(channel) is DONE
    assert sent(channel) == ["Bearer secret"] * 2


def test_a_static_key_that_is_refused_is_not_tried_again() -> None:
    channel = sync_channel([Fault(401), DONE], Auth("secret"))
    with pytest.raises(AuthenticationError):
        put(channel)
    assert len(sent(channel)) == 1


def test_the_calls_own_credentials_win() -> None:
    issuer = Issuer()
    channel = sync_channel([DONE, Fault(401)], Auth(issuer))
    put(channel, headers={"Authorization": "Bearer mine"})
    with pytest.raises(AuthenticationError):
        put(channel, headers={"authorization": "Bearer mine"})
    assert sent(channel) == ["Bearer mine"] * 2
    assert issuer.asked == 0


def test_a_callable_is_asked_once_and_again_after_a_401() -> None:
    issuer = Issuer()
    channel = sync_channel([DONE, DONE, Fault(401), DONE, DONE], Auth(issuer))
    for _ in range(4):
        put(channel)
    assert sent(channel) == ["Bearer key-1"] * 3 + ["Bearer key-2"] * 2
    assert issuer.asked == 2
    assert channel.core.transport.calls[3].attempt == 2, "the second sending counts"


def test_a_new_key_that_is_refused_too_ends_the_call() -> None:
    issuer = Issuer()
    channel = sync_channel(ScriptedTransport([Fault(401)], forever=True), Auth(issuer))
    with pytest.raises(AuthenticationError) as caught:
        put(channel)
    assert issuer.asked == 2
    assert caught.value.attempts == 2


@pytest.mark.parametrize("answer", [None, "", 5, b"key", "kéy", "a\nb"])
def test_what_is_no_key_is_a_configuration_error(answer: Any) -> None:
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        put(sync_channel([DONE], Auth(lambda: answer)))
    assert caught.value.parameter == "api_key"


async def test_an_async_callable() -> None:
    issuer = Issuer()
    channel = async_channel(ScriptedTransport([accepting("key-2")], forever=True), Auth(issuer.later))
    assert await put(channel) is DONE
    assert issuer.asked == 2


def test_an_async_callable_in_the_sync_client_is_a_clear_error() -> None:
    with pytest.raises(ForeignAwaitError):
        put(sync_channel([DONE], Auth(Issuer().later)))


async def test_many_tasks_share_one_question_and_one_refresh() -> None:
    issuer = Issuer()
    transport = ScriptedTransport([lambda r, c: Delay(1, accepting("key-2"))], forever=True)
    channel = async_channel(transport, Auth(issuer.later))
    assert await asyncio.gather(*(put(channel) for _ in range(50))) == [DONE] * 50
    assert issuer.asked == 2
    assert sorted(sent(channel)) == ["Bearer key-1"] * 50 + ["Bearer key-2"] * 50


def test_many_threads_share_one_refresh() -> None:
    issuer = Issuer()
    together = threading.Barrier(10)
    refuse = accepting("key-2")

    def answer(request: Any, context: Any) -> Any:
        if context.metadata.get("authorization") == "Bearer key-1":
            together.wait(MAX_WAIT)
        return refuse(request, context)

    channel = sync_channel(ScriptedTransport([answer], forever=True), Auth(issuer))
    done: list[Any] = []
    in_threads([lambda: done.append(put(channel))] * 10)
    assert done == [DONE] * 10
    assert issuer.asked == 2


async def test_a_key_that_can_not_be_had_is_asked_for_again_by_the_next() -> None:
    issuer = Issuer()

    async def flaky() -> str:
        await asyncio.sleep(0)
        key = issuer()
        if issuer.asked == 1:
            raise OSError("no key today")
        return key

    channel = async_channel([DONE] * 3, Auth(flaky))
    outcomes = await asyncio.gather(*(put(channel) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(OSError) == 1
    assert outcomes.count(DONE) == 2


async def test_a_cancelled_question_leaves_the_others_unharmed() -> None:
    issuer, asked = Issuer(), asyncio.Event()

    async def slow() -> str:
        if not asked.is_set():
            asked.set()
            await asyncio.Event().wait()
        return issuer()

    channel = async_channel([DONE], Auth(slow))
    first = asyncio.ensure_future(put(channel))
    await asked.wait()
    second = asyncio.ensure_future(put(channel))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is DONE
    assert first.cancelled()


class Hanging:
    """Never gives a key, and says whether its waiting was ended."""

    def __init__(self) -> None:
        self.asked = self.ended = 0

    async def __call__(self) -> str:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1
        return "never"


@pytest.mark.parametrize("runtime", [AsyncRuntime(), AsyncVirtualRuntime()])
async def test_a_key_that_does_not_come_ends_the_call_at_its_deadline(runtime: Any) -> None:
    hanging = Hanging()
    channel = async_channel([DONE], Auth(hanging), runtime=runtime)
    with pytest.raises(TimeoutError, match="the deadline of PutNote passed") as caught:
        await put(channel, timeout=0.05)
    assert isinstance(caught.value, DeadlinePassed)
    assert (caught.value.attempts, caught.value.maybe_applied) == (0, False)
    assert not sent(channel)
    assert hanging.ended == hanging.asked == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing goes on"


async def test_a_refresh_that_does_not_come_ends_the_call_at_its_deadline() -> None:
    keys = iter(["old"])
    hanging = Hanging()

    async def source() -> str:
        return next(keys, "") or await hanging()

    channel = async_channel([Fault(401), DONE], Auth(source))
    with pytest.raises(DeadlinePassed):
        await put(channel, timeout=60)
    assert sent(channel) == ["Bearer old"]
    assert hanging.ended == 1


async def test_those_who_wait_for_a_key_keep_their_own_deadlines() -> None:
    hanging = Hanging()
    channel = async_channel([DONE], Auth(hanging))
    clock = channel.core.runtime

    async def late(timeout: float) -> float:
        with pytest.raises(DeadlinePassed):
            await put(channel, timeout=timeout)
        return float(clock.monotonic())

    assert await asyncio.gather(*(late(seconds) for seconds in (5, 2, 9, 1))) == [5, 2, 9, 1]
    assert hanging.ended == hanging.asked == 2, "asked for 5 s by the first, then by the one with 9"


async def test_a_key_comes_in_time_for_those_who_have_it_when_the_one_who_asked_has_not() -> None:
    issuer = Issuer()
    runtime = AsyncVirtualRuntime()

    async def slow() -> str:
        await runtime.sleep(3)
        return issuer()

    channel = async_channel([DONE], Auth(slow), runtime=runtime)
    short, long = await asyncio.gather(
        put(channel, timeout=2), put(channel, timeout=10), return_exceptions=True
    )
    assert isinstance(short, DeadlinePassed)
    assert long is DONE


async def test_a_timeout_of_the_callables_own_is_no_deadline() -> None:
    async def source() -> str:
        raise TimeoutError("the vault")

    with pytest.raises(TimeoutError, match="the vault") as caught:
        await put(async_channel([DONE], Auth(source)), timeout=60)
    assert not isinstance(caught.value, DeadlinePassed)


def test_a_blocking_callable_is_not_cut_but_its_call_is_not_sent_late() -> None:
    runtime = VirtualRuntime()

    def slow() -> str:
        runtime.advance(5)
        return "key"

    channel = sync_channel([DONE, DONE], Auth(slow), runtime=runtime)
    with pytest.raises(DeadlinePassed):
        put(channel, timeout=1)
    assert put(channel, timeout=1) is DONE


def test_threads_that_wait_for_a_blocking_callable_keep_their_own_deadlines() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        assert go_on.wait(MAX_WAIT)
        return "key"

    channel = sync_channel([DONE], Auth(slow), runtime=SyncRuntime())
    first = threading.Thread(target=put, args=(channel,))
    first.start()
    assert asked.wait(MAX_WAIT)
    with pytest.raises(DeadlinePassed):
        put(channel, timeout=0.01)
    go_on.set()
    first.join(MAX_WAIT)
    assert sent(channel) == ["Bearer key"]


@pytest.mark.parametrize("source", [CANARY, lambda: CANARY])
@pytest.mark.parametrize("status", [401, 500])
def test_a_key_that_the_server_repeats_is_taken_out(source: Any, status: int) -> None:
    code = StatusCode.UNAUTHENTICATED if status == 401 else StatusCode.INTERNAL
    body = f'{{"error": {{"message": "bad {CANARY}", "seen": ["{CANARY}"]}}}}'.encode()

    def echo(request: Any, context: Any) -> Any:
        return RpcError(code, f"no: {CANARY}", http_status=status, body=body)

    with pytest.raises((AuthenticationError, ServerError)) as caught:
        put(sync_channel(ScriptedTransport([echo], forever=True), Auth(source)))
    assert CANARY not in repr(vars(caught.value)) + str(caught.value) + repr(caught.value)
    assert caught.value.response == {"error": {"message": "bad ***", "seen": ["***"]}}


def test_no_key_in_the_repr() -> None:
    assert CANARY not in repr(Auth(CANARY))
    assert redacted({CANARY: [1, CANARY, None]}, CANARY) == {"***": [1, "***", None]}
