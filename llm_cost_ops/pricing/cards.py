"""A card by its content: two cards with the same digest give the same costs and the same receipts."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import PriceOrigin, RateCard

__all__ = ["card_digest", "kept_form"]

# They follow from the rates, and the digests of kept cards are without them.
_DERIVED = ("input_price_per_million", "output_price_per_million")

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_content = msgspec.json.Encoder(order="deterministic", enc_hook=repr)


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
    """16 bytes that stand for all that a card says, aliases of catalog cards excepted."""
    content = _fields.decode(_content.encode(kept_form(card)))
    for name in _DERIVED:
        content.pop(name, None)
    return blake2b(msgspec.json.encode(content), digest_size=16).digest()
