"""The rules between the fields of a usage record; those of single fields are generated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from math import isfinite

import msgspec

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.rpc.status import Violation, violations_text
from llm_cost_ops.rules.currencies import is_currency
from llm_cost_ops.rules.meters import METER_NAME, TOKEN_METERS
from llm_cost_ops.wire.validation import WRONG_VALUE, check_between, entry

__all__ = [
    "CLOCK_SKEW",
    "EARLIEST",
    "check_usage",
    "is_ahead",
    "known_total",
    "states_no_count",
    "total_tokens",
    "usage_error",
]

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
CLOCK_SKEW = timedelta(minutes=5)
METADATA_BYTES = 16 * 1024
METADATA_KEYS = 64

_TRACE = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)
_SPAN = re.compile(r"[0-9a-fA-F]{16}", re.ASCII)
# It refuses names that are no text, which would be stored as something else.
_encoder = msgspec.json.Encoder(order="deterministic")

_Found = Iterator[tuple[str, str]]


def check_usage(
    record: UsageRecord, path: str, violations: list[Violation], *, now: datetime | None = None
) -> None:
    """Add every rule between fields that the record breaks; `path` is where the record stands, "" for alone.

    `now` is the time that a timestamp may exceed by at most CLOCK_SKEW; None transports that unchecked.
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
    if record.reported_currency and not is_currency(record.reported_currency):
        yield "reported_currency", "must be a currency code of ISO 4217, such as USD"


def _token_rules(record: UsageRecord) -> _Found:
    read, written = record.input_tokens or 0, record.output_tokens or 0
    cached, stored = record.cached_tokens, record.cache_write_tokens
    if any(type(count) is not int for count in (read, written, cached, stored)):
        # Told already, and no measure for the others.
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
            yield field, "must be a letter, then letters, digits or _ . : / -, at most 64 in all"
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


def usage_error(record: UsageRecord) -> ValidationError:
    """The error for a record whose counts contradict each other or are no counts at all."""
    violations: list[Violation] = []
    check_usage(record, "", violations)
    if not violations:
        violations.append(Violation("usage", "every count must be a whole number of 0 or more"))
    return ValidationError(violations_text(violations), violations=tuple(violations))
