"""Keeps prices."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from decimal import Context, Decimal
from hashlib import blake2b
from typing import Any

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
    SubmitStatus,
)
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.pricing.money import plain
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.ids import uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.times import parse_end, parse_start
from llm_cost_ops.service.access.tenancy import allowed_organizations, may_access
from llm_cost_ops.service.pages import Page, meta_of
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.wire.decimals import from_text
from llm_cost_ops.wire.unknown import Unknown

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
        now = datetime.fromtimestamp(context.runtime.now(), UTC)
        content = copy.copy(request)
        content.idempotency_key = ""
        fingerprint = blake2b(canonical_json(content), digest_size=16).digest()
        key = request.idempotency_key or context.idempotency_key
        card, status = await self._ledger.add_card(_card(request, now), key, fingerprint, context)
        if status == SubmitStatus.CONFLICT:
            rule = "was used before for another card"
            raise RpcError(
                StatusCode.ALREADY_EXISTS,
                f"the idempotency key {rule}",
                violations=[Violation("idempotency_key", rule)],
            )
        if status == SubmitStatus.DUPLICATE:
            context.response_status = 200
        return CreatePriceResponse(data=card, meta=meta_of(context))

    async def get_price(self, request: GetPriceRequest, context: CallContext) -> GetPriceResponse:
        """Get a card by its id."""
        card = await self._ledger.get_card(request.id, context) or self._prices.catalog_card(request.id)
        if card is None or not may_access(context, card.organization_id):
            raise RpcError(StatusCode.NOT_FOUND, f"there is no price card {request.id!r}")
        return GetPriceResponse(data=card, meta=meta_of(context))

    async def list_prices(self, request: ListPricesRequest, context: CallContext) -> ListPricesResponse:
        """List the cards of the store, then those of the catalog, each by provider, model and date."""
        cards = await self._matching(request, context)
        page = Page.of(request, "prices", context)
        start = (page.offset if page.after is None else page.after[0]) or 0
        end = start + page.size
        following = (end, 0) if end < len(cards) else None
        described = page.described(following, len(cards) if page.number else None)
        return ListPricesResponse(data=cards[start:end], pagination=described, meta=meta_of(context))

    async def _matching(self, request: ListPricesRequest, context: CallContext) -> list[RateCard]:
        providers = {canonical_provider(provider) for provider in request.provider}
        models = set(request.model_id)
        at = parse_start(request.active_at, field="active_at") if request.active_at else None
        organizations = {"", request.organization_id}
        if not request.organization_id:
            organizations.update(allowed_organizations(context) or ())
        everyones = (
            context.principal is not None
            and allowed_organizations(context) is None
            and not request.organization_id
        )
        cards: list[RateCard] = []
        if request.origin != PriceOrigin.CATALOG:
            cards += await self._ledger.all_cards(context)
        if request.origin != PriceOrigin.MANUAL:
            cards += self._prices.catalog_cards(providers, models)
        return [
            card
            for card in cards
            if (not providers or card.provider in providers)
            and (not models or card.model_id in models or not models.isdisjoint(card.aliases))
            and (everyones or card.organization_id in organizations)
            and (not request.currency or card.currency == request.currency)
            and (at is None or _in_force(card, at))
        ]


def _in_force(card: RateCard, at: datetime) -> bool:
    return (card.effective_from is None or card.effective_from <= at) and (
        card.effective_until is None or at < card.effective_until
    )


def _card(request: CreatePriceRequest, now: datetime) -> RateCard:
    """The card that a valid request describes."""
    rates = list(request.rates)
    for meter, price in (("INPUT", request.input_price_per_1k), ("OUTPUT", request.output_price_per_1k)):
        if price is not None:
            rates.append(Rate(meter=meter, price=plain(_EXACT.scaleb(price, 3)), per=1_000_000))
    by_meter = {rate.meter: rate for rate in rates}
    start = parse_start(request.effective_date, field="effective_date") if request.effective_date else now
    return RateCard(
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
        input_price_per_1k=_per_thousand(by_meter.get("INPUT")),
        output_price_per_1k=_per_thousand(by_meter.get("OUTPUT")),
    )


def _per_thousand(rate: Rate | None) -> Decimal | None:
    """The price of a thousand; None where 18 digits on either side of the point can't say it exactly."""
    if rate is None:
        return None
    per = Decimal(rate.per or 1_000_000)
    price = plain(_EXACT.divide(_EXACT.scaleb(rate.price, 3), per))
    try:
        exact = _EXACT.scaleb(rate.price, 3) == _EXACT.multiply(from_text(f"{price:f}"), per)
    except ValueError:
        return None
    return price if exact else None


def _unknown(value: Any) -> Any:
    if type(value) is Unknown:
        return {"binary": value.binary, "json": value.json}
    raise TypeError(f"a {type(value).__name__} is no part of a message")


# Maps are sorted, so that their order is no part of the content.
canonical_json = msgspec.json.Encoder(enc_hook=_unknown, order="deterministic").encode
"""The content of a message, fields that this version does not know included."""
