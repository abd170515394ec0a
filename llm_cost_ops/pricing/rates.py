"""What a card charges for each meter: every price is a whole fraction of 10^-12 for one unit."""

from __future__ import annotations

from decimal import Decimal
from math import gcd

from llm_cost_ops._gen.messages import Rate, RateCard, TierMode
from llm_cost_ops.pricing.meters import RATE_FALLBACKS
from llm_cost_ops.pricing.money import UNITS, divide_half_even, plain, product, ratio_of
from llm_cost_ops.rules.cards import card_error
from llm_cost_ops.rules.meters import TOKEN_METERS

__all__ = ["CompiledRate", "compiled_rates"]


class CompiledRate:
    """What one meter costs. `scale` is how many counts make one unit of the meter: 1 or 1000."""

    __slots__ = (
        "bands",
        "flat",
        "included",
        "meter",
        "minimum",
        "multiplier",
        "per",
        "prices",
        "scale",
        "shown",
        "starts",
        "steps",
        "whole",
    )

    def __init__(self, rate: Rate, multipliers: list[Decimal], scale: int, *, graduated: bool) -> None:
        self.meter = rate.meter.upper()
        self.per = rate.per or 1_000_000
        self.scale = scale
        self.minimum = rate.minimum * scale
        self.included = rate.included * scale
        self.flat = not rate.minimum and not rate.included
        self.multiplier = product(multipliers)
        tiers = sorted(rate.tiers, key=lambda tier: tier.above) if graduated else rate.tiers
        prices = [rate.price, *(tier.price for tier in tiers)]
        self.steps = [self._step(price) for price in prices]
        self.prices = [plain(price) for price in prices]
        # Counts are whole, so a price above a bound begins at the next one.
        self.starts = [tier.above if tier.inclusive else tier.above + 1 for tier in tiers]
        self.bands = [tier.above * scale for tier in tiers] if graduated and tiers else None
        # The price of one count in units, where that is all there is to it, and what a line says of it.
        self.whole = self.steps[0][0] if self.simple and not tiers else None
        self.shown: tuple[Decimal | None, int, Decimal, str] = (
            self.prices[0],
            self.per,
            self.multiplier,
            self.meter,
        )

    def _step(self, price: Decimal) -> tuple[int, int]:
        top, bottom = ratio_of(price)
        times, over = ratio_of(self.multiplier)
        numerator = top * times * UNITS
        denominator = bottom * over * self.per * self.scale
        if numerator < 0 or denominator <= 0:
            raise ValueError("prices, multipliers and quantities are not below 0")
        common = gcd(numerator, denominator)
        return numerator // common, denominator // common

    @property
    def simple(self) -> bool:
        """Whether a cost is a count times a whole number of units, at any given tier."""
        return self.flat and self.bands is None and all(denominator == 1 for _, denominator in self.steps)

    def billed(self, count: int) -> int:
        """What is charged for: at least the minimum, less what is included."""
        count = max(count, self.minimum)
        return count - self.included if count > self.included else 0

    def step_at(self, basis: int) -> int:
        """The index of the price that holds for a whole request: the last whose bound is crossed."""
        at = len(self.starts)
        while at and basis < self.starts[at - 1]:
            at -= 1
        return at

    def is_guess(self, billed: int, basis: int) -> bool:
        """Whether a sum of several requests may be priced wrongly.

        So it is where a bound is crossed, and where each request has a minimum, or units that are free.
        """
        if not self.flat:
            return True
        if self.bands is not None:
            return billed > self.bands[0]
        return any(basis >= start for start in self.starts)

    def amount(self, billed: int, basis: int, *, base_only: bool = False) -> tuple[int, Decimal | None]:
        """The cost in units, rounded once, and the price when it is one."""
        if self.bands is None or base_only:
            at = 0 if base_only else self.step_at(basis)
            numerator, denominator = self.steps[at]
            if denominator == 1:
                return billed * numerator, self.prices[at]
            return divide_half_even(billed * numerator, denominator), self.prices[at]
        return self._graduated(billed, self.bands)

    def _graduated(self, billed: int, bands: list[int]) -> tuple[int, Decimal | None]:
        top, bottom, low, at = 0, 1, 0, 0
        for at, (numerator, denominator) in enumerate(self.steps):
            high = bands[at] if at < len(bands) else billed
            quantity = min(billed, high) - low
            top, bottom = top * denominator + quantity * numerator * bottom, bottom * denominator
            low = high
            if billed <= high:
                break
        return divide_half_even(top, bottom), None if at else self.prices[0]


def compiled_rates(card: RateCard) -> dict[str, CompiledRate]:
    """What prices each meter, fallbacks resolved; ValidationError when prices or factors are not valid."""
    graduated = card.tier_mode == TierMode.GRADUATED
    for_tokens = [multiplier.value for multiplier in card.multipliers]
    for_all = [multiplier.value for multiplier in card.multipliers if multiplier.all_meters]
    rates: dict[str, CompiledRate] = {}
    try:
        if any(ratio_of(value)[0] <= 0 for value in for_tokens):
            raise card_error(card)
        for rate in card.rates:
            meter = rate.meter.upper()
            rates[meter] = CompiledRate(
                rate,
                for_tokens if meter in TOKEN_METERS else for_all,
                1000 if meter == "AUDIO_SECONDS" else 1,
                graduated=graduated,
            )
    except (ValueError, TypeError):
        raise card_error(card) from None
    own = frozenset(rates)
    for meter, others in RATE_FALLBACKS.items():
        if meter not in own and (found := next((other for other in others if other in own), None)):
            rates[meter] = rates[found]
    return rates
