"""A batch on its way: what sends it, and what becomes of each of its records.

Beside recorder.py, which decides when a batch is sent and again.
"""

from __future__ import annotations

import contextlib
import re
from typing import Protocol

from llm_cost_ops._gen.messages import BatchReceipt, RecordError, SubmitResult, SubmitStatus, UsageRecord
from llm_cost_ops.exceptions import CostOpsError, ServerError, ValidationError
from llm_cost_ops.rpc.status import StatusCode

__all__ = ["Connection", "invalid", "reason_of", "submitted", "text_of"]

_PLACE = re.compile(r"records\[\d+\]\.?")


class Connection(Protocol):
    """How a recorder reaches a service. Used by the recorder's thread alone."""

    def send(self, records: list[UsageRecord]) -> BatchReceipt:
        """Submit a batch once, without retries; raises CostOpsError."""

    def close(self) -> None:
        """Let go of what was opened."""


def submitted(
    connection: Connection, waiting: list[UsageRecord | str]
) -> list[tuple[UsageRecord | None, SubmitResult]]:
    """Each record with its result; None with an invalid one where there is only a reason for no record."""
    records = [record for record in waiting if isinstance(record, UsageRecord)]
    results = iter(_submitted(connection, records) if records else ())
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


def _submitted(connection: Connection, records: list[UsageRecord]) -> list[SubmitResult]:
    """The result of each record. Of a batch that was refused for what is in it the halves are tried."""
    try:
        results = connection.send(records).results
    except ValidationError as error:
        if len(records) == 1:
            return [invalid(error.message)]
        middle = len(records) // 2
        return _submitted(connection, records[:middle]) + _submitted(connection, records[middle:])
    for result in results:
        if result.error is not None and result.error.code == StatusCode.UNAVAILABLE.name:
            # Such as for a clock that is wrong, there or here: the records stay until it is right again, and
            # those of the batch that were written are duplicates then.
            raise ServerError(result.error.message, grpc_code=StatusCode.UNAVAILABLE, retryable=True)
    if len(results) != len(records):
        raise CostOpsError(f"the answer has {len(results)} results for {len(records)} records")
    return results
