"""What requests must satisfy: the generated rules of each field, and the rules between fields.

The client runs the same checks before it sends, so that a bad request costs no round trip.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

import msgspec

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    CorrectUsageRequest,
    CostStatus,
    CreatePriceRequest,
    EstimateCostRequest,
    ModalityTokens,
    Rate,
    SubmitUsageRequest,
    UsageQuality,
    UsageRecord,
)
from llm_cost_ops._gen.validators import (
    validate_correct_usage_request,
    validate_create_price_request,
    validate_usage_record,
)
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.status import RpcError, Violation, invalid_arguments, violations_text
from llm_cost_ops.rules.cards import check_card
from llm_cost_ops.rules.currencies import CURRENCIES, CURRENCY_RULE
from llm_cost_ops.rules.meters import METER_NAME, METER_RULE, PRICE_FIELDS, TOKEN_METERS
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.times import instant
from llm_cost_ops.wire.errors import DecodeError
from llm_cost_ops.wire.json import to_utc
from llm_cost_ops.wire.unknown import UNKNOWN_FIELDS
from llm_cost_ops.wire.validation import WRONG_VALUE, check_between, check_text, entry, refuse_unknown

__all__ = [
    "CHECKS",
    "CLOCK_SKEW",
    "EARLIEST",
    "SERVICE_CHECKS",
    "Check",
    "Validation",
    "as_kept",
    "check_record",
    "check_usage",
    "corrected",
    "is_ahead",
    "is_as_kept",
    "keeps_unknown",
    "known_total",
    "no_record",
    "states_no_count",
    "total_tokens",
    "usage_error",
]

MAX_BATCH = 10_000
MAX_BATCH_KEY = 250
"""Characters of a batch's key: with a record's place after it, it is a key that a record may have."""

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
CLOCK_SKEW = timedelta(minutes=5)
_NO_STATUS = CostStatus.UNSPECIFIED
METADATA_BYTES = 16 * 1024
METADATA_KEYS = 64

_TRACE = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)
_SPAN = re.compile(r"[0-9a-fA-F]{16}", re.ASCII)
# It refuses names that are no text, which would be stored as something else.
_encoder = msgspec.json.Encoder(order="deterministic")

_Found = Iterator[tuple[str, str]]

_KEEP = (UNKNOWN_FIELDS, "keep")

Check = Callable[[Any, CallContext, list[Violation], bool], None]


class Validation:
    """Runs a request's rules. It stands in a client's chain, and in a server's.

    `checks` maps a request's type to the check that takes the place of the generated rules: it gets
    the request, the call's context, the list to add violations to, and whether unknown fields are
    kept. The requests of a stream are checked by who answers them, one by one. A client names the
    function that makes its `public_error`.
    """

    def __init__(
        self,
        checks: Mapping[type, Check],
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
        check = self._checks.get(context.method.request.type)
        if check is not None:
            check(request, context, violations, keep_unknown)
        else:
            context.method.validate(request, "", violations)
        if violations:
            error = invalid_arguments(violations, origin=self._origin)
            raise error if self._public_error is None else self._public_error(error)


def keeps_unknown(metadata: Metadata) -> bool:
    """Whether a call asks for its unknown fields to be kept."""
    # Most calls don't ask, and looking for the pair is fast.
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
    validate_usage_record(record, path, violations)
    check_usage(record, path, violations, now=now)


def check_usage(
    record: UsageRecord, path: str, violations: list[Violation], *, now: datetime | None = None
) -> None:
    """Add every rule between fields that the record breaks; `path` is where the record stands, "" for alone.

    `now` is the time that a timestamp may exceed by at most CLOCK_SKEW; None leaves that unchecked.
    """
    try:
        read = record.input_tokens or 0
        written = record.output_tokens or 0
        stored = record.cache_write_tokens
        total = record.total_tokens
        if (
            record.modality is None
            and record.cached_tokens + stored <= read
            and record.cache_write_extended_tokens <= stored
            and record.reasoning_tokens <= written
            and (total is None or total == read + written)
            and not record.meters
            and not record.trace_id
            and not record.span_id
            and not record.reported_currency
            and record.metadata is None
            and (record.timestamp is None or _timely(record.timestamp, now))
        ):
            return
    except WRONG_VALUE:
        pass
    groups = (_token_rules, _modality_rules, _meter_rules, _text_rules, _metadata_rules)
    check_between([_time_rules(record, now), *(rules(record) for rules in groups)], path, violations)


def is_ahead(timestamp: datetime | None, now: datetime) -> bool:
    """Whether a timestamp is further in the future than clocks may differ; a naive one is in UTC."""
    return timestamp is not None and _timely(timestamp, None) and not _timely(timestamp, now)


def _timely(timestamp: datetime | None, now: datetime | None) -> bool:
    if timestamp is None:
        return True
    if timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=UTC)
    return EARLIEST <= timestamp <= _LATEST and (now is None or timestamp - now <= CLOCK_SKEW)


def _time_rules(record: UsageRecord, now: datetime | None) -> _Found:
    timestamp = record.timestamp
    if timestamp is not None and not _timely(timestamp, now):
        if _timely(timestamp, None):
            yield "timestamp", "must not be more than 5 minutes in the future"
        elif timestamp.year > EARLIEST.year:
            yield "timestamp", "must not be after the year 9999 in UTC"
        else:
            yield "timestamp", "must not be before the year 2000"


def _text_rules(record: UsageRecord) -> _Found:
    if record.trace_id and not _TRACE.fullmatch(record.trace_id):
        yield "trace_id", "must be 32 hexadecimal digits"
    if record.span_id and not _SPAN.fullmatch(record.span_id):
        yield "span_id", "must be 16 hexadecimal digits"
    if record.reported_currency and record.reported_currency not in CURRENCIES:
        yield "reported_currency", CURRENCY_RULE


def _token_rules(record: UsageRecord) -> _Found:
    read, written = record.input_tokens or 0, record.output_tokens or 0
    cached, stored = record.cached_tokens, record.cache_write_tokens
    if any(type(count) is not int for count in (read, written, cached, stored)):
        # The wrong type is named already, and the rules below would compare with it.
        return
    if record.total_tokens is not None and record.total_tokens != read + written:
        rule = f"must be input_tokens + output_tokens ({read + written})"
        yield "total_tokens", f"{rule}; got {record.total_tokens}"
    # A part of nothing is never too much: a negative whole has been named already.
    if cached > max(read, 0):
        yield "cached_tokens", _part(cached, "input_tokens", read)
    if stored > max(read, 0):
        yield "cache_write_tokens", _part(stored, "input_tokens", read)
    if cached <= read and stored <= read < cached + stored:
        rule = f"and cached_tokens together must be at most input_tokens ({read}); got {cached + stored}"
        yield "cache_write_tokens", rule
    extended = record.cache_write_extended_tokens
    if extended > max(stored, 0):
        yield "cache_write_extended_tokens", _part(extended, "cache_write_tokens", stored)
    if record.reasoning_tokens > max(written, 0):
        yield "reasoning_tokens", _part(record.reasoning_tokens, "output_tokens", written)


def _part(count: int, whole: str, limit: int) -> str:
    return f"must be at most {whole} ({limit}), of which it is a part; got {count}"


def _modality_rules(record: UsageRecord) -> _Found:
    counts = record.modality
    if counts is None:
        return
    for kind, total, field in (
        ("input", record.input_tokens or 0, "input_tokens"),
        ("cached", record.cached_tokens, "cached_tokens"),
        ("output", record.output_tokens or 0, "output_tokens"),
    ):
        parts = sum(getattr(counts, f"{kind}_{form}_tokens") for form in ("audio", "image", "video"))
        if parts > total:
            yield "modality", f"the {kind} tokens must sum to at most {field} ({total}); got {parts}"
        elif kind == "output" and record.reasoning_tokens <= total < parts + record.reasoning_tokens:
            rule = f"the output tokens and reasoning_tokens must be at most {field} ({total}) together"
            yield "modality", f"{rule}; got {parts + record.reasoning_tokens}"
    for form in ("audio", "image", "video"):
        cached, read = getattr(counts, f"cached_{form}_tokens"), getattr(counts, f"input_{form}_tokens")
        if cached > read:
            yield f"modality.cached_{form}_tokens", _part(cached, f"input_{form}_tokens", read)


def _meter_rules(record: UsageRecord) -> _Found:
    names: dict[str, str] = {}
    for key in record.meters.keys():  # noqa: SIM118  # what is no dict has none
        field = entry("meters", key)
        meter = "AUDIO_SECONDS" if key == "audio_ms" else key.upper()
        if not METER_NAME.fullmatch(key):
            yield field, METER_RULE
        elif meter in TOKEN_METERS:
            yield field, "must not count tokens: they have fields of their own"
        elif meter in names:
            yield field, f"counts the same meter as {names[meter]!r}"
        names[meter] = key


def _metadata_rules(record: UsageRecord) -> _Found:
    metadata: object = record.metadata
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        yield "metadata", "must be a JSON object"
        return
    if len(metadata) > METADATA_KEYS:
        yield "metadata", f"must have at most {METADATA_KEYS} keys; got {len(metadata)}"
        return
    try:
        data = _encoder.encode(metadata)
    except (TypeError, ValueError, RecursionError):
        yield "metadata", "must be a JSON object, its names text: it holds what JSON cannot"
        return
    if len(data) > METADATA_BYTES:
        yield "metadata", f"must be at most 16 KiB as JSON; got {len(data)} bytes"
    elif b"null" in data and not _finite(metadata):
        yield "metadata", "must not hold NaN or infinity, which JSON does not have"


def _finite(metadata: object) -> bool:
    """Whether every number is one: the encoder writes null for NaN."""
    left = [metadata]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            left += value
        elif isinstance(value, float) and not isfinite(value):
            return False
    return True


def states_no_count(record: UsageRecord) -> bool:
    """Whether a record says nothing about how much was used; a stated 0 is a count."""
    return (
        record.input_tokens is None
        and record.output_tokens is None
        and record.total_tokens is None
        and not record.meters
    )


def total_tokens(record: UsageRecord) -> int:
    """input_tokens + output_tokens, where one that is not stated adds nothing."""
    return (record.input_tokens or 0) + (record.output_tokens or 0)


def known_total(record: UsageRecord) -> int | None:
    """What a record's total_tokens are; None where it states neither input_tokens nor output_tokens."""
    if record.input_tokens is None and record.output_tokens is None:
        return None
    return total_tokens(record)


def as_kept(sent: UsageRecord, provider: str = "") -> UsageRecord:
    """The record as a ledger keeps it. `provider` is its canonical one, where that is known."""
    kept = msgspec.structs.replace(sent)  # in half the time of copy.copy
    # What the caller put into fields that are for output only is dropped. Most records have none of it, and
    # to look takes less time than to write.
    if kept.id:
        kept.id = ""
    if kept.idempotency_key:
        kept.idempotency_key = ""
    if kept.ingested_at is not None:
        kept.ingested_at = None
    if kept.estimated_cost is not None:
        kept.estimated_cost = None
    if kept.currency:
        kept.currency = ""
    if kept.cost_status is not _NO_STATUS:
        kept.cost_status = _NO_STATUS
    canonical = provider or canonical_provider(kept.provider)
    if kept.provider != canonical:
        kept.provider = canonical
    kept.total_tokens = known_total(kept)
    if kept.total_tokens is None and not kept.meters:
        kept.quality = UsageQuality.UNKNOWN
    moment = kept.timestamp
    if moment is not None and moment.tzinfo is not UTC:
        kept.timestamp = to_utc(moment)
    return kept


def is_as_kept(sent: UsageRecord, provider: str) -> bool:
    """Whether a checked record is as it is kept already, but for its total; mostly it is."""
    moment = sent.timestamp
    return (
        (sent.input_tokens is not None or sent.output_tokens is not None)
        and sent.provider == provider
        and (moment is None or moment.tzinfo is UTC)
        and not (sent.id or sent.idempotency_key or sent.currency)
        and sent.ingested_at is None
        and sent.estimated_cost is None
        and sent.cost_status is _NO_STATUS
    )


def usage_error(record: UsageRecord) -> ValidationError:
    """The error for a record whose counts contradict each other or are no counts at all."""
    violations: list[Violation] = []
    check_usage(record, "", violations)
    if not violations:
        violations.append(Violation("usage", "every count must be a whole number of 0 or more"))
    return ValidationError(violations_text(violations), violations=tuple(violations))


def no_record(path: str, value: object) -> Violation:
    """What is wrong with something else in the place of a record, such as a dict of its fields."""
    made = ": UsageRecord(**fields), or usage_from_response(answer)" if isinstance(value, dict) else ""
    return Violation(path, f"must be a UsageRecord, not {type(value).__name__}{made}")


def _submit(
    request: SubmitUsageRequest,
    context: CallContext,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    record = request.usage
    # The record is the body in REST and the parameters in Python: its fields need no prefix.
    if type(record) is UsageRecord:
        # Mostly there is no timestamp, and the clock is not read.
        now = None if record.timestamp is None else context.now()
        check_record(record, "", now, violations, keep_unknown)
    else:
        violations.append(no_record("usage", record))


def _submit_at_any_time(
    request: SubmitUsageRequest,
    context: CallContext,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    found: list[Violation] = []
    if type(request.usage) is UsageRecord:
        check_record(request.usage, "", None, found, keep_unknown)
        if not found:
            return
    # It is refused in any case: now name what is wrong with its time, too.
    _submit(request, context, violations, keep_unknown)


def _batch(
    request: BatchSubmitUsageRequest,
    _context: CallContext,
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
            violations.append(no_record(f"records[{index}]", record))


def _create_price(
    request: CreatePriceRequest,
    _context: CallContext,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    if not keep_unknown:
        for index, rate in enumerate(request.rates if type(request.rates) is list else ()):
            if isinstance(rate, Rate):
                refuse_unknown(rate, f"rates[{index}]", violations)
    validate_create_price_request(request, "", violations)
    if not request.rates and all(getattr(request, field) is None for field, _, _ in PRICE_FIELDS):
        fields = " or ".join(field for field, _, _ in PRICE_FIELDS)
        violations.append(Violation("rates", f"must hold a price, unless {fields} is given"))
    check_card(request, "", violations)


def _estimate(
    request: EstimateCostRequest,
    context: CallContext,
    violations: list[Violation],
    keep_unknown: bool,
) -> None:
    record: Any = request.usage
    if type(record) is not UsageRecord:
        violations.append(no_record("usage", record))
        return
    # Nobody pays yet; and a call may be meant for a time when another price holds.
    now, moment = context.now(), record.timestamp
    latest = max(now, instant(moment)) if isinstance(moment, datetime) else now
    if record.organization_id == "":
        record = msgspec.structs.replace(record, organization_id="nobody")
    check_record(record, "", latest, violations, keep_unknown)


# What says which record it is, and when: a record with a wrong one is another record.
_FIXED = ("organization_id", "idempotency_key", "timestamp", "observation")
_OUTPUT_ONLY = ("id", "ingested_at", "estimated_cost", "currency", "cost_status")


def _correct(
    request: CorrectUsageRequest,
    _context: CallContext,
    violations: list[Violation],
    _keep_unknown: bool,
) -> None:
    validate_correct_usage_request(request, "", violations)
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


CHECKS: dict[type, Check] = {
    CorrectUsageRequest: _correct,
    SubmitUsageRequest: _submit,
    BatchSubmitUsageRequest: _batch,
    CreatePriceRequest: _create_price,
    EstimateCostRequest: _estimate,
}

SERVICE_CHECKS: dict[type, Check] = {**CHECKS, SubmitUsageRequest: _submit_at_any_time}
"""As the service checks them: it looks for a duplicate before it compares a timestamp with its own clock."""
