"""Structs as every ledger keeps them: JSON that nothing is lost in; and what a kept record may hold."""

from __future__ import annotations

from base64 import b64decode
from decimal import Decimal
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.pricing.money import UNITS
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_arguments
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST
from llm_cost_ops.wire.decimals import WireDecimal
from llm_cost_ops.wire.unknown import Unknown

__all__ = [
    "check_cost",
    "check_counts",
    "decode_usage",
    "encode_struct",
    "encode_usage",
    "struct_decoder",
]

_MAX_COST_UNITS = MAX_RECORD_COST * UNITS


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


def encode_usage(record: UsageRecord) -> bytes:
    """The record as the caller sent it; INVALID_ARGUMENT for what is no value of its field."""
    try:
        return encode_struct(record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"a record can't be stored: {error}") from error


def decode_usage(data: bytes | str) -> UsageRecord:
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


def check_counts(record: UsageRecord) -> None:
    """INVALID_ARGUMENT for counts that are larger than sums can hold."""
    if (record.input_tokens or 0) <= MAX_COUNT and (record.output_tokens or 0) <= MAX_COUNT:
        return
    raise invalid_arguments(
        [
            Violation(field, f"must be at most {MAX_COUNT:,}")
            for field in ("input_tokens", "output_tokens")
            if (getattr(record, field) or 0) > MAX_COUNT
        ]
    )


def check_cost(units: int | None, currency: str) -> None:
    """INVALID_ARGUMENT for a cost, in 10^-12, that is larger than MAX_RECORD_COST."""
    if units is not None and not -_MAX_COST_UNITS <= units <= _MAX_COST_UNITS:
        raise invalid_arguments([Violation("a record", f"must cost at most {MAX_RECORD_COST:,} {currency}")])
