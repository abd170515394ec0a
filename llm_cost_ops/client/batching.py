"""Sends submits that wait in one batch, and gives each caller the answer that it would have alone.

What tasks and threads have in common: which submits may share a batch, and what it means for each. How they
wait is in task_batching.py and thread_batching.py.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    SubmitResult,
    SubmitStatus,
    SubmitUsageResponse,
    UsageRecord,
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
from llm_cost_ops.rpc.context import TRACING, CallContext, Pair
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import UnaryContinuation, compose
from llm_cost_ops.rpc.status import RpcError, StatusCode

if TYPE_CHECKING:
    import asyncio
    import contextvars

    from llm_cost_ops.client.thread_turns import Waking

# Nothing here imports asyncio: threads that share an embedded client have no use for it.

__all__ = [
    "ALONE",
    "MAX_IDLE_GROUPS",
    "NEVER",
    "NO_ROUTE_SECONDS",
    "Batching",
    "Flight",
    "Group",
    "Groups",
    "Rider",
    "deadline_of",
    "settle",
    "size_of",
    "too_late",
]

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

ALONE = object()
"""A rider's outcome beside an answer or an error: send it alone."""

NEVER = float("inf")
"""The moment of an alarm that is not set, and of a deadline that there is not."""

# About the bytes of a record whose texts are empty, as JSON.
_BARE_BYTES = 250


class Group(Gatherer["Rider"]):
    """The submits that may share a batch, among the other groups."""

    __slots__ = ("_key", "_others")

    def __init__(self, config: BatchingConfig, key: Hashable, others: Groups) -> None:
        super().__init__(config.max_records, config.max_bytes, config.max_in_flight)
        self._key = key
        self._others = others

    def leave(self, items: int = 1) -> list[list[Rider]]:
        leaving = Gatherer.leave(self, items)
        if not self.in_flight and len(self._others) > MAX_IDLE_GROUPS:
            self._others.pop(self._key, None)
        return leaving


Groups = dict[Hashable, Group]


class Rider(msgspec.Struct, eq=False):
    """A submit that waits for its turn, or for the batch that it is in.

    `creator` is the context that a batch runs in where this is its first rider; in threads there is none.
    """

    group: Group
    continuation: UnaryContinuation[Any, Any]
    request: Any
    context: CallContext
    turn: Any
    creator: contextvars.Context | None = None
    flight: Flight | None = None
    alarm: float = NEVER
    gone: bool = False


class Flight:
    """A batch under way; of one rider, its own call. `aboard` counts who still waits for it.

    `waking` wakes the threads that it was sent for.
    """

    __slots__ = ("aboard", "context", "riders", "task", "waking")

    def __init__(self, riders: list[Rider]) -> None:
        self.riders = riders
        self.aboard = len(riders)
        self.task: asyncio.Task[None] | None = None
        self.waking: Waking | None = None
        first = riders[0].context
        latest = max(riders, key=deadline_of).context.deadline
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
        usage = request.usage
        if not isinstance(usage, UsageRecord):  # which an embedded service is the first to look at
            return None
        if request.unknown_ or not usage.idempotency_key or not context.idempotency_key:
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

    def _of(self, groups: Groups, key: Hashable) -> Group:
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(self._config, key, groups)
        return group

    async def _send(self, flight: Flight) -> list[Any]:
        """The outcome of each rider: a response, an error, or ALONE."""
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
                return [ALONE] * len(riders)
            return [_copied(error) for _ in riders]
        except Exception:  # noqa: BLE001 - whoever is to blame for it gets it when it is sent alone
            return [ALONE] * len(riders)
        results = [] if response.data is None else response.data.results
        if len(results) != len(riders):
            return [ALONE] * len(riders)
        return [_outcome(result, response.meta) for result in results]


def size_of(request: Any) -> int:
    """About the bytes of a submit as JSON; 0 for a record that is none, as whoever is sent it will say.

    To encode each record only to know its size would take a tenth of the time that a submit takes.
    """
    usage = request.usage
    try:
        if usage.metadata or usage.labels or usage.tags or usage.meters or usage.modality or usage.unknown_:
            return len(SUBMIT_USAGE.request.encode_json(request))
        return (
            _BARE_BYTES
            + len(usage.organization_id)
            + len(usage.model_id)
            + len(usage.project_id)
            + len(usage.user_id)
            + len(usage.session_id)
        )
    except Exception:  # noqa: BLE001 - an embedded service is the first that looks at the record
        return 0


def _outcome(result: SubmitResult, meta: Any) -> Any:
    if result.usage is None or result.status not in _RECEIVED:
        return ALONE
    # Not copy.copy, which takes ten times as long.
    return SubmitUsageResponse(data=result.usage, meta=None if meta is None else meta.__copy__())


def deadline_of(rider: Rider) -> float:
    deadline = rider.context.deadline
    return NEVER if deadline is None else deadline


def _copied(error: CostOpsError) -> CostOpsError:
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made


def settle(rider: Rider, outcome: Any) -> None:
    """Tell a rider's call how its batch went."""
    assert rider.flight is not None
    context, batch = rider.context, rider.flight.context
    context.attempt = batch.attempt
    if batch.waited:
        context.waited += batch.waited
    if outcome is ALONE:
        return
    context.route = batch.route
    context.batch = context.request_id = batch.request_id
    context.response_metadata = None if batch.response_metadata is None else batch.response_metadata.copy()
    if type(outcome) is SubmitUsageResponse and outcome.data is not None:
        context.response_status = 200 if outcome.data.duplicate else SUBMIT_USAGE.success_status
    else:
        context.response_status = batch.response_status
        outcome.waited = context.waited


def too_late(rider: Rider) -> CostOpsError:
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
