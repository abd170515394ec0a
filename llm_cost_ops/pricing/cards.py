"""A card by its content: two cards with the same digest give the same costs and the same receipts."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from llm_cost_ops._gen.messages import PriceOrigin, RateCard

__all__ = ["card_digest", "kept_form"]

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
    return blake2b(_content.encode(kept_form(card)), digest_size=16).digest()
