"""Sends submits that wait in one batch, and gives each caller the answer that it would have alone."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import msgspec

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    SubmitResult,
    SubmitStatus,
    SubmitUsageResponse,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, SUBMIT_USAGE
from llm_cost_ops.client.gathering import Gatherer
from llm_cost_ops.client.thread_turns import ThreadTurn, Waking
from llm_cost_ops.config import BatchingConfig, RetryConfig
from llm_cost_ops.exceptions import (
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    CostOpsError,
    NetworkError,
    RateLimitError,
    ServerError,
    error_from_rpc,
)
from llm_cost_ops.interceptors.rate_limit import RateLimit
from llm_cost_ops.rpc.context import TRACING, CallContext, Pair
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import UnaryContinuation, compose
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.wire.errors import EncodeError

__all__ = ["Batching", "TaskBatching", "ThreadBatching"]

NO_ROUTE_SECONDS = 300.0
"""For so long a server that has no batches is not asked for them again."""

MAX_IDLE_GROUPS = 32
"""Groups without calls are kept up to this number."""

# What a batch that failed so says of each of its records. Anything else may be the fault of one of them, or
# of the batch, so that each is sent alone.
_SHARED = (
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    NetworkError,
    RateLimitError,
    ServerError,
)
_WITHOUT_ROUTE = (404, 405, 501)
_SERVER_FAULTS = (500, 501)

_RECEIVED = (SubmitStatus.CREATED, SubmitStatus.DUPLICATE)

# A rider's outcome beside an answer or an error: send it alone; its deadline passed; there is none yet.
_ALONE = object()
_LATE = object()
_NOTHING = object()

_NEVER = float("inf")

# About the bytes of a record whose texts are empty, as JSON.
_BARE_BYTES = 250


class _Group(Gatherer["_Rider"]):
    """The submits that may share a batch, among the other groups."""

    __slots__ = ("_key", "_others")

    def __init__(self, config: BatchingConfig, key: Hashable, others: _Groups) -> None:
        super().__init__(config.max_records, config.max_bytes, config.max_in_flight)
        self._key = key
        self._others = others

    def leave(self, items: int = 1) -> list[list[_Rider]]:
        leaving = Gatherer.leave(self, items)
        if not self.in_flight and len(self._others) > MAX_IDLE_GROUPS:
            self._others.pop(self._key, None)
        return leaving


_Groups = dict[Hashable, _Group]


class _Rider(msgspec.Struct, eq=False):
    """A submit that waits for its turn, or for the batch that it is in.

    `creator` is the context that a batch runs in where this is its first rider; in threads there is none.
    """

    group: _Group
    continuation: UnaryContinuation[Any, Any]
    request: Any
    context: CallContext
    turn: Any
    creator: contextvars.Context | None = None
    flight: _Flight | None = None
    alarm: float = _NEVER
    gone: bool = False


class _Flight:
    """A batch under way; of one rider, its own call. `aboard` counts who still waits for it."""

    __slots__ = ("aboard", "context", "riders", "task")

    def __init__(self, riders: list[_Rider]) -> None:
        self.riders = riders
        self.aboard = len(riders)
        self.task: asyncio.Task[None] | None = None
        first = riders[0].context
        latest = max(riders, key=_deadline).context.deadline
        # Where metadata differ in the trace that they belong to, the batch belongs to the first one's.
        self.context = CallContext(
            BATCH_SUBMIT_USAGE, first.runtime, first.metadata.copy(), latest, retry=first.retry, admitted=True
        )
        for rider in riders:
            rider.flight = self

    def land(self) -> None:
        """Let go of the riders, which know their flight: in a circle they would wait for the collector."""
        self.riders = []


class Batching:
    """Lets submits through while few are under way; those that come meanwhile leave together.

    It stands before retry, breaker and credentials, which see a batch as one call, as do logging and metrics
    in addition to its records (`watching`). Records share a batch only when their metadata and their retry
    settings are the same. What the batch says of a record is its answer, as if it had been sent alone; where
    that is no receipt, or the batch failed for a reason that may be a single record's, each is sent alone,
    with the same idempotency key. A server that has no batches is remembered for NO_ROUTE_SECONDS.

    Each record takes its own token of the rate limit before it waits.
    """

    def __init__(
        self,
        config: BatchingConfig,
        retry: RetryConfig,
        rate_limit: RateLimit | None = None,
        watching: Sequence[Any] = (),
    ) -> None:
        self.retry = retry
        self._config = config
        self._rate_limit = rate_limit
        self._watching = tuple(watching)
        self._alone_until = 0.0
        self._latest: tuple[tuple[Pair, ...] | None, Any, Hashable] = (None, None, None)
        self.forget()
        forget_in_children(self)

    def forget(self) -> None:
        """In a forked child: what waits is the parent's."""
        raise NotImplementedError

    def intercept_unary_unary(
        self, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Awaitable[Any]:
        if context.method.path != SUBMIT_USAGE.path:
            return continuation(request, context)
        if self._rate_limit is not None and not context.admitted:
            return self._admitted(self._rate_limit, continuation, request, context)
        if self._alone_until and context.runtime.monotonic() < self._alone_until:
            return continuation(request, context)
        key = self._key(request, context)
        if key is None:
            return continuation(request, context)
        return self._submit(key, continuation, request, context)

    async def _admitted(
        self,
        limit: RateLimit,
        continuation: UnaryContinuation[Any, Any],
        request: Any,
        context: CallContext,
    ) -> Any:
        await limit.admit(context)
        context.admitted = True
        return await self.intercept_unary_unary(continuation, request, context)

    async def _submit(
        self, key: Hashable, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Any:
        raise NotImplementedError

    def _key(self, request: Any, context: CallContext) -> Hashable:
        """What the submits of a batch have in common; None for one that can't be in any."""
        if request.unknown_ or not request.usage.idempotency_key or not context.idempotency_key:
            return None
        pairs = context.metadata.pairs
        latest, retry, key = self._latest
        if retry is context.retry and latest == pairs:
            return key
        key = (tuple([pair for pair in pairs if pair[0] not in TRACING]), context.retry)
        try:
            hash(key)
        except TypeError:
            return None
        # Mostly the next one is alike. Kept as one object: threads read and replace it.
        self._latest = (pairs, context.retry, key)
        return key

    def _of(self, groups: _Groups, key: Hashable) -> _Group:
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(self._config, key, groups)
        return group

    async def _send(self, flight: _Flight) -> list[Any]:
        """The outcome of each rider: a response, an error, or _ALONE."""
        riders, context = flight.riders, flight.context
        request = BatchSubmitUsageRequest(records=[rider.request.usage for rider in riders])
        context.idempotency_key = context.identify()  # each record has a key of its own
        continuation = compose(self._watching, riders[0].continuation)
        try:
            response = await continuation(request, context)
        except CostOpsError as error:
            if error.status_code in _WITHOUT_ROUTE:
                self._alone_until = context.runtime.monotonic() + NO_ROUTE_SECONDS
            if not isinstance(error, _SHARED) or error.status_code in _SERVER_FAULTS:
                return [_ALONE] * len(riders)
            return [_copied(error) for _ in riders]
        except Exception:  # noqa: BLE001 - whoever is to blame for it gets it when it is sent alone
            return [_ALONE] * len(riders)
        results = [] if response.data is None else response.data.results
        if len(results) != len(riders):
            return [_ALONE] * len(riders)
        return [_outcome(result, response.meta) for result in results]


def _size(request: Any) -> int:
    """About the bytes of a submit as JSON; 0 for one that can't be encoded, which whoever sends it will say.

    To encode each record only to know its size would take a tenth of the time that a submit takes.
    """
    usage = request.usage
    if not (usage.metadata or usage.labels or usage.tags or usage.meters or usage.modality or usage.unknown_):
        return (
            _BARE_BYTES
            + len(usage.organization_id)
            + len(usage.model_id)
            + len(usage.project_id)
            + len(usage.user_id)
            + len(usage.session_id)
        )
    try:
        return len(SUBMIT_USAGE.request.encode_json(request))
    except EncodeError:
        return 0


def _outcome(result: SubmitResult, meta: Any) -> Any:
    if result.usage is None or result.status not in _RECEIVED:
        return _ALONE
    # Not copy.copy, which takes ten times as long.
    return SubmitUsageResponse(data=result.usage, meta=None if meta is None else meta.__copy__())


def _deadline(rider: _Rider) -> float:
    deadline = rider.context.deadline
    return float("inf") if deadline is None else deadline


def _copied(error: CostOpsError) -> CostOpsError:
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made


def _settle(rider: _Rider, outcome: Any) -> None:
    """Tell a rider's call how its batch went."""
    assert rider.flight is not None
    context, batch = rider.context, rider.flight.context
    context.attempt = batch.attempt
    if batch.waited:
        context.waited += batch.waited
    if outcome is _ALONE:
        return
    context.route = batch.route
    context.batch = context.request_id = batch.request_id
    context.response_metadata = None if batch.response_metadata is None else batch.response_metadata.copy()
    if type(outcome) is SubmitUsageResponse and outcome.data is not None:
        context.response_status = 200 if outcome.data.duplicate else SUBMIT_USAGE.success_status
    else:
        context.response_status = batch.response_status
        outcome.waited = context.waited


def _too_late(rider: _Rider) -> CostOpsError:
    """The error of a rider whose deadline passed: while it waited, or while its batch was under way."""
    context = rider.context
    passed = RpcError(
        StatusCode.DEADLINE_EXCEEDED,
        f"the deadline of {context.method.name} passed",
        origin="client",
        maybe_applied=rider.flight is not None,
        request_id=context.request_id,
    )
    attempts = context.attempt - 1 if rider.flight is None else rider.flight.context.attempt
    return error_from_rpc(passed, attempts, context.waited)


class _Loop:
    """What an event loop gathers and sends, and one alarm for the deadlines of all that wait there.

    A timer for each would take a third of the time that a submit takes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.groups: _Groups = {}
        self.flights: set[_Flight] = set()
        # Weakly: the loop is the key under which this is kept.
        self._loop = ref(loop)
        self._rings_at = _NEVER

    def watch(self, rider: _Rider, deadline: float) -> None:
        """Have a rider's turn end as _LATE when its deadline passes before it is there."""
        rider.alarm = deadline
        if deadline < self._rings_at:
            self._set_alarm(deadline)

    def _set_alarm(self, moment: float) -> None:
        loop = self._loop()
        assert loop is not None
        self._rings_at = moment
        # Not every loop counts its time as deadlines do. The handle, which holds the loop, is not kept.
        loop.call_later(max(0.0, moment - AsyncRuntime.monotonic()), self._ring, moment)

    def _ring(self, moment: float) -> None:
        if moment != self._rings_at:
            return  # an earlier alarm was set since
        self._rings_at = following = _NEVER
        now = AsyncRuntime.monotonic()
        found: list[Iterable[_Rider]] = [*self.groups.values(), *(flight.riders for flight in self.flights)]
        for riders in found:
            for rider in riders:
                if rider.turn.done():
                    continue
                if rider.alarm <= now:
                    rider.turn.set_result(_LATE)
                else:
                    following = min(following, rider.alarm)
        if following < _NEVER:
            self._set_alarm(following)


def _no_loop() -> None:
    pass


class TaskBatching(Batching):
    """Batching in asyncio: each event loop has its own, and a batch is a task of its own.

    A caller that is cancelled, or whose deadline passes, leaves the batch to the others; the last one that
    leaves ends it.
    """

    def forget(self) -> None:
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()
        self._last: tuple[Callable[[], object], _Loop | None] = (_no_loop, None)

    def _gathered_in(self, loop: asyncio.AbstractEventLoop) -> _Loop:
        gathered = self._loops.get(loop)
        if gathered is None:
            gathered = self._loops.setdefault(loop, _Loop(loop))
        # Mostly there is one. Kept as one object: loops of several threads read and replace it.
        self._last = (ref(loop), gathered)
        return gathered

    async def _submit(
        self, key: Hashable, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Any:
        loop = asyncio.get_running_loop()
        last, gathered = self._last
        if gathered is None or last() is not loop:
            gathered = self._gathered_in(loop)
        group = self._of(gathered.groups, key)
        if not group.enter():
            turn: asyncio.Future[Any] = asyncio.Future(loop=loop)
            rider = _Rider(group, continuation, request, context, turn, contextvars.copy_context())
            group.add(rider, _size(request))
            try:
                # Here and not in a coroutine of its own: each one that waits costs the garbage collector.
                if context.deadline is None:
                    outcome = await rider.turn
                elif type(context.runtime) is AsyncRuntime:
                    gathered.watch(rider, context.deadline)
                    outcome = await rider.turn
                else:
                    outcome = await context.runtime.within(rider.turn, context.remaining())
                if outcome is _LATE:
                    raise TimeoutError
            except BaseException as error:
                self._forsake(rider)
                if isinstance(error, TimeoutError):
                    raise _too_late(rider) from None
                raise
            if outcome is _ALONE:
                return await continuation(request, context)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not rider:
                return outcome
        try:
            return await continuation(request, context)
        finally:
            if len(group):
                loop.call_soon(self._leave, group)
            else:
                self._leave(group)

    def _forsake(self, rider: _Rider) -> None:
        turn, flight = rider.turn, rider.flight
        if rider.group.remove(rider):
            return
        if flight is not None:
            flight.aboard -= 1
            if not flight.aboard and flight.task is not None:
                flight.task.cancel()
        elif turn.done() and not turn.cancelled() and turn.result() is rider:
            self._leave(rider.group)  # it had a turn, and did not see it any more

    def _leave(self, group: _Group, items: int = 1) -> None:
        for riders in group.leave(items):
            if len(riders) > 1:
                self._take_off(riders)
            elif riders[0].turn.done():
                self._leave(group)
            else:
                riders[0].turn.set_result(riders[0])

    def _take_off(self, riders: list[_Rider]) -> None:
        flight = _Flight(riders)
        loop = asyncio.get_running_loop()
        flights = self._gathered_in(loop).flights
        flights.add(flight)
        task = flight.task = loop.create_task(self._fly(flight), context=riders[0].creator)
        group, items = riders[0].group, len(riders)

        # Not in the task, which may be cancelled before it begins; and after the callers have seen their
        # answers: what they submit next can come along.
        def landed(_: asyncio.Task[None]) -> None:
            flights.discard(flight)
            for rider in flight.riders:  # where it failed
                rider.turn.cancel()
            flight.land()
            self._leave(group, items)

        task.add_done_callback(landed)

    async def _fly(self, flight: _Flight) -> None:
        outcomes = await self._send(flight)
        for rider, outcome in zip(flight.riders, outcomes, strict=True):
            if not rider.turn.done():
                _settle(rider, outcome)
                rider.turn.set_result(outcome)
        # Now: kept until all have seen their answers, they would be work for the garbage collector, beside
        # what is submitted next.
        flight.land()


class ThreadBatching(Batching):
    """Batching of threads: one of those that wait sends for all, the one with the latest deadline."""

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._groups: _Groups = {}

    async def _submit(
        self, key: Hashable, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Any:
        with self._lock:
            group = self._of(self._groups, key)
            entered = group.enter()
            if not entered:
                rider = _Rider(group, continuation, request, context, ThreadTurn())
                group.add(rider, _size(request))
        if not entered:
            outcome = await self._outcome(rider)
            if isinstance(outcome, _Flight):
                outcome = await self._lead(rider, outcome)
            if outcome is _ALONE:
                return await continuation(request, context)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not rider:
                return outcome
        try:
            return await continuation(request, context)
        finally:
            self._leave(group)

    async def _outcome(self, rider: _Rider) -> Any:
        """What becomes of a rider: itself when it has a turn to send alone with, a flight to send for all."""
        try:
            return await rider.context.runtime.wait(rider.turn, rider.context.remaining())
        except TimeoutError:
            with self._lock:
                came = rider.turn.done()
                if not came:
                    rider.gone = True
                    rider.group.remove(rider)
            if came:
                return rider.turn.result()
            raise _too_late(rider) from None
        except BaseException:
            self._interrupted(rider)
            raise

    def _interrupted(self, rider: _Rider) -> None:
        """Somebody else has to do what fell to a thread that was interrupted."""
        with self._lock:
            rider.gone = True
            rider.group.remove(rider)
            came = rider.turn.done()
        fallen = rider.turn.result() if came else None
        if fallen is rider:
            self._leave(rider.group)
        elif isinstance(fallen, _Flight):
            self._hand_over(fallen)

    async def _lead(self, leader: _Rider, flight: _Flight) -> Any:
        try:
            outcomes = await self._send(flight)
        except BaseException:
            leader.gone = True
            self._hand_over(flight)
            raise
        mine: Any = None
        others = [rider for rider in flight.riders if rider is not leader]
        # The turn is given back after the callers have seen their answers: what they submit next can come
        # along.
        turns = (rider.turn for rider in others)
        waking = Waking(turns, partial(self._leave, leader.group, len(flight.riders)))
        try:
            with self._lock:
                for rider, outcome in zip(flight.riders, outcomes, strict=True):
                    _settle(rider, outcome)
                    if rider is leader:
                        mine = outcome
                    elif not rider.gone:
                        rider.turn.set_result_of(outcome, waking)
        finally:
            # Who has nothing is gone, and wakes nobody; or this thread was interrupted before that: they
            # send what is theirs again, under the same key.
            with self._lock:
                for rider in others:
                    if rider.gone:
                        waking.is_awake(rider.turn)
                    elif not rider.turn.done():
                        rider.turn.set_result_of(_ALONE, waking)
            flight.land()
            waking.go_on()
        return mine

    def _leave(self, group: _Group, items: int = 1) -> None:
        with self._lock:
            for riders in group.leave(items):
                self._grant(riders)

    def _hand_over(self, flight: _Flight) -> None:
        """Let another rider send the batch."""
        group, items = flight.riders[0].group, len(flight.riders)
        with self._lock:
            riders = [rider for rider in flight.riders if not rider.gone]
            if riders:
                group.lose(items - len(riders))
                self._grant(riders)
        if not riders:
            self._leave(group, items)

    def _grant(self, riders: list[_Rider]) -> None:
        if len(riders) == 1:
            riders[0].turn.set_result(riders[0])
        else:
            max(riders, key=_deadline).turn.set_result(_Flight(riders))
