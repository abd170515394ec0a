"""Lays our own facts over the source's data. Used by the build only."""

from __future__ import annotations

from decimal import Context, Decimal, Inexact
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from llm_cost_ops.catalog.bundle import CardRow, CatalogError, ModelRow, MultiplierRow, RateRow
from tools.catalog.sources import Backdate, Draft, DraftModel

__all__ = ["DisagreementFact", "Overrides", "apply_overrides"]

_exact = Context(prec=60, traps=[Inexact])


class Fact(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every override says: why it is needed, and where the fact was published."""

    why: str
    source_url: str
    provider: str


class BackdateFact(Fact):
    """A context of the source that was in force before the source begins it."""

    context: tuple[str, str]
    since: str


class ModelsFact(Fact):
    """A fact about models, by id; a trailing or inner "*" stands for anything."""

    models: list[str]


class WeekdaysFact(ModelsFact):
    """The ISO days that the daily windows of models are limited to."""

    days: list[int]


class RateFact(ModelsFact):
    """A rate of every card of models: a price, or a multiple of another meter's, or a minimum alone."""

    meter: str
    price: str = ""
    per: int = 1_000_000
    times: str = ""
    of: str = ""
    minimum: int = 0
    tiers: list[tuple[int, bool, str]] = []
    missing_only: bool = False


class CardsFact(Fact):
    """All the cards of one model, instead of the source's."""

    model: str
    cards: list[CardRow]


class Period(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The model that a moving alias meant for a while."""

    model: str
    since: str = ""
    until: str = ""


class AliasFact(Fact):
    """A name with cards of its own: one that moved from model to model, or is billed for more than its model.

    `names` are further names of the same.
    """

    alias: str
    name: str
    periods: list[Period]
    names: list[str] = []


class RedirectFact(ModelsFact):
    """Names that another model has answered, at its prices, since a time."""

    model: str
    since: str


class CloneFact(ModelsFact):
    """Cards for further values of a dimension, at a multiple of the price of those without it."""

    set: dict[Literal["tier", "processing", "region"], list[str]]
    multiplier: MultiplierRow


class DisagreementFact(ModelsFact):
    """Models that both sources price, and not alike: whether the first or the second source is taken.

    `models` are the names that the second source has.
    """

    take: Literal["first", "second"]


class Overrides(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole of overrides.json, in the order in which it applies."""

    revision: int
    published: str
    provider_aliases: dict[str, str]
    backdate: list[BackdateFact]
    free: list[ModelsFact]
    cards: list[CardsFact]
    weekdays: list[WeekdaysFact]
    moved_aliases: list[AliasFact]
    rates: list[RateFact]
    redirects: list[RedirectFact]
    clones: list[CloneFact]
    disagreements: list[DisagreementFact]

    def backdates(self, provider: str) -> Backdate:
        """What is known of a provider's variants before the source begins them."""
        return {fact.context: fact.since for fact in self.backdate if fact.provider == provider}


def apply_overrides(drafts: dict[str, Draft], overrides: Overrides) -> None:
    """Changes the drafts in place. Raises CatalogError for an override that meets nothing."""
    for draft in drafts.values():
        for model in draft.models:
            model.urls = [draft.url] * len(model.row.cards)
            if not model.row.cards and model.row.id.endswith(":free"):
                _make_free(model, draft.url)
    for free in overrides.free:
        for model in _models(drafts, free):
            _make_free(model, free.source_url)
    for cards in overrides.cards:
        model = _model(drafts, cards.provider, cards.model)
        model.row.cards = cards.cards
        model.urls = [cards.source_url] * len(cards.cards)
    for days in overrides.weekdays:
        _limit_days(_models(drafts, days), days)
    for alias in overrides.moved_aliases:
        _move_alias(drafts, alias)
    for rate in overrides.rates:
        for model in _models(drafts, rate):
            _set_rate(model, rate)
    for redirect in overrides.redirects:
        target = _model(drafts, redirect.provider, redirect.model)
        for model in _models(drafts, redirect):
            _redirect(model, target, redirect)
    for clone in overrides.clones:
        for model in _models(drafts, clone):
            _clone(model, clone)


def _models(drafts: dict[str, Draft], fact: ModelsFact) -> list[DraftModel]:
    found: list[DraftModel] = []
    for pattern in fact.models:
        hits = [model for model in drafts[fact.provider].models if fnmatchcase(model.row.id, pattern)]
        if not hits:
            raise CatalogError(f"an override meets no model: {fact.provider}/{pattern}")
        found += [model for model in hits if model not in found]
    return found


def _model(drafts: dict[str, Draft], provider: str, model_id: str) -> DraftModel:
    for model in drafts[provider].models:
        if model.row.id == model_id:
            return model
    raise CatalogError(f"an override meets no model: {provider}/{model_id}")


def _make_free(model: DraftModel, url: str) -> None:
    if model.row.cards:
        raise CatalogError(f"{model.row.id} has prices now: it is not free")
    model.row.cards = [CardRow(rates=[RateRow("INPUT", "0"), RateRow("OUTPUT", "0")])]
    model.urls = [url]


def _limit_days(models: list[DraftModel], fact: WeekdaysFact) -> None:
    for model in models:
        for place, card in enumerate(model.row.cards):
            for window in card.windows:
                window.weekdays = fact.days
                model.urls[place] = fact.source_url


def _set_rate(model: DraftModel, fact: RateFact) -> None:
    for place, card in enumerate(model.row.cards):
        rates = {rate.meter: rate for rate in card.rates}
        old = rates.get(fact.meter)
        if old is not None and fact.missing_only:
            continue
        if fact.missing_only and fact.times and fact.of not in rates:
            continue
        if fact.times:
            rates[fact.meter] = _multiple(rates[fact.of], fact)
        elif fact.price:
            rates[fact.meter] = RateRow(fact.meter, fact.price, fact.per, fact.tiers, fact.minimum)
        elif old is not None:
            rates[fact.meter] = msgspec.structs.replace(old, minimum=fact.minimum)
        else:
            raise CatalogError(f"{model.row.id} has no {fact.meter} to set a minimum of")
        card.rates = list(rates.values())
        model.urls[place] = fact.source_url


def _multiple(rate: RateRow, fact: RateFact) -> RateRow:
    tiers = [(above, inclusive, _times(price, fact.times)) for above, inclusive, price in rate.tiers]
    return RateRow(fact.meter, _times(rate.price, fact.times), rate.per, tiers)


def _times(price: str, factor: str) -> str:
    return f"{_exact.multiply(Decimal(price), Decimal(factor)).normalize(_exact):f}"


def _within(cards: list[CardRow], since: str = "", until: str = "") -> list[CardRow]:
    """The cards that hold at some time from `since` to before `until`, cut to it."""
    cut: list[CardRow] = []
    for card in cards:
        first = max(card.since, since)
        end = min(filter(None, (card.until, until)), default="")
        if not end or first < end:
            cut.append(msgspec.structs.replace(card, since=first, until=end))
    return cut


def _redirect(model: DraftModel, target: DraftModel, fact: RedirectFact) -> None:
    cards: list[CardRow] = []
    urls: list[str] = []
    for card, url in zip(model.row.cards, model.urls, strict=True):
        kept = _within([card], until=fact.since)
        cards += kept
        urls += [url] * len(kept)
    after = _within(target.row.cards, since=fact.since)
    model.row.cards = cards + after
    model.urls = urls + [fact.source_url] * len(after)


def _move_alias(drafts: dict[str, Draft], fact: AliasFact) -> None:
    cards: list[CardRow] = []
    for period in fact.periods:
        model = _model(drafts, fact.provider, period.model)
        cards += _within(model.row.cards, period.since, period.until)
    row = ModelRow(id=fact.alias, name=fact.name, aliases=fact.names, cards=cards)
    models = drafts[fact.provider].models
    for model in models:
        model.row.aliases = [name for name in model.row.aliases if name not in (fact.alias, *fact.names)]
    models.insert(0, DraftModel(row=row, match=None, urls=[fact.source_url] * len(cards)))


def _clone(model: DraftModel, fact: CloneFact) -> None:
    ((dimension, values),) = fact.set.items()
    taken = {getattr(card, dimension) for card in model.row.cards}
    if taken & set(values):
        raise CatalogError(f"{model.row.id} has a card for {dimension} {', '.join(values)} now")
    for card in list(model.row.cards):
        # A region's surcharge comes on top of every tier; a tier is a price beside the standard one.
        if card.region or (dimension != "region" and (card.tier or card.processing or card.speed)):
            continue
        for value in values:
            copy = msgspec.structs.replace(card, multipliers=[*card.multipliers, fact.multiplier])
            setattr(copy, dimension, value)
            model.row.cards.append(copy)
            model.urls.append(fact.source_url)
