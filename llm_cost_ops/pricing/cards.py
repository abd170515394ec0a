"""What follows from a card: its prices of 1,000 and of 1,000,000 tokens, and the digest of its content."""

from __future__ import annotations

from decimal import Context, Decimal
from hashlib import blake2b
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import PriceOrigin, Rate, RateCard
from llm_cost_ops.pricing.money import plain
from llm_cost_ops.rules.meters import PRICE_FIELDS
from llm_cost_ops.wire.decimals import from_text

__all__ = ["card_digest", "kept_form", "set_prices"]

_content = msgspec.json.Encoder(order="deterministic", enc_hook=repr)
# Wide enough for any price that the rules admit; never the caller's context.
_EXACT = Context(prec=60)


def set_prices(card: RateCard) -> None:
    """Set what the card's rates of INPUT and OUTPUT cost for 1,000 and for 1,000,000 tokens."""
    rates = {rate.meter: rate for rate in card.rates}
    for field, meter, thousands in PRICE_FIELDS:
        if (rate := rates.get(meter)) is not None:
            setattr(card, field, _price_of(10 ** (6 - thousands), rate))


def _price_of(count: int, rate: Rate) -> Decimal | None:
    """The price of so many tokens; None where 18 digits on either side of the point can't say it exactly."""
    per = Decimal(rate.per or 1_000_000)
    product = _EXACT.multiply(rate.price, Decimal(count))
    price = plain(_EXACT.divide(product, per))
    try:
        exact = product == _EXACT.multiply(from_text(f"{price:f}"), per)
    except ValueError:
        return None
    return price if exact else None


def kept_form(card: RateCard) -> RateCard:
    """What a receipt needs of a card.

    A catalog adds the name that was asked for to a card's aliases; without them, a model that has many
    names has one card.
    """
    changes: dict[str, Any] = {"unknown_": msgspec.UNSET}
    if card.origin == PriceOrigin.CATALOG:
        changes["aliases"] = []
    return msgspec.structs.replace(card, **changes)


def card_digest(card: RateCard) -> bytes:
    """16 bytes that stand for all that a card says, aliases of catalog cards excepted.

    Two cards with the same digest give the same costs and the same receipts.
    """
    return blake2b(_content.encode(kept_form(card)), digest_size=16).digest()
