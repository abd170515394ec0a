"""Checks every row of a catalog: what a refresh must pass before it is put in force."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from llm_cost_ops.catalog.bundle import (
    CardRow,
    CatalogError,
    ModelRow,
    Payload,
    ProviderRow,
    RateRow,
    WindowRow,
    decode_rows,
)
from llm_cost_ops.catalog.cards import card_id
from llm_cost_ops.catalog.names import check_match

__all__ = ["check_payload"]

_PRICE = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?", re.ASCII)
_METER = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
_TIME = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}Z)?", re.ASCII)
_MAX_NAME = 255


class _FaultError(Exception):
    """What is wrong with a row; where it is, the caller adds."""


def check_payload(payload: Payload) -> int:
    """Decodes and checks everything. Returns the number of cards.

    Raises CatalogError that names the provider and the model of the first row that breaks a rule.
    """
    if not payload.version or len(payload.version) > _MAX_NAME:
        raise CatalogError("the price catalog has no version")
    if not payload.providers:
        raise CatalogError("the price catalog is empty")
    count = 0
    for name, raw in payload.providers.items():
        provider = decode_rows(raw, ProviderRow)
        if any(not 0 <= place < len(provider.models) for place in _places(provider)):
            raise CatalogError(f"the price catalog is malformed at {name}: a name leads to no model")
        for _, pattern in provider.patterns:
            check_match(pattern)
        for row in provider.models:
            model = decode_rows(row, ModelRow)
            try:
                _check_model(model, len(payload.urls))
            except _FaultError as fault:
                raise CatalogError(
                    f"the price catalog is malformed at {name}/{model.id[:99]}: {fault}"
                ) from None
            count += len(model.cards)
    if not count:
        raise CatalogError("the price catalog is empty")
    return count


def _places(provider: ProviderRow) -> list[int]:
    return [*provider.names.values(), *(place for place, _ in provider.patterns)]


def _check_model(model: ModelRow, urls: int) -> None:
    if not 0 < len(model.id) <= _MAX_NAME:
        raise _FaultError("a model's id is empty or too long")
    ids = [card_id("", model.id, card) for card in model.cards]
    if len(set(ids)) != len(ids):
        raise _FaultError("two cards have one id")
    for card in model.cards:
        _check_card(card, urls)


def _check_card(card: CardRow, urls: int) -> None:
    _must(bool(card.rates), "a card has no rates")
    _must(len({rate.meter for rate in card.rates}) == len(card.rates), "a meter has two rates in one card")
    _must(bool(_CURRENCY.fullmatch(card.currency)), f"{card.currency[:16]!r} is not an ISO 4217 currency")
    _must(0 <= card.url < urls, "a card has no source")
    for day in (card.since, card.until):
        _must(not day or _is_date(day), f"{day[:16]!r} is not a date")
    _must(not card.until or card.since < card.until, "a card ends before it begins")
    for rate in card.rates:
        _check_rate(rate)
    for window in card.windows:
        _check_window(window)
    for multiplier in card.multipliers:
        _must(bool(multiplier.kind), "a multiplier has no kind")
        _check_price(multiplier.value)
        _must(multiplier.value.strip("0.") != "", "a multiplier is 0")


def _check_rate(rate: RateRow) -> None:
    _must(_METER.fullmatch(rate.meter) is not None, f"{rate.meter[:64]!r} is not a meter")
    _must(rate.per > 0, f"{rate.meter} is priced per {rate.per} units")
    _must(rate.minimum >= 0 and rate.included >= 0, f"{rate.meter} has a quantity below 0")
    _check_price(rate.price)
    for _, _, price in rate.tiers:
        _check_price(price)
    bounds = [above for above, _, _ in rate.tiers]
    _must(_rising(bounds), f"the tiers of {rate.meter} are not in rising order")


def _check_window(window: WindowRow) -> None:
    for time in (window.start, window.end):
        _must(_TIME.fullmatch(time) is not None, f"{time[:16]!r} is not a time of day")
    _must(all(1 <= day <= 7 for day in window.weekdays), "a weekday is not in 1 to 7")
    if window.time_zone:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(window.time_zone)
        except (KeyError, ValueError, OSError) as error:
            raise _FaultError(f"{window.time_zone[:64]!r} is not a time zone") from error


def _check_price(price: str) -> None:
    _must(_PRICE.fullmatch(price) is not None, f"{price[:40]!r} is not a price")


def _is_date(day: str) -> bool:
    try:
        return _DATE.fullmatch(day) is not None and bool(datetime.fromisoformat(day))
    except ValueError:
        return False


def _rising(bounds: Sequence[int]) -> bool:
    return all(bound >= 0 for bound in bounds) and all(a < b for a, b in pairwise(bounds))


def _must(holds: bool, fault: str) -> None:
    if not holds:
        raise _FaultError(fault)
