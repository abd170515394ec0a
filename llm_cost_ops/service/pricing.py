"""Keeps prices."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Context
from hashlib import blake2b

import msgspec

from llm_cost_ops._gen.messages import (
    CreatePriceRequest,
    CreatePriceResponse,
    GetPriceRequest,
    GetPriceResponse,
    ListPricesRequest,
    ListPricesResponse,
    PriceOrigin,
    Rate,
    RateCard,
    ResponseMeta,
    SubmitStatus,
)
from llm_cost_ops.catalog.load import CardEntry, Catalog, load_catalog
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.pricing.cards import set_prices
from llm_cost_ops.pricing.money import plain
from llm_cost_ops.rpc.context import CallContext, uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_argument
from llm_cost_ops.rules.meters import PRICE_FIELDS
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.times import parse_end, parse_start
from llm_cost_ops.service.access.tenancy import actor_of, allowed_organizations, may_access
from llm_cost_ops.service.pages import Page
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.wire.json import builtin_value
from llm_cost_ops.wire.unknown import Unknown
from llm_cost_ops.wire.validation import no_member

__all__ = ["PricingService", "canonical_json"]


# Wide enough for any price that the rules admit; never the caller's context.
_EXACT = Context(prec=60)


class PricingService:
    """Creates dated cards and reads them back, those of the bundled catalog included."""

    def __init__(self, ledger: Ledger, prices: Prices) -> None:
        self._ledger = ledger
        self._prices = prices

    async def create_price(self, request: CreatePriceRequest, context: CallContext) -> CreatePriceResponse:
        """Add a card; the same content under the same key gives the first card again."""
        now = context.now()
        content = copy.copy(request)
        content.idempotency_key = ""
        fingerprint = blake2b(canonical_json(content), digest_size=16).digest()
        key = request.idempotency_key or context.idempotency_key
        card, status = await self._ledger.add_card(
            _card(request, now), key, fingerprint, context, actor=actor_of(context)
        )
        if status == SubmitStatus.CONFLICT:
            rule = "was used before for another card"
            raise RpcError(
                StatusCode.ALREADY_EXISTS,
                f"the idempotency key {rule}",
                violations=[Violation("idempotency_key", rule)],
            )
        if status == SubmitStatus.DUPLICATE:
            context.response_status = 200
        return CreatePriceResponse(data=card, meta=ResponseMeta(request_id=context.request_id))

    async def get_price(self, request: GetPriceRequest, context: CallContext) -> GetPriceResponse:
        """Get a card by its id."""
        card = await self._ledger.get_card(request.id, context) or self._prices.catalog_card(request.id)
        if card is None or not may_access(context, card.organization_id):
            raise RpcError(StatusCode.NOT_FOUND, f"there is no price card {request.id!r}")
        return GetPriceResponse(data=card, meta=ResponseMeta(request_id=context.request_id))

    async def list_prices(self, request: ListPricesRequest, context: CallContext) -> ListPricesResponse:
        """List the cards of the store, then those of the catalog, each by provider, model and date.

        Only the cards of the page are made; a cursor names the last of them, so that a card that is
        added meanwhile moves nothing.
        """
        catalog = load_catalog()
        found = await self._matching(request, catalog, context)
        page = Page.of(request, "prices", context)
        start = _start(found, page)
        end = start + page.size
        following = f"{end}.{_id_hash(found[end - 1].id)}" if end < len(found) else None
        return ListPricesResponse(
            data=[
                catalog.card_of(card) if isinstance(card, CardEntry) else copy.deepcopy(card)
                for card in found[start:end]
            ],
            pagination=page.described(following, len(found) if page.number else None),
            meta=ResponseMeta(request_id=context.request_id),
        )

    async def _matching(
        self, request: ListPricesRequest, catalog: Catalog, context: CallContext
    ) -> list[RateCard | CardEntry]:
        providers = {canonical_provider(provider) for provider in request.provider}
        models = set(request.model_id)
        at = parse_start(request.active_at, field="active_at") if request.active_at else None
        allowed = allowed_organizations(context)
        organizations = {"", request.organization_id}
        if not request.organization_id:
            organizations.update(allowed or ())
        everyones = allowed is None and not request.organization_id
        if not request.origin.known:
            # Taken for none it would widen the list.
            raise invalid_argument("origin", no_member(request.origin.value, PriceOrigin))
        found: list[RateCard | CardEntry] = []
        if request.origin != PriceOrigin.CATALOG:
            book = await self._prices.refresh(context)
            found += [
                card
                for card in book.cards
                if (not providers or card.provider in providers)
                and (not models or card.model_id in models or not models.isdisjoint(card.aliases))
                and (everyones or card.organization_id in organizations)
            ]
        if request.origin != PriceOrigin.MANUAL:
            found += _of_catalog(catalog, providers, models)
        return [
            card
            for card in found
            if (not request.currency or card.currency == request.currency)
            and (at is None or _in_force(card, at))
        ]


def _of_catalog(catalog: Catalog, providers: set[str], models: set[str]) -> Iterable[RateCard | CardEntry]:
    if not models:
        owners = set(map(catalog.provider_of, providers))
        return [entry for entry in catalog.entries() if not owners or entry.provider in owners]
    named = (
        card
        for provider in sorted(providers) or catalog.providers()
        for name in sorted(models)
        for card in catalog.cards(provider, name)
    )
    return {card.id: card for card in named}.values()


def _start(found: Sequence[RateCard | CardEntry], page: Page) -> int:
    """Where a page begins: after the card that its cursor names, wherever that is by now."""
    if page.after is None:
        return page.offset or 0
    place, dot, hashed = page.after.partition(".")
    if not (dot and _is_number(place) and _is_number(hashed)):
        raise invalid_argument("cursor", "is not one that this service gave")
    end, last = int(place), int(hashed)
    if 0 < end <= len(found) and _id_hash(found[end - 1].id) == last:
        return end
    places = (place for place, card in enumerate(found, 1) if _id_hash(card.id) == last)
    return next(places, max(end, 0))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _id_hash(card_id: str) -> int:
    return int.from_bytes(blake2b(card_id.encode(), digest_size=7).digest(), "big")


def _in_force(card: RateCard | CardEntry, at: datetime) -> bool:
    return (card.effective_from is None or card.effective_from <= at) and (
        card.effective_until is None or at < card.effective_until
    )


def _card(request: CreatePriceRequest, now: datetime) -> RateCard:
    """The card that a valid request describes."""
    rates = list(request.rates)
    for field, meter, thousands in PRICE_FIELDS:
        price = getattr(request, field)
        if price is not None:
            rates.append(Rate(meter=meter, price=plain(_EXACT.scaleb(price, thousands)), per=1_000_000))
    start = parse_start(request.effective_date, field="effective_date") if request.effective_date else now
    card = RateCard(
        id=uuid7(),
        provider=canonical_provider(request.provider),
        model_id=request.model_id,
        aliases=list(request.aliases),
        organization_id=request.organization_id,
        region=request.region,
        service_tier=request.service_tier,
        processing=request.processing,
        speed=request.speed,
        currency=request.currency or "USD",
        effective_from=start,
        effective_until=parse_end(request.end_date) if request.end_date else None,
        windows=list(request.windows),
        rates=rates,
        tier_mode=request.tier_mode,
        tier_basis=request.tier_basis,
        multipliers=list(request.multipliers),
        origin=PriceOrigin.MANUAL,
        source_url=request.source_url,
        version=1,
        created_at=now,
        updated_at=now,
    )
    set_prices(card)
    return card


def _unknown(value: object) -> object:
    if type(value) is Unknown:
        return {"binary": value.binary, "json": value.json}
    return builtin_value(value, "a {} is no part of a message")


# Maps are sorted, so that their order is no part of the content.
canonical_json = msgspec.json.Encoder(enc_hook=_unknown, order="deterministic").encode
"""The content of a message, fields that this version does not know included."""
