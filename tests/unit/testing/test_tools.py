"""Scripted answers, the check for interceptors, and the pytest plugin."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    CacheConfig,
    CircuitBreakerConfig,
    CostOpsClient,
    LoggingConfig,
    NetworkError,
    RateLimitConfig,
    RetryConfig,
    ServerError,
    UsageRecord,
    exceptions,
)
from llm_cost_ops.client.spool import Spool
from llm_cost_ops.interceptors.auth import Auth
from llm_cost_ops.interceptors.cache import Cache
from llm_cost_ops.interceptors.circuit_breaker import CircuitBreaker
from llm_cost_ops.interceptors.logging import CallLogging
from llm_cost_ops.interceptors.metrics import CallMetrics
from llm_cost_ops.interceptors.rate_limit import RateLimit
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.rules.requests import Validation
from llm_cost_ops.testing import (
    AsyncVirtualRuntime,
    Delay,
    Fault,
    InterceptorCheckError,
    ScriptedTransport,
    VirtualRuntime,
    async_memory_client,
    check_interceptor,
    memory_client,
)
from llm_cost_ops.types import StreamUsageResponse
from tests.calls import DONE, PUT, put, sync_channel
from tests.tiny_service import PutNoteResponse
from tests.waiting import MAX_WAIT


def test_a_script_answers_step_by_step() -> None:
    async def later(request: Any, context: Any) -> Any:
        await context.runtime.sleep(2)
        return Delay(1, DONE)

    whole = PutNoteResponse(data=DONE)
    script = [DONE, whole, lambda request, context: DONE, later, KeyError("x"), lambda r, c: None]
    transport = ScriptedTransport(script)
    channel = sync_channel(transport)
    assert [put(channel) for _ in range(4)] == [DONE] * 4
    assert channel.core.runtime.monotonic() == 3
    with pytest.raises(KeyError):
        put(channel)
    assert put(channel) is None
    with pytest.raises(AssertionError, match="call 7, PutNote, is not in the script"):
        put(channel)
    assert transport.requests == [PUT] * 7
    assert transport.calls[0].method == "PutNote"


def test_the_last_step_may_go_on_for_ever() -> None:
    channel = sync_channel(ScriptedTransport([Fault(503, times=2), DONE], forever=True))
    for _ in range(2):
        with pytest.raises(ServerError):
            put(channel)
    assert [put(channel) for _ in range(5)] == [DONE] * 5


def test_faults_say_what_a_transport_would() -> None:
    def failing(fault: Fault) -> Any:
        with pytest.raises(exceptions.CostOpsError) as caught:
            put(sync_channel([fault]))
        return caught.value

    assert failing(Fault("network")).maybe_applied
    assert not failing(Fault("network", sent=False)).maybe_applied
    assert type(failing(Fault("network"))) is NetworkError
    limited = failing(Fault(429, "slow", retry_after=2, headers={"x-ratelimit-limit": "5"}))
    assert (limited.retry_after, limited.limit, limited.message, limited.maybe_applied) == (
        2,
        5,
        "slow",
        False,
    )
    assert failing(Fault(500)).maybe_applied
    assert isinstance(failing(Fault(504)), exceptions.DeadlineError)


class Held:
    """Holds a lock across an await."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        with self.lock:
            return await continuation(request, context)


class AsyncHeld:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        async with self.lock:
            return await continuation(request, context)


class Foreign:
    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        await asyncio.sleep(0.001)
        return await continuation(request, context)


class ForeignAfterFailure:
    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        try:
            return await continuation(request, context)
        except ServerError:
            await asyncio.sleep(0)
            raise


class Plain:
    def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        return continuation(request, context)


class Swallowing:
    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        try:
            return await continuation(request, context)
        except asyncio.CancelledError:
            return await continuation(request, context)


class Nothing:
    pass


class Disguising:
    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        try:
            return await continuation(request, context)
        except ServerError as error:
            raise NetworkError("hm") from error


class _Streaming:
    """What passes, for a stream of answers."""

    async def intercept_unary_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        async with aclosing(continuation(request, context)) as messages:
            async for message in messages:
                yield message


class LeftOpen:
    async def intercept_unary_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        async for message in continuation(request, context):
            yield message


class LeftOpenBothWays:
    async def intercept_stream_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        async for message in continuation(request, context):
            yield message


class ForeignInStream(_Streaming):
    async def intercept_stream_stream(self, continuation: Any, requests: Any, context: Any) -> Any:
        async with aclosing(continuation(requests, context)) as messages:
            async for message in messages:
                await asyncio.sleep(0)
                yield message


class HeldInStream:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    async def intercept_unary_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        with self.lock:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message


class NoYield:
    async def intercept_unary_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        return continuation(request, context)


class Emptying(_Streaming):
    async def intercept_unary_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        async for _ in super().intercept_unary_stream(continuation, request, context):
            if context is None:
                yield None


class EndingQuietly:
    async def intercept_unary_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        except ServerError:
            return


class DisguisingStreams:
    async def intercept_stream_stream(self, continuation: Any, request: Any, context: Any) -> Any:
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        except ServerError as error:
            raise NetworkError("hm") from error


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Held, "lock held across an await"),
        (AsyncHeld, "lock held across an await"),
        (Foreign, "only in the async client"),
        (ForeignAfterFailure, "only in the async client"),
        (Plain, "async def"),
        (Swallowing, "cancelled call"),
        (Nothing, "none of the methods"),
        (Disguising, "NetworkError"),
        (LeftOpen, "intercept_unary_stream: a stream that was left early is still open"),
        (LeftOpenBothWays, "intercept_stream_stream: a stream that was left early is still open"),
        (ForeignInStream, "a stream works only in the async client"),
        (HeldInStream, "a sync stream got stuck"),
        (NoYield, "has no yield"),
        (Emptying, "no message came through"),
        (EndingQuietly, "a failure after 0 messages did not come through"),
        (DisguisingStreams, "intercept_stream_stream: a failed server came out as NetworkError"),
    ],
)
def test_the_check_finds(wrong: Any, message: str) -> None:
    with pytest.raises(InterceptorCheckError, match=message):
        check_interceptor(wrong, timeout=1.0)


def _config(kind: Any, *settings: Any) -> Any:
    return lambda: kind(*settings)


@pytest.mark.parametrize(
    "make",
    [
        _config(Auth, "some-key"),
        _config(Auth, lambda: "some-key"),
        _config(Cache, CacheConfig()),
        _config(CallLogging, LoggingConfig(enabled=True)),
        _config(CallMetrics, []),
        _config(CircuitBreaker, CircuitBreakerConfig()),
        _config(RateLimit, RateLimitConfig(adaptive=True)),
        _config(RateLimit, RateLimitConfig(max_requests=1, time_window=1)),
        _config(Retry, RetryConfig()),
        lambda: Validation({}, origin="client"),
    ],
)
def test_every_interceptor_of_ours_passes_the_check(make: Any) -> None:
    check_interceptor(make)


def test_an_interceptor_may_be_given_itself() -> None:
    check_interceptor(CallMetrics([]))
    check_interceptor(_Streaming())


RECORDS = [UsageRecord(organization_id="a", provider="openai", model_id=f"m-{n}") for n in range(3)]


def _client(colour: str, transport: ScriptedTransport) -> Any:
    settings: dict[str, Any] = {"base_url": "https://costs.test", "api_key": "k", "transport": transport}
    if colour == "sync":
        return CostOpsClient(runtime=VirtualRuntime(), **settings)
    return AsyncCostOpsClient(runtime=AsyncVirtualRuntime(), **settings)


async def _models(stream: Any, into: list[str]) -> None:
    if hasattr(stream, "__aiter__"):
        async for record in stream:
            into.append(record.model_id)  # noqa: PERF401  # kept where the stream breaks
    else:
        into += (record.model_id for record in stream)


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_script_answers_with_streams(colour: str) -> None:
    script = [[], [Delay(2, RECORDS[0]), RECORDS[1]], RECORDS[2], lambda request, context: RECORDS[:2]]
    transport = ScriptedTransport(script)
    client = _client(colour, transport)
    got: list[list[str]] = [[], [], [], []]
    for into in got:
        await _models(client.usage.export(provider="openai"), into)
    assert got == [[], ["m-0", "m-1"], ["m-2"], ["m-0", "m-1"]]
    assert [request.provider for request in transport.requests] == [["openai"]] * 4
    assert transport.calls[0].method == "ExportUsage"
    assert transport.calls[0].context.runtime.monotonic() == 2


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_scripted_stream_may_break_before_and_after_its_first_message(colour: str) -> None:
    transport = ScriptedTransport([Fault(503, times=2), [RECORDS[0], Fault("network"), RECORDS[1]]])
    got: list[str] = []
    with pytest.raises(NetworkError):
        await _models(_client(colour, transport).usage.export(), got)
    assert got == ["m-0"], "what came before is the caller's"
    assert [call.attempt for call in transport.calls] == [1, 2, 3], "tried again until a message came"


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_scripted_stream_takes_requests(colour: str) -> None:
    lost = [StreamUsageResponse(durable=1, created=1), Fault("network")]
    transport = ScriptedTransport([Fault(503, sent=False), lost, StreamUsageResponse(durable=2, created=2)])
    receipt = _client(colour, transport).usage.stream(RECORDS)
    receipt = await receipt if colour == "async" else receipt
    assert (receipt.records, receipt.created) == (3, 3)
    taken = [
        [each.model_id for request in call.request for each in request.records] for call in transport.calls
    ]
    assert taken == [[], ["m-0", "m-1", "m-2"], ["m-1", "m-2"]], "what was not acknowledged is sent again"


async def test_the_check_works_inside_a_running_loop() -> None:
    check_interceptor(_config(Retry, RetryConfig()))


def test_fixture(costops: CostOpsClient) -> None:
    assert costops.health().status == "healthy"


async def test_async_fixture(async_costops: AsyncCostOpsClient) -> None:
    assert (await async_costops.health()).status == "healthy"


def test_the_plugin_is_found_and_loads_nothing_by_itself(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_nothing_is_loaded():\n"
        "    loaded = [name for name in sys.modules if name.startswith('llm_cost_ops')]\n"
        "    names = ['llm_cost_ops', 'llm_cost_ops.lazy', 'llm_cost_ops.testing']\n"
        "    assert sorted(loaded) == [*names, 'llm_cost_ops.testing.plugin']\n"
        "def test_used(costops):\n"
        "    receipt = costops.usage.submit(\n"
        "        organization_id='a', provider='openai', model_id='gpt-4o', input_tokens=10)\n"
        "    assert receipt.estimated_cost\n"
        "def test_empty_again(costops, async_costops):\n"
        "    assert costops.costs.get().total_requests == 0\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:schemathesis",
    ]
    options = ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_a_client_in_memory_leaves_the_spool_of_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(b'{"organization_id":"o","provider":"p","model_id":"m","idempotency_key":"k"}')
    spool.close()
    monkeypatch.setenv("LLM_COST_OPS_SPOOL", str(tmp_path))
    monkeypatch.setenv("LLM_COST_OPS_TIMEOUT", "nonsense")
    call: Any = {"organization_id": "o", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}
    with memory_client() as client:
        client.usage.record(**call)
        assert client.flush(MAX_WAIT).recorded == 1

    async def recorded() -> int:
        async with async_memory_client() as client:
            client.usage.record(**call)
            return (await client.flush(MAX_WAIT)).recorded

    assert asyncio.run(recorded()) == 1
    assert Spool(tmp_path).pending == 1
