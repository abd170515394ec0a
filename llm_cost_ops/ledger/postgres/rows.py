"""Rows of usage: what is written of an entry, and the record that is read back."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger.ids import usage_id
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.money import UNITS, from_units
from llm_cost_ops.pricing.pricebook import Pricing
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_arguments
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST
from llm_cost_ops.rules.times import from_micros, to_micros
from llm_cost_ops.wire.decimals import WireDecimal
from llm_cost_ops.wire.unknown import Unknown

__all__ = [
    "RECORD_COLUMNS",
    "Row",
    "check_cost",
    "cost_text",
    "decode_record",
    "decode_usage",
    "encode_struct",
    "prepare",
    "series_of",
    "struct_decoder",
    "text_array",
    "units_sql",
]

_MAX_COST_UNITS = MAX_RECORD_COST * UNITS

RECORD_COLUMNS = "u.id::text AS id, u.key, u.ingested, u.ts, u.record"
"""Of `usage u`, what `decode_record` needs first."""


def units_sql(cost: str) -> str:
    """SQL for a cost in 10^-12 of its currency, as it is read back."""
    return f"trunc({cost} * {UNITS})"


def _write(value: object) -> object:
    # Unknown JSON is kept as text: decoded and encoded again it might not be the same.
    if type(value) is Unknown:
        texts = {name: bytes(raw).decode() for name, raw in value.json.items()}
        return {"binary": bytes(value.binary), "json": texts}
    raise TypeError(f"can't store a {type(value).__name__}")


def _read(kind: Any, value: Any) -> object:
    if kind is WireDecimal:
        return Decimal(value)
    if kind is Unknown:
        texts = {name: msgspec.Raw(text.encode()) for name, text in value["json"].items()}
        return Unknown(b64decode(value["binary"]), texts)
    raise TypeError(f"can't read a {kind}")


def struct_decoder(kind: type[object]) -> msgspec.json.Decoder[Any]:
    """Reads structs of a type from what `encode_struct` made of them."""
    return msgspec.json.Decoder(kind, dec_hook=_read)


# Maps are sorted, so that their order makes no other content.
_encoder = msgspec.json.Encoder(enc_hook=_write, order="deterministic")
_records = struct_decoder(UsageRecord)


def encode_struct(value: object) -> str:
    """A struct as text: JSON, in which NUL is escaped, as PostgreSQL needs it."""
    return _encoder.encode(value).decode()


class Row(NamedTuple):
    """What is written of an entry: `series` is the organization and eight columns of series.

    `id` is in its text form; `ingested` and `ts` are in microseconds, `cost` and `tags` and `labels` texts of
    PostgreSQL's, None where there is none.
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
    cost: str | None
    usr: str | None
    tags: str | None
    labels: str | None
    record: str


def prepare(entry: Entry) -> Row:
    """What the transaction needs of an entry; everything that can be done before it."""
    record, by = entry.record, entry.by
    input_tokens, output_tokens = record.input_tokens or 0, record.output_tokens or 0
    if input_tokens > MAX_COUNT or output_tokens > MAX_COUNT:
        raise _too_many(record)
    check_cost(entry.units, by.currency)
    ingested = to_micros(entry.ingested_at)
    tags, labels, moment = record.tags, record.labels, record.timestamp
    return Row(
        series_of(record, by),
        by,
        usage_id(record.organization_id, entry.key)[0],
        entry.key or None,
        ingested,
        ingested if moment is None else to_micros(moment),
        record.request_count or 1,
        input_tokens,
        output_tokens,
        record.cached_tokens,
        cost_text(entry.units),
        record.user_id or None,
        # A tag counts a record once, however often it has it.
        encode_struct(list(dict.fromkeys(tags))) if tags else None,
        encode_struct(labels) if labels else None,
        _encoded(record),
    )


def series_of(record: UsageRecord, by: Pricing) -> tuple[str, ...]:
    """The columns of series, the name of the organization in front."""
    return (
        record.organization_id,
        record.provider,
        record.model_id,
        record.project_id,
        str(record.operation),
        record.service_tier,
        record.processing,
        record.region,
        by.currency,
        str(by.status),
    )


def _encoded(record: UsageRecord) -> str:
    try:
        return encode_struct(record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"a record can't be stored: {error}") from error


def _too_many(record: UsageRecord) -> RpcError:
    return invalid_arguments(
        [
            Violation(field, f"must be at most {MAX_COUNT:,}")
            for field in ("input_tokens", "output_tokens")
            if (getattr(record, field) or 0) > MAX_COUNT
        ]
    )


def check_cost(units: int | None, currency: str) -> None:
    """INVALID_ARGUMENT for a cost that is larger than MAX_RECORD_COST."""
    if units is not None and not -_MAX_COST_UNITS <= units <= _MAX_COST_UNITS:
        raise invalid_arguments([Violation("a record", f"must cost at most {MAX_RECORD_COST:,} {currency}")])


def cost_text(units: int | None) -> str | None:
    """A cost in 10^-12 as PostgreSQL reads a number."""
    return None if units is None else f"{units}e-12"


def text_array(values: Sequence[object]) -> str:
    """A column of integers, or of texts and None, as PostgreSQL reads an array.

    It takes a fraction of the time of the driver's own, which looks at each value for its type.
    """
    if values and type(values[0]) is int:
        return f"{{{','.join(map(str, values))}}}"
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


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


def decode_usage(data: str) -> UsageRecord:
    """The record as the caller sent it."""
    try:
        record: UsageRecord = _records.decode(data)
    except msgspec.ValidationError:
        # A newer version wrote fields that this one does not know: they stay with the record.
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        known = {info.encode_name for info in msgspec.structs.fields(UsageRecord)}
        unknown = {name: msgspec.Raw(bytes(fields.pop(name))) for name in fields.keys() - known}
        record = _records.decode(msgspec.json.encode(fields))
        record.unknown_ = Unknown(json=unknown)
    return record
