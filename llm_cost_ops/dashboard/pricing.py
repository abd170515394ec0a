"""The pages about prices: which calls have none and what to do about it, the cards, a new one, repricing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple

from llm_cost_ops._gen.messages import (
    CostGroup,
    CreatePriceRequest,
    GetCostSummaryRequest,
    ListPricesRequest,
    PriceOrigin,
    Rate,
    RateCard,
    RepriceUsageRequest,
)
from llm_cost_ops._gen.methods import CREATE_PRICE, GET_COST_SUMMARY, LIST_PRICES, REPRICE_USAGE
from llm_cost_ops.dashboard.exchange import Answer, redirect
from llm_cost_ops.dashboard.page import Page
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_argument
from llm_cost_ops.wire.decimals import from_text

__all__ = ["add_price", "new_price_page", "prices_page", "reprice", "unpriced_page"]

_PAGE_SIZE = 50
_MAX_MODELS = 50
_MAX_LOOKED_UP = 20

_PRICES = {
    "input": ("INPUT", "Input"),
    "output": ("OUTPUT", "Output"),
    "cache_read": ("CACHE_READ", "Cache read"),
    "cache_write": ("CACHE_WRITE", "Cache write"),
}
_TEXTS = ("provider", "model", "organization", "currency", "effective", "source")


class _Unpriced(NamedTuple):
    """Calls of a model that have no price, or not one for all that they used."""

    provider: str
    model: str
    status: str
    requests: int
    tokens: int
    cost: Decimal
    advice: str
    similar: RateCard | None


async def unpriced_page(page: Page) -> Answer:
    """The models whose calls have no price, and what to do."""
    span = page.view.span(page.now)
    fields = page.view.filter_fields(span)
    fields["status"] = ["unpriced", "partial"]
    group_by = ["provider", "model", "status"]
    request = GetCostSummaryRequest(**fields, group_by=group_by, currency=page.view.currency)
    answer = await page.caller.call(GET_COST_SUMMARY, request)
    assert answer.data is not None
    groups = sorted(answer.data.breakdown, key=lambda group: -group.requests)[:_MAX_MODELS]
    known = await _known(page, [group.keys[1].value for group in groups[:_MAX_LOOKED_UP]])
    return page.render(
        "unpriced.html",
        "Unpriced",
        span=span,
        found=[_unpriced(group, known) for group in groups],
        hidden=len(answer.data.breakdown) - len(groups),
        currency=answer.data.currency,
        total=sum(group.unpriced_requests for group in answer.data.breakdown),
        effective=f"{span.start.astimezone(page.view.zone):%Y-%m-%d}",
    )


def _unpriced(group: CostGroup, known: dict[str, RateCard]) -> _Unpriced:
    provider, model, status = (key.value for key in group.keys)
    similar = known.get(model)
    if status == "partial":
        advice = "partial"
    elif not group.tokens:
        advice = "no-counts"
    elif similar is not None and similar.provider != provider:
        advice = "elsewhere"
    elif similar is not None:
        advice = "known-now"
    else:
        advice = "unknown"
    return _Unpriced(provider, model, status, group.requests, group.tokens, group.cost, advice, similar)


async def _known(page: Page, models: list[str]) -> dict[str, RateCard]:
    """By model, a card in force of whichever provider."""
    if not models:
        return {}
    request = ListPricesRequest(
        model_id=sorted(set(models)), active_at=page.now.isoformat().replace("+00:00", "Z"), page_size=200
    )
    answer = await page.caller.call(LIST_PRICES, request)
    found: dict[str, RateCard] = {}
    for card in answer.data:
        for name in (card.model_id, *card.aliases):
            found.setdefault(name, card)
    return found


async def prices_page(page: Page) -> Answer:
    """The cards of the ledger and of the catalog."""
    asked = {name: page.request.param(name) for name in ("provider", "model", "origin", "cursor")}
    origin = (
        PriceOrigin(asked["origin"]) if asked["origin"] in ("catalog", "manual") else PriceOrigin.UNSPECIFIED
    )
    everything = page.request.param("all") == "1"
    request = ListPricesRequest(
        provider=[asked["provider"]] if asked["provider"] else [],
        model_id=[asked["model"]] if asked["model"] else [],
        origin=origin,
        active_at="" if everything else page.now.isoformat().replace("+00:00", "Z"),
        page_size=_PAGE_SIZE,
        cursor=asked["cursor"],
    )
    answer = await page.caller.call(LIST_PRICES, request)
    assert answer.pagination is not None
    kept = {name: value for name, value in asked.items() if value and name != "cursor"}
    if everything:
        kept["all"] = "1"
    following = answer.pagination.next_cursor
    return page.render(
        "prices.html",
        "Prices",
        cards=answer.data,
        asked=asked,
        everything=everything,
        rates={card.id: _per_million(card.rates) for card in answer.data},
        following=page.link("/dashboard/prices", **kept, cursor=following) if following else "",
        added=page.request.param("added") == "1",
    )


def _per_million(rates: Sequence[Rate]) -> dict[str, Decimal]:
    """The first price of each meter of tokens, for a million of them."""
    shown = {meter: name for name, (meter, _) in _PRICES.items()}
    return {
        shown[rate.meter]: rate.price * Decimal(1_000_000) / Decimal(rate.per or 1_000_000)
        for rate in rates
        if rate.meter in shown
    }


async def new_price_page(page: Page) -> Answer:
    """The form for a new card, filled with what the address says."""
    values = {name: page.request.param(name) for name in (*_TEXTS, *_PRICES)}
    values["currency"] = values["currency"] or "USD"
    return _price_form(page, values, uuid7(), ())


def _price_form(
    page: Page, values: dict[str, str], key: str, violations: Sequence[Violation], problem: str = ""
) -> Answer:
    return page.render(
        "price_new.html",
        "New price",
        status=400 if violations or problem else 200,
        values=values,
        prices={name: title for name, (_, title) in _PRICES.items()},
        key=key,
        violations=violations,
        problem=problem,
    )


async def add_price(page: Page) -> Answer:
    """Add the card of a form, and show it; or the form again, with what is wrong."""
    values = {name: page.form.get(name, "") for name in (*_TEXTS, *_PRICES)}
    key = page.form.get("key", "") or uuid7()
    try:
        request = CreatePriceRequest(
            idempotency_key=key,
            provider=values["provider"],
            model_id=values["model"],
            organization_id=values["organization"],
            currency=values["currency"].upper(),
            effective_date=values["effective"],
            source_url=values["source"],
            rates=[
                Rate(meter=meter, price=_price(name, values[name]), per=1_000_000)
                for name, (meter, _) in _PRICES.items()
                if values[name]
            ],
        )
        await page.caller.call(CREATE_PRICE, request)
    except RpcError as error:
        if error.code not in (
            StatusCode.INVALID_ARGUMENT,
            StatusCode.ALREADY_EXISTS,
            StatusCode.PERMISSION_DENIED,
        ):
            raise
        return _price_form(page, values, key, error.violations, "" if error.violations else error.message)
    names = {"provider": values["provider"], "model": values["model"]}
    return redirect(page.link("/dashboard/prices", **names, added="1", all="1"))


def _price(name: str, text: str) -> Decimal:
    try:
        return from_text(text)
    except ValueError:
        raise invalid_argument(name, f"must be a decimal number such as 2.50, not {text[:32]!r}") from None


async def reprice(page: Page) -> Answer:
    """Price the calls of a model again: first only what would change, then in earnest."""
    provider, model = page.form.get("provider", ""), page.form.get("model", "")
    if not provider or not model:
        raise invalid_argument("model", "must be given, with its provider")
    span = page.view.span(page.now)
    dry_run = page.form.get("apply") != "1"
    fields = page.view.filter_fields(span) | {"provider": [provider], "model_id": [model]}
    fields["end_date"] = (span.end + timedelta(seconds=1)).isoformat().replace("+00:00", "Z")
    request = RepriceUsageRequest(**fields, dry_run=dry_run)
    answer = await page.caller.call(REPRICE_USAGE, request)
    return page.render(
        "repriced.html", "Price again", span=span, provider=provider, model=model, outcome=answer.data
    )
