"""What the readers of known files share: values out of their objects, and records out of values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from hashlib import blake2b
from typing import Any, NamedTuple

from llm_cost_ops.normalizers.providers import UNIQUE_IDS, detect_provider, is_random
from llm_cost_ops.types import ModalityTokens, UsageRecord
from llm_cost_ops.wire import coerce

__all__ = [
    "Format",
    "Found",
    "Part",
    "State",
    "cost",
    "count",
    "has_unsure_key",
    "identity",
    "made",
    "moment",
    "nested",
    "part_of",
    "provider_of",
    "text",
    "whole",
    "whole_input",
]

State = dict[str, Any]
"""What a reader remembers from one object of a file to the next."""


class Part(NamedTuple):
    """A record out of an object, or why there is none; `where` is its place there, "" for the whole."""

    where: str
    record: UsageRecord | str


Found = Iterator[Part]


def part_of(where: str, read: Callable[[], UsageRecord | str]) -> Part:
    """The record that `read` gives; why there is none where it raises ValueError."""
    try:
        return Part(where, read())
    except ValueError as error:
        return Part(where, str(error))


class Format(NamedTuple):
    """A kind of file that is recognised by its shape.

    `matches` looks at one object of a file, or at a row with all its columns; `read` gives its records, none
    for an object that is not a call. `last_counts` says that a key may come several times, and that the last
    one holds; `is_log` that its files have objects of other kinds, which are passed over.
    """

    name: str
    matches: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any], State], Found]
    last_counts: bool = False
    is_log: bool = False


def text(obj: dict[str, object], *names: str) -> str:
    """The first of some fields that holds text; "" where none does."""
    for name in names:
        value = obj.get(name)
        if isinstance(value, str) and value:
            return value
    return ""


def nested(obj: dict[str, object], *names: str) -> dict[str, Any]:
    """The first of some fields that holds an object, in a table as JSON; {} where none does."""
    for name in names:
        value = obj.get(name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if isinstance(value, dict) and value:
            return value
    return {}


def whole(number: str) -> int | str:
    """A 64-bit whole number written as text, as in OTLP's JSON; any other text is returned as it is."""
    return int(number) if re.fullmatch(r"-?[0-9]{1,19}", number) else number


def count(obj: dict[str, object], *names: str) -> int | None:
    """The first of some fields that is given, as a count; None where none is.

    Raises ValueError, with the field, for what is no whole number.
    """
    for name in names:
        value = obj.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}(\.0+)?", value.strip()):
            return int(value.strip().partition(".")[0])
        if type(value) is int and value >= 0:
            return value
        if isinstance(value, float) and value >= 0 and value.is_integer():
            return int(value)
        raise ValueError(f"{name} must be a whole number of 0 or more, not {str(value)[:40]!r}")
    return None


def cost(value: object, name: str, *, per: int = 1) -> Decimal | None:
    """An amount of money, divided by `per`, to 12 places; None where it is not given.

    Raises ValueError, with the name of the field, for what is no amount.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InvalidOperation
        amount = Decimal(value.strip() if isinstance(value, str) else repr(value)) / per
        if not amount.is_finite():
            raise InvalidOperation
        if amount != amount.quantize(Decimal("1E-12")):
            amount = amount.quantize(Decimal("1E-12"), ROUND_HALF_EVEN)
    except ArithmeticError:
        raise ValueError(f"{name} must be an amount of money, not {str(value)[:40]!r}") from None
    return amount


def moment(value: object) -> datetime | None:
    """A time from its text, or from seconds, milli- or nanoseconds since 1970; None where none is given.

    Raises ValueError for what is no time: taken as none, it would be priced as of today.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{9,20}(\.[0-9]+)?", value):
        value = float(value) if "." in value else int(value)
    found: Any = None
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 10**20:
        # The size tells the unit: read in any of them, no time is before 1973.
        for least, unit in ((10**17, 10**9), (10**14, 10**6), (10**11, 10**3), (10**8, 1)):
            if value >= least:
                return _EPOCH + timedelta(microseconds=value * 10**6 // unit)
    elif isinstance(value, str):
        found = coerce.instant(value.removesuffix(" UTC"))
        if not isinstance(found, datetime):
            try:
                found = datetime.fromisoformat(value)
            except ValueError:
                found = None
    if not isinstance(found, datetime):
        raise ValueError(f"{str(value)[:40]!r} is not a time")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def identity(format_name: str, *parts: object) -> str:
    """The key of a row that has no id: who reads it again, later or from another page, finds the same one."""
    digest = blake2b(json.dumps([str(part) for part in parts]).encode(), digest_size=16)
    return f"{format_name}:{digest.hexdigest()}"


def provider_of(model: str) -> str:
    """Who makes a model, by its name, as it is found out for responses; "" where that is not known."""
    return detect_provider({"model": model}, "openai.chat")


# Their protocols are spoken by servers that people run themselves, which count ids from 0 after each start.
_IMITATED = frozenset({"anthropic", "openai"})


def has_unsure_key(record: UsageRecord) -> bool:
    """Whether two calls may have the response id that a record's key is made of.

    What watches from outside is not told whose server it was, so that the id of one that anybody may run
    counts only where it looks random.
    """
    known = record.provider in UNIQUE_IDS - _IMITATED
    return not known and not is_random(record.idempotency_key.removeprefix(f"{record.provider}:"))


def whole_input(
    stated: int | None, cached: int, written: int, output: int | None, total: int | None
) -> int | None:
    """All that went in, where a source may count cached tokens within its input or beside it.

    The total tells which; so does a cache that is larger than what it should be a part of. None is not known.
    """
    if stated is None:
        return None
    beside = stated + cached + written
    if cached + written > stated or (total is not None and total == beside + (output or 0)):
        return beside
    return stated


def made(
    *, cached: int | None = None, written: int | None = None, audio: Iterable[int | None] = (), **fields: Any
) -> UsageRecord:
    """A record of the fields that are known; those that are None are left out.

    `audio` is input, cached and output.
    """
    known = {name: value for name, value in fields.items() if value is not None}
    record = UsageRecord(**known)
    record.cached_tokens = cached or 0
    record.cache_write_tokens = written or 0
    heard = [part or 0 for part in audio]
    if any(heard):
        record.modality = ModalityTokens(
            input_audio_tokens=heard[0], cached_audio_tokens=heard[1], output_audio_tokens=heard[2]
        )
    return record
