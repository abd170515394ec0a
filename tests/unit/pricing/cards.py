"""Short ways to write cards and records in tests, and to read them from golden files."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from llm_cost_ops._gen.messages import (
    ModalityTokens,
    PriceMultiplier,
    PriceOrigin,
    PriceTier,
    Rate,
    RateCard,
    TierMode,
    TimeWindow,
    UsageRecord,
)

__all__ = ["NOON", "card_of", "make_card", "make_rate", "make_usage", "moment", "record_of"]

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def make_rate(meter: str, price: str, per: int = 1_000_000, **fields: Any) -> Rate:
    tiers = [
        PriceTier(above=tier["above"], inclusive=tier.get("inclusive", False), price=Decimal(tier["price"]))
        for tier in fields.pop("tiers", ())
    ]
    return Rate(meter=meter, price=Decimal(price), per=per, tiers=tiers, **fields)


def make_card(prices: dict[str, str] | list[Rate], **fields: Any) -> RateCard:
    rates = (
        prices if isinstance(prices, list) else [make_rate(meter, price) for meter, price in prices.items()]
    )
    fields.setdefault("id", "card")
    fields.setdefault("provider", "openai")
    fields.setdefault("model_id", "gpt-x")
    fields.setdefault("currency", "USD")
    return RateCard(rates=rates, **fields)


def make_usage(**fields: Any) -> UsageRecord:
    fields.setdefault("organization_id", "org-1")
    fields.setdefault("provider", "openai")
    fields.setdefault("model_id", "gpt-x")
    fields.setdefault("timestamp", NOON)
    fields.setdefault("input_tokens", 0)
    return UsageRecord(**fields)


def record_of(facts: dict[str, Any]) -> UsageRecord:
    fields = dict(facts)
    fields["timestamp"] = moment(fields["timestamp"])
    if "modality" in fields:
        fields["modality"] = ModalityTokens(**fields["modality"])
    return make_usage(**fields)


def card_of(facts: dict[str, Any]) -> RateCard:
    fields = dict(facts)
    rates = [make_rate(**rate) for rate in fields.pop("rates", ())]
    fields["windows"] = [TimeWindow(**window) for window in fields.get("windows", ())]
    fields["multipliers"] = [
        PriceMultiplier(kind=each["kind"], value=Decimal(each["value"]))
        for each in fields.get("multipliers", ())
    ]
    for name in ("effective_from", "effective_until"):
        if name in fields:
            fields[name] = moment(fields[name])
    fields["origin"] = PriceOrigin(fields.get("origin", "unspecified"))
    fields["tier_mode"] = TierMode(fields.get("tier_mode", "unspecified"))
    return make_card(rates, **fields)
