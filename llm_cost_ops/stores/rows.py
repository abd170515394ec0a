"""Between entries and rows: what is stored of a record, and the record made of it again."""

from __future__ import annotations

from base64 import b64decode
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.engine.ledger import Entry
from llm_cost_ops.engine.money import from_units
from llm_cost_ops.engine.windows import to_micros
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.wire.decimals import WireDecimal
from llm_cost_ops.wire.unknown import Unknown

__all__ = [
    "LARGEST_COST",
    "LARGEST_COUNT",
    "Prepared",
    "Terms",
    "as_key",
    "as_text",
    "decode_record",
    "decode_usage",
    "encode_struct",
    "ingested_at",
    "prepare",
    "struct_decoder",
    "units_of",
]

LARGEST_COUNT = 10**15
"""The most tokens of one record: 9,000 such records still have a sum of 64 bits."""

LARGEST_COST = 10**9 * 10**12
"""The most that one record may cost, in 10^-12 of its currency."""

Terms = tuple[Any, ...]
"""What is interned of an entry: ten columns of series, then five of pricing."""

Prepared = tuple[Terms, tuple[Any, ...], Entry]
"""An entry, its terms, and its columns of usage from `id` on."""

_MICRO = 1_000_000


def _write(value: Any) -> Any:
    # Unknown JSON is kept as text: decoded and encoded again it might not be the same.
    if type(value) is Unknown:
        texts = {name: bytes(raw).decode() for name, raw in value.json.items()}
        return {"binary": bytes(value.binary), "json": texts}
    raise TypeError(f"can't store a {type(value).__name__}")


def _read(kind: Any, value: Any) -> Any:
    if kind is WireDecimal:
        return Decimal(value)
    if kind is Unknown:
        texts = {name: msgspec.Raw(text.encode()) for name, text in value["json"].items()}
        return Unknown(b64decode(value["binary"]), texts)
    raise TypeError(f"can't read a {kind}")


def struct_decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    """Reads structs of a type from what `encode_struct` made of them."""
    return msgspec.json.Decoder(kind, dec_hook=_read)


encode_struct = msgspec.json.Encoder(enc_hook=_write).encode
_records = struct_decoder(UsageRecord)


class _Times(msgspec.Struct):
    ingested_at: datetime


_times = msgspec.json.Decoder(_Times)


def as_key(text: str) -> str | bytes:
    """What an id or a key is stored as: 16 bytes where it is a UUID in its canonical form."""
    if len(text) == 36 and text[8:24:5] == "----":
        try:
            key = bytes.fromhex(text.replace("-", ""))
        except ValueError:
            return text
        # Shorter where there were spaces, which fromhex passes over, or more hyphens.
        if len(key) == 16 and text == text.lower():
            return key
    return text


def as_text(key: str | bytes) -> str:
    """The text that `as_key` was given."""
    if isinstance(key, str):
        return key
    h = key.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def prepare(entry: Entry) -> Prepared:
    """What the transaction needs of an entry; everything that can be done before it."""
    record = entry.record
    units = entry.units
    if (
        record.input_tokens > LARGEST_COUNT
        or record.output_tokens > LARGEST_COUNT
        or (units is not None and not -LARGEST_COST <= units <= LARGEST_COST)
    ):
        raise _too_large(entry)
    micro, rest = (None, None) if units is None else divmod(units, _MICRO)
    assert record.timestamp is not None
    tags, labels = record.tags, record.labels
    return (
        (
            record.organization_id,
            record.provider,
            record.model_id,
            record.project_id,
            record.operation,
            record.service_tier,
            record.processing,
            record.region,
            entry.currency,
            entry.status,
            entry.card_id,
            entry.card_version,
            entry.origin_version,
            entry.fallbacks,
            entry.digest,
        ),
        (
            as_key(record.id),
            as_key(record.idempotency_key) or None,
            entry.fingerprint,
            to_micros(record.timestamp),
            record.request_count or 1,
            record.input_tokens,
            record.output_tokens,
            record.cached_tokens,
            micro,
            rest,
            record.user_id or None,
            # A tag counts a record once, however often it has it.
            _json(list(dict.fromkeys(tags))) if tags else None,
            _json(labels) if labels else None,
            _encoded(record),
        ),
        entry,
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _encoded(record: UsageRecord) -> bytes:
    try:
        return encode_struct(record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"a record can't be stored: {error}") from error


def _too_large(entry: Entry) -> RpcError:
    record = entry.record
    violations = [
        Violation(field, f"must be at most {LARGEST_COUNT:,}")
        for field in ("input_tokens", "output_tokens")
        if getattr(record, field) > LARGEST_COUNT
    ] or [Violation("", f"must cost at most {LARGEST_COST // 10**12:,} {entry.currency}")]
    message = "; ".join(f"{field} {rule}".strip() for field, rule in violations)
    return RpcError(StatusCode.INVALID_ARGUMENT, message, violations=violations)


def units_of(micro: int | None, rest: int | None) -> int | None:
    """The cost in 10^-12 that two columns hold."""
    return None if micro is None or rest is None else micro * _MICRO + rest


def decode_record(
    data: bytes, micro: int | None, rest: int | None, currency: str, status: str
) -> UsageRecord:
    """The record as it was given to the store, with its cost."""
    record = decode_usage(data)
    units = units_of(micro, rest)
    record.estimated_cost = None if units is None else from_units(units)
    record.currency = currency
    record.cost_status = CostStatus(status)
    return record


def decode_usage(data: bytes) -> UsageRecord:
    """The record as it was given to the store, without its cost."""
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


def ingested_at(data: bytes) -> datetime:
    """When a stored record was taken, without decoding the rest of it."""
    return _times.decode(data).ingested_at
