"""The results of a batch: what the service answers, and what the client can answer before it sends."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    BatchReceipt,
    BatchSubmitUsageRequest,
    BatchSubmitUsageResponse,
    FieldViolation,
    RecordError,
    SubmitResult,
    SubmitStatus,
    UsageRecord,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation
from llm_cost_ops.rpc.status import StatusCode, Violation, violations_text
from llm_cost_ops.rules.requests import check_record, keeps_unknown

__all__ = ["BatchCheck", "counted", "refused"]

MAX_VIOLATIONS = 20


class BatchCheck:
    """Answers the bad records of a batch in the client, so that no codec meets them.

    The good ones are sent, each with the key that it would have in the whole batch, and the results are those
    of the whole batch, in its order.
    """

    def intercept_unary_unary(
        self, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Awaitable[Any]:
        if context.method.path != BATCH_SUBMIT_USAGE.path:
            return continuation(request, context)
        return self._batch(continuation, request, context)

    async def _batch(
        self, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Any:
        now = context.now()
        bad = _bad(request, now, keep_unknown=keeps_unknown(context.metadata))
        if not bad:
            return await continuation(request, context)
        places = [place for place in range(len(request.records)) if place not in bad]
        response = BatchSubmitUsageResponse(data=BatchReceipt())
        if places:
            # Their places are others now, and so would be the keys that the service makes.
            key = str.__str__(request.idempotency_key)
            sent = BatchSubmitUsageRequest(
                records=[_with_key(request.records[at], f"{key}:{at}") for at in places]
            )
            response = await continuation(sent, context)
        answered = response.data.results if response.data is not None else []
        for short, (place, result) in enumerate(zip(places, answered, strict=False)):
            bad[place] = _moved(result, f"records[{short}]", f"records[{place}]")
        response.data = counted([bad[place] for place in sorted(bad)])
        return response


def _bad(request: BatchSubmitUsageRequest, now: datetime, *, keep_unknown: bool) -> dict[int, SubmitResult]:
    found: dict[int, SubmitResult] = {}
    violations: list[Violation] = []
    for place, record in enumerate(request.records):
        # Without the path, which takes a tenth of the time of the check, and again with it where it is bad.
        check_record(record, "", now, violations, keep_unknown)
        if violations:
            violations.clear()
            check_record(record, f"records[{place}]", now, violations, keep_unknown)
            found[place] = refused(violations)
            violations.clear()
    return found


def _with_key(record: UsageRecord, key: str) -> UsageRecord:
    return record if record.idempotency_key else replace(record, idempotency_key=key)


def _moved(result: SubmitResult, short: str, path: str) -> SubmitResult:
    """The result with the record's place in the batch that the caller knows."""
    if result.error is not None:
        result.error.message = result.error.message.replace(short, path)
        for violation in result.error.violations:
            if violation.field.startswith(short):
                violation.field = path + violation.field[len(short) :]
    return result


def refused(violations: Iterable[Violation], code: StatusCode = StatusCode.INVALID_ARGUMENT) -> SubmitResult:
    """The result of a record that broke rules, with the first of them: thousands of records may break all."""
    broken = list(violations)[:MAX_VIOLATIONS]
    return SubmitResult(
        status=SubmitStatus.INVALID,
        error=RecordError(
            code=code.name,
            message=violations_text(broken),
            violations=[FieldViolation(field=field, description=rule) for field, rule in broken],
        ),
    )


def counted(results: list[SubmitResult]) -> BatchReceipt:
    """The receipt of a batch with these results."""
    counts: dict[Any, int] = {}
    for result in results:
        counts[result.status] = counts.get(result.status, 0) + 1
    return BatchReceipt(
        results=results,
        created=counts.get(SubmitStatus.CREATED, 0),
        duplicates=counts.get(SubmitStatus.DUPLICATE, 0),
        conflicts=counts.get(SubmitStatus.CONFLICT, 0),
        invalid=counts.get(SubmitStatus.INVALID, 0),
    )
