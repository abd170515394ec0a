"""The prices in force: the bundled catalog under the cards of the store."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from datetime import datetime

from llm_cost_ops._gen.messages import RateCard
from llm_cost_ops.catalog.load import load_catalog
from llm_cost_ops.config import REPORTED_PROVIDERS
from llm_cost_ops.ledger.protocols import Ledger
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.rpc.context import CallContext

__all__ = ["Prices"]


class Prices:
    """A price book that follows the ledger's cards, whichever process added them."""

    def __init__(self, ledger: Ledger, reported_providers: Collection[str] = REPORTED_PROVIDERS) -> None:
        self._ledger = ledger
        self._reported = reported_providers
        self._known: dict[str, RateCard] = {}
        self.in_force: tuple[int, PriceBook] = (-1, self._book())
        """A book, and the revision of the store's cards that it has at least; -1 before the first refresh."""

    async def refresh(self, context: CallContext) -> PriceBook:
        """Take in cards that were added since, by this process or another, and give the book."""
        revision = await self._ledger.cards_revision(context)
        if revision != self.in_force[0]:
            cards = await self._ledger.all_cards(context, self._known)
            self._known = {card.id: card for card in cards}
            # Both are replaced at once, so that a book is never taken for that of another revision.
            self.in_force = revision, self._book(cards)
        return self.in_force[1]

    async def book_as_of(self, moment: datetime | None, context: CallContext) -> PriceBook:
        """A separate book that does not change, without the cards that were created after a moment."""
        cards = await self._ledger.all_cards(context, self._known)
        if moment is not None:
            cards = [card for card in cards if card.created_at is None or card.created_at <= moment]
        return self._book(cards)

    def _book(self, cards: Sequence[RateCard] = ()) -> PriceBook:
        return PriceBook([_Bundled()], cards=cards, reported_providers=self._reported)

    def catalog_card(self, card_id: str) -> RateCard | None:
        """The bundled card of an id, a copy that the caller may change."""
        return copy.deepcopy(load_catalog().card(card_id))


class _Bundled:
    """The bundled catalog, loaded when the first price is asked for."""

    def cards(self, provider: str, model_id: str) -> Sequence[RateCard]:
        return load_catalog().cards(provider, model_id)
