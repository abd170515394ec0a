"""Recording usage as a stream that survives what happens to connections and servers.

`client.usage.stream(records)` cuts its records into segments. A segment is one StreamUsage call; when
that fails in a way that may pass, what was not acknowledged is sent again, with the same keys.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from llm_cost_ops._gen.messages import (
    StreamProblem,
    StreamUsageRequest,
    StreamUsageResponse,
    SubmitStatus,
    UsageRecord,
)
from llm_cost_ops._gen.methods import STREAM_USAGE
from llm_cost_ops._gen.resources import AsyncUsageResource, UsageRecordFields, UsageResource
from llm_cost_ops.client.recording import Recording
from llm_cost_ops.config import RetryConfig
from llm_cost_ops.exceptions import ConfigurationError, CostOpsError, NetworkError, error_from_rpc
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.rpc.channel import UNSET, AsyncChannel, Channel
from llm_cost_ops.rpc.context import CallContext, drive, utc_now, uuid7
from llm_cost_ops.rpc.status import RpcError, Violation, invalid_argument
from llm_cost_ops.rpc.streams import Requests, driven
from llm_cost_ops.rules.requests import no_record

if TYPE_CHECKING:
    from llm_cost_ops.client.recorder import Recorder

__all__ = [
    "AsyncStreamingUsageResource",
    "Segment",
    "StreamProgress",
    "StreamReceipt",
    "StreamingUsageResource",
]

SEGMENT = 500

# A receipt keeps so many problems; the counts are complete.
MAX_PROBLEMS = 1000


class StreamProgress(msgspec.Struct, kw_only=True):
    """How far a stream is. Counts are from its start; `problems` are those since the progress before.

    `records` are answered for: they are durable in the ledger, or among the problems, whose `index` is
    the record's place in the stream, from 0. A record that was written by an attempt whose
    acknowledgement was lost counts among the `duplicates`, as does one that an earlier stream wrote.
    """

    records: int = 0
    created: int = 0
    duplicates: int = 0
    conflicts: int = 0
    invalid: int = 0
    problems: list[StreamProblem] = []


class StreamReceipt(StreamProgress, kw_only=True):
    """What became of the records of a stream; `problems` are the first thousand of it."""


class Segment:
    """Records of a stream on their way, and how many of them are answered for.

    `indexes` are the places of the records in the stream. It holds no clock and sends nothing.
    """

    __slots__ = ("_begun", "_indexes", "_records", "done")

    def __init__(self) -> None:
        self._records: list[UsageRecord] = []
        self._indexes: list[int] = []
        self._begun = (0, StreamUsageResponse())
        self.done = 0

    def add(self, index: int, record: UsageRecord) -> None:
        """Add a record, which has its key."""
        self._records.append(record)
        self._indexes.append(index)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def left(self) -> int:
        """How many records are not answered for."""
        return len(self._records) - self.done

    def begin(self) -> list[StreamUsageRequest]:
        """What is to be sent now: all that is not answered for."""
        self._begun = (self.done, StreamUsageResponse())
        from llm_cost_ops.rules.chunks import chunks_of

        return [StreamUsageRequest(records=chunk) for chunk in chunks_of(self._records[self.done :])]

    def acknowledge(self, answer: StreamUsageResponse, progress: StreamProgress) -> bool:
        """Add to a progress what an answer since `begin` acknowledges; whether that is anything.

        An answer that makes no sense acknowledges nothing: counts that shrink, or are more than was sent.
        """
        start, before = self._begun
        if not before.durable < answer.durable <= len(self._records) - start:
            return False
        self._begun = (start, answer)
        progress.created += answer.created - before.created
        progress.duplicates += answer.duplicates - before.duplicates
        for problem in answer.problems:
            index = self._indexes[min(max(start + problem.index, 0), len(self._indexes) - 1)]
            _add(progress, StreamProblem(index=index, status=problem.status, error=problem.error))
        progress.records += answer.durable - before.durable
        self.done = start + answer.durable
        return True


def _add(progress: StreamProgress, problem: StreamProblem) -> None:
    if problem.status == SubmitStatus.CONFLICT:
        progress.conflicts += 1
    else:
        progress.invalid += 1
    progress.problems.append(problem)


class _Sender:
    """One stream of records over a channel; written once for both colours."""

    def __init__(
        self, core: Any, segment: int, timeout: Any, headers: Any, retry: Any, idempotency_key: str
    ) -> None:
        if isinstance(segment, bool) or not isinstance(segment, int) or segment < 1:
            violation = Violation("segment", f"must be a number of records, 1 or more, not {segment!r}")
            raise _refused(violation)
        self._core = core
        self._size = segment
        self._options = (timeout, headers, retry)
        self._key = str.__str__(idempotency_key or uuid7())
        self._progress = StreamProgress()
        chain = core.interceptors
        self._retry: Retry | None = next((each for each in chain if isinstance(each, Retry)), None)
        # The embedded service checks each record itself; for the others it is done before sending, as
        # for a single record: what can't even be encoded is a problem of its own, and of no other.
        from llm_cost_ops.rules.requests import Validation, check_record, keeps_unknown

        self._check = check_record if any(isinstance(each, Validation) for each in chain) else None
        self._keeps_unknown = keeps_unknown(core.metadata)

    async def run(
        self, records: Iterable[UsageRecord] | AsyncIterable[UsageRecord]
    ) -> AsyncGenerator[StreamProgress, None]:
        """Send the records, and yield how far they are."""
        if not hasattr(records, "__iter__") and not hasattr(records, "__aiter__"):
            raise _refused(Violation("records", "must be an iterable of UsageRecord"))
        segment = Segment()
        async with aclosing(Requests(records, lambda record, index: (index, record))) as taken:
            async for index, record in taken:
                self._take(segment, index, record)
                if len(segment) >= self._size or len(self._progress.problems) >= self._size:
                    async for progress in self._sent(segment):
                        yield progress
                    segment = Segment()
        async for progress in self._sent(segment):
            yield progress

    def _take(self, segment: Segment, index: int, record: UsageRecord) -> None:
        if not isinstance(record, UsageRecord):
            raise _refused(no_record(f"records[{index}]", record))
        if self._check is not None:
            violations: list[Violation] = []
            now = utc_now(self._core.runtime)
            self._check(record, "", now, violations, self._keeps_unknown)
            if violations:
                self._progress.records += 1
                _add(self._progress, _invalid(index, violations))
                return
        if not record.idempotency_key:
            record = copy.copy(record)
            record.idempotency_key = f"{self._key}:{index}"
        segment.add(index, record)

    async def _sent(self, segment: Segment) -> AsyncGenerator[StreamProgress, None]:
        """Send a segment, as often as it takes."""
        try:
            context: CallContext = self._core.begin(STREAM_USAGE, *self._options, self._key)
        except RpcError as error:
            raise error_from_rpc(error, attempts=0) from error.__cause__
        while segment.left:
            try:
                async with aclosing(self._call(segment, context)) as answers:
                    async for answer in answers:
                        if segment.acknowledge(answer, self._progress):
                            context.attempt, context.refusals = 1, 0
                            yield self._reported()
                if segment.left:
                    raise NetworkError(
                        "the stream ended before all of it was acknowledged", maybe_applied=True
                    )
            except CostOpsError as error:
                wait = None if self._retry is None else self._retry.wait_after(error, context)
                if self._retry is None or wait is None:
                    error.add_note(f"{self._progress.records} records of the stream were answered for")
                    raise
                await self._retry.wait(wait, context)
        if self._progress.problems:
            yield self._reported()

    def _call(self, segment: Segment, context: CallContext) -> AsyncGenerator[StreamUsageResponse, None]:
        left = context.remaining()
        left = None if left is None else max(0.0, left)
        headers = self._options[1]
        call: AsyncGenerator[StreamUsageResponse, None] = self._core.stream_stream(
            STREAM_USAGE, segment.begin(), left, headers, None, self._key
        )
        return call

    def _reported(self) -> StreamProgress:
        progress = copy.copy(self._progress)
        self._progress.problems = []
        return progress


async def _receipt(
    stream: AsyncGenerator[StreamProgress, None], on_progress: Callable[[StreamProgress], object] | None
) -> StreamReceipt:
    receipt = StreamReceipt()
    async with aclosing(stream):
        async for progress in stream:
            # What the client found out itself stands before what the service has answered since.
            kept = sorted([*receipt.problems, *progress.problems], key=_place)[:MAX_PROBLEMS]
            receipt = StreamReceipt(**{**msgspec.structs.asdict(progress), "problems": kept})
            if on_progress is not None:
                on_progress(progress)
    return receipt


def _place(problem: StreamProblem) -> int:
    return problem.index


def _invalid(index: int, violations: list[Violation]) -> StreamProblem:
    from llm_cost_ops.rules.batches import refused

    result = refused(violations)
    return StreamProblem(index=index, status=result.status, error=result.error)


def _refused(violation: Violation) -> CostOpsError:
    return error_from_rpc(invalid_argument(*violation, origin="client"), attempts=0)


def _recorder(recording: Recording | None) -> Recorder:
    if recording is None:
        raise ConfigurationError("record() needs a client: this resource was made without one")
    return recording.recorder


class StreamingUsageResource(UsageResource):
    """Records usage and reads it back."""

    __slots__ = ("_put", "_recording")

    def __init__(self, channel: Channel, recording: Recording | None = None) -> None:
        super().__init__(channel)
        self._recording = recording
        self._put: Callable[[UsageRecord | None, dict[str, Any]], None] | None = None

    def record(self, record: UsageRecord | None = None, /, **fields: Unpack[UsageRecordFields]) -> None:
        """Record a call beside the caller's work: takes what `submit` takes, and returns at once.

        Nothing is raised for the network, nor for wrong arguments, which RecorderConfig's `on_error` is told
        of; RecorderFullError where its `overflow` asks for it. `client.flush()` says what became of records.
        """
        put = self._put
        if put is None:
            put = self._put = _recorder(self._recording).record
        put(record, {**fields})

    def stream(
        self,
        records: Iterable[UsageRecord],
        *,
        segment: int = SEGMENT,
        on_progress: Callable[[StreamProgress], object] | None = None,
        timeout: float | None = UNSET,
        headers: dict[str, str] | None = None,
        retry: RetryConfig | None = UNSET,
        idempotency_key: str = "",
    ) -> StreamReceipt:
        """Record any number of calls, and return once all of them are answered for.

        Records are taken from the iterable as they are sent, a segment of them in memory at a time. Each
        has its key before it is first sent; when a connection breaks, a server restarts or has no time,
        what was not acknowledged is sent again, so that each record counts once. A bad record harms only
        itself: it is among the receipt's problems.

        Args:
            records: the records; a list, a generator, any iterable.
            segment: the most records that one call carries, and that are in memory.
            on_progress: called after each acknowledgement.
            timeout: seconds for each segment, with all its attempts and waits; None for no limit.
            headers: metadata to send beside that of the client.
            retry: how to retry this call, instead of as the client does; None for not at all.
            idempotency_key: makes a stream that is sent again count once: record i gets "<key>:i",
                unless it has a key of its own. Made when not given.

        Raises CostOpsError when a segment failed for good, with a note of how many records were answered
        for. The stream may be sent again with the same `idempotency_key`.
        """
        progress = self._sent(records, segment, timeout, headers, retry, idempotency_key)
        return drive(_receipt(progress, on_progress))

    def stream_progress(
        self,
        records: Iterable[UsageRecord],
        *,
        segment: int = SEGMENT,
        timeout: float | None = UNSET,
        headers: dict[str, str] | None = None,
        retry: RetryConfig | None = UNSET,
        idempotency_key: str = "",
    ) -> Generator[StreamProgress, None, None]:
        """As `stream`, but give each acknowledgement as it comes; records are sent while it is iterated."""
        return driven(self._sent(records, segment, timeout, headers, retry, idempotency_key))

    def _sent(self, records: Any, *options: Any) -> AsyncGenerator[StreamProgress, None]:
        return _Sender(self._channel.core, *options).run(records)


class AsyncStreamingUsageResource(AsyncUsageResource):
    """Records usage and reads it back."""

    __slots__ = ("_put", "_recording")

    def __init__(self, channel: AsyncChannel, recording: Recording | None = None) -> None:
        super().__init__(channel)
        self._recording = recording
        self._put: Callable[[UsageRecord | None, dict[str, Any]], None] | None = None

    def record(self, record: UsageRecord | None = None, /, **fields: Unpack[UsageRecordFields]) -> None:
        """Record a call beside the caller's work, as StreamingUsageResource.record; nothing is awaited."""
        put = self._put
        if put is None:
            put = self._put = _recorder(self._recording).record
        put(record, {**fields})

    async def stream(
        self,
        records: Iterable[UsageRecord] | AsyncIterable[UsageRecord],
        *,
        segment: int = SEGMENT,
        on_progress: Callable[[StreamProgress], object] | None = None,
        timeout: float | None = UNSET,
        headers: dict[str, str] | None = None,
        retry: RetryConfig | None = UNSET,
        idempotency_key: str = "",
    ) -> StreamReceipt:
        """Record any number of calls, and return once all of them are answered for. As in the sync client.

        The records may also come from an async iterable.
        """
        progress = self._sent(records, segment, timeout, headers, retry, idempotency_key)
        return await _receipt(progress, on_progress)

    def stream_progress(
        self,
        records: Iterable[UsageRecord] | AsyncIterable[UsageRecord],
        *,
        segment: int = SEGMENT,
        timeout: float | None = UNSET,
        headers: dict[str, str] | None = None,
        retry: RetryConfig | None = UNSET,
        idempotency_key: str = "",
    ) -> AsyncGenerator[StreamProgress, None]:
        """As `stream`, but give each acknowledgement as it comes; records are sent while it is iterated."""
        return self._sent(records, segment, timeout, headers, retry, idempotency_key)

    def _sent(self, records: Any, *options: Any) -> AsyncGenerator[StreamProgress, None]:
        return _Sender(self._channel.core, *options).run(records)
