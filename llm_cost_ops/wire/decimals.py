r"""Decimals as text: one grammar, `-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?`, in and out."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

__all__ = ["WireDecimal", "from_json_number", "from_text", "plain"]

_GRAMMAR = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_MAX_TEXT = 100

if TYPE_CHECKING:
    WireDecimal = Decimal
else:

    class _AnyDecimal(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, Decimal)

    class WireDecimal(metaclass=_AnyDecimal):
        """Decimal, as generated structs annotate it.

        msgspec reads a Decimal from text that is none of ours ("1_000", "NaN", "1e999999999"). A type that
        it doesn't know it leaves to the codec's hook, which holds the text against the grammar.
        """


def from_text(text: str) -> Decimal:
    """The decimal that a text is in the one grammar; ValueError for any other text."""
    if _GRAMMAR.fullmatch(text) is None:
        raise ValueError(
            "must be a plain decimal such as 0.015, with at most 18 digits before and 18 after the point"
        )
    return Decimal(text)


def from_json_number(text: str) -> Decimal:
    """The decimal that a JSON number is, exactly; an exponent is taken and resolved.

    Raises ValueError when the plain form would leave the grammar.
    """
    if len(text) > _MAX_TEXT or _NUMBER.fullmatch(text) is None:
        raise ValueError("must be a plain decimal number")
    return from_text(plain(Decimal(text)))


def plain(value: Decimal) -> str:
    """The text of a finite decimal without an exponent, as "0.0000000011".

    Raises ValueError for NaN, infinity, and what is too large or too fine for the grammar, which also
    keeps an exponent such as 1E+999999999 from being written out.
    """
    text = str(value)
    if len(text) < 19 and text.replace(".", "").isdecimal():
        # Nearly every amount and price. Neither NaN, nor an exponent, whose letter is that of the context.
        return text
    exponent = value.as_tuple().exponent
    if isinstance(exponent, str):
        raise ValueError("must be a finite number")
    if (value and not -18 <= value.adjusted() < 18) or exponent < -_MAX_TEXT:
        raise ValueError("must have at most 18 digits before and 18 after the point")
    if not value and exponent > 0:
        return "0"
    text = format(value, "f")
    if exponent < -18:
        whole, _, fraction = text.partition(".")
        fraction = fraction.rstrip("0")
        if len(fraction) > 18:
            raise ValueError("must have at most 18 digits after the point")
        text = f"{whole}.{fraction}" if fraction else whole
    return text
