"""Sends submits that wait in one batch, and gives each caller the answer that it would have alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import copy
import threading
from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    SubmitResult,
    SubmitStatus,
    SubmitUsageResponse,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, SUBMIT_USAGE
from llm_cost_ops.client.gathering import Gatherer
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
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import UnaryContinuation, compose
from llm_cost_ops.rpc.metadata import TRACING, Metadata
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.wire.errors import EncodeError

__all__ = ["Batching", "TaskBatching", "ThreadBatching"]

NO_ROUTE_SECONDS = 300.0
"""For so long a server that has no batches is not asked for them again."""

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

# A rider's outcome beside an answer or an error: send it alone.
_ALONE = object()


class _Rider:
    """A submit that waits for its turn, or for the batch that it is in."""

    __slots__ = ("context", "continuation", "creator", "flight", "gone", "group", "request", "turn")

    def __init__(
        self, continuation: UnaryContinuation, request: Any, context: CallContext, group: Hashable
    ) -> None:
        self.continuation = continuation
        self.request = request
        self.context = context
        self.group = group
        self.flight: _Flight | None = None
        self.turn: Any = None
        self.creator: contextvars.Context | None = None
        self.gone = False


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
        self.forget()
        forget_in_children(self)

    def forget(self) -> None:
        """In a forked child: what waits is the parent's."""
        raise NotImplementedError

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        if context.method.path != SUBMIT_USAGE.path:
            return await continuation(request, context)
        if self._rate_limit is not None:
            await self._rate_limit.admit(context)
            context.admitted = True
        if self._alone_until and context.runtime.monotonic() < self._alone_until:
            return await continuation(request, context)
        return await self._submit(continuation, request, context)

    async def _submit(self, continuation: UnaryContinuation, request: Any, context: CallContext) -> Any:
        raise NotImplementedError

    def _made(self) -> Gatherer[_Rider]:
        config = self._config
        return Gatherer(config.max_records, config.max_bytes, config.max_in_flight)

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


def _rider(continuation: UnaryContinuation, request: Any, context: CallContext) -> tuple[_Rider, int] | None:
    """What waits for a submit, with its size in bytes; None when it can't share a batch."""
    try:
        size = len(SUBMIT_USAGE.request.encode_json(request))
        metadata = tuple(pair for pair in context.metadata if pair[0] not in TRACING)
        group = (metadata, context.retry)
        hash(group)
    except (EncodeError, TypeError):
        return None
    if request.unknown_ or not request.usage.idempotency_key or not context.idempotency_key:
        return None
    return _Rider(continuation, request, context, group), size


def _outcome(result: SubmitResult, meta: Any) -> Any:
    if result.usage is None or result.status not in (SubmitStatus.CREATED, SubmitStatus.DUPLICATE):
        return _ALONE
    return SubmitUsageResponse(data=result.usage, meta=copy.copy(meta))


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
    context.waited += batch.waited
    if outcome is _ALONE:
        return
    if isinstance(outcome, CostOpsError):
        outcome.waited = context.waited
    context.batch = context.request_id = batch.request_id
    context.response_metadata = Metadata(batch.response_metadata or ())
    context.response_status = batch.response_status
    if isinstance(outcome, SubmitUsageResponse) and outcome.data is not None:
        assert SUBMIT_USAGE.http is not None
        context.response_status = 200 if outcome.data.duplicate else SUBMIT_USAGE.http.status


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


class TaskBatching(Batching):
    """Batching in asyncio: each event loop has its own, and a batch is a task of its own.

    A caller that is cancelled, or whose deadline passes, leaves the batch to the others; the last one that
    leaves ends it.
    """

    def forget(self) -> None:
        self._gatherers: WeakKeyDictionary[asyncio.AbstractEventLoop, Gatherer[_Rider]] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def _submit(self, continuation: UnaryContinuation, request: Any, context: CallContext) -> Any:
        loop = asyncio.get_running_loop()
        gatherer = self._gatherers.get(loop)
        if gatherer is None:
            gatherer = self._gatherers.setdefault(loop, self._made())
        if not gatherer.enter():
            found = _rider(continuation, request, context)
            if found is None:
                return await continuation(request, context)
            rider, size = found
            rider.turn = loop.create_future()
            rider.creator = contextvars.copy_context()
            gatherer.add(rider, rider.group, size)
            outcome = await self._outcome(gatherer, rider)
            if outcome is _ALONE:
                return await continuation(request, context)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not rider:
                return outcome
        try:
            return await continuation(request, context)
        finally:
            self._release(gatherer)

    async def _outcome(self, gatherer: Gatherer[_Rider], rider: _Rider) -> Any:
        """What becomes of a rider: itself when it has a turn to send alone with."""
        try:
            return await rider.context.runtime.within(rider.turn, rider.context.remaining())
        except TimeoutError:
            self._leave(gatherer, rider)
            raise _too_late(rider) from None
        except BaseException:
            self._leave(gatherer, rider)
            raise

    def _leave(self, gatherer: Gatherer[_Rider], rider: _Rider) -> None:
        turn, flight = rider.turn, rider.flight
        if gatherer.remove(rider, rider.group):
            return
        if flight is not None:
            flight.aboard -= 1
            if not flight.aboard and flight.task is not None:
                flight.task.cancel()
        elif turn.done() and not turn.cancelled():
            self._release(gatherer)  # it had a turn, and did not see it any more

    def _release(self, gatherer: Gatherer[_Rider]) -> None:
        if gatherer.idle:
            gatherer.leave()
        else:
            asyncio.get_running_loop().call_soon(self._next, gatherer)

    def _next(self, gatherer: Gatherer[_Rider]) -> None:
        while riders := gatherer.leave():
            if len(riders) > 1:
                flight = _Flight(riders)
                flight.task = asyncio.get_running_loop().create_task(
                    self._fly(gatherer, flight), context=riders[0].creator
                )
                self._tasks.add(flight.task)
                flight.task.add_done_callback(self._tasks.discard)
                return
            turn = riders[0].turn
            if not turn.done():
                turn.set_result(riders[0])
                return

    async def _fly(self, gatherer: Gatherer[_Rider], flight: _Flight) -> None:
        try:
            outcomes = await self._send(flight)
        except BaseException:
            for rider in flight.riders:
                rider.turn.cancel()
            raise
        else:
            for rider, outcome in zip(flight.riders, outcomes, strict=True):
                if not rider.turn.done():
                    _settle(rider, outcome)
                    rider.turn.set_result(outcome)
        finally:
            # After the callers have seen their answers: what they submit next can come along.
            asyncio.get_running_loop().call_soon(self._next, gatherer)


class ThreadBatching(Batching):
    """Batching of threads: one of those that wait sends for all, the one with the latest deadline."""

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._gatherer: Gatherer[_Rider] = self._made()

    async def _submit(self, continuation: UnaryContinuation, request: Any, context: CallContext) -> Any:
        with self._lock:
            entered = self._gatherer.enter()
        if not entered:
            found = _rider(continuation, request, context)
            if found is None:
                return await continuation(request, context)
            rider, size = found
            rider.turn = concurrent.futures.Future()
            with self._lock:
                entered = self._gatherer.enter()
                if not entered:
                    self._gatherer.add(rider, rider.group, size)
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
            self._release()

    async def _outcome(self, rider: _Rider) -> Any:
        """What becomes of a rider: itself when it has a turn to send alone with, a flight to send for all."""
        try:
            return await rider.context.runtime.wait(rider.turn, rider.context.remaining())
        except TimeoutError:
            with self._lock:
                if rider.turn.done():
                    return rider.turn.result()
                rider.gone = True
                self._gatherer.remove(rider, rider.group)
            raise _too_late(rider) from None
        except BaseException:
            self._interrupted(rider)
            raise

    def _interrupted(self, rider: _Rider) -> None:
        """Somebody else has to do what fell to a thread that was interrupted."""
        with self._lock:
            rider.gone = True
            self._gatherer.remove(rider, rider.group)
            fallen = rider.turn.result() if rider.turn.done() else None
        if fallen is rider:
            self._release()
        elif isinstance(fallen, _Flight):
            self._hand([other for other in fallen.riders if other is not rider])

    async def _lead(self, leader: _Rider, flight: _Flight) -> Any:
        others = [rider for rider in flight.riders if rider is not leader]
        try:
            outcomes = await self._send(flight)
        except BaseException:
            self._hand(others)
            raise
        mine: Any = None
        for rider, outcome in zip(flight.riders, outcomes, strict=True):
            _settle(rider, outcome)
            if rider is leader:
                mine = outcome
            else:
                rider.turn.set_result(outcome)
        self._release()
        return mine

    def _release(self) -> None:
        with self._lock:
            riders = self._gatherer.leave()
            if riders:
                self._grant(riders)

    def _hand(self, riders: list[_Rider]) -> None:
        """Let those of a batch that still wait use its turn, or else who comes next."""
        with self._lock:
            self._grant([rider for rider in riders if not rider.gone] or self._gatherer.leave())

    def _grant(self, riders: list[_Rider]) -> None:
        if len(riders) == 1:
            riders[0].turn.set_result(riders[0])
        elif riders:
            max(riders, key=_deadline).turn.set_result(_Flight(riders))
