"""Prices records: cards made ready for arithmetic, and which of several sources' cards holds for what.

Every price is a whole fraction of 10^-12 for one unit (pricing/rates.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Protocol

import msgspec

from llm_cost_ops._gen.messages import CostStatus, RateCard, TierBasis, UsageQuality, UsageRecord
from llm_cost_ops.pricing.cards import card_digest
from llm_cost_ops.pricing.meters import EXACT_FALLBACKS, plain_counts, split_tokens, split_units
from llm_cost_ops.pricing.money import to_units
from llm_cost_ops.pricing.rates import CompiledRate, compiled_rates
from llm_cost_ops.pricing.selection import Candidate, PriceQuery, candidates
from llm_cost_ops.pricing.types import Priced, Pricing
from llm_cost_ops.rpc.forks import ForkSafeLock
from llm_cost_ops.rules.meters import PLAIN_METERS, TOKEN_METERS
from llm_cost_ops.rules.providers import PROVIDER_FALLBACKS, canonical_provider
from llm_cost_ops.rules.requests import states_no_count, total_tokens, usage_error
from llm_cost_ops.rules.times import instant

__all__ = [
    "DEFAULT_CURRENCY",
    "CardSource",
    "CompiledCard",
    "Plan",
    "PriceBook",
    "is_aggregate",
    "is_reported",
    "is_uncounted",
    "status_of",
]

DEFAULT_CURRENCY = "USD"
# Plans, and compiled cards, that a book remembers.
_CAPACITY = 4096

_PRICED = CostStatus.PRICED
_UNPRICED = CostStatus.UNPRICED
_ESTIMATED = CostStatus.ESTIMATED
_PARTIAL = CostStatus.PARTIAL
# An attribute of an enum class costs as much as five of an instance.
_NOT_GIVEN = UsageQuality.UNSPECIFIED
_PROVIDER = UsageQuality.PROVIDER
_GUESSED = UsageQuality.ESTIMATED
_UNKNOWN = UsageQuality.UNKNOWN

# A meter, the rate that prices it, None without one, and its count (thousandths for AUDIO_SECONDS).
Charge = tuple[str, "CompiledRate | None", int]
# The prices of INPUT and OUTPUT, and what of these CACHE_READ, CACHE_WRITE, CACHE_WRITE_EXTENDED (more than
# CACHE_WRITE) and REASONING cost more, or less.
_Row = tuple[int, int, int, int, int, int]


class CompiledCard:
    """A price card that is ready for arithmetic. It is never changed, and may be used by many threads.

    `card` is the card that it was made of; `rates` is what prices each meter, fallbacks resolved.
    `guesses` names, by meter, the fallbacks whose cost is an estimate, such as "rate:CACHE_READ->INPUT".
    """

    __slots__ = (
        "_bounds",
        "_fee",
        "_gap",
        "_guess_extended",
        "_guess_reads",
        "_guess_writes",
        "_plain",
        "_rows",
        "_unit_prices",
        "by_total",
        "card",
        "guesses",
        "rates",
    )

    def __init__(self, card: RateCard) -> None:
        self.card = card
        self.by_total = card.tier_basis == TierBasis.TOTAL_TOKENS
        self.rates = compiled_rates(card)
        self.guesses = {
            meter: f"rate:{meter}->{rate.meter}"
            for meter, rate in self.rates.items()
            if rate.meter != meter and meter not in EXACT_FALLBACKS
        }
        self._guess_reads = "CACHE_READ" in self.guesses
        self._guess_writes = "CACHE_WRITE" in self.guesses
        self._guess_extended = "CACHE_WRITE_EXTENDED" in self.guesses
        self._plain = tuple(self.rates.get(meter) for meter in PLAIN_METERS)
        self._bounds: list[int] = []
        self._rows: list[_Row] = []
        self._gap = False
        self._fee = 0
        self._unit_prices: dict[str, int] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Lay out the integer path: a row of prices per interval between bounds, where all are whole."""
        used = self._plain
        fee = self.rates.get("REQUESTS")
        if used[0] is None or "TOTAL_TOKENS" in self.rates:
            return
        if not all(rate is None or rate.simple for rate in (*used, fee)) or (fee is not None and fee.starts):
            return
        self._fee = fee.steps[0][0] if fee is not None else 0
        self._gap = used[4] is None
        self._bounds = sorted({start for rate in used if rate is not None for start in rate.starts})
        for basis in [-1, *self._bounds]:
            prices = [0 if rate is None else rate.steps[rate.step_at(basis)][0] for rate in used]
            uncached, reads, writes, long_writes, outputs, thoughts = prices
            details = (reads - uncached, writes - uncached, long_writes - writes, thoughts - outputs)
            self._rows.append((uncached, outputs, *details))
        for meter, rate in self.rates.items():
            if meter not in TOKEN_METERS and rate.simple and not rate.starts:
                key = "audio_ms" if meter == "AUDIO_SECONDS" else meter.lower()
                self._unit_prices[key] = rate.steps[0][0]

    def total(self, record: UsageRecord) -> tuple[int | None, CostStatus]:
        """What a record costs in 10^-12 of the card's currency, and how sure that is.

        None when its counts are unknown. ValidationError when they contradict each other.
        """
        rows = self._rows
        quality = record.quality
        if rows and record.modality is None and (quality is _NOT_GIVEN or quality is _PROVIDER):
            calls = record.request_count
            read = record.input_tokens
            written = record.output_tokens
            if read is None or written is None:
                if states_no_count(record):
                    return None, _UNPRICED
                read, written = read or 0, written or 0
            cached = record.cached_tokens
            stored = record.cache_write_tokens
            extended = record.cache_write_extended_tokens
            reasoning = record.reasoning_tokens
            try:
                text = read - cached - stored
                # The union of bits is below zero when any of them is.
                signs = text | cached | extended | (stored - extended) | reasoning | (written - reasoning)
            except TypeError:
                signs = -1
            if (
                signs >= 0
                and (calls is None or calls == 1)
                and not (written and self._gap)
                and not (cached and self._guess_reads)
                and not (stored and self._guess_writes)
                and not (extended and self._guess_extended)
            ):
                if len(rows) == 1:
                    row = rows[0]
                else:
                    row = self._row(read + written if self.by_total else read)
                inputs, outputs, reads, writes, long_writes, thoughts = row
                units = read * inputs + written * outputs
                if cached:
                    units += cached * reads
                if stored or reasoning:
                    units += stored * writes + extended * long_writes + reasoning * thoughts
                if not record.meters:
                    return units + self._fee, _PRICED
                if (others := self._units_total(record.meters)) is not None:
                    return units + others, _PRICED
        return self._exact_total(record)

    def rate_fallbacks(self, record: UsageRecord) -> tuple[str, ...]:
        """The guesses that the cost of a record rests on."""
        guesses = self.guesses
        if not guesses:
            return ()
        return tuple(guesses[meter] for meter, _, count in self.charges(record) if count and meter in guesses)

    def _row(self, basis: int) -> _Row:
        at = len(self._bounds)
        while at and basis < self._bounds[at - 1]:
            at -= 1
        return self._rows[at]

    def _units_total(self, meters: dict[str, int]) -> int | None:
        total = 0 if "requests" in meters else self._fee
        prices = self._unit_prices
        for key, count in meters.items():
            price = prices.get(key)
            if price is None or type(count) is not int or count < 0:
                return None
            total += count * price
        return total

    def _exact_total(self, record: UsageRecord) -> tuple[int | None, CostStatus]:
        if is_uncounted(record):
            return None, _UNPRICED
        charges = self.charges(record)
        basis = self.basis(record)
        several = is_aggregate(record)
        units = 0
        guesses = self.guesses
        partial = summed = guessed = False
        for meter, rate, count in charges:
            if rate is None:
                partial = True
                continue
            if meter in guesses:
                guessed = True
            if rate.whole is not None:
                units += count * rate.whole
            else:
                billed = rate.billed(count)
                units += rate.amount(billed, basis, base_only=several)[0]
                if several and rate.is_guess(billed, basis):
                    summed = True
        # A float among the counts makes the sum one.
        if type(units) is not int:
            raise usage_error(record)
        return units, status_of(record, partial=partial, estimated=summed or guessed)

    def basis(self, record: UsageRecord) -> int:
        """What is held against a whole-request tier's bound."""
        return total_tokens(record) if self.by_total else record.input_tokens or 0

    def charges(self, record: UsageRecord) -> list[Charge]:
        """Every meter that the record used, with its count and rate. ValidationError as `total`."""
        rates = self.rates
        total_rate = rates.get("TOTAL_TOKENS")
        try:
            if record.modality is None:
                found = self._plain_charges(record)
            else:
                split = split_tokens(record)
                if any(count < 0 for _, count in split):
                    raise usage_error(record)
                found = [(meter, rates.get(meter), count) for meter, count in split if count]
            if total_rate is not None:
                # A plan by total tokens covers the tokens that have no rate of their own.
                found = [charge for charge in found if charge[1] is not None]
            if record.meters or "REQUESTS" in rates:
                found += self._unit_charges(record)
        except TypeError:
            raise usage_error(record) from None
        if total_rate is not None and (total := total_tokens(record)):
            found.append(("TOTAL_TOKENS", total_rate, total))
        return found

    def _plain_charges(self, record: UsageRecord) -> list[Charge]:
        text, cached, stored, extended, written, reasoning = plain_counts(record)
        if (text | cached | stored | extended | written | reasoning) < 0:
            raise usage_error(record)
        uncached, reads, writes, long_writes, outputs, thoughts = self._plain
        found: list[Charge] = []
        # Written out: a loop over six meters costs more than the arithmetic.
        if text:
            found.append(("INPUT", uncached, text))
        if cached:
            found.append(("CACHE_READ", reads, cached))
        if stored:
            found.append(("CACHE_WRITE", writes, stored))
        if extended:
            found.append(("CACHE_WRITE_EXTENDED", long_writes, extended))
        if written:
            found.append(("OUTPUT", outputs, written))
        if reasoning:
            found.append(("REASONING", thoughts, reasoning))
        return found

    def _unit_charges(self, record: UsageRecord) -> Iterable[Charge]:
        rates = self.rates
        counted = split_units(record)
        if "REQUESTS" in rates and all(meter != "REQUESTS" for meter, _ in counted):
            counted.append(("REQUESTS", record.request_count or 1))
        for meter, count in counted:
            if count < 0 or meter in TOKEN_METERS:
                raise usage_error(record)
            if count:
                yield meter, rates.get(meter), count


class CardSource(Protocol):
    """Where cards come from, such as a catalog."""

    def cards(self, provider: str, model_id: str) -> Sequence[RateCard]:
        """Every card of the model, whatever its dates and dimensions; the provider is canonical."""


_NO_PRICE = Pricing(_UNPRICED, DEFAULT_CURRENCY)


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

    __slots__ = ("_compiled", "_lock", "_manual", "cards", "plans", "sources")

    def __init__(
        self,
        sources: Sequence[CardSource],
        cards: Iterable[RateCard],
    ) -> None:
        self.sources = tuple(sources)
        self.cards = tuple(cards)
        self.plans: dict[_Key, Plan] = {}
        self._compiled: dict[int, CompiledCard] = {}
        self._lock = ForkSafeLock()
        self._manual: dict[tuple[str, str], list[RateCard]] = {}
        for card in self.cards:
            provider = canonical_provider(card.provider)
            for name in {"*" if name.endswith("*") else name for name in (card.model_id, *card.aliases)}:
                self._manual.setdefault((provider, name), []).append(card)

    def plan(self, key: _Key) -> Plan:
        """What may price such records, the best first; an empty one is remembered as well."""
        provider = canonical_provider(key[0])
        plan = [_Choice(candidate, ()) for candidate in self._candidates(provider, key)]
        for other in PROVIDER_FALLBACKS.get(provider, ()):
            plan += [_Choice(candidate, ("provider",)) for candidate in self._candidates(other, key)]
        found = tuple(plan)
        with self._lock.held:
            while len(self.plans) >= _CAPACITY:
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
        found = candidates(self._of_model(provider, key[1]), query)
        for source in self.sources:
            found += candidates(source.cards(provider, key[1]), query, resolved=True)
        found.sort(key=lambda candidate: candidate.rank, reverse=True)
        return found

    def _of_model(self, provider: str, model_id: str) -> Iterable[RateCard]:
        """The cards that may name a model, each once: those of its name, and those with a prefix of some."""
        named = self._manual.get((provider, model_id), ())
        if not (prefixed := self._manual.get((provider, "*"), ())):
            return named
        return {id(card): card for card in (*named, *prefixed)}.values()

    def compiled(self, choice: _Choice) -> CompiledCard:
        if choice.compiled is None:
            with self._lock.held:
                known = self._compiled.get(id(choice.card))
                if known is None or known.card is not choice.card:
                    known = CompiledCard(choice.card)
                    while len(self._compiled) >= _CAPACITY:
                        del self._compiled[next(iter(self._compiled))]
                    self._compiled[id(choice.card)] = known
                choice.compiled = known
        return choice.compiled


class PriceBook:
    """Prices records. It may be used by many threads; for other cards, make another book.

    `sources` are asked for the cards of a model; `cards` are further ones, such as those that users
    created. For a provider in `reported_providers` a record's own reported_cost is taken, and so it is
    wherever no card gives the whole cost: no card at all, no counts, or a meter without a rate.
    The cards of PROVIDER_FALLBACKS price models that a provider has none for; such a cost is ESTIMATED,
    with the fallback "provider". Choices are remembered for thousands of combinations of provider, model,
    organization and dimensions, misses included. Cards must not be changed once they are in the book.
    """

    def __init__(
        self,
        sources: Sequence[CardSource] = (),
        *,
        cards: Iterable[RateCard] = (),
        reported_providers: Collection[str] = (),
    ) -> None:
        self._reported = frozenset(map(canonical_provider, reported_providers))
        self._snapshot = _Snapshot(sources, cards)

    @property
    def cards(self) -> tuple[RateCard, ...]:
        """The cards beside those of the sources, as they were given."""
        return self._snapshot.cards

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
            return _reported(record) if stated else (None, _NO_PRICE)
        compiled = choice.compiled or self._snapshot.compiled(choice)
        units, status = compiled.total(record)
        if status is _PRICED:
            return units, choice.plain or choice.pricing(status, False, ())
        if stated and (units is None or status is _PARTIAL):
            return _reported(record)
        guesses = compiled.rate_fallbacks(record) if units is not None else ()
        return units, choice.pricing(status, units is None, guesses)

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
        snapshot = self._snapshot
        plan = snapshot.plans.get(key)
        return snapshot.plan(key) if plan is None else plan

    def choose(
        self, record: UsageRecord, *, at: datetime | None = None
    ) -> tuple[CompiledCard, tuple[str, ...]] | None:
        """The card that prices a record, and the dimensions in which it stands in for one that is missing."""
        at = _moment(record, at)
        for choice in self.plan_of(record):
            if choice.since <= at < choice.until and (not choice.windowed or choice.candidate.holds(at)):
                return choice.compiled or self._snapshot.compiled(choice), choice.fallbacks
        return None

    def is_reported(self, record: UsageRecord) -> bool:
        """Whether the cost that a record's provider stated is taken, whatever the cards say."""
        return is_reported(record, self._reported)


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


def is_reported(record: UsageRecord, providers: Collection[str]) -> bool:
    """Whether the cost that the provider stated is the one to take."""
    return record.reported_cost is not None and canonical_provider(record.provider) in providers


def is_uncounted(record: UsageRecord) -> bool:
    """Whether nothing says how much was used: such a record is unpriced, never free."""
    return record.quality == _UNKNOWN or states_no_count(record)


def is_aggregate(record: UsageRecord) -> bool:
    """Whether the record is the sum of several calls, to which no tier can be applied."""
    return record.request_count is not None and record.request_count > 1


def status_of(
    record: UsageRecord, *, partial: bool, estimated: bool, fallbacks: Sequence[str] = ()
) -> CostStatus:
    """How sure a cost is that some card gave."""
    if partial:
        return _PARTIAL
    if estimated or fallbacks or record.quality == _GUESSED:
        return _ESTIMATED
    return _PRICED
