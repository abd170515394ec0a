"""Between entries and rows: what is stored of a record, and the record made of it again.

A row holds the record as the caller sent it, and beside it what the service added: id, times and cost.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger.ids import as_text, usage_id
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.money import UNITS, from_units
from llm_cost_ops.pricing.pricebook import Pricing
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST
from llm_cost_ops.rules.times import from_micros, to_micros
from llm_cost_ops.wire.decimals import WireDecimal
from llm_cost_ops.wire.unknown import Unknown

__all__ = [
    "RECORD_COLUMNS",
    "Prepared",
    "SeriesKey",
    "columns_of",
    "decode_record",
    "decode_usage",
    "encode_struct",
    "prepare",
    "prepare_all",
    "series_key_of",
    "struct_decoder",
    "units_of",
]

_MAX_COST_UNITS = MAX_RECORD_COST * UNITS

SeriesKey = tuple[Any, ...]
"""What is interned of an entry: the organization, seven more columns of series, and the Pricing."""

Prepared = tuple[SeriesKey, tuple[Any, ...], str]
"""Of an entry its series key, its columns of usage from `id` on, and its id as text."""

RECORD_COLUMNS = "u.id, u.key, u.ingested, u.ts, u.record"
"""Of `usage u`, what `decode_record` needs first."""

_PICOS = 1_000_000


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
encode_struct = msgspec.json.Encoder(enc_hook=_write, order="deterministic").encode
_records = struct_decoder(UsageRecord)


def series_key_of(record: UsageRecord, by: Pricing) -> SeriesKey:
    """What a record shares with others."""
    return (
        record.organization_id,
        record.provider,
        record.model_id,
        record.project_id,
        record.operation,
        record.service_tier,
        record.processing,
        record.region,
        by,
    )


def prepare(entry: Entry) -> Prepared:
    """What the transaction needs of an entry; everything that can be done before it."""
    return prepare_all((entry,))[0]


def prepare_all(entries: Iterable[Entry]) -> list[Prepared]:
    """`prepare` of each entry."""
    prepared = []
    taken: datetime | None = None
    ingested = 0
    for entry in entries:
        record = entry.record
        read, written = record.input_tokens or 0, record.output_tokens or 0
        if read > MAX_COUNT or written > MAX_COUNT:
            raise _too_many(record)
        by = entry.by
        made, stored, stored_key = usage_id(record.organization_id, entry.key)
        if entry.ingested_at is not taken:
            # Those of a batch share the object.
            taken = entry.ingested_at
            ingested = to_micros(taken)
        moment, tags, labels = record.timestamp, record.tags, record.labels
        try:
            data = encode_struct(record)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, f"a record can't be stored: {error}") from error
        values = (
            stored,
            stored_key,
            ingested,
            ingested if moment is None else to_micros(moment),
            record.request_count or 1,
            read,
            written,
            record.cached_tokens,
            *columns_of(entry.units, by),
            record.user_id or None,
            # A tag counts a record once, however often it has it.
            _json(list(dict.fromkeys(tags))) if tags else None,
            _json(labels) if labels else None,
            data,
        )
        prepared.append((series_key_of(record, by), values, made))
    return prepared


_encode_json = msgspec.json.Encoder().encode


def _json(value: object) -> str:
    return _encode_json(value).decode()


def _too_many(record: UsageRecord) -> RpcError:
    return _refused(
        [
            Violation(field, f"must be at most {MAX_COUNT:,}")
            for field in ("input_tokens", "output_tokens")
            if (getattr(record, field) or 0) > MAX_COUNT
        ]
    )


def _refused(violations: list[Violation]) -> RpcError:
    message = "; ".join(f"{field} {rule}".strip() for field, rule in violations)
    return RpcError(StatusCode.INVALID_ARGUMENT, message, violations=violations)


def columns_of(units: int | None, by: Pricing) -> tuple[int | None, int | None]:
    """The two columns of a cost in 10^-12; INVALID_ARGUMENT when it is larger than MAX_RECORD_COST."""
    if units is None:
        return None, None
    if not -_MAX_COST_UNITS <= units <= _MAX_COST_UNITS:
        raise _refused([Violation("a record", f"must cost at most {MAX_RECORD_COST:,} {by.currency}")])
    return divmod(units, _PICOS)


def units_of(micros: int | None, picos: int | None) -> int | None:
    """The cost in 10^-12 that two columns hold."""
    return None if micros is None or picos is None else micros * _PICOS + picos


def decode_record(row: tuple[Any, ...], currency: str, status: str) -> UsageRecord:
    """The record with all that the service knows of it; `row` holds RECORD_COLUMNS, then the cost."""
    usage_id, key, ingested, ts, data, micros, picos = row
    record = decode_usage(data)
    record.id = as_text(usage_id)
    record.idempotency_key = "" if key is None else as_text(key)
    record.ingested_at = from_micros(ingested)
    record.timestamp = from_micros(ts)
    units = units_of(micros, picos)
    record.estimated_cost = None if units is None else from_units(units)
    record.currency = currency
    record.cost_status = CostStatus(status)
    return record


def decode_usage(data: bytes) -> UsageRecord:
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
