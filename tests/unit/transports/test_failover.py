from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import (
    AsyncCostOpsClient,
    ClientConfig,
    CostOpsClient,
    CostOpsError,
    NetworkError,
    RetryConfig,
    ServerError,
)
from llm_cost_ops.config import BatchingConfig, CircuitBreakerConfig, LoggingConfig
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.interceptors.circuit_breaker import BreakerState, CircuitBreaker
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.rpc.context import Route
from llm_cost_ops.rpc.status import OVERLOADED, RpcError, StatusCode
from llm_cost_ops.testing import AsyncVirtualRuntime, Delay, Fault, ScriptedTransport, VirtualRuntime
from llm_cost_ops.transports import failover
from llm_cost_ops.transports.failover import (
    AVOIDANCE,
    MAX_CONNECT,
    MAX_TIMEOUTS,
    FailoverTransport,
    Rotation,
    Server,
)
from tests.calls import DONE, PUT, PUT_KEYED, async_channel, put, sync_channel
from tests.faulty_peers import FaultyPeer, full_backlog, silent
from tests.tiny_service import GET_NOTE, GetNoteRequest

REFUSED = Fault("network", sent=False)
BROKEN = Fault("network")


# The rotation.


def test_calls_go_round() -> None:
    rotation = Rotation(3, first=1)
    assert [rotation.pick(0.0) for _ in range(7)] == [1, 2, 0, 1, 2, 0, 1]


def test_one_that_failed_is_avoided_for_a_time_that_doubles() -> None:
    rotation = Rotation(2)
    now = 10.0
    for failures in range(1, 9):
        assert rotation.pick(now, tried={1}) == 0
        seconds = rotation.failed(0, now, now)
        assert seconds == AVOIDANCE.seconds(failures) == min(2.0 ** (failures - 1), 30.0)
        assert {rotation.pick(now + seconds - 0.01) for _ in range(4)} == {1}
        now += seconds
    assert rotation.pick(now, tried={1}) == 0
    assert rotation.answered(0, now)
    assert Counter(rotation.pick(now) for _ in range(8)) == {0: 4, 1: 4}
    assert rotation.failed(0, now, now) == AVOIDANCE.seconds(1)


def test_one_whose_time_is_over_gets_one_call() -> None:
    rotation = Rotation(3)
    assert rotation.failed(1, 0.0, 0.0) == 1.0
    assert Counter(rotation.pick(1.0) for _ in range(30))[1] == 1
    assert Counter(rotation.pick(2.0) for _ in range(30))[1] == 1  # how the first one ends is not known yet


def test_of_many_calls_that_a_server_takes_down_one_counts() -> None:
    rotation = Rotation(2)
    assert [rotation.failed(0, began / 100, 1.0) for began in range(64)] == [1.0] + [0.0] * 63
    assert not rotation.answered(0, 0.5)  # from before it failed
    assert rotation.pick(1.5) == rotation.pick(1.5) == 1


def test_deadlines_count_when_nothing_is_answered_between_them() -> None:
    rotation = Rotation(2)
    for _ in range(MAX_TIMEOUTS - 1):
        assert not rotation.timed_out(0, 0.0, 1.0)
    rotation.answered(0, 1.0)
    for _ in range(MAX_TIMEOUTS - 1):
        assert not rotation.timed_out(0, 1.0, 2.0)
    assert rotation.timed_out(0, 1.0, 2.0) == 1.0
    assert rotation.timed_out(0, 3.0, 3.0) == 2.0  # the call that was to show whether it works again


_STEPS = st.tuples(
    st.sampled_from(["pick", "failed", "answered", "timed_out"]),
    st.integers(0, 3),
    st.sets(st.integers(0, 3), max_size=3),
    st.floats(0, 40),
)


@given(st.integers(2, 4), st.lists(_STEPS, max_size=60))
def test_whatever_happens_a_call_gets_a_server_and_a_working_one_where_there_is_one(
    count: int, steps: list[tuple[str, int, set[int], float]]
) -> None:
    rotation = Rotation(count)
    bad: set[int] = set()
    until = dict.fromkeys(range(count), 0.0)
    now = 1.0
    for what, server, tried, later in steps:
        server %= count
        now += later
        if what == "pick":
            picked = rotation.pick(now, tried)
            untried = set(range(count)) - tried
            assert (picked is None) == (not untried)
            if picked is None:
                continue
            assert picked in untried
            if picked in bad and until[picked] > now:
                assert untried <= bad
                assert all(until[other] >= until[picked] for other in untried)
            if picked in bad:
                until[picked] = max(until[picked], now + 1.0)
        elif what == "answered":
            if rotation.answered(server, now):
                bad.discard(server)
        else:
            seconds = getattr(rotation, what)(server, now, now)
            if seconds:
                bad.add(server)
                until[server] = now + seconds
        assert rotation.working() == count - len(bad)


# Calls.


def servers(*scripts: Any) -> tuple[FailoverTransport, list[ScriptedTransport]]:
    made = [ScriptedTransport(script, forever=True) for script in scripts]
    named = [Server(f"http://{name}:1", transport) for name, transport in zip("abcd", made, strict=False)]
    return FailoverTransport(named, Rotation(len(made))), made


def counts(made: list[ScriptedTransport]) -> list[int]:
    return [len(transport.calls) for transport in made]


def test_a_call_that_was_not_sent_goes_on_without_retries_or_waits() -> None:
    transport, made = servers([REFUSED], [REFUSED], [DONE])
    channel = sync_channel(transport)
    assert put(channel) == DONE
    assert counts(made) == [1, 1, 1]
    assert channel.core.runtime.monotonic() == VirtualRuntime().monotonic()
    for _ in range(5):
        put(channel)
    assert counts(made) == [1, 1, 6]


def test_a_read_goes_on_although_the_connection_broke() -> None:
    transport, made = servers([BROKEN], [Fault(503)], [DONE])
    assert sync_channel(transport).unary_unary(GET_NOTE, GetNoteRequest(id="n")) == DONE
    assert counts(made) == [1, 1, 1]


def test_a_write_that_may_be_applied_stays_without_retries() -> None:
    transport, made = servers([BROKEN], [DONE])
    with pytest.raises(NetworkError) as caught:
        sync_channel(transport).unary_unary(PUT_KEYED, PUT)
    assert caught.value.maybe_applied
    assert caught.value.server == "http://a:1"
    assert "server http://a:1" in str(caught.value)
    assert counts(made) == [1, 0]


@pytest.mark.parametrize("fault", [BROKEN, Fault(503), Fault(502)])
def test_a_retry_goes_to_the_next_one_at_once_with_the_same_key_and_off_the_budget(fault: Fault) -> None:
    transport, made = servers([fault], [fault], [DONE])
    retry = Retry(RetryConfig(budget=0))
    channel = sync_channel(transport, retry)
    assert channel.unary_unary(PUT_KEYED, PUT) == DONE
    assert counts(made) == [1, 1, 1]
    assert channel.core.runtime.monotonic() == VirtualRuntime().monotonic()
    assert len({each.calls[0].idempotency_key for each in made}) == 1
    assert [each.calls[0].attempt for each in made] == [1, 2, 3]


def test_no_retry_where_the_server_forbids_it_or_the_call_is_not_repeatable() -> None:
    transport, made = servers([Fault(503, retry_after=-1.0)], [DONE])
    with pytest.raises(ServerError):
        sync_channel(transport, Retry(RetryConfig())).unary_unary(PUT_KEYED, PUT)
    assert counts(made) == [1, 0]


def test_where_all_fail_each_is_asked_once_an_attempt_and_retries_are_as_ever() -> None:
    transport, made = servers([REFUSED], [REFUSED], [REFUSED])
    retry = Retry(RetryConfig(max_retries=2, jitter=False))
    channel = sync_channel(transport, retry)
    with pytest.raises(NetworkError) as caught:
        put(channel)
    assert caught.value.attempts == 3
    assert counts(made) == [3, 3, 3]
    assert channel.core.runtime.monotonic() - VirtualRuntime().monotonic() == pytest.approx(1.5)
    assert retry.budget.left == pytest.approx(10.0 - 2)


@pytest.mark.parametrize("code", [OVERLOADED, ""])
def test_a_server_that_says_when_to_come_again_works_and_another_is_asked_then(code: str) -> None:
    refusal = Fault(503, error_code=code, retry_after=0.25)
    transport, made = servers([refusal], [DONE])
    channel = sync_channel(transport, Retry(RetryConfig()))
    assert channel.unary_unary(PUT_KEYED, PUT) == DONE
    assert channel.core.runtime.monotonic() - VirtualRuntime().monotonic() == pytest.approx(0.25)
    assert counts(made) == [1, 1]
    assert transport._rotation.working() == 2


@pytest.mark.parametrize("fault", [Fault(400), Fault(404), Fault(401), Fault(500), Fault(429)])
def test_an_answer_that_other_servers_would_give_too_is_given(fault: Fault) -> None:
    transport, made = servers([fault], [DONE])
    with pytest.raises(CostOpsError):
        put(sync_channel(transport))
    assert counts(made) == [1, 0]
    assert transport._rotation.working() == 2


def test_a_server_that_is_back_gets_calls_again() -> None:
    transport, made = servers([REFUSED, DONE], [DONE])
    channel = sync_channel(transport)
    for _ in range(4):
        put(channel)
    assert counts(made) == [1, 4]
    asyncio.run(_slept(channel))
    for _ in range(4):
        put(channel)
    assert counts(made) == [3, 6]


async def _slept(channel: Any) -> None:
    await channel.core.runtime.sleep(1.0)


def test_the_breaker_stays_closed_while_one_server_works() -> None:
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1, recovery_time=60.0))
    transport, made = servers([BROKEN], [DONE])
    channel = sync_channel(transport, Retry(RetryConfig()), breaker)
    for _ in range(5):
        channel.unary_unary(PUT_KEYED, PUT)
    assert breaker.breaker.state is BreakerState.CLOSED
    transport, made = servers([BROKEN], [BROKEN])
    channel = sync_channel(transport, breaker)
    for _ in range(2):
        with pytest.raises(NetworkError):
            channel.unary_unary(PUT_KEYED, PUT)
    assert breaker.breaker.state is BreakerState.OPEN
    assert counts(made) == [1, 1]


def test_a_connect_gets_a_share_of_the_time_while_there_are_others() -> None:
    shares: list[float | None] = []

    def refuse(request: object, context: Any) -> Any:
        assert isinstance(context.route, Route)
        shares.append(context.route.connect_timeout)
        return REFUSED

    for timeout, expected in [(3.0, [1.0, 1.5, None]), (None, [MAX_CONNECT, MAX_CONNECT, None])]:
        shares.clear()
        transport, _ = servers([refuse], [refuse], [refuse])
        with pytest.raises(NetworkError):
            put(sync_channel(transport), timeout=timeout)
        assert shares == expected


def test_the_deadline_is_one_for_all_servers() -> None:
    transport, made = servers([Delay(2.0, REFUSED)], [Delay(2.0, REFUSED)], [DONE])
    channel = sync_channel(transport)
    with pytest.raises(TimeoutError):
        put(channel, timeout=3.0)
    assert channel.core.runtime.monotonic() - VirtualRuntime().monotonic() == pytest.approx(3.0)
    assert counts(made) == [1, 1, 0]


def test_a_server_that_hangs_is_avoided_after_some_deadlines() -> None:
    transport, made = servers([Delay(60.0, DONE)], [DONE])
    channel = sync_channel(transport)
    late = 0
    for _ in range(20):
        try:
            put(channel, timeout=0.1)
        except TimeoutError:
            late += 1
    assert late == MAX_TIMEOUTS
    assert counts(made)[0] == MAX_TIMEOUTS


def test_async_calls_do_the_same() -> None:
    async def run() -> list[int]:
        transport, made = servers([REFUSED], [BROKEN, BROKEN, BROKEN, DONE], [DONE])
        channel = async_channel(transport, Retry(RetryConfig(budget=0)))
        await asyncio.gather(*(channel.unary_unary(PUT_KEYED, PUT) for _ in range(9)))
        await channel.close()
        assert [each.closed for each in made] == [1, 1, 1]
        return counts(made)

    first, second, third = asyncio.run(run())
    assert first == 1
    assert second <= 3
    assert third >= 6


def test_all_are_closed_although_one_of_them_fails_to() -> None:
    class Stuck(ScriptedTransport):
        async def aclose(self) -> None:
            raise OSError("stuck")

    good = ScriptedTransport([])
    transport = FailoverTransport([Server("a", Stuck([])), Server("b", good)], Rotation(2))
    channel = sync_channel(transport)
    with pytest.raises(OSError, match="stuck"):
        channel.close()
    assert good.closed == 1
    with pytest.raises(RuntimeError, match="closed"):
        put(channel)


# Streams.


def test_a_stream_moves_until_its_first_message() -> None:
    transport, made = servers([REFUSED], [[BROKEN]], [[DONE, DONE]])
    channel = sync_channel(transport)
    assert list(channel.unary_stream(GET_NOTE, GetNoteRequest(id="n"))) == [DONE, DONE]
    assert counts(made) == [1, 1, 1]


def test_a_stream_that_breaks_later_breaks() -> None:
    transport, made = servers([[DONE, BROKEN]], [[DONE]])
    stream = sync_channel(transport, Retry(RetryConfig())).unary_stream(GET_NOTE, GetNoteRequest(id="n"))
    assert next(stream) == DONE
    with pytest.raises(NetworkError):
        next(stream)
    assert counts(made) == [1, 0]
    assert transport._rotation.working() == 1


def test_requests_that_were_taken_and_can_not_be_had_again_are_not_sent_twice() -> None:
    transport, made = servers([[Fault("network", sent=True)]], [[DONE]])
    stream = sync_channel(transport, Retry(RetryConfig())).stream_stream(GET_NOTE, iter([GetNoteRequest()]))
    with pytest.raises(NetworkError):
        next(stream)
    assert counts(made) == [1, 0]
    listed = sync_channel(transport, Retry(RetryConfig())).stream_stream(GET_NOTE, [GetNoteRequest()])
    assert list(listed) == [DONE]


# Clients.


def submit(client: Any, **options: Any) -> Any:
    call = {"organization_id": "o", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}
    return client.usage.submit(**call, **options)


def test_lines_name_the_server_and_what_is_avoided(caplog: pytest.LogCaptureFixture) -> None:
    transport, _ = servers([REFUSED, None], [None])
    config = ClientConfig(base_url="http://a:1,b:1", logging=LoggingConfig(enabled=True))
    caplog.set_level(logging.INFO)
    with CostOpsClient(config=config, transport=transport, runtime=VirtualRuntime()) as client:
        client.health()
        asyncio.run(_slept(client._channel))
        client.health()
    lines = [record.getMessage() for record in caplog.records]
    assert "http://a:1 is avoided for 1 s: scripted fault" in lines
    assert "http://a:1 answers again" in lines
    called = [record for record in caplog.records if hasattr(record, "rpc_method")]
    assert [getattr(record, "server", "") for record in called] == ["http://b:1", "http://a:1"]


def test_a_batch_says_where_it_went_to_those_in_it() -> None:
    async def run() -> None:
        transport, made = servers([Delay(0.1, BROKEN)], [Delay(0.1, BROKEN)])
        config = ClientConfig(
            base_url="http://a:1,b:1",
            retry=RetryConfig(max_retries=0),
            batching=BatchingConfig(max_in_flight=1),
        )
        runtime = AsyncVirtualRuntime()
        async with AsyncCostOpsClient(config=config, transport=transport, runtime=runtime) as client:
            failed = await asyncio.gather(*(submit(client) for _ in range(5)), return_exceptions=True)
        assert [type(error) for error in failed] == [NetworkError] * 5
        assert [getattr(error, "server", "") for error in failed] == ["http://a:1"] + ["http://b:1"] * 4
        assert counts(made) == [1, 1]

    asyncio.run(run())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1,127.0.0.2:1/x", "grpc://127.0.0.1:1,127.0.0.2:1"])
def test_a_client_of_several_says_so(url: str) -> None:
    with CostOpsClient(base_url=url) as client:
        assert repr(client) == f"CostOpsClient(base_url={url!r})"
        with pytest.raises(NetworkError) as caught:
            client.costs.get(retry=None)
        assert caught.value.server in (url.replace(",127.0.0.2:1", ""), url.replace("127.0.0.1:1,", ""))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://a:1,b", "must name the port of each of its servers, or of none"),
        ("http://a:1,,b:2", "must name a host in each place of its list of servers"),
        ("http://,a:1", "must name a host in each place of its list of servers"),
        ("grpc://a:1,", "must name a host in each place of its list of servers"),
        ("http://a:1,:2", "must name a host in each place of its list of servers"),
        ("http://a:1,A:1", "names the server A:1 twice"),
        ("https://a,b,a", "names the server a twice"),
        ("http://a:1,https://b:2", "has one scheme and one path for all servers"),
        ("grpc://a:1,grpc://b:2", "has one scheme and one path for all servers"),
        ("http://a:1/x,http://b:2/x", "has one scheme and one path for all servers"),
        ("http://a:1,b:x", "must be a URL such as"),
        ("http://a:1,b:99999", "must be a URL such as"),
        ("http://a:1, b:2", "must be a URL such as"),
        ("http://a:1,b:2?x=1", "must be a URL such as"),
        ("http://a:1,u:secret@b:2", "must not hold a password"),
        ("grpc://a,b", "must name a port"),
        ("grpc://a:1,b:2/x", "has no path"),
    ],
)
def test_a_list_that_is_wrong_says_which_rule(url: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule) as caught:
        CostOpsClient(base_url=url)
    assert caught.value.parameter == "base_url"
    assert "secret" not in str(caught.value)


def test_an_error_of_the_transport_is_not_changed() -> None:
    refused = RpcError(StatusCode.UNAVAILABLE, "no", origin="network")
    transport, _ = servers([refused], [refused])
    with pytest.raises(NetworkError, match="no"):
        put(sync_channel(transport))


# Servers that nobody reaches.


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs"])
def test_a_connect_that_hangs_takes_a_share_of_the_time(
    scheme: str, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer to a connect, or none to the greeting of TLS: the call goes on to a server that refuses."""
    monkeypatch.setattr(failover, "MAX_CONNECT", 0.05)
    monkeypatch.setattr(random, "randrange", lambda count: 0)
    with full_backlog() as full, FaultyPeer(silent) as peer:
        hanging = f"127.0.0.1:{peer.port if scheme in ('https', 'grpcs') else full}"
        config = ClientConfig(base_url=f"{scheme}://{hanging},127.0.0.2:1", timeout=60.0)
        error = _failed(config) if colour == "sync" else asyncio.run(_failed_async(config))
    assert isinstance(error, NetworkError)
    assert not isinstance(error, TimeoutError)
    assert not error.maybe_applied
    assert error.server == f"{scheme}://127.0.0.2:1"


def _failed(config: ClientConfig) -> CostOpsError:
    with CostOpsClient(config=config) as client, pytest.raises(CostOpsError) as caught:
        submit(client, retry=None)
    return caught.value


async def _failed_async(config: ClientConfig) -> CostOpsError:
    async with AsyncCostOpsClient(config=config) as client:
        with pytest.raises(CostOpsError) as caught:
            await submit(client, retry=None)
    return caught.value
