"""Turns the rows of a catalog into RateCards."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from llm_cost_ops._gen.messages import (
    PriceMultiplier,
    PriceOrigin,
    PriceTier,
    Rate,
    RateCard,
    TierBasis,
    TierMode,
    TimeWindow,
)
from llm_cost_ops.catalog.bundle import CardRow, CatalogError, RateRow, WindowRow
from llm_cost_ops.pricing.cards import set_prices

__all__ = ["card_id", "materialise", "midnight"]


def card_id(provider: str, model_id: str, row: CardRow) -> str:
    """The stable id of a card: what it prices, from when, and for what, but not its figures.

    Such as "openai/gpt-4o", "mistral/mistral-small-latest@2026-03-16", "openai/gpt-5@2025-04-17[flex]".
    """
    parts = [part for part in (row.tier, row.processing) if part]
    parts += [f"{name}={value}" for name, value in (("speed", row.speed), ("region", row.region)) if value]
    if row.windows:
        parts.append("+".join(f"{window.start}-{window.end}" for window in row.windows))
    kind = f"[{','.join(parts)}]" if parts else ""
    return f"{provider}/{model_id}{f'@{row.since}' if row.since else ''}{kind}"


def materialise(
    row: CardRow, *, provider: str, model_id: str, names: list[str], version: str, url: str
) -> RateCard:
    """Makes the card of a row. Raises CatalogError when a price or a date is malformed."""
    try:
        card = RateCard(
            id=card_id(provider, model_id, row),
            provider=provider,
            model_id=model_id,
            aliases=names,
            region=row.region,
            service_tier=row.tier,
            processing=row.processing,
            speed=row.speed,
            currency=row.currency,
            effective_from=midnight(row.since),
            effective_until=midnight(row.until),
            windows=[_window(each) for each in row.windows],
            rates=[_rate(each) for each in row.rates],
            tier_mode=TierMode.WHOLE_REQUEST,
            tier_basis=TierBasis.INPUT_TOKENS,
            multipliers=[
                PriceMultiplier(kind=each.kind, value=Decimal(each.value), all_meters=each.all_meters)
                for each in row.multipliers
            ],
            origin=PriceOrigin.CATALOG,
            origin_version=version,
            source_url=url,
            version=1,
        )
    except (ValueError, ArithmeticError) as error:
        raise CatalogError(f"the price catalog is malformed at {provider}/{model_id}: {error}") from error
    set_prices(card)
    return card


def _rate(row: RateRow) -> Rate:
    return Rate(
        meter=row.meter,
        price=Decimal(row.price),
        per=row.per,
        tiers=[PriceTier(above=bound, inclusive=at, price=Decimal(price)) for bound, at, price in row.tiers],
        minimum=row.minimum,
        included=row.included,
    )


def _window(row: WindowRow) -> TimeWindow:
    return TimeWindow(start=row.start, end=row.end, time_zone=row.time_zone, weekdays=list(row.weekdays))


def midnight(date: str) -> datetime | None:
    """The moment of an ISO date (its midnight) or time, in UTC; None for an empty one."""
    return datetime.fromisoformat(date).replace(tzinfo=UTC) if date else None
