"""The file that a catalog is kept in.

One line of JSON, the `Header`, and after it a zlib stream of JSON, the `Payload`. The header tells
the schema and the date without reading the rest, and carries a SHA-256 of the stream. Providers are
decoded when they are first asked for, models one at a time.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any, Literal, TypeVar

import msgspec

from llm_cost_ops.exceptions import CostOpsError

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PAYLOAD_BYTES",
    "SCHEMA",
    "CardRow",
    "CatalogError",
    "Header",
    "Match",
    "ModelRow",
    "MultiplierRow",
    "Payload",
    "ProviderRow",
    "RateRow",
    "WindowRow",
    "decode_rows",
    "read_bundle",
    "read_header",
    "write_bundle",
]

SCHEMA = 1
"""The schema that this package writes, and the newest that it reads."""
MAX_FILE_BYTES = 8 * 1024 * 1024
"""The largest file that is read."""
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""The largest payload that is unpacked."""

_FORMAT = "llm_cost_ops.catalog"
_MAX_HEADER_BYTES = 4096

RowT = TypeVar("RowT", bound=msgspec.Struct)


class CatalogError(CostOpsError):
    """A price catalog cannot be read, is not what it claims to be, or is newer than this package.

    The catalog that was in force before stays in force.
    """


class Header(msgspec.Struct, kw_only=True):
    """The first line: what the file is, without its prices.

    `published` is the ISO date of the data, `size` the bytes of the payload when unpacked.
    """

    format: str
    schema: int
    version: str
    published: str
    size: int
    sha256: str


class Match(msgspec.Struct, array_like=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pattern of model names: all text is lower case and compared with the lower-cased name."""

    kind: Literal["starts_with", "ends_with", "contains", "equals", "regex", "or", "and"]
    text: str = ""
    parts: list[Match] = []


class RateRow(msgspec.Struct, array_like=True, omit_defaults=True, forbid_unknown_fields=True):
    """The price of one meter. `tiers` holds (bound, inclusive, price) in rising order."""

    meter: str
    price: str
    per: int = 1_000_000
    tiers: list[tuple[int, bool, str]] = []
    minimum: int = 0
    included: int = 0


class WindowRow(msgspec.Struct, array_like=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of the day, as TimeWindow has it."""

    start: str
    end: str
    weekdays: list[int] = []
    time_zone: str = ""


class MultiplierRow(msgspec.Struct, array_like=True, omit_defaults=True, forbid_unknown_fields=True):
    """A factor, as PriceMultiplier has it."""

    kind: str
    value: str
    all_meters: bool = False


class CardRow(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One card. `since` and `until` are ISO dates, midnight in UTC, or times such as 2025-09-05T16:00Z;
    `url` indexes Payload.urls.
    """

    rates: list[RateRow]
    since: str = ""
    until: str = ""
    tier: str = ""
    processing: str = ""
    region: str = ""
    speed: str = ""
    currency: str = "USD"
    windows: list[WindowRow] = []
    multipliers: list[MultiplierRow] = []
    url: int = 0


class ModelRow(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One model and its cards. `aliases` are exact names beside `id`."""

    id: str
    name: str = ""
    aliases: list[str] = []
    cards: list[CardRow] = []


class ProviderRow(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The models of one provider.

    `names` maps every exact, lower-cased name to a model's place in `models`; `patterns` are tried
    in order after it; `fallbacks` are the providers whose models this one also serves.
    """

    name: str = ""
    fallbacks: list[str] = []
    names: dict[str, int] = {}
    patterns: list[tuple[int, Match]] = []
    models: list[msgspec.Raw] = []


class Payload(msgspec.Struct, kw_only=True):
    """Everything below the header.

    `aliases` maps other names of providers to theirs. `origins` names, for some of `urls`, the source
    and the version that their cards come from; all others come from that of the catalog.
    """

    version: str
    published: str
    urls: list[str]
    aliases: dict[str, str]
    providers: dict[str, msgspec.Raw]
    origins: dict[str, str] = {}


# Made as this is loaded: two threads that make the first one of a struct end the process, as `decoder_of` in
# `wire/json.py` says.
_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Header, Payload, ProviderRow, ModelRow)
}


def decode_rows(data: bytes | msgspec.Raw, kind: type[RowT]) -> RowT:
    """Decodes a part of a payload. Raises CatalogError."""
    try:
        rows: RowT = _decoders[kind].decode(data)
        return rows
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CatalogError(f"the price catalog is malformed: {error}") from error


def read_header(data: bytes) -> tuple[Header, int]:
    """Reads the first line. Returns it and where the payload begins. Raises CatalogError."""
    end = data.find(b"\n", 0, _MAX_HEADER_BYTES)
    if end < 0:
        raise CatalogError("not a price catalog: the header line is missing")
    try:
        header: Header = _decoders[Header].decode(data[:end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CatalogError(f"not a price catalog: {error}") from error
    if header.format != _FORMAT:
        raise CatalogError(f"not a price catalog: its format is {header.format[:64]!r}")
    if header.schema > SCHEMA:
        raise CatalogError(
            f"the price catalog has schema {header.schema}, newer than the {SCHEMA} that this version reads: "
            "upgrade llm-cost-ops"
        )
    if header.schema < 1:
        raise CatalogError(f"the price catalog has an unknown schema, {header.schema}")
    return header, end + 1


def read_bundle(data: bytes) -> tuple[Header, Payload]:
    """Reads a file: header, checksum, payload. Rows inside stay undecoded. Raises CatalogError."""
    if len(data) > MAX_FILE_BYTES:
        raise CatalogError(f"the price catalog has more than the limit of {MAX_FILE_BYTES} bytes")
    header, start = read_header(data)
    stream = memoryview(data)[start:]
    if hashlib.sha256(stream).hexdigest() != header.sha256:
        raise CatalogError("the price catalog is truncated or was changed: its checksum does not match")
    if not 0 <= header.size <= MAX_PAYLOAD_BYTES:
        raise CatalogError(f"the price catalog claims {header.size} bytes, the limit is {MAX_PAYLOAD_BYTES}")
    payload = decode_rows(_unpack(stream, header.size), Payload)
    if (payload.version, payload.published) != (header.version, header.published):
        raise CatalogError("the price catalog was changed: its header is not that of its payload")
    return header, payload


def _unpack(stream: memoryview, size: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(stream, size + 1)
    except zlib.error as error:
        raise CatalogError(f"the price catalog cannot be unpacked: {error}") from error
    if len(data) != size or not unpacker.eof or unpacker.unused_data:
        raise CatalogError(f"the price catalog does not unpack to the {size} bytes that it claims")
    return data


def write_bundle(payload: Payload) -> bytes:
    """Writes a file. The same payload gives the same bytes with the same zlib."""
    data = msgspec.json.encode(payload)
    stream = zlib.compress(data, 9)
    header = Header(
        format=_FORMAT,
        schema=SCHEMA,
        version=payload.version,
        published=payload.published,
        size=len(data),
        sha256=hashlib.sha256(stream).hexdigest(),
    )
    return msgspec.json.encode(header) + b"\n" + stream
