"""Figures as people read them. Decimals are rounded as decimals; floats are for pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from zoneinfo import ZoneInfo

from llm_cost_ops.pricing.money import plain

__all__ = [
    "change",
    "compact",
    "count",
    "exact",
    "moment",
    "money",
    "percent",
    "price",
    "ratio",
    "share",
    "spark_points",
]

_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "CNY": "CN¥"}
_NO_CENTS = {"JPY", "KRW", "VND", "CLP"}
NONE = "–"
_SPARK_WIDTH, _SPARK_HEIGHT = 96, 24


def exact(value: Decimal | None) -> str:
    """Every digit of an amount; "" for none."""
    return "" if value is None else f"{plain(value):f}"


def price(value: Decimal, currency: str) -> str:
    """A price, with every digit and at least two places."""
    whole, _, places = exact(value).partition(".")
    return _with_symbol(f"{whole}.{places.ljust(2, '0')}", currency)


def money(value: Decimal | None, currency: str, *, signed: bool = False) -> str:
    """An amount, to cents; what is below 1 to three digits that are not 0. What is not 0 never reads so."""
    if value is None:
        return NONE
    places = 0 if currency in _NO_CENTS else 2
    size = abs(value)
    if 0 < size < 1:
        places = max(places, 2 - size.adjusted())
    rounded = f"{_EXACT.quantize(size, Decimal(1).scaleb(-places)):,f}"
    if places > 2:
        whole, _, cents = rounded.partition(".")
        rounded = f"{whole}.{cents.rstrip('0').ljust(2, '0')}"
    sign = "−" if value < 0 else "+" if signed and value > 0 else ""
    return sign + _with_symbol(rounded, currency)


def _with_symbol(text: str, currency: str) -> str:
    symbol = _SYMBOLS.get(currency)
    return f"{symbol}{text}" if symbol else f"{currency} {text}"


def count(value: int | Decimal | None) -> str:
    """A count, whole."""
    return NONE if value is None else f"{_EXACT.quantize(Decimal(value), Decimal(1)):,f}"


def compact(value: int) -> str:
    """A count in three digits: 12.3 M."""
    # What rounds up to the next unit is in that.
    for size, unit, least in (
        (10**12, "T", 999_500_000_000),
        (10**9, "B", 999_500_000),
        (10**6, "M", 999_500),
        (10**3, "K", 10_000),
    ):
        if value >= least:
            scaled = _EXACT.divide(Decimal(value), Decimal(size))
            places = max(0, 2 - max(0, scaled.adjusted()))
            return f"{_EXACT.quantize(scaled, Decimal(1).scaleb(-places)):f} {unit}"
    return f"{value:,}"


def ratio(part: Decimal | int, whole: Decimal | int) -> Decimal | None:
    """A part of a whole; None of nothing."""
    return _EXACT.divide(Decimal(part), Decimal(whole)) if whole else None


def share(part: Decimal | int, whole: Decimal | int) -> float:
    """A part of a whole in 0 to 100, for the length of a bar."""
    found = ratio(part, whole)
    return 0.0 if found is None else round(float(min(max(found, Decimal(0)), Decimal(1))) * 100, 2)


def percent(value: Decimal | None, *, signed: bool = False) -> str:
    """A part in hundredths, to one place. Neither a small part reads as none, nor a large one as all."""
    if value is None:
        return NONE
    hundredths = _EXACT.multiply(value, Decimal(100))
    if not signed and 0 < hundredths < Decimal("0.05"):
        return "< 0.1 %"
    if not signed and Decimal("99.95") <= hundredths < 100:
        return "> 99.9 %"
    rounded = _EXACT.quantize(abs(hundredths), Decimal("0.1"))
    sign = "" if not rounded else "−" if hundredths < 0 else "+" if signed else ""
    return f"{sign}{rounded:,f} %"


def change(now: Decimal | int, before: Decimal | int) -> Decimal | None:
    """How much has changed, as a part of what was before; None where that was nothing."""
    if not before:
        return None
    return _EXACT.divide(Decimal(now) - Decimal(before), Decimal(before))


def moment(value: datetime | None, zone: ZoneInfo, *, seconds: bool = True) -> str:
    """A moment on the clocks of a zone."""
    if value is None:
        return NONE
    return (
        f"{value.astimezone(zone):%Y-%m-%d %H:%M:%S}"
        if seconds
        else f"{value.astimezone(zone):%Y-%m-%d %H:%M}"
    )


def spark_points(values: Sequence[Decimal]) -> str:
    """The points of a polyline in a box of 96 by 24."""
    if len(values) < 2:
        return ""
    top = max(values)
    step = _SPARK_WIDTH / (len(values) - 1)
    heights = [float(value / top) if top else 0.0 for value in values]
    return " ".join(
        f"{place * step:.1f},{_SPARK_HEIGHT - 2 - height * (_SPARK_HEIGHT - 4):.1f}"
        for place, height in enumerate(heights)
    )
