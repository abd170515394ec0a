"""What a usage record costs, with every line of the receipt."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal

from llm_cost_ops._gen.messages import (
    CostLine,
    CostRecord,
    CostStatus,
    PriceMultiplier,
    Rate,
    RateCard,
    TierBasis,
    TierMode,
    UsageQuality,
    UsageRecord,
)
from llm_cost_ops.engine.compiled import CompiledCard, CompiledRate, compile_card, is_aggregate, status_of
from llm_cost_ops.engine.meters import INPUT_METERS, OUTPUT_METERS
from llm_cost_ops.engine.money import from_units, thousandths, to_units
from llm_cost_ops.engine.providers import canonical_provider
from llm_cost_ops.engine.usage_rules import usage_error

__all__ = ["CALCULATOR_VERSION", "calculate_cost", "cost_of", "is_reported"]

CALCULATOR_VERSION = "1"
DEFAULT_CURRENCY = "USD"

_INPUT = frozenset(INPUT_METERS)
_OUTPUT = frozenset(OUTPUT_METERS)
# What a cached token would cost if it were not cached.
_UNCACHED = {
    "CACHE_READ": "INPUT",
    "CACHE_READ_AUDIO": "INPUT_AUDIO",
    "CACHE_READ_IMAGE": "INPUT_IMAGE",
    "CACHE_READ_VIDEO": "INPUT_VIDEO",
}
_ZERO = Decimal(0)


def calculate_cost(
    record: UsageRecord,
    card: RateCard | None,
    *,
    fallbacks: Sequence[str] = (),
    reported_providers: Collection[str] = (),
) -> CostRecord:
    """What `record` costs at the prices of `card`, to the last of 12 places.

    Without a card, or when the counts are unknown, the cost is UNPRICED and its total is None.
    `fallbacks` names the dimensions in which the card stands in for one that is missing: the cost
    is then ESTIMATED. For a provider in `reported_providers` the record's own reported_cost is
    taken, as REPORTED; the names there are canonical. ValidationError when the record contradicts itself or the card is not valid.
    Ids, revision and calculated_at are left to the caller.
    """
    if reported_providers and is_reported(record, reported_providers):
        return _reported(record)
    if card is None:
        return _unpriced(record, DEFAULT_CURRENCY)
    return cost_of(_compiled(card), record, fallbacks)


def is_reported(record: UsageRecord, providers: Collection[str]) -> bool:
    """Whether the cost that the provider stated is the one to take."""
    return record.reported_cost is not None and canonical_provider(record.provider) in providers


def _reported(record: UsageRecord) -> CostRecord:
    cost = _ZERO if record.reported_cost is None else record.reported_cost
    return CostRecord(
        usage_id=record.id,
        status=CostStatus.REPORTED,
        currency=record.reported_currency or DEFAULT_CURRENCY,
        total_cost=from_units(to_units(cost)),
        calculator_version=CALCULATOR_VERSION,
    )


def _unpriced(record: UsageRecord, currency: str) -> CostRecord:
    return CostRecord(
        usage_id=record.id,
        status=CostStatus.UNPRICED,
        currency=currency,
        calculator_version=CALCULATOR_VERSION,
    )


def cost_of(compiled: CompiledCard, record: UsageRecord, fallbacks: Iterable[str] = ()) -> CostRecord:
    """As `calculate_cost`, with a card that was compiled before."""
    if record.total_tokens is not None and record.total_tokens != record.input_tokens + record.output_tokens:
        raise usage_error(record)
    card = compiled.card
    currency = card.currency or DEFAULT_CURRENCY
    if record.quality == UsageQuality.UNKNOWN:
        return _unpriced(record, currency)
    receipt = _Receipt(compiled, record)
    for meter, count, rate in compiled.charges(record):
        receipt.add(meter, count, rate)
    named = list(fallbacks)
    paid_in, paid_out, paid_else = receipt.input, receipt.output, receipt.other
    savings = receipt.savings
    return CostRecord(
        usage_id=record.id,
        status=status_of(record, partial=receipt.partial, estimated=receipt.crossed, fallbacks=tuple(named)),
        currency=currency,
        total_cost=from_units(paid_in + paid_out + paid_else),
        input_cost=from_units(paid_in) if paid_in else _ZERO,
        output_cost=from_units(paid_out) if paid_out else _ZERO,
        other_cost=from_units(paid_else) if paid_else else _ZERO,
        lines=receipt.lines,
        rate_card_id=card.id,
        rate_card_version=card.version,
        fallback_dimensions=named,
        cache_savings=from_units(savings) if savings else _ZERO if savings == 0 else None,
        calculator_version=CALCULATOR_VERSION,
        origin_version=card.origin_version,
    )


class _Receipt:
    __slots__ = (
        "_aggregate",
        "_basis",
        "_rates",
        "crossed",
        "input",
        "lines",
        "other",
        "output",
        "partial",
        "savings",
    )

    def __init__(self, compiled: CompiledCard, record: UsageRecord) -> None:
        self._rates = compiled.rates
        self._basis = compiled.basis(record)
        self._aggregate = is_aggregate(record)
        self.lines: list[CostLine] = []
        self.input = self.output = self.other = 0
        self.savings: int | None = 0
        self.partial = self.crossed = False

    def add(self, meter: str, count: int, rate: CompiledRate | None) -> None:
        if rate is None:
            self._add_unpriced(meter, count)
            return
        billed = count if rate.flat else rate.billed(count)
        if self._aggregate and rate.crosses(billed, self._basis):
            self.crossed = True
        units, price = rate.amount(billed, self._basis, base_only=self._aggregate)
        if meter in _UNCACHED:
            self._add_savings(meter, count, units)
        if not billed:
            return
        self.lines.append(
            CostLine(
                meter=meter,
                quantity=Decimal(billed) if rate.scale == 1 else thousandths(billed),
                unit_price=price,
                per=rate.per,
                multiplier=rate.multiplier,
                cost=from_units(units),
                priced=True,
                rate_meter=rate.meter,
            )
        )
        if meter in _INPUT:
            self.input += units
        elif meter in _OUTPUT:
            self.output += units
        else:
            self.other += units

    def _add_unpriced(self, meter: str, count: int) -> None:
        quantity = thousandths(count) if meter == "AUDIO_SECONDS" else Decimal(count)
        self.lines.append(CostLine(meter=meter, quantity=quantity, multiplier=Decimal(1)))
        self.partial = True

    def _add_savings(self, meter: str, count: int, paid: int) -> None:
        uncached = self._rates.get(_UNCACHED[meter])
        if uncached is None or self.savings is None:
            self.savings = None
            return
        self.savings += uncached.amount(count, self._basis, base_only=self._aggregate)[0] - paid


_Prices = tuple[list[Rate], list[PriceMultiplier], TierMode, TierBasis]
_recent: dict[int, tuple[RateCard, _Prices, CompiledCard]] = {}
_RECENT = 128


def _prices(card: RateCard) -> _Prices:
    return card.rates, card.multipliers, card.tier_mode, card.tier_basis


def _compiled(card: RateCard) -> CompiledCard:
    # A caller may change its card between two calls: the prices are compared, which costs far less
    # than compiling them.
    known = _recent.get(id(card))
    if known is not None and known[0] is card and known[1] == _prices(card):
        return known[2]
    compiled = compile_card(card)
    if len(_recent) >= _RECENT:
        _recent.clear()
    _recent[id(card)] = (card, copy.deepcopy(_prices(card)), compiled)
    return compiled
