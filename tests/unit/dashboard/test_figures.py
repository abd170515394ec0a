"""Figures as people read them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.dashboard.figures import compact, count, exact, money, percent, price
from llm_cost_ops.pricing.money import from_units

amounts = st.integers(-(10**24), 10**24).map(from_units)


@given(amounts)
def test_exact_amounts_have_every_digit(value: Decimal) -> None:
    assert Decimal(exact(value)) == value
    assert "E" not in exact(value)


@given(amounts.filter(lambda value: value >= 0))
def test_prices_have_every_digit_and_two_places(value: Decimal) -> None:
    text = price(value, "USD")
    assert Decimal(text.removeprefix("$")) == value
    assert len(text.partition(".")[2]) >= 2


@given(amounts)
def test_money_is_near_and_reads_as_nothing_only_when_it_is_nothing(value: Decimal) -> None:
    shown = Decimal(money(value, "USD").replace("−", "-").replace("$", "").replace(",", ""))
    assert (shown == 0) == (value == 0)
    assert abs(shown - value) <= max(Decimal("0.005"), abs(value) / 100)
    assert abs(shown - value) <= max(abs(value) / 100, Decimal("0.0000000000005"))


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_part_reads_as_none_or_all_only_when_it_is(part: int, more: int) -> None:
    whole = part + more - 1 or 1
    shown = percent(Decimal(part) / Decimal(whole))
    assert (shown == "0.0 %") == (part == 0)
    assert (shown == "100.0 %") == (part == whole)


@pytest.mark.parametrize(
    ("value", "currency", "text"),
    [
        ("1234.5678", "USD", "$1,234.57"),
        ("0", "USD", "$0.00"),
        ("0.5", "EUR", "€0.50"),
        ("0.0123456", "USD", "$0.0123"),
        ("0.0000063", "USD", "$0.0000063"),
        ("0.999999", "USD", "$1.00"),
        ("-3.2", "USD", "−$3.20"),
        ("1234", "JPY", "¥1,234"),
        ("12", "CHF", "CHF 12.00"),
    ],
)
def test_amounts(value: str, currency: str, text: str) -> None:
    assert money(Decimal(value), currency) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9999, "9,999"),
        (12_345, "12.3 K"),
        (999_499, "999 K"),
        (999_999, "1.00 M"),
        (1_234_567, "1.23 M"),
        (5 * 10**12, "5.00 T"),
    ],
)
def test_counts_in_three_digits(value: int, text: str) -> None:
    assert compact(value) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert money(None, "USD") == count(None) == percent(None) == "–"
