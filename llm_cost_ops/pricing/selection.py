"""Which price card holds for a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from llm_cost_ops._gen.messages import PriceOrigin, RateCard, UsageRecord
from llm_cost_ops.rules.cards import card_error, clock_seconds
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.times import instant

__all__ = ["Candidate", "PriceQuery", "Selection", "candidates", "select_card"]

_DAY = 86400
_ALWAYS = datetime.min.replace(tzinfo=UTC)
_FOREVER = datetime.max.replace(tzinfo=UTC)

# Other names of the value that a card without the dimension is for.
_STANDARD = {
    "service_tier": frozenset(("", "default", "standard", "on_demand", "on-demand")),
    "processing": frozenset(("", "default", "standard", "realtime", "real_time", "real-time", "online")),
    "speed": frozenset(("", "default", "standard", "normal")),
}
_EXACT = 1_000_000
_ALIAS = _EXACT - 1
_RESOLVED = -1


class PriceQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the price of a call. `at` is when it was made; a naive one means UTC.

    Empty dimensions are the standard ones. An empty currency takes cards in any.
    """

    provider: str
    model_id: str
    at: datetime
    organization_id: str = ""
    region: str = ""
    service_tier: str = ""
    processing: str = ""
    speed: str = ""
    currency: str = ""

    @classmethod
    def of(cls, record: UsageRecord) -> PriceQuery:
        """The query of a record, at its timestamp; ValueError without one."""
        if record.timestamp is None:
            raise ValueError("the record has no timestamp")
        return cls(
            provider=record.provider,
            model_id=record.model_id,
            at=record.timestamp,
            organization_id=record.organization_id,
            region=record.region,
            service_tier=record.service_tier,
            processing=record.processing,
            speed=record.speed,
        )


class Selection(NamedTuple):
    """A card, and the dimensions in which it stands in for one that is missing."""

    card: RateCard
    fallbacks: tuple[str, ...] = ()


class _Window(NamedTuple):
    start: int
    end: int
    zone: ZoneInfo | None
    weekdays: frozenset[int]

    def holds(self, at: datetime) -> bool:
        local = at.astimezone(self.zone) if self.zone is not None else at
        second = local.hour * 3600 + local.minute * 60 + local.second
        weekday = local.isoweekday()
        if self.start < self.end:
            opened = self.start <= second < self.end
        elif second >= self.start:
            opened = True
        else:
            # After midnight the window is the one that started on the day before.
            opened = second < self.end
            weekday = weekday - 1 or 7
        return opened and (not self.weekdays or weekday in self.weekdays)


class Candidate:
    """A card that fits a query in everything but time. Its rank compares: the greater is the better."""

    __slots__ = ("card", "fallbacks", "rank", "since", "until", "windows")

    def __init__(self, card: RateCard, fallbacks: tuple[str, ...], model_rank: int, dimensions: int) -> None:
        self.card = card
        self.fallbacks = fallbacks
        self.since = _ALWAYS if card.effective_from is None else instant(card.effective_from)
        self.until = _FOREVER if card.effective_until is None else instant(card.effective_until)
        self.windows = _windows(card)
        self.rank = (
            not fallbacks,
            bool(card.organization_id),
            card.origin == PriceOrigin.MANUAL,
            model_rank,
            dimensions,
            -len(fallbacks),
            bool(card.windows),
            self.since,
            card.version,
            card.id,
        )

    def holds(self, at: datetime) -> bool:
        """Whether the card is in force at that moment, an aware one."""
        if not self.since <= at < self.until:
            return False
        if not self.windows:
            return True
        at = at.astimezone(UTC)
        return any(window.holds(at) for window in self.windows)


def _windows(card: RateCard) -> tuple[_Window, ...]:
    found = []
    for window in card.windows:
        start, end = clock_seconds(window.start), clock_seconds(window.end)
        if start is None or end is None:
            raise card_error(card)
        try:
            zone = None if window.time_zone in {"", "UTC"} else ZoneInfo(window.time_zone)
        except (KeyError, ValueError, OSError):
            raise card_error(card) from None
        found.append(_Window(start % _DAY, end, zone, frozenset(window.weekdays)))
    return tuple(found)


def _model_rank(card: RateCard, model_id: str) -> int | None:
    if card.model_id == model_id:
        return _EXACT
    best = None
    for name in (card.model_id, *card.aliases):
        if name == model_id:
            return _ALIAS
        if name.endswith("*") and model_id.startswith(name[:-1]) and (best is None or len(name) > best):
            best = len(name)
    return best


def _dimensions(card: RateCard, query: PriceQuery) -> tuple[int, tuple[str, ...]] | None:
    """How many dimensions the card sets, and in which it is a fallback; None where it does not fit."""
    if card.organization_id and card.organization_id != query.organization_id:
        return None
    if query.currency and (card.currency or "USD") != query.currency:
        return None
    if card.region and card.region.lower() != query.region.lower():
        return None
    count = 1 if card.region else 0
    fallbacks: tuple[str, ...] = ()
    for dimension, own, wanted in (
        ("service_tier", card.service_tier.lower(), query.service_tier.lower()),
        ("processing", card.processing.lower(), query.processing.lower()),
        ("speed", card.speed.lower(), query.speed.lower()),
    ):
        standard = _STANDARD[dimension]
        if own in standard:
            if wanted not in standard:
                fallbacks += (dimension,)
        elif own != wanted:
            return None
        else:
            count += 1
    return count, fallbacks


def candidates(cards: Iterable[RateCard], query: PriceQuery, *, resolved: bool = False) -> list[Candidate]:
    """The cards that fit the query at some time, the best first; `query.at` is not looked at.

    With `resolved` the cards are of the query's model by whatever rules their source has.
    """
    provider = canonical_provider(query.provider)
    found = []
    for card in cards:
        if canonical_provider(card.provider) != provider:
            continue
        model_rank = _model_rank(card, query.model_id)
        if model_rank is None:
            if not resolved:
                continue
            model_rank = _RESOLVED
        fit = _dimensions(card, query)
        if fit is not None:
            found.append(Candidate(card, fit[1], model_rank, fit[0]))
    found.sort(key=lambda candidate: candidate.rank, reverse=True)
    return found


def select_card(cards: Sequence[RateCard], query: PriceQuery) -> Selection | None:
    """The card that prices the query, or None: then its price is not known.

    Best first: one that needs no fallback of tier, processing or speed; the organization's own; a
    manual one; the exact model, then an alias, then the longer prefix; the one that sets more
    dimensions; one with windows; the latest start; the highest version. Intervals are [from,
    until), compared as instants.
    """
    at = instant(query.at)
    for candidate in candidates(cards, query):
        if candidate.holds(at):
            return Selection(candidate.card, candidate.fallbacks)
    return None
