"""Rows of usage: what is written of an entry, and the record that is read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger.encoding import (
    check_cost,
    check_counts,
    decode_usage,
    encode_struct,
    encode_usage,
    from_micros,
    to_micros,
    usage_id,
)
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.money import UNITS, from_units
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rules.limits import MAX_COUNT

__all__ = [
    "PICO",
    "RECORD_COLUMNS",
    "Row",
    "copied",
    "copied_json",
    "cost_text",
    "decode_record",
    "prepare",
    "row_of",
    "series_of",
    "struct_text",
    "text_array",
    "units_sql",
    "written",
]

RECORD_COLUMNS = "u.id::text AS id, u.key, u.ingested, u.ts, u.record"
"""Of `usage u`, what `decode_record` needs first."""


def units_sql(cost: str) -> str:
    """SQL for a cost in 10^-12 of its currency, as it is read back."""
    return f"trunc({cost} * {UNITS})"


def struct_text(value: object) -> str:
    """A struct as text: JSON, in which NUL is escaped, as PostgreSQL needs it."""
    return encode_struct(value).decode()


PICO = "e-12"
"""What follows a cost in 10^-12 where PostgreSQL reads a number."""


class Row(msgspec.Struct, gc=False):
    """What is written of an entry: `series` is the organization and eight columns of series.

    `id` is in its text form; `ingested` and `ts` are in microseconds, `units` is the cost in 10^-12, `tags`
    and `labels` are texts of PostgreSQL's; None where there is none.
    """

    series: tuple[str, ...]
    by: Pricing
    id: str
    key: str | None
    ingested: int
    ts: int
    requests: int
    input: int
    output: int
    cached: int
    units: int | None
    usr: str | None
    tags: str | None
    labels: str | None
    record: str


def prepare(entry: Entry) -> Row:
    """What the transaction needs of an entry; everything that can be done before it."""
    record, by = entry.record, entry.by
    made = usage_id(record.organization_id, entry.key)[0]
    ingested = to_micros(entry.ingested_at)
    return row_of(record, series_of(record, by), made, entry.key, ingested, entry.units, by)


def row_of(
    record: UsageRecord,
    series: tuple[str, ...],
    made: str,
    key: str,
    ingested: int,
    units: int | None,
    by: Pricing,
) -> Row:
    """The row of a record with an id; INVALID_ARGUMENT for counts or a cost that sums can't hold."""
    # Plain: a member of an enum of the caller's writes itself as its name.
    put_in, put_out = int(record.input_tokens or 0), int(record.output_tokens or 0)
    if put_in > MAX_COUNT or put_out > MAX_COUNT:
        check_counts(record)
    check_cost(units, by.currency)
    tags, labels, moment = record.tags, record.labels, record.timestamp
    return Row(
        series,
        by,
        made,
        key or None,
        ingested,
        ingested if moment is None else to_micros(moment),
        int(record.request_count or 1),
        put_in,
        put_out,
        int(record.cached_tokens),
        units,
        str.__str__(record.user_id) or None,
        # A tag counts a record once, however often it has it.
        struct_text(list(dict.fromkeys(tags))) if tags else None,
        struct_text(labels) if labels else None,
        encode_usage(record).decode(),
    )


def series_of(record: UsageRecord, by: Pricing) -> tuple[str, ...]:
    """The columns of series, the name of the organization in front."""
    columns = (
        record.organization_id,
        record.provider,
        record.model_id,
        record.project_id,
        record.operation,
        record.service_tier,
        record.processing,
        record.region,
        by.currency,
        by.status,
    )
    # The texts that enums of a caller's hold, which have hashes of their own.
    return tuple(map(str.__str__, columns))


def cost_text(units: int | None) -> str | None:
    """A cost in 10^-12 as PostgreSQL reads a number."""
    return None if units is None else f"{units}{PICO}"


def written(row: Row) -> tuple[Any, ...]:
    """What is written of a row for its id and what follows it."""
    values = msgspec.structs.astuple(row)[2:]
    return (*values[:8], cost_text(row.units), *values[9:])


def text_array(values: Sequence[object]) -> str:
    """A column of integers, or of texts and None, as PostgreSQL reads an array.

    It takes a fraction of the time of the driver's own, which looks at each value for its type.
    """
    if values and type(values[0]) is int:
        return f"{{{','.join(map(str, values))}}}"
    return f"{{{','.join(map(_element, values))}}}"


_NULL = r"\N"
# By their escapes in the text form of COPY.
_ESCAPES = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
_ESCAPED = str.maketrans(_ESCAPES)


def copied(value: str | None) -> str:
    """A text, or what stands for none, in the text form of COPY."""
    if value is None:
        return _NULL
    if value.isprintable() and "\\" not in value:
        return value
    return value.translate(_ESCAPED)


def copied_json(value: str) -> str:
    """JSON in the text form of COPY: it has no control characters."""
    return value.replace("\\", r"\\") if "\\" in value else value


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    text = str.__str__(value) if isinstance(value, str) else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def decode_record(row: Sequence[Any], units: int | None, currency: str, status: str) -> UsageRecord:
    """The record with all that the service knows of it; `row` holds RECORD_COLUMNS."""
    made, key, ingested, ts, data = row
    record = decode_usage(data)
    record.id = made
    record.idempotency_key = key or ""
    record.ingested_at = from_micros(ingested)
    record.timestamp = from_micros(ts)
    record.estimated_cost = None if units is None else from_units(units)
    record.currency = currency
    record.cost_status = CostStatus(status)
    return record
