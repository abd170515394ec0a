from __future__ import annotations

from decimal import Decimal

import pytest

from llm_cost_ops.pricing.money import (
    divide_half_even,
    from_units,
    plain,
    product,
    thousandths,
    to_units,
)


@pytest.mark.parametrize(
    ("top", "bottom", "expected"),
    [(1, 2, 0), (3, 2, 2), (5, 2, 2), (7, 3, 2), (8, 3, 3), (0, 5, 0), (-1, 2, 0)],
)
def test_ties_go_to_the_even_number(top: int, bottom: int, expected: int) -> None:
    assert divide_half_even(top, bottom) == expected


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (0, "0"),
        (1, "0.000000000001"),
        (1_100, "0.0000000011"),
        (10**12, "1"),
        (10**14, "100"),
        (-15 * 10**11, "-1.5"),
        (112589990684262412500000, "112589990684.2624125"),
        (10**40 + 5, "10000000000000000000000000000.000000000005"),
        (10**45, "1000000000000000000000000000000000"),
    ],
)
def test_units_and_amounts(units: int, text: str) -> None:
    amount = from_units(units)
    assert f"{amount:f}" == text
    assert amount.as_tuple().exponent <= 0
    assert to_units(amount) == units


def test_amounts_are_rounded_half_even_at_twelve_places() -> None:
    assert to_units(Decimal("0.0000000000005")) == 0
    assert to_units(Decimal("0.0000000000015")) == 2
    assert to_units(Decimal("0.00000000000050000001")) == 1


@pytest.mark.parametrize(
    "value", [Decimal("NaN"), Decimal("Infinity"), Decimal("1e1000000"), Decimal("1e-90"), 1.5]
)
def test_what_is_no_amount(value: Decimal) -> None:
    with pytest.raises(ValueError, match=r"range|not a Decimal"):
        to_units(value)


def test_plain_form() -> None:
    assert [str(plain(Decimal(text))) for text in ("2.50", "1E+2", "0.00", "-3")] == ["2.5", "100", "0", "-3"]
    assert str(product([Decimal("0.5"), Decimal("1.10")])) == "0.55"
    assert str(product([])) == "1"
    assert [str(thousandths(count)) for count in (1500, 2000, 1)] == ["1.5", "2", "0.001"]
