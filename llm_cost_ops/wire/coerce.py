"""What generated methods do to arguments before they are fields. Nothing here raises for a bad argument:
it is left as it is, and the generated validator names its field.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from llm_cost_ops.wire.decimals import from_text
from llm_cost_ops.wire.json import to_utc
from llm_cost_ops.wire.open_enum import OpenEnum

__all__ = [
    "decimal",
    "decimals",
    "instant",
    "listed",
    "mapping",
    "member",
    "members",
    "moment",
    "overlaid",
    "texts",
]

E = TypeVar("E", bound=OpenEnum)

_SHORT_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}([Zz]|[+-]\d{2}:\d{2})?)?", re.ASCII)


def decimal(value: object) -> Any:
    """A decimal from its text or from an int."""
    if isinstance(value, str):
        try:
            return from_text(value)
        except ValueError:
            return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    return value


def decimals(value: object) -> Any:
    """Decimals from their texts."""
    elements = listed(value)
    return [decimal(each) for each in elements] if isinstance(elements, list) else elements


def member(enum: type[E], value: object) -> Any:
    """A member from its string. One that this version does not know stays a string, as a typo is one."""
    if type(value) is not str:
        return value
    found = enum(value)
    return found if found.known else value


def members(enum: type[E], value: object) -> Any:
    """Members from their strings; one string is a list of one."""
    if isinstance(value, str):
        return [member(enum, value)]
    elements = listed(value)
    return [member(enum, each) for each in elements] if isinstance(elements, list) else elements


def instant(value: object) -> Any:
    """A time in UTC, also from RFC 3339 text; a date is its midnight, and a time may go without seconds."""
    if isinstance(value, str):
        try:
            short = _SHORT_TIME.fullmatch(value)
            value = datetime.fromisoformat(value) if short else msgspec.convert(value, datetime)
        except ValueError:
            return value
    elif isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        try:
            return to_utc(value)
        except OverflowError:
            return value
    return value


def moment(value: Any) -> Any:
    """The text of a time or of a date."""
    if isinstance(value, datetime):
        value = instant(value)
        return value.isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value


def overlaid(record: Any, fields: Any) -> Any:
    """A ready message with the fields that are given beside it, which win; a copy where there are any."""
    blank = type(fields)()
    if fields == blank:
        return record  # mostly; to look at each field takes ten times as long
    given = {
        name: value
        for name in fields.__struct_fields__
        if (value := getattr(fields, name)) is not getattr(blank, name) and value != getattr(blank, name)
    }
    # Of another type, the validator says what it should have been.
    if not given or type(record) is not type(fields):
        return record
    copied = record.__copy__()
    for name, value in given.items():
        setattr(copied, name, value)
    return copied


def texts(value: object) -> Any:
    """A list of strings; one string is a list of one."""
    return [value] if isinstance(value, str) else listed(value)


def listed(value: Any) -> Any:
    """A list from any other sequence or iterable of that kind."""
    if value is None:
        return []
    if isinstance(value, tuple | set | frozenset) or hasattr(value, "__next__"):
        return list(value)
    return value


def mapping(value: object) -> Any:
    """A dict; none for None."""
    return {} if value is None else value
