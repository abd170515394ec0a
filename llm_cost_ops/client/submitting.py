"""A batch on its way: what sends it, and what becomes of each of its records.

Beside recorder.py, which decides when a batch is sent and again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from llm_cost_ops._gen.messages import BatchReceipt, RecordError, SubmitResult, SubmitStatus, UsageRecord
from llm_cost_ops.exceptions import CostOpsError, ServerError, ValidationError
from llm_cost_ops.rpc.status import StatusCode
from llm_cost_ops.rules.requests import is_ahead

__all__ = ["Connection", "Line", "Settled", "invalid", "reason_of", "submitted", "text_of"]

Settled = list[tuple[UsageRecord | None, SubmitResult]]
"""Records with their results; None for what was no record."""

_PLACE = re.compile(r"records\[\d+\]\.?")


class Connection(Protocol):
    """How a recorder reaches a service. Used by one thread."""

    def send(self, records: list[UsageRecord], timeout: float | None) -> BatchReceipt:
        """Submit a batch once, without retries, within the client's own timeout, and so many seconds.

        Raises CostOpsError.
        """

    def close(self) -> None:
        """Let go of what was opened."""


class Line:
    """The way to the service of one thread, and how often in a row it failed.

    It sends `until` a point in time of `time.monotonic`, where that is not None.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self.until: float | None = None
        self.failures = 0
        self.error: Exception | None = None

    def send(self, records: list[UsageRecord]) -> BatchReceipt:
        """Submit a batch, over a connection that is opened for the first one."""
        self._connection = self._connection or self._connect()
        seconds = None if self.until is None else max(0.001, self.until - time.monotonic())
        return self._connection.send(records, seconds)

    def close(self) -> None:
        """Let go of what was opened. May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def submitted(line: Line, waiting: list[UsageRecord | str]) -> Settled:
    """Each record with its result; None with an invalid one where there is only a reason for no record."""
    records = [record for record in waiting if isinstance(record, UsageRecord)]
    results = iter(_submitted(line, records) if records else ())
    return [
        (None, invalid(record)) if isinstance(record, str) else (record, next(results)) for record in waiting
    ]


def reason_of(result: SubmitResult) -> str:
    """Why a record was refused. Its place in the batch that it rode in says nothing to who recorded it."""
    message = "" if result.error is None else result.error.message
    return _PLACE.sub("", message) or "refused without a reason"


def text_of(error: Exception) -> str:
    """What an exception says; its name where it says nothing, or fails in that too."""
    with contextlib.suppress(Exception):
        if text := str(error):
            return text
    return type(error).__name__


def invalid(reason: str) -> SubmitResult:
    """The result of a record that is not sent."""
    return SubmitResult(status=SubmitStatus.INVALID, error=RecordError(message=reason))


def _submitted(line: Line, records: list[UsageRecord]) -> list[SubmitResult]:
    """The result of each record. Of a batch that was refused for what is in it the halves are tried."""
    try:
        results = line.send(records).results
    except ValidationError as error:
        if len(records) == 1:
            return [invalid(error.message)]
        middle = len(records) // 2
        return _submitted(line, records[:middle]) + _submitted(line, records[middle:])
    for result in results:
        if result.error is not None and result.error.code == StatusCode.UNAVAILABLE.name:
            # Such as for a clock that is wrong, there or here: the records stay until it is right again, and
            # those of the batch that were written are duplicates then.
            raise ServerError(result.error.message, grpc_code=StatusCode.UNAVAILABLE, retryable=True)
    if len(results) != len(records):
        raise CostOpsError(f"the answer has {len(results)} results for {len(records)} records")
    if late := [place for place, result in enumerate(results) if _undated(records[place], result)]:
        again = _submitted(line, [records[place] for place in late])
        for place, result in zip(late, again, strict=True):
            results[place] = result
    return results


def _undated(record: UsageRecord, result: SubmitResult) -> bool:
    """Take the time from a record that was refused as one of the future; whether it was.

    It was not ahead of the clock when it was recorded (Builder), so that the clock has been set back since.
    Without a time it has that of the service at which it comes.
    """
    if result.status != SubmitStatus.INVALID or not isinstance(record.timestamp, datetime):
        return False
    if not is_ahead(record.timestamp, datetime.now(UTC)):
        return False
    record.timestamp = None
    return True
