"""Prices records by the cards of several sources, and remembers which card holds for what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Protocol

import msgspec

from llm_cost_ops._gen.messages import CostRecord, CostStatus, RateCard, UsageRecord
from llm_cost_ops.pricing.calculator import (
    DEFAULT_CURRENCY,
    calculate_cost,
    cost_of,
    is_reported,
    reported_cost,
)
from llm_cost_ops.pricing.cards import card_digest
from llm_cost_ops.pricing.compiled import CompiledCard, compile_card
from llm_cost_ops.pricing.money import to_units
from llm_cost_ops.pricing.selection import Candidate, PriceQuery, Selection, candidates
from llm_cost_ops.pricing.types import Priced, Pricing
from llm_cost_ops.rpc.forks import ForkSafeLock
from llm_cost_ops.rules.providers import PROVIDER_FALLBACKS, canonical_provider
from llm_cost_ops.rules.times import instant

__all__ = ["CardSource", "Plan", "PriceBook"]

_PRICED = CostStatus.PRICED
_ESTIMATED = CostStatus.ESTIMATED
_PARTIAL = CostStatus.PARTIAL
_NOT_WHOLE = (CostStatus.UNPRICED, CostStatus.PARTIAL)
_PROVIDER = "provider"


class CardSource(Protocol):
    """Where cards come from, such as a catalog."""

    def cards(self, provider: str, model_id: str) -> Sequence[RateCard]:
        """Every card of the model, whatever its dates and dimensions; the provider is canonical."""


_UNPRICED = Pricing(CostStatus.UNPRICED, DEFAULT_CURRENCY)


class _Choice:
    __slots__ = (
        "_pricings",
        "candidate",
        "card",
        "compiled",
        "fallbacks",
        "plain",
        "since",
        "until",
        "windowed",
    )

    def __init__(self, candidate: Candidate, fallbacks: tuple[str, ...]) -> None:
        self.candidate = candidate
        self.card = candidate.card
        self.fallbacks = candidate.fallbacks + fallbacks
        self.since = candidate.since
        self.until = candidate.until
        self.windowed = bool(candidate.windows)
        self.compiled: CompiledCard | None = None
        self._pricings: dict[tuple[CostStatus, bool, tuple[str, ...]], Pricing] = {}
        self.plain: Pricing | None = None
        """How a record was priced whose cost is exact, once there was one."""

    def pricing(self, status: CostStatus, unpriced: bool, guesses: tuple[str, ...]) -> Pricing:
        """How a record was priced for which the compiled card gave a status, and a cost or none."""
        key = (status, unpriced, guesses)
        return self._pricings.get(key) or self._made(*key)

    def _made(self, status: CostStatus, unpriced: bool, guesses: tuple[str, ...]) -> Pricing:
        card = self.card
        made = Pricing(
            _ESTIMATED if self.fallbacks and status is _PRICED else status, card.currency or DEFAULT_CURRENCY
        )
        if not unpriced:
            made = msgspec.structs.replace(
                made,
                card_id=card.id,
                card_version=card.version,
                fallbacks=self.fallbacks + guesses,
                origin_version=card.origin_version,
                card=card,
                digest=card_digest(card),
            )
        made = self._pricings.setdefault((status, unpriced, guesses), made)
        if status is _PRICED and not unpriced and not guesses:
            self.plain = made
        return made


_Key = tuple[str, str, str, str, str, str, str]

Plan = tuple[_Choice, ...]
"""What may price records that are alike, the best first."""


class _Snapshot:
    """The cards of one moment with all that was derived from them: replaced as a whole."""

    __slots__ = ("_compiled", "_lock", "_manual", "capacity", "cards", "fallbacks", "plans", "sources")

    def __init__(
        self,
        sources: Sequence[CardSource],
        cards: Iterable[RateCard],
        fallbacks: Mapping[str, Sequence[str]],
        capacity: int,
    ) -> None:
        self.sources = tuple(sources)
        self.cards = tuple(cards)
        self.fallbacks = fallbacks
        self.capacity = capacity
        self.plans: dict[_Key, Plan] = {}
        self._compiled: dict[int, CompiledCard] = {}
        self._lock = ForkSafeLock()
        self._manual: dict[str, list[RateCard]] = {}
        for card in self.cards:
            self._manual.setdefault(canonical_provider(card.provider), []).append(card)

    def plan(self, key: _Key) -> Plan:
        """What may price such records, the best first; an empty one is remembered as well."""
        provider = canonical_provider(key[0])
        plan = [_Choice(candidate, ()) for candidate in self._candidates(provider, key)]
        for other in self.fallbacks.get(provider, ()):
            plan += [_Choice(candidate, (_PROVIDER,)) for candidate in self._candidates(other, key)]
        found = tuple(plan)
        with self._lock:
            while len(self.plans) >= self.capacity:
                del self.plans[next(iter(self.plans))]
            self.plans[key] = found
        return found

    def _candidates(self, provider: str, key: _Key) -> list[Candidate]:
        query = PriceQuery(
            provider=provider,
            model_id=key[1],
            at=datetime.min,  # noqa: DTZ901 - candidates fit at any time
            organization_id=key[2],
            service_tier=key[3],
            processing=key[4],
            region=key[5],
            speed=key[6],
        )
        found = candidates(self._manual.get(provider, ()), query)
        for source in self.sources:
            found += candidates(source.cards(provider, key[1]), query, resolved=True)
        found.sort(key=lambda candidate: candidate.rank, reverse=True)
        return found

    def compiled(self, choice: _Choice) -> CompiledCard:
        if choice.compiled is None:
            with self._lock:
                known = self._compiled.get(id(choice.card))
                if known is None or known.card is not choice.card:
                    known = compile_card(choice.card)
                    while len(self._compiled) >= self.capacity:
                        del self._compiled[next(iter(self._compiled))]
                    self._compiled[id(choice.card)] = known
                choice.compiled = known
        return choice.compiled


class PriceBook:
    """Prices records. It may be used by many threads; for other cards, make another book.

    `sources` are asked for the cards of a model; `cards` are further ones, such as those that users
    created. For a provider in `reported_providers` a record's own reported_cost is taken, and so it is
    wherever no card gives the whole cost: no card at all, no counts, or a meter without a rate.
    `provider_fallbacks` names, by provider, those whose cards price the models that it has none
    for; such a cost is ESTIMATED, with the fallback "provider". Choices are remembered for at most
    `capacity` combinations of provider, model, organization and dimensions, misses included. Cards
    must not be changed once they are in the book.
    """

    def __init__(
        self,
        sources: Sequence[CardSource] = (),
        *,
        cards: Iterable[RateCard] = (),
        reported_providers: Collection[str] = (),
        provider_fallbacks: Mapping[str, Sequence[str]] = PROVIDER_FALLBACKS,
        capacity: int = 4096,
    ) -> None:
        if capacity < 1:
            raise ValueError("the capacity must be at least 1")
        self._reported = frozenset(map(canonical_provider, reported_providers))
        self._edition = _Snapshot(sources, cards, provider_fallbacks, capacity)

    @property
    def cards(self) -> tuple[RateCard, ...]:
        """The cards beside those of the sources, as they were given."""
        return self._edition.cards

    def price(self, record: UsageRecord, *, at: datetime | None = None) -> Priced:
        """What the record costs by the card that holds at its timestamp, or at `at` where given.

        ValidationError when its counts contradict each other; ValueError without any time.
        """
        if record.reported_cost is not None and is_reported(record, self._reported):
            return Priced(*_reported(record))
        return Priced(*self.price_by(self.plan_of(record), record, _moment(record, at)))

    def price_by(self, plan: Plan, record: UsageRecord, at: datetime) -> tuple[int | None, Pricing]:
        """The units and the Pricing that `price` gives, for who prices thousands at a time.

        `plan` is that of the record, and `at` has a zone.
        """
        stated = record.reported_cost is not None
        if stated and is_reported(record, self._reported):
            return _reported(record)
        for choice in plan:
            if choice.since <= at < choice.until and (not choice.windowed or choice.candidate.holds(at)):
                break
        else:
            return _reported(record) if stated else (None, _UNPRICED)
        compiled = choice.compiled or self._edition.compiled(choice)
        units, status = compiled.total(record)
        if status is _PRICED:
            return units, choice.plain or choice.pricing(status, False, ())
        if stated and (units is None or status is _PARTIAL):
            return _reported(record)
        guesses = compiled.rate_fallbacks(record) if units is not None else ()
        return units, choice.pricing(status, units is None, guesses)

    def cost(self, record: UsageRecord, *, at: datetime | None = None) -> CostRecord:
        """As `price`, with the lines of the receipt."""
        stated = record.reported_cost is not None
        if stated and is_reported(record, self._reported):
            return reported_cost(record)
        found = self._choose(record, at)
        cost = cost_of(found[1], record, found[0].fallbacks) if found else calculate_cost(record, None)
        return reported_cost(record) if stated and cost.status in _NOT_WHOLE else cost

    def select(self, record: UsageRecord, *, at: datetime | None = None) -> Selection | None:
        """The card that prices the record, or None."""
        found = self._choose(record, at)
        return None if found is None else Selection(found[0].card, found[0].fallbacks)

    def plan_of(self, record: UsageRecord) -> Plan:
        """What may price a record, and all that have its provider, model, organization and dimensions."""
        key = (
            record.provider,
            record.model_id,
            record.organization_id,
            record.service_tier,
            record.processing,
            record.region,
            record.speed,
        )
        edition = self._edition
        plan = edition.plans.get(key)
        return edition.plan(key) if plan is None else plan

    def _choose(self, record: UsageRecord, at: datetime | None) -> tuple[_Choice, CompiledCard] | None:
        at = _moment(record, at)
        plan = self.plan_of(record)
        for choice in plan:
            if choice.since <= at < choice.until and (not choice.windowed or choice.candidate.holds(at)):
                return choice, choice.compiled or self._edition.compiled(choice)
        return None


def _moment(record: UsageRecord, at: datetime | None) -> datetime:
    if at is None:
        at = record.timestamp
        if at is None:
            raise ValueError("the record has no timestamp, and none was given")
    return at if at.tzinfo is not None else instant(at)


def _reported(record: UsageRecord) -> tuple[int | None, Pricing]:
    cost = record.reported_cost
    by = _reported_in(record.reported_currency or DEFAULT_CURRENCY)
    return None if cost is None else to_units(cost), by


@lru_cache(maxsize=256)
def _reported_in(currency: str) -> Pricing:
    return Pricing(CostStatus.REPORTED, currency)
