"""What a usage record costs, with every line of the receipt."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from datetime import datetime
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
    UsageRecord,
)
from llm_cost_ops.pricing.meters import split_tokens, split_units
from llm_cost_ops.pricing.money import from_units, thousandths, to_units, whole
from llm_cost_ops.pricing.pricebook import (
    DEFAULT_CURRENCY,
    CompiledCard,
    PriceBook,
    is_aggregate,
    is_reported,
    is_uncounted,
    status_of,
)
from llm_cost_ops.pricing.rates import CompiledRate
from llm_cost_ops.rules.meters import INPUT_METERS, OUTPUT_METERS
from llm_cost_ops.rules.requests import total_tokens, usage_error

__all__ = ["CALCULATOR_VERSION", "calculate_cost", "cost_by", "cost_of", "meter_costs", "meters_used"]

CALCULATOR_VERSION = "1"

# What a cached token would cost if it were not cached.
_UNCACHED = {
    "CACHE_READ": "INPUT",
    "CACHE_READ_AUDIO": "INPUT_AUDIO",
    "CACHE_READ_IMAGE": "INPUT_IMAGE",
    "CACHE_READ_VIDEO": "INPUT_VIDEO",
}
# The part of the total that a line belongs to: input, output or other; cached input also saves.
_OTHER, _CACHED = 2, 3
_PARTS = {
    **dict.fromkeys(INPUT_METERS, 0),
    **dict.fromkeys(OUTPUT_METERS, 1),
    **dict.fromkeys(_UNCACHED, _CACHED),
}
_ZERO = Decimal(0)
_NOT_WHOLE = (CostStatus.UNPRICED, CostStatus.PARTIAL)


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
    is then ESTIMATED, as it is when a meter is priced by another's rate although nobody says that they
    cost the same ("rate:CACHE_READ->INPUT" among its fallback_dimensions).
    For a provider in `reported_providers` the record's own reported_cost is taken, as REPORTED; the
    names there are canonical. Ids, revision and calculated_at are left to the caller. ValidationError
    when the record contradicts itself or the card is not valid.
    """
    if reported_providers and is_reported(record, reported_providers):
        return _reported(record)
    if card is None:
        return _unpriced(record, DEFAULT_CURRENCY)
    return cost_of(_compiled(card), record, fallbacks)


def cost_by(book: PriceBook, record: UsageRecord, *, at: datetime | None = None) -> CostRecord:
    """As `PriceBook.price`, with the lines of the receipt."""
    if book.is_reported(record):
        return _reported(record)
    chosen = book.choose(record, at=at)
    cost = cost_of(chosen[0], record, chosen[1]) if chosen else _unpriced(record, DEFAULT_CURRENCY)
    return _reported(record) if record.reported_cost is not None and cost.status in _NOT_WHOLE else cost


def _reported(record: UsageRecord) -> CostRecord:
    """The cost that the provider stated, as REPORTED, without lines."""
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


def cost_of(compiled: CompiledCard, record: UsageRecord, fallbacks: Sequence[str] = ()) -> CostRecord:
    """As `calculate_cost`, with a card that was compiled before."""
    total = record.total_tokens
    if total is not None and total != total_tokens(record):
        raise usage_error(record)
    card = compiled.card
    currency = card.currency or DEFAULT_CURRENCY
    if is_uncounted(record):
        return _unpriced(record, currency)
    try:
        return _receipt(compiled, record, currency, fallbacks)
    except TypeError:
        # A float among the counts: no Decimal is made of one.
        raise usage_error(record) from None


def _receipt(
    compiled: CompiledCard, record: UsageRecord, currency: str, fallbacks: Sequence[str]
) -> CostRecord:
    basis = compiled.basis(record)
    several = is_aggregate(record)
    named = [*fallbacks, *(name for name in compiled.rate_fallbacks(record) if name not in fallbacks)]
    lines: list[CostLine] = []
    paid = [0, 0, 0]
    saved: int | None = 0
    partial = summed = False
    for meter, rate, count in compiled.charges(record):
        if rate is None:
            lines.append(_unpriced_line(meter, count))
            partial = True
            continue
        price, per, multiplier, rate_meter = rate.shown
        if rate.whole is not None:
            billed, units = count, count * rate.whole
        else:
            billed = rate.billed(count)
            units, price = rate.amount(billed, basis, base_only=several)
            summed = summed or (several and rate.is_guess(billed, basis))
        kind = _PARTS.get(meter, _OTHER)
        if kind is _CACHED:
            uncached = compiled.rates.get(_UNCACHED[meter])
            kind, saved = 0, _save(uncached, count, basis, several, saved, units)
        paid[kind] += units
        if billed:
            line = CostLine(
                meter=meter,
                quantity=whole(billed) if rate.scale == 1 else thousandths(billed),
                unit_price=price,
                per=per,
                multiplier=multiplier,
                cost=from_units(units),
                priced=True,
                rate_meter=rate_meter,
            )
            lines.append(line)
    card = compiled.card
    paid_in, paid_out, paid_else = paid
    total = paid_in + paid_out + paid_else
    if type(total) is not int:
        raise usage_error(record)
    return CostRecord(
        usage_id=record.id,
        status=status_of(record, partial=partial, estimated=summed, fallbacks=named),
        currency=currency,
        total_cost=from_units(total),
        input_cost=from_units(paid_in) if paid_in else _ZERO,
        output_cost=from_units(paid_out) if paid_out else _ZERO,
        other_cost=from_units(paid_else) if paid_else else _ZERO,
        lines=lines,
        rate_card_id=card.id,
        rate_card_version=card.version,
        fallback_dimensions=named,
        cache_savings=from_units(saved) if saved else saved if saved is None else _ZERO,
        calculator_version=CALCULATOR_VERSION,
        origin_version=card.origin_version,
    )


def _save(
    rate: CompiledRate | None, count: int, basis: int, several: bool, before: int | None, paid: int
) -> int | None:
    if rate is None or before is None:
        return None
    return before + rate.amount(count, basis, base_only=several)[0] - paid


def _unpriced_line(meter: str, count: int) -> CostLine:
    quantity = thousandths(count) if meter == "AUDIO_SECONDS" else whole(count)
    return CostLine(meter=meter, quantity=quantity, multiplier=Decimal(1))


def meter_costs(compiled: CompiledCard, record: UsageRecord) -> dict[str, int | None]:
    """The cost of each meter in 10^-12 of the card's currency; None for one that has no rate.

    Together they are the total, to the unit. ValidationError when the record contradicts itself.
    """
    basis = compiled.basis(record)
    several = is_aggregate(record)
    costs: dict[str, int | None] = {}
    for meter, rate, count in compiled.charges(record):
        if rate is None:
            costs[meter] = None
            continue
        if rate.whole is not None:
            units = count * rate.whole
        else:
            units, _ = rate.amount(rate.billed(count), basis, base_only=several)
        costs[meter] = (costs.get(meter) or 0) + units
    return costs


def meters_used(record: UsageRecord) -> dict[str, int]:
    """What a record used by meter, zeros left out: tokens, and 0 for meters that are no tokens."""
    used = {meter: count for meter, count in split_tokens(record) if count > 0}
    used.update((meter, 0) for meter, count in split_units(record) if count)
    return used


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
    compiled = CompiledCard(card)
    if len(_recent) >= _RECENT:
        _recent.clear()
    _recent[id(card)] = (card, copy.deepcopy(_prices(card)), compiled)
    return compiled
