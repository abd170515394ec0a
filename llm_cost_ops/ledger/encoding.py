"""How every ledger keeps records: ids, keys, moments, and fields as JSON that nothing is lost in;
and what a kept record may hold.

The id of a record follows from its organization and key. So one index on (organization, id) finds a record
by its id, and tells whether a key was used before: the key beside the id is compared, since two keys may have
the same id.
"""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import AuditEvent, RateCard, UsageRecord
from llm_cost_ops.ledger.types import ApiKey
from llm_cost_ops.pricing.money import UNITS
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_argument, invalid_arguments
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST
from llm_cost_ops.rules.requests import known_total
from llm_cost_ops.wire.decimals import WireDecimal
from llm_cost_ops.wire.json import builtin_value, decoder_of
from llm_cost_ops.wire.unknown import Unknown

__all__ = [
    "MAX_UNITS",
    "NumberedIds",
    "as_key",
    "as_text",
    "audit_event",
    "card_line",
    "card_of",
    "card_order",
    "check_cost",
    "check_counts",
    "check_record_cost",
    "decode_usage",
    "encode_struct",
    "encode_texts",
    "encode_usage",
    "from_micros",
    "key_columns",
    "key_of",
    "struct_decoder",
    "to_micros",
    "usage_id",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LENGTH = 36
_TAIL = 2**60 - 1
_organizations = msgspec.json.Decoder(tuple[str, ...])
MAX_UNITS = MAX_RECORD_COST * UNITS
"""MAX_RECORD_COST in 10^-12."""


def usage_id(organization_id: str, key: str, attempt: int = 0) -> tuple[str, bytes, str | bytes | None]:
    """The id of the record with a key, as text and as it is stored, and the key as it is stored.

    The id is a UUID (RFC 9562), another one each time without a key. Of a key that begins with a UUID of
    version 7 it keeps the first 18 characters, so that ids which are made one after the other lie together
    in the index; the rest is a hash, as is all of it for another key (version 8). The hash of a batch's key
    plus the number after it is the rest for the keys of a batch. Where another key of the organization has
    that id already, the next `attempt` gives another one.

        key 01a20359-ab54-7000-bc5b-ba4c242805a1    id 01a20359-ab54-7000-8…
        key 01a20359-ab54-7000-bc5b-ba4c242805a1:7  id 01a20359-ab54-7000-9…
        key chatcmpl-123                            id ………-…-8…-8…
    """
    if not key:
        made = uuid7()
        return made, bytes.fromhex(made.replace("-", "")), None
    if attempt:
        organization_id += f" {attempt}"
    if len(key) > _LENGTH and (ids := NumberedIds.of(organization_id, key[:_LENGTH])) is not None:
        # As the keys in a batch: those of a call, and a number after it. Their ids lie next to each other.
        rest = key[_LENGTH:]
        if rest[0] == ":" and len(rest) < 12 and rest[1:].isdecimal():
            number = int(rest[1:])
        else:
            number = int.from_bytes(sha256(rest.encode()).digest()[:8], "big")
        return *ids.at(number), key
    stored = as_key(key)
    if type(stored) is bytes and key[14] == "7":
        h = sha256(stored + organization_id.encode()).hexdigest()
        made = f"{key[:18]}-8{h[:3]}-{h[3:15]}"
    else:
        h = _hash(organization_id, key).hex()
        made = f"{h[:8]}-{h[8:12]}-8{h[12:15]}-8{h[15:18]}-{h[18:30]}"
    return made, bytes.fromhex(made.replace("-", "")), stored


def _hash(organization_id: str, key: str) -> bytes:
    # Of their bytes: in a text, a value of a class derived from str may stand as something else.
    return sha256(b"%d %b %b" % (len(organization_id), organization_id.encode(), key.encode())).digest()


class NumberedIds:
    """The ids of the records whose keys are one key, a UUID of version 7, and a number after it."""

    __slots__ = ("_beginning", "_first", "_text")

    def __init__(self, organization_id: str, key: str) -> None:
        h = _hash(organization_id, key)
        self._first = int.from_bytes(h[:8], "big")
        self._text = key[:18]
        self._beginning = bytes.fromhex(key[:18].replace("-", ""))

    def at(self, number: int) -> tuple[str, bytes]:
        """The id of the record with a number, as text and as it is stored."""
        end = (9 << 60 | self._first + number & _TAIL).to_bytes(8, "big")
        return f"{self._text}-{end.hex('-', 6)}", self._beginning + end

    @staticmethod
    def of(organization_id: str, key: str) -> NumberedIds | None:
        """None for a key that is no UUID of version 7 in its canonical form."""
        return _numbered(organization_id, key) if key[14:15] == "7" else None


@lru_cache(maxsize=64)
def _numbered(organization_id: str, key: str) -> NumberedIds | None:
    return None if type(as_key(key)) is str else NumberedIds(organization_id, key)


def as_key(text: str) -> str | bytes:
    """What an id or a key is stored as: 16 bytes where it is a UUID in its canonical form."""
    if len(text) == _LENGTH and text[8:24:5] == "----":
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


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970, exactly; a naive datetime is in UTC."""
    since = moment - _EPOCH if moment.tzinfo is not None else moment.replace(tzinfo=UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    """The moment, in UTC; OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=micros)


def _write(value: object) -> object:
    # Unknown JSON is kept as text: decoded and encoded again it might not be the same.
    if type(value) is Unknown:
        texts = {name: bytes(raw).decode() for name, raw in value.json.items()}
        return {"binary": bytes(value.binary), "json": texts}
    return builtin_value(value, "can't store a {}")


def _read(kind: Any, value: Any) -> object:
    if kind is WireDecimal:
        return Decimal(value)
    if kind is Unknown:
        texts = {name: msgspec.Raw(text.encode()) for name, text in value["json"].items()}
        return Unknown(b64decode(value["binary"]), texts)
    raise TypeError(f"can't read a {kind}")


def struct_decoder(kind: type[object]) -> msgspec.json.Decoder[Any]:
    """Reads structs of a type from what `encode_struct` made of them."""
    return decoder_of(kind, _read)


# Maps are sorted, so that their order makes no other content.
encode_struct = msgspec.json.Encoder(enc_hook=_write, order="deterministic").encode
encode_texts = msgspec.json.Encoder(enc_hook=_write).encode
"""Lists and maps of texts as JSON."""
_records = struct_decoder(UsageRecord)
_cards = struct_decoder(RateCard)


@lru_cache(maxsize=128)
def card_of(data: bytes | str) -> RateCard:
    """A card that priced records, read once, so that it is compiled once: it is not to be changed."""
    card: RateCard = _cards.decode(data)
    return card


def encode_usage(record: UsageRecord) -> bytes:
    """The record as the caller sent it; INVALID_ARGUMENT for what is no value of its field."""
    try:
        return encode_struct(record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"a record can't be stored: {error}") from error


def decode_usage(data: bytes | str) -> UsageRecord:
    """The record as the caller sent it, with its total, which may not have been stored."""
    try:
        record: UsageRecord = _records.decode(data)
    except msgspec.ValidationError:
        # A newer version wrote fields that this one does not know: they stay with the record.
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        known = {info.encode_name for info in msgspec.structs.fields(UsageRecord)}
        unknown = {name: msgspec.Raw(bytes(fields.pop(name))) for name in fields.keys() - known}
        record = _records.decode(msgspec.json.encode(fields))
        record.unknown_ = Unknown(json=unknown)
    if record.total_tokens is None:
        record.total_tokens = known_total(record)
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
    if units is not None and not -MAX_UNITS <= units <= MAX_UNITS:
        raise invalid_arguments([Violation("a record", f"must cost at most {MAX_RECORD_COST:,} {currency}")])


def check_record_cost(units: int | None, currency: str) -> None:
    """Refuse a cost in 10^-12 of a currency that is above MAX_RECORD_COST: INVALID_ARGUMENT."""
    if units is not None and units > MAX_UNITS:
        rule = f"and the other counts come to more than {MAX_RECORD_COST:,} {currency}"
        raise invalid_argument("input_tokens", rule)


def key_columns(key: ApiKey) -> tuple[object, ...]:
    """An API key as the columns of its row."""
    return (
        key.id,
        key.hash,
        key.name,
        key.role,
        None if key.organizations is None else msgspec.json.encode(key.organizations).decode(),
        to_micros(key.created_at),
        None if key.expires_at is None else to_micros(key.expires_at),
        None if key.revoked_at is None else to_micros(key.revoked_at),
    )


def key_of(row: tuple[Any, ...]) -> ApiKey:
    """The API key of a row."""
    key_id, digest, name, role, organizations, created, expires, revoked = row
    return ApiKey(
        id=key_id,
        hash=bytes(digest),
        name=name,
        role=role,
        organizations=None if organizations is None else _organizations.decode(organizations),
        created_at=from_micros(created),
        expires_at=None if expires is None else from_micros(expires),
        revoked_at=None if revoked is None else from_micros(revoked),
    )


def audit_event(
    seq: int, made: int, actor: str, org: str, action: str, subject: str, details: str
) -> AuditEvent:
    """The event of a row of the audit log."""
    return AuditEvent(
        number=seq,
        made_at=from_micros(made),
        actor=actor,
        organization_id=org,
        action=action,
        subject=subject,
        details=msgspec.json.decode(details),
    )


def card_line(card: RateCard) -> str:
    """What a card is a version of."""
    dimensions = (card.region, card.service_tier, card.processing, card.speed, card.currency)
    names = (card.organization_id, card.provider, card.model_id, *dimensions)
    return encode_texts(names).decode()


def card_order(card: RateCard) -> tuple[str, str, int, int]:
    """Cards sort by provider, model, date and version."""
    since = -(2**62) if card.effective_from is None else to_micros(card.effective_from)
    return card.provider, card.model_id, since, card.version
