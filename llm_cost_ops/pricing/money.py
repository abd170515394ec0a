"""Money inside the engine: whole numbers of 10^-12 of a currency, called units.

Nothing here reads or changes the caller's decimal context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Rounded

__all__ = [
    "PLACES",
    "UNITS",
    "divide_half_even",
    "from_units",
    "plain",
    "product",
    "ratio_of",
    "thousandths",
    "to_units",
    "whole",
]

PLACES = 12
UNITS = 10**PLACES

# Wide enough for every amount that fits the grammar, times any count: no operation below rounds.
_context = Context(prec=200, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_multiply = _context.multiply
_normalize = _context.normalize
_MILLI = Decimal("1E-3")
_UNIT = Decimal("1E-12")
# A quotient comes without trailing zeros, and a narrow context makes it at less than half the cost.
_divide = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Rounded]).divide
_PER_ONE = Decimal(UNITS)
# The count as a Decimal; TypeError for a float. The bare method, since every line of a cost needs it.
whole: Callable[[int], Decimal] = _context.plus


def divide_half_even(numerator: int, denominator: int) -> int:
    """The nearest whole number, a tie going to the even one. The denominator is above 0."""
    quotient, rest = divmod(numerator, denominator)
    twice = rest + rest
    if twice > denominator or (twice == denominator and quotient & 1):
        return quotient + 1
    return quotient


def ratio_of(value: Decimal) -> tuple[int, int]:
    """The value as an exact fraction in lowest terms.

    ValueError for what is no number, or is so large or small that no price or amount can be.
    """
    if type(value) is not Decimal:
        raise ValueError(f"{value!r} is not a Decimal")
    if not value.is_finite() or not -60 < value.adjusted() < 60:
        raise ValueError(f"{value} is out of range")
    return value.as_integer_ratio()


def to_units(value: Decimal) -> int:
    """An amount in 10^-12, rounded half-even where it has more than 12 places; ValueError as `ratio_of`."""
    numerator, denominator = ratio_of(value)
    return divide_half_even(numerator * UNITS, denominator)


def from_units(units: int) -> Decimal:
    """The amount of so many 10^-12, exact and without trailing zeros; TypeError for a float."""
    try:
        return _divide(units, _PER_ONE)
    except Rounded:
        return plain(_multiply(units, _UNIT))


def plain(value: Decimal) -> Decimal:
    """The same number without trailing zeros after the point, and without a positive exponent."""
    if value == value.to_integral_value():
        return Decimal(int(value))
    return _normalize(value)


def product(values: Iterable[Decimal]) -> Decimal:
    """The exact product, in plain form; 1 of none."""
    result = Decimal(1)
    for value in values:
        result = _multiply(result, value)
    return plain(result)


def thousandths(count: int) -> Decimal:
    """So many 1/1000, as milliseconds are of a second."""
    return plain(_multiply(count, _MILLI))
