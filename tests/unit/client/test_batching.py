"""Submits that wait leave together, and each caller sees what it would have seen alone."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    AuthenticationError,
    BatchingConfig,
    ClientConfig,
    ConflictError,
    CostOpsClient,
    LoggingConfig,
    MetricsConfig,
    NetworkError,
    RateLimitConfig,
    RetryConfig,
    ServerError,
    ValidationError,
)
from llm_cost_ops._gen.messages import (
    BatchSubmitUsageResponse,
    RecordError,
    ResponseMeta,
    SubmitResult,
    SubmitStatus,
    SubmitUsageResponse,
    UsageReceipt,
)
from llm_cost_ops.client import thread_batching
from llm_cost_ops.client.batching import Batching
from llm_cost_ops.client.task_batching import TaskBatching
from llm_cost_ops.exceptions import TimeoutError as DeadlinePassed
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rules.batches import counted
from llm_cost_ops.testing import Fault
from tests.waiting import MAX_WAIT, until, until_async

COLOURS = ("sync", "async")
ONE_AT_A_TIME = BatchingConfig(max_in_flight=1)
QUICK = RetryConfig(initial_backoff=0, budget=1000)
CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}


class Service:
    """Answers once `gate` is open. `faults` are for batches, one each; `refuse` fails a record by its key."""

    def __init__(self, *faults: Any, refuse: dict[str, RpcError] | None = None) -> None:
        self.gate = threading.Event()
        self.faults = list(faults)
        self.refuse = refuse or {}
        self.calls: list[tuple[list[str], Any]] = []
        self.cancelled = 0

    @property
    def sent(self) -> list[list[str]]:
        """The keys of each call, in the order of the calls."""
        return [keys for keys, _ in self.calls]

    async def unary_unary(self, request: Any, context: Any) -> Any:
        records = request.records if context.method.name == "BatchSubmitUsage" else [request.usage]
        self.calls.append(([record.idempotency_key for record in records], context.metadata.copy()))
        await self._held(context)
        context.response_metadata, context.response_status = context.metadata.copy(), 201
        meta = ResponseMeta(request_id=context.request_id)
        if context.method.name != "BatchSubmitUsage":
            return SubmitUsageResponse(data=self._receipt(records[0]), meta=meta)
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault.error(context) if isinstance(fault, Fault) else fault
        return BatchSubmitUsageResponse(data=counted([self._result(each) for each in records]), meta=meta)

    async def _held(self, context: Any) -> None:
        await self._wait(self.gate, context)

    async def _wait(self, gate: threading.Event, context: Any) -> None:
        if isinstance(context.runtime, SyncRuntime):
            limit = context.remaining()
            if not gate.wait(limit):
                context.check_deadline(maybe_applied=True)
            return
        try:
            while not gate.is_set():
                context.check_deadline(maybe_applied=True)
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def _receipt(self, record: Any) -> UsageReceipt:
        error = self.refuse.get(record.idempotency_key)
        if error is not None:
            raise error
        duplicate = record.idempotency_key.startswith("again")
        return UsageReceipt(usage_id=f"id of {record.idempotency_key}", duplicate=duplicate)

    def _result(self, record: Any) -> SubmitResult:
        try:
            receipt = self._receipt(record)
        except RpcError as error:
            if error.code is StatusCode.INTERNAL:
                raise
            conflict = error.code is StatusCode.ALREADY_EXISTS
            status = SubmitStatus.CONFLICT if conflict else SubmitStatus.INVALID
            return SubmitResult(status=status, error=RecordError(code=error.code.name, message="no"))
        return SubmitResult(
            status=SubmitStatus.DUPLICATE if receipt.duplicate else SubmitStatus.CREATED, usage=receipt
        )

    async def aclose(self) -> None:
        """Nothing to close."""


def groups_of(client: Any) -> list[Any]:
    """What gathers the submits of a client."""
    [batching] = [each for each in client._channel.core.interceptors if isinstance(each, Batching)]
    groups = getattr(batching, "_groups", None)
    found = [groups] if groups is not None else [loop.groups for loop in batching._loops.values()]
    return [group for groups in found for group in list(groups.values())]


def waiting_in(client: Any) -> int:
    """How many submits wait."""
    return sum(map(len, groups_of(client)))


def nothing_in_flight(client: Any) -> bool:
    """Whether every turn was given back, with each submit that it was for."""
    return all(group.in_flight == group.sent == 0 for group in groups_of(client))


Setup = Callable[[Any], Any]
Opens = Callable[[list[Any]], bool]


def arrived(service: Service, client: Any, calls: list[Any], held: int) -> bool:
    """Whether the service has the first `held` of the calls, and the others wait, or have given up."""
    given_up = sum(call.done() for call in calls)
    return len(service.calls) + waiting_in(client) + given_up >= len(calls) and len(service.calls) == min(
        held, len(calls)
    )


def submitted(
    colour: str,
    service: Service,
    callers: list[dict[str, Any]],
    *,
    of: Setup = lambda client: client,
    held: int = 1,
    opens: Opens = lambda calls: True,
    **settings: Any,
) -> list[Any]:
    """What the callers get. The first `held` of them go alone, then the others come, in their order; once all
    wait, and what `opens` says of them holds, the service answers."""
    config = ClientConfig(base_url="http://test", **{"batching": ONE_AT_A_TIME, "retry": QUICK, **settings})
    arguments = [{**CALL, "input_tokens": 1, "output_tokens": 1, **caller} for caller in callers]
    run = _in_threads if colour == "sync" else _in_tasks
    return run(service, config, arguments, of, held, opens)


def _in_threads(
    service: Service, config: ClientConfig, callers: list[Any], of: Setup, held: int, opens: Opens
) -> list[Any]:
    with (
        CostOpsClient(config=config, transport=service) as client,
        ThreadPoolExecutor(len(callers)) as threads,
    ):
        futures = []
        for caller in callers:
            futures.append(threads.submit(of(client).usage.submit, **caller))
            until(lambda: arrived(service, client, futures, held))
        until(lambda: opens(futures))
        service.gate.set()
        outcomes = [future.exception(MAX_WAIT) or future.result() for future in futures]
        until(lambda: nothing_in_flight(client))
        return outcomes


def _in_tasks(
    service: Service, config: ClientConfig, callers: list[Any], of: Setup, held: int, opens: Opens
) -> list[Any]:
    async def run() -> list[Any]:
        async with AsyncCostOpsClient(config=config, transport=service) as client:
            tasks = []
            for caller in callers:
                tasks.append(asyncio.create_task(of(client).usage.submit(**caller)))
                await until_async(lambda: arrived(service, client, tasks, held))
            await until_async(lambda: opens(tasks))
            service.gate.set()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await until_async(lambda: nothing_in_flight(client))
            return outcomes

    return asyncio.run(run())


def keyed(*keys: str) -> list[dict[str, Any]]:
    return [{"idempotency_key": key} for key in keys]


def ids(outcomes: list[Any]) -> list[str]:
    return [outcome.usage_id for outcome in outcomes]


CONFLICT = RpcError(StatusCode.ALREADY_EXISTS, "other content", http_status=409)
INVALID = RpcError(StatusCode.INVALID_ARGUMENT, "bad record", http_status=400)
BROKEN = RpcError(StatusCode.INTERNAL, "broken", http_status=500, maybe_applied=True)


@pytest.mark.parametrize("colour", COLOURS)
def test_what_waits_leaves_in_one_batch_and_each_gets_its_receipt(colour: str) -> None:
    service = Service()
    told = submitted(colour, service, keyed("a", "b", "c", "again-d"))
    assert ids(told) == ["id of a", "id of b", "id of c", "id of again-d"]
    assert [receipt.duplicate for receipt in told] == [False, False, False, True]
    assert service.sent == [["a"], ["b", "c", "again-d"]]


@pytest.mark.parametrize("colour", COLOURS)
def test_off_each_goes_alone(colour: str) -> None:
    service = Service()
    config = {"batching": BatchingConfig(enabled=False)}
    client: Any = CostOpsClient if colour == "sync" else AsyncCostOpsClient
    made = client(config=ClientConfig(base_url="http://test", **config), transport=service)
    assert not [each for each in made._channel.core.interceptors if isinstance(each, Batching)]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_bad_record_harms_only_itself(colour: str) -> None:
    service = Service(refuse={"c": CONFLICT, "i": INVALID})
    first, second, conflict, invalid, last = submitted(colour, service, keyed("a", "b", "c", "i", "z"))
    assert ids([first, second, last]) == ["id of a", "id of b", "id of z"]
    assert type(conflict) is ConflictError
    assert (conflict.status_code, conflict.attempts, conflict.message) == (409, 1, "other content")
    assert type(invalid) is ValidationError
    assert (invalid.status_code, invalid.attempts) == (400, 1)
    assert service.sent[:2] == [["a"], ["b", "c", "i", "z"]]
    assert sorted(service.sent[2:]) == [["c"], ["i"]]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_record_that_breaks_the_server_harms_only_itself(colour: str) -> None:
    service = Service(refuse={"c": BROKEN})
    told = submitted(colour, service, keyed("a", "b", "c", "d"))
    assert ids([told[0], told[1], told[3]]) == ["id of a", "id of b", "id of d"]
    assert type(told[2]) is ServerError
    assert told[2].attempts == QUICK.max_retries + 1
    assert told[2].maybe_applied


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("fault", "kind", "attempts", "maybe_applied"),
    [
        (Fault("network"), NetworkError, 4, True),
        (Fault("network", sent=False), NetworkError, 4, False),
        (Fault(503), ServerError, 4, True),
        (Fault(401), AuthenticationError, 1, False),
    ],
)
def test_each_gets_an_error_of_its_own(
    colour: str, fault: Fault, kind: type, attempts: int, maybe_applied: bool
) -> None:
    service = Service(*[fault] * 4)
    told = submitted(colour, service, keyed("a", "b", "c"))
    assert told[0].usage_id == "id of a"
    assert [(type(e), e.attempts, e.maybe_applied) for e in told[1:]] == [(kind, attempts, maybe_applied)] * 2
    assert told[1] is not told[2]
    assert len(service.calls) == 1 + attempts


@pytest.mark.parametrize("colour", COLOURS)
def test_a_batch_is_tried_again_as_one_call(colour: str) -> None:
    service = Service(Fault(503), Fault(503))
    told = submitted(colour, service, keyed("a", "b", "c"), of=lambda client: client.with_raw_response)
    assert [answer.attempts for answer in told] == [1, 3, 3]
    assert service.sent == [["a"]] + [["b", "c"]] * 3


@pytest.mark.parametrize("colour", COLOURS)
def test_no_retries_for_a_call_are_none_for_its_batch(colour: str) -> None:
    service = Service(Fault(503))
    told = submitted(colour, service, [{"retry": None, **caller} for caller in keyed("a", "b", "c")])
    assert [type(outcome) for outcome in told[1:]] == [ServerError, ServerError]
    assert [outcome.attempts for outcome in told[1:]] == [1, 1]
    assert service.sent == [["a"], ["b", "c"]]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("status", [404, 405, 501, StatusCode.UNIMPLEMENTED])
def test_a_server_without_batches_is_remembered(colour: str, status: Any) -> None:
    service = Service(Fault(status))
    told = submitted(colour, service, keyed("a", "b", "c", "d"))
    assert ids(told) == ["id of a", "id of b", "id of c", "id of d"]
    assert [len(keys) for keys in service.sent] == [1, 3, 1, 1, 1]


async def test_a_server_without_batches_is_called_at_once_later() -> None:
    service = Service(Fault(404))
    config = ClientConfig(base_url="http://test", batching=ONE_AT_A_TIME)
    async with AsyncCostOpsClient(config=config, transport=service) as client:
        for sent in ([1, 2, 1, 1], [1, 1, 1]):
            service.gate.clear()
            service.calls.clear()
            calls = [asyncio.create_task(client.usage.submit(**CALL, input_tokens=1)) for _ in range(3)]
            await until_async(lambda: len(service.calls) + waiting_in(client) == 3)
            service.gate.set()
            await asyncio.gather(*calls)
            assert [len(keys) for keys in service.sent] == sent


@pytest.mark.parametrize("colour", COLOURS)
def test_other_headers_are_another_batch(colour: str) -> None:
    service = Service()
    callers = [
        {"idempotency_key": f"{name}{number}", "headers": {"x-tenant": name}}
        for number in range(3)
        for name in ("a", "b")
    ]
    told = submitted(colour, service, callers, held=2)
    assert ids(told) == [f"id of {caller['idempotency_key']}" for caller in callers]
    assert sorted(service.sent) == [["a0"], ["a1", "a2"], ["b0"], ["b1", "b2"]]
    for keys, metadata in service.calls:
        assert {key[0] for key in keys} == {metadata.get("x-tenant")}


@pytest.mark.parametrize("colour", COLOURS)
def test_other_traces_are_the_same_batch(colour: str) -> None:
    service = Service()
    callers = [{"idempotency_key": key, "headers": {"traceparent": f"00-{key}"}} for key in "abc"]
    submitted(colour, service, callers)
    assert service.sent == [["a"], ["b", "c"]]
    assert service.calls[1][1].get("traceparent") == "00-b"


@pytest.mark.parametrize("colour", COLOURS)
def test_a_caller_stops_waiting_at_its_own_deadline(colour: str) -> None:
    service = Service()
    callers = [*keyed("a"), {"idempotency_key": "b", "timeout": 0.1}, *keyed("c", "d")]
    told = submitted(colour, service, callers, opens=lambda calls: calls[1].done())
    assert ids([told[0], *told[2:]]) == ["id of a", "id of c", "id of d"]
    assert type(told[1]) is DeadlinePassed
    assert (told[1].attempts, told[1].maybe_applied) == (0, False)
    assert service.sent == [["a"], ["c", "d"]]


class SlowBatches(Service):
    """Lets single records through when `alone` is set, and holds batches longer."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = threading.Event()

    async def _held(self, context: Any) -> None:
        await self._wait(self.gate if context.method.name == "BatchSubmitUsage" else self.alone, context)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_caller_leaves_a_batch_under_way_at_its_own_deadline(colour: str) -> None:
    service = SlowBatches()
    callers = [*keyed("a"), {"idempotency_key": "b", "timeout": 1.5}, *keyed("c", "d")]

    def leaves(calls: list[Any]) -> bool:
        service.alone.set()
        return bool(calls[1].done())

    told = submitted(colour, service, callers, opens=leaves)
    assert ids([told[0], *told[2:]]) == ["id of a", "id of c", "id of d"]
    assert type(told[1]) is DeadlinePassed
    assert (told[1].attempts, told[1].maybe_applied) == (1, True)
    assert service.sent == [["a"], ["b", "c", "d"]]


@pytest.mark.parametrize("sent", [False, True], ids=["waiting", "under way"])
async def test_each_task_stops_at_its_own_deadline_whichever_comes_first(sent: bool) -> None:
    service, order = Service(), random.Random(7).sample(range(40), 40)
    took: dict[int, float] = {}
    applied: set[str] = set()
    async with AsyncCostOpsClient(
        config=ClientConfig(base_url="http://test", batching=ONE_AT_A_TIME, retry=QUICK), transport=service
    ) as client:

        async def call(number: int) -> None:
            began, timeout = time.monotonic(), 0.05 + 0.02 * number
            with pytest.raises(DeadlinePassed) as caught:
                await client.usage.submit(**CALL, idempotency_key=f"key {number}", timeout=timeout)
            took[number] = time.monotonic() - began - timeout
            if caught.value.maybe_applied:
                applied.add(f"key {number}")

        first = asyncio.create_task(client.usage.submit(**CALL, timeout=0.02 if sent else 1000))
        await asyncio.sleep(0)
        # An alarm that rang for the latest of them alone would ring for this one, and nobody would be told.
        latest = asyncio.create_task(client.usage.submit(**CALL, timeout=1000, idempotency_key="latest"))
        async with asyncio.timeout(MAX_WAIT):
            await asyncio.gather(*(call(number) for number in order))
        left = {key for keys in service.sent[1:] for key in keys}
        service.gate.set()
        await asyncio.gather(first, latest, return_exceptions=True)
    assert len(took) == 40
    assert min(took.values()) >= -0.002
    assert applied == left - {"latest"}
    assert ("latest" in left) is sent


async def run_and_leave(client: AsyncCostOpsClient) -> None:
    await asyncio.gather(*(client.usage.submit(**CALL) for _ in range(20)))


def test_an_event_loop_that_is_over_is_not_kept() -> None:
    service = Service()
    service.gate.set()
    client = AsyncCostOpsClient(config=ClientConfig(base_url="http://test"), transport=service)
    for _ in range(3):
        asyncio.run(run_and_leave(client))
    gc.collect()
    [batching] = [each for each in client._channel.core.interceptors if isinstance(each, TaskBatching)]
    assert len(batching._loops) == 0


async def test_who_is_cancelled_leaves_the_others_alone() -> None:
    service = Service()
    config = ClientConfig(base_url="http://test", batching=ONE_AT_A_TIME)
    async with AsyncCostOpsClient(config=config, transport=service) as client:
        tasks = [
            asyncio.create_task(client.usage.submit(**CALL, input_tokens=1, idempotency_key=key))
            for key in "abcd"
        ]
        await until_async(lambda: waiting_in(client) == 3)
        tasks[1].cancel()
        await until_async(tasks[1].done)
        service.gate.set()
        told = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(told[1], asyncio.CancelledError)
    assert ids([told[0], *told[2:]]) == ["id of a", "id of c", "id of d"]
    assert service.sent == [["a"], ["c", "d"]]


async def test_a_batch_whose_callers_leave_before_it_begins_gives_its_turn_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are cancelled in the very step of the event loop in which the turn comes to them."""
    service = Service()
    config = ClientConfig(base_url="http://test", batching=ONE_AT_A_TIME)
    async with AsyncCostOpsClient(config=config, transport=service) as client:
        [batching] = [each for each in client._channel.core.interceptors if isinstance(each, TaskBatching)]
        first = asyncio.create_task(client.usage.submit(**CALL))
        await until_async(lambda: len(service.calls) == 1)
        riders = [asyncio.create_task(client.usage.submit(**CALL)) for _ in range(2)]
        await until_async(lambda: waiting_in(client) == 2)
        take_off = batching._take_off

        def cancelled_first(of: Any) -> None:
            for rider in riders:
                rider.cancel()
            take_off(of)

        monkeypatch.setattr(batching, "_take_off", cancelled_first)
        service.gate.set()
        await asyncio.wait([first, *riders])
        monkeypatch.undo()
        async with asyncio.timeout(MAX_WAIT):
            assert (await client.usage.submit(**CALL, idempotency_key="after")).usage_id == "id of after"
    assert all(rider.cancelled() for rider in riders)
    assert len(service.calls) == 2


async def test_a_batch_ends_when_all_of_it_are_cancelled_and_others_go_on() -> None:
    service = SlowBatches()
    config = ClientConfig(base_url="http://test", batching=ONE_AT_A_TIME)
    async with AsyncCostOpsClient(config=config, transport=service) as client:

        def submit(key: str) -> Any:
            return asyncio.create_task(client.usage.submit(**CALL, input_tokens=1, idempotency_key=key))

        first, *riders = [submit(key) for key in "abc"]
        await until_async(lambda: waiting_in(client) == 2)
        service.alone.set()
        await first
        await until_async(lambda: len(service.sent) == 2)
        riders[0].cancel()
        await until_async(riders[0].done)
        assert service.cancelled == 0
        after = submit("d")
        await until_async(lambda: waiting_in(client) == 1)
        riders[1].cancel()
        await asyncio.wait(riders)
        assert (await after).usage_id == "id of d"
        assert service.cancelled == 1
    assert service.sent == [["a"], ["b", "c"], ["d"]]


def test_each_sends_its_own_when_the_thread_that_sent_for_all_is_interrupted() -> None:
    service = Service(KeyboardInterrupt())
    told = submitted("sync", service, keyed("a", "b", "c", "d"))
    assert [type(outcome) for outcome in told].count(KeyboardInterrupt) == 1
    assert "id of a" in [getattr(outcome, "usage_id", "") for outcome in told]
    assert len({outcome.usage_id for outcome in told if not isinstance(outcome, KeyboardInterrupt)}) == 3
    assert [len(keys) for keys in service.sent] == [1, 3, 1, 1]
    assert len({*service.sent[2], *service.sent[3]}) == 2


def test_a_thread_that_is_interrupted_as_it_hands_out_holds_up_nobody(monkeypatch: Any) -> None:
    settle, settled = thread_batching.settle, 0

    def interrupted(rider: Any, outcome: Any) -> None:
        nonlocal settled
        settle(rider, outcome)
        settled += 1
        if settled == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(thread_batching, "settle", interrupted)
    service = Service()
    told = submitted("sync", service, keyed("a", "b", "c", "d", "e"))
    assert [type(outcome) for outcome in told].count(KeyboardInterrupt) == 1
    assert [type(outcome) for outcome in told].count(UsageReceipt) == 4


@pytest.mark.parametrize("colour", COLOURS)
def test_the_raw_response_says_which_batch(colour: str) -> None:
    service = Service()
    alone, first, second = submitted(
        colour, service, keyed("a", "b", "again-c"), of=lambda client: client.with_raw_response
    )
    assert alone.batch == ""
    assert first.batch
    assert first.batch == second.batch == first.request_id == second.request_id
    assert first.message.meta.request_id == first.batch
    assert (first.status, second.status) == (201, 200)
    assert first.headers is not second.headers


@pytest.mark.parametrize("colour", COLOURS)
def test_logs_and_metrics_count_records_and_batches(colour: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    class Exporter:
        def observe(self, observation: Any) -> None:
            seen.append(observation)

    caplog.set_level(logging.INFO, "llm_cost_ops")
    submitted(
        colour,
        Service(),
        keyed("a", "b", "c"),
        logging=LoggingConfig(enabled=True),
        metrics=MetricsConfig(enabled=True, exporters=(Exporter(),)),
    )
    methods = [observation.method.rpartition(".")[2] for observation in seen]
    assert sorted(methods) == ["BatchSubmitUsage", "SubmitUsage", "SubmitUsage", "SubmitUsage"]
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if ".SubmitUsage" in line]) == 3
    [batch] = [line for line in lines if ".BatchSubmitUsage" in line]
    [request] = [word.partition("=")[2] for word in batch.split() if word.startswith("request_id=")]
    assert len([line for line in lines if f"batch={request}" in line]) == 2


@pytest.mark.parametrize("colour", COLOURS)
def test_each_record_takes_a_token_of_the_rate_limit(colour: str) -> None:
    limit = RateLimitConfig(max_requests=4, time_window=1000)
    callers = [*keyed("a", "b", "c", "d"), {"idempotency_key": "e", "timeout": 5}]
    service = Service()
    config = ClientConfig(base_url="http://test", batching=ONE_AT_A_TIME, rate_limit=limit)
    service.gate.set()
    with CostOpsClient(config=config, transport=service) as client:
        for caller in callers[:4]:
            client.usage.submit(**CALL, input_tokens=1, **caller)
        with pytest.raises(Exception, match="own rate limit") as refused:
            client.usage.submit(**CALL, input_tokens=1, **callers[4])
    assert refused.value.attempts == 0
    assert len(submitted(colour, Service(), callers[:4], rate_limit=limit)) == 4


def test_derived_clients_gather_together_where_they_send_alike() -> None:
    with CostOpsClient(base_url="http://test", transport=Service()) as client:

        def batching(derived: CostOpsClient) -> Any:
            return next(each for each in derived._channel.core.interceptors if isinstance(each, Batching))

        assert batching(client.with_options(timeout=1)) is batching(client)
        assert batching(client.with_options(headers={"x-a": "b"})) is batching(client)
        assert batching(client.with_options(retry=None)) is not batching(client)
        assert batching(client.with_options(api_key="another-key")) is not batching(client)
