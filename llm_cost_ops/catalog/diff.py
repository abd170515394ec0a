"""What changed from one catalog to another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

from llm_cost_ops._gen.messages import PriceMultiplier, PriceTier, Rate, RateCard, TimeWindow
from llm_cost_ops.catalog.load import Catalog
from llm_cost_ops.pricing.money import plain

__all__ = ["PriceChange", "price_diff"]


Kind = Literal["added", "removed", "changed"]


class PriceChange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One difference between two catalogs.

    `kind` says what became of the card. A card "added" or "removed" gives one change per meter;
    a "changed" card one per `field` that differs: a meter, or a name of RateCard. `old` and `new`
    are texts to show, empty where there is nothing: prices as "2.5 / 1000000", with tiers after it.
    """

    kind: Kind
    card_id: str
    provider: str
    model_id: str
    field: str
    old: str = ""
    new: str = ""


def price_diff(old: Catalog, new: Catalog) -> list[PriceChange]:
    """Every price, date, condition and multiplier that differs, by card; [] when none does.

    Names, versions and sources are not compared.
    """
    if old.checksum == new.checksum:
        return []
    before = {card.id: card for card in old}
    after = {card.id: card for card in new}
    changes: list[PriceChange] = []
    for card_id in sorted(before.keys() | after.keys()):
        changes += _card_changes(before.get(card_id), after.get(card_id))
    return changes


def _card_changes(old: RateCard | None, new: RateCard | None) -> Iterator[PriceChange]:
    card = new or old
    if card is None:
        return
    kind: Kind = "added" if old is None else "removed" if new is None else "changed"
    before = _facts(old, whole=kind == "changed") if old else {}
    after = _facts(new, whole=kind == "changed") if new else {}
    for field in dict.fromkeys((*before, *after)):
        was, now = before.get(field, ""), after.get(field, "")
        if was != now:
            yield PriceChange(
                kind=kind,
                card_id=card.id,
                provider=card.provider,
                model_id=card.model_id,
                field=field,
                old=was,
                new=now,
            )


def _facts(card: RateCard, *, whole: bool) -> dict[str, str]:
    facts = {rate.meter: _price(rate) for rate in card.rates}
    if whole:
        facts["currency"] = card.currency
        facts["effective_until"] = _moment(card.effective_until)
        facts["windows"] = ", ".join(map(_window, card.windows))
        facts["multipliers"] = ", ".join(map(_multiplier, card.multipliers))
    return facts


def _price(rate: Rate) -> str:
    parts = [f"{_plain(rate.price)} / {rate.per}"]
    parts += map(_tier, rate.tiers)
    if rate.minimum:
        parts.append(f"at least {rate.minimum}")
    if rate.included:
        parts.append(f"{rate.included} included")
    return "; ".join(parts)


def _tier(tier: PriceTier) -> str:
    return f"{'from' if tier.inclusive else 'above'} {tier.above}: {_plain(tier.price)}"


def _window(window: TimeWindow) -> str:
    days = "".join(map(str, window.weekdays)) or "daily"
    return f"{window.start}-{window.end} {window.time_zone or 'UTC'} {days}"


def _moment(moment: datetime | None) -> str:
    """As a catalog has it: a date where it is midnight."""
    return "" if moment is None else f"{moment:%Y-%m-%dT%H:%MZ}".removesuffix("T00:00Z")


def _multiplier(multiplier: PriceMultiplier) -> str:
    return f"{multiplier.kind} {_plain(multiplier.value)}{' of all meters' if multiplier.all_meters else ''}"


def _plain(value: Decimal) -> str:
    return f"{plain(value):f}"
