"""The prices in force: the bundled catalog under the cards of the store."""

from __future__ import annotations

from llm_cost_ops.catalog import load_catalog
from llm_cost_ops.engine.pricebook import PriceBook
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.stores import Store

__all__ = ["Prices"]


class Prices:
    """A price book that follows the store, whoever wrote to it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revision: int | None = None
        self.book = PriceBook([_BundledCatalog()])

    async def refresh(self, context: CallContext) -> None:
        """Take in cards that were added since, by this process or another."""
        revision = await self._store.cards_revision(context)
        if revision != self._revision:
            self.book.replace_manual(await self._store.all_cards(context))
            self._revision = revision


class _BundledCatalog:
    """The bundled catalog, loaded when the first price is asked for."""

    def cards(self, provider: str, model_id: str):  # type: ignore[no-untyped-def]
        return load_catalog().cards(provider, model_id)
