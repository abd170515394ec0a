"""Enums that a newer peer may extend."""

from __future__ import annotations

import enum
from typing import Self

__all__ = ["OpenEnum"]

_MIN, _MAX = -(2**31), 2**31 - 1


class _Numbered(str):  # noqa: SLOT000 - members have a __dict__ in any case
    number: int | None
    known: bool


class OpenEnum(_Numbered, enum.Enum):
    """A string enum with protobuf numbers, which keeps values that it does not know.

    Members are strings: `Interval.DAY == "day"`, and hash like them. Look-up takes the value in any case,
    or the name of an alias. Any other string becomes a member that is not registered and equals the
    string, and whose `known` is False. One that is a number ("99") stands for an unknown protobuf number; one
    that is not has `number` None, and protobuf cannot carry it.
    """

    def __new__(cls, value: str, number: int | None = None) -> Self:
        member = _Numbered.__new__(cls, value)
        member._value_ = value
        member.number = number
        member.known = True
        return member

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        known = cls.__members__.get(value.upper())
        if known is not None:
            return known
        number = _parse(value)
        if number is not None:
            for candidate in cls:
                if candidate.number == number:
                    return candidate
        member = _Numbered.__new__(cls, value)
        member._name_ = value.upper()
        member._value_ = value
        member.number = number
        member.known = False
        return member

    # Before Python 3.11.4 Enum's own go by the name, by which a value that is not known can't be found.
    def __reduce_ex__(self, _: object) -> tuple[type[Self], tuple[str]]:
        return self.__class__, (self._value_,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    # Enum's own hash is of the name; a str must hash as str does.
    __hash__ = str.__hash__

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, spec: str) -> str:
        return str.__format__(self, spec)


def _parse(value: str) -> int | None:
    """The number in canonical form, if it is one and fits in an int32."""
    if value.isascii() and value.removeprefix("-").isdigit() and len(value) <= 11:
        number = int(value)
        if str(number) == value and _MIN <= number <= _MAX:
            return number
    return None
