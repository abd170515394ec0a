"""What requests must satisfy: the generated rules of each field, and the rules between fields.

The client runs the same checks before it sends, so that a bad request costs no round trip.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec

from llm_cost_ops._gen.codecs import CORRECT_USAGE_REQUEST, CREATE_PRICE_REQUEST, USAGE_RECORD
from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    CorrectUsageRequest,
    CreatePriceRequest,
    EstimateCostRequest,
    ModalityTokens,
    Rate,
    SubmitUsageRequest,
    UsageRecord,
)
from llm_cost_ops._gen.methods import (
    BATCH_SUBMIT_USAGE,
    CORRECT_USAGE,
    CREATE_PRICE,
    ESTIMATE_COST,
    SUBMIT_USAGE,
)
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.status import RpcError, Violation, invalid_arguments
from llm_cost_ops.rules.cards import PRICE_FIELDS, check_card
from llm_cost_ops.rules.times import instant
from llm_cost_ops.rules.usage import check_usage
from llm_cost_ops.wire.errors import DecodeError
from llm_cost_ops.wire.unknown import UNKNOWN_FIELDS
from llm_cost_ops.wire.validation import check_text, refuse_unknown

__all__ = ["CHECKS", "SERVICE_CHECKS", "Check", "Validation", "check_record", "corrected", "keeps_unknown"]

MAX_BATCH = 10_000
MAX_BATCH_KEY = 250
"""Characters of a batch's key: with a record's place behind it, it is a key that a record may have."""

_KEEP = (UNKNOWN_FIELDS, "keep")

Check = Callable[[Any, datetime, list[Violation], bool], None]


class Validation:
    """Runs a request's rules. It stands in a client's chain, and in a server's.

    `checks` maps a method's path to the check that takes the place of the generated rules: it gets
    the request, the time now in UTC, the list to add violations to, and whether unknown fields are
    kept. The requests of a stream are checked by who answers them, one by one. A client names the
    function that makes its `public_error`.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        origin: str,
        public_error: Callable[[RpcError], Exception] | None = None,
    ) -> None:
        self._checks = checks
        self._origin = origin
        self._public_error = public_error

    def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Awaitable[Res]:
        self._check(request, context)
        return continuation(request, context)

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        self._check(request, context)
        async with aclosing(continuation(request, context)) as messages:
            async for message in messages:
                yield message

    def _check(self, request: Any, context: CallContext) -> None:
        violations: list[Violation] = []
        keep_unknown = keeps_unknown(context.metadata)
        if request.unknown_ and not keep_unknown:
            refuse_unknown(request, "", violations, nested=False)
        check = self._checks.get(context.method.path)
        if check is not None:
            check(request, context.now(), violations, keep_unknown)
        else:
            context.method.request.validate(request, "", violations)
        if violations:
            error = invalid_arguments(violations, origin=self._origin)
            raise error if self._public_error is None else self._public_error(error)


def keeps_unknown(metadata: Metadata) -> bool:
    """Whether a call asks for its unknown fields to be kept."""
    # Mostly nobody says anything, and that is found out in a moment.
    return _KEEP in metadata.pairs and metadata.get(UNKNOWN_FIELDS) == "keep"


def check_record(
    record: UsageRecord,
    path: str,
    now: datetime | None,
    violations: list[Violation],
    keep_unknown: bool = False,
) -> None:
    """Add every rule that a record breaks; `path` is where it stands in the request.

    A timestamp may be CLOCK_SKEW ahead of `now`; None leaves that unchecked.
    """
    unknown = record.unknown_
    if unknown and unknown.error:
        field = ".".join(part for part in (path, unknown.error_field) if part)
        violations.append(Violation(field, unknown.error))
        return
    modality = record.modality
    if not keep_unknown and (unknown or (type(modality) is ModalityTokens and modality.unknown_)):
        refuse_unknown(record, path, violations)
    USAGE_RECORD.validate(record, path, violations)
    check_usage(record, path, violations, now=now)


def _no_record(path: str, value: object) -> Violation:
    """What is wrong with something else in the place of a record, such as a dict of its fields."""
    return Violation(path, f"must be a UsageRecord, not {type(value).__name__}")


def _submit(
    request: SubmitUsageRequest,
    now: datetime | None,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    # The record is the body in REST and the parameters in Python: its fields need no prefix.
    if type(request.usage) is UsageRecord:
        check_record(request.usage, "", now, violations, keep_unknown)
    else:
        violations.append(_no_record("usage", request.usage))


def _submit_at_any_time(
    request: SubmitUsageRequest,
    now: datetime,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    found: list[Violation] = []
    _submit(request, None, found, keep_unknown)
    if found:
        # It is refused whatever its time is, and then that is said as well.
        _submit(request, now, violations, keep_unknown)


def _batch(
    request: BatchSubmitUsageRequest,
    _now: datetime,
    violations: list[Violation],
    _keep_unknown: bool,
) -> None:
    """The batch itself; its records are answered one by one."""
    check_text(request.idempotency_key, "idempotency_key", violations, MAX_BATCH_KEY)
    records: Any = request.records
    if not isinstance(records, list):
        violations.append(Violation("records", "must be a list of UsageRecord"))
        return
    if not records:
        violations.append(Violation("records", "must hold at least one record"))
    elif len(records) > MAX_BATCH:
        violations.append(
            Violation("records", f"must hold at most {MAX_BATCH:,} records, not {len(records):,}")
        )
    for index, record in enumerate(records):
        if not isinstance(record, UsageRecord):
            violations.append(_no_record(f"records[{index}]", record))


def _create_price(
    request: CreatePriceRequest,
    _now: datetime,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    if not keep_unknown:
        for index, rate in enumerate(request.rates if type(request.rates) is list else ()):
            if isinstance(rate, Rate):
                refuse_unknown(rate, f"rates[{index}]", violations)
    CREATE_PRICE_REQUEST.validate(request, "", violations)
    if not request.rates and all(getattr(request, field) is None for field, _, _ in PRICE_FIELDS):
        fields = " or ".join(field for field, _, _ in PRICE_FIELDS)
        violations.append(Violation("rates", f"must hold a price, unless {fields} is given"))
    check_card(request, "", violations)


def _estimate(
    request: EstimateCostRequest,
    now: datetime,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    record: Any = request.usage
    if type(record) is not UsageRecord:
        violations.append(_no_record("usage", record))
        return
    # Nobody pays yet; and a call may be meant for a time when another price holds.
    moment = record.timestamp
    latest = max(now, instant(moment)) if isinstance(moment, datetime) else now
    if record.organization_id == "":
        record = msgspec.structs.replace(record, organization_id="nobody")
    check_record(record, "", latest, violations, keep_unknown)


# What says which record it is, and when: a record with a wrong one is another record.
_FIXED = ("organization_id", "idempotency_key", "timestamp", "observation")
_OUTPUT_ONLY = ("id", "ingested_at", "estimated_cost", "currency", "cost_status")


def _correct(
    request: CorrectUsageRequest,
    _now: datetime,
    violations: list[Violation],
    _keep_unknown: bool,
) -> None:
    CORRECT_USAGE_REQUEST.validate(request, "", violations)
    if violations or request.changes is None:
        return
    known = [info.encode_name for info in msgspec.structs.fields(UsageRecord) if info.name != "unknown_"]
    for name in request.changes:
        if name in _FIXED:
            rule = "can't be corrected: void the record, and record it anew under another key"
            violations.append(Violation(f"changes.{name}", rule))
        elif name in _OUTPUT_ONLY:
            violations.append(Violation(f"changes.{name}", "can't be corrected: it follows from the others"))
    try:
        changed = corrected(UsageRecord(), request.changes)
    except DecodeError as error:
        violations.append(Violation(f"changes.{error.path}".rstrip("."), error.reason))
    else:
        refuse_unknown(changed, "changes", violations)
    if not request.changes:
        violations.append(Violation("changes", f"must name a field of the record, such as {known[5]}"))


def corrected(record: UsageRecord, changes: Mapping[str, object]) -> UsageRecord:
    """The record with fields replaced, by their names in JSON; None takes one away.

    The total follows, unless it is given itself. Raises DecodeError for a value that is none of the field.
    """
    fields = msgspec.json.decode(USAGE_RECORD.encode_json(record), type=dict[str, msgspec.Raw])
    if "input_tokens" in changes or "output_tokens" in changes:
        fields.pop("total_tokens", None)
    for name, value in changes.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = msgspec.Raw(msgspec.json.encode(value))
    return USAGE_RECORD.decode_json(msgspec.json.encode(fields))


CHECKS: dict[str, Check] = {
    CORRECT_USAGE.path: _correct,
    SUBMIT_USAGE.path: _submit,
    BATCH_SUBMIT_USAGE.path: _batch,
    CREATE_PRICE.path: _create_price,
    ESTIMATE_COST.path: _estimate,
}

SERVICE_CHECKS: dict[str, Check] = {**CHECKS, SUBMIT_USAGE.path: _submit_at_any_time}
"""As the service checks them: it looks for a duplicate before it compares a timestamp with its own clock."""
