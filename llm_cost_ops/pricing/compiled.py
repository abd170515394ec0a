"""Price cards made ready for arithmetic: every price is a whole fraction of 10^-12 for one unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from math import gcd

from llm_cost_ops._gen.messages import (
    CostStatus,
    Rate,
    RateCard,
    TierBasis,
    TierMode,
    UsageQuality,
    UsageRecord,
)
from llm_cost_ops.pricing.meters import (
    EXACT_FALLBACKS,
    RATE_FALLBACKS,
    plain_counts,
    split_tokens,
    split_units,
)
from llm_cost_ops.pricing.money import UNITS, divide_half_even, plain, product, ratio_of
from llm_cost_ops.rules.cards import card_error
from llm_cost_ops.rules.meters import PLAIN_METERS, TOKEN_METERS
from llm_cost_ops.rules.requests import states_no_count, total_tokens, usage_error

__all__ = [
    "Charge",
    "CompiledCard",
    "CompiledRate",
    "compile_card",
    "meter_costs",
    "meters_used",
    "status_of",
]


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


class CompiledRate:
    """What one meter costs. `scale` is how many counts make one unit of the meter: 1 or 1000."""

    __slots__ = (
        "bands",
        "flat",
        "included",
        "meter",
        "minimum",
        "multiplier",
        "per",
        "prices",
        "scale",
        "shown",
        "starts",
        "steps",
        "whole",
    )

    def __init__(self, rate: Rate, multipliers: list[Decimal], scale: int, *, graduated: bool) -> None:
        self.meter = rate.meter.upper()
        self.per = rate.per or 1_000_000
        self.scale = scale
        self.minimum = rate.minimum * scale
        self.included = rate.included * scale
        self.flat = not rate.minimum and not rate.included
        self.multiplier = product(multipliers)
        tiers = sorted(rate.tiers, key=lambda tier: tier.above) if graduated else rate.tiers
        prices = [rate.price, *(tier.price for tier in tiers)]
        self.steps = [self._step(price) for price in prices]
        self.prices = [plain(price) for price in prices]
        # Counts are whole, so a price above a bound begins at the next one.
        self.starts = [tier.above if tier.inclusive else tier.above + 1 for tier in tiers]
        self.bands = [tier.above * scale for tier in tiers] if graduated and tiers else None
        # The price of one count in units, where that is all there is to it, and what a line says of it.
        self.whole = self.steps[0][0] if self.simple and not tiers else None
        self.shown: tuple[Decimal | None, int, Decimal, str] = (
            self.prices[0],
            self.per,
            self.multiplier,
            self.meter,
        )

    def _step(self, price: Decimal) -> tuple[int, int]:
        top, bottom = ratio_of(price)
        times, over = ratio_of(self.multiplier)
        numerator = top * times * UNITS
        denominator = bottom * over * self.per * self.scale
        if numerator < 0 or denominator <= 0:
            raise ValueError("prices, multipliers and quantities are not below 0")
        common = gcd(numerator, denominator)
        return numerator // common, denominator // common

    @property
    def simple(self) -> bool:
        """Whether a cost is a count times a whole number of units, at any given tier."""
        return self.flat and self.bands is None and all(denominator == 1 for _, denominator in self.steps)

    def billed(self, count: int) -> int:
        """What is charged for: at least the minimum, less what is included."""
        count = max(count, self.minimum)
        return count - self.included if count > self.included else 0

    def step_at(self, basis: int) -> int:
        """The index of the price that holds for a whole request: the last whose bound is crossed."""
        at = len(self.starts)
        while at and basis < self.starts[at - 1]:
            at -= 1
        return at

    def crosses(self, billed: int, basis: int) -> bool:
        """Whether any bound is crossed, so that a sum of several requests may be priced wrongly."""
        if self.bands is not None:
            return billed > self.bands[0]
        return any(basis >= start for start in self.starts)

    def amount(self, billed: int, basis: int, *, base_only: bool = False) -> tuple[int, Decimal | None]:
        """The cost in units, rounded once, and the price when it is one."""
        if self.bands is None or base_only:
            at = 0 if base_only else self.step_at(basis)
            numerator, denominator = self.steps[at]
            if denominator == 1:
                return billed * numerator, self.prices[at]
            return divide_half_even(billed * numerator, denominator), self.prices[at]
        return self._graduated(billed, self.bands)

    def _graduated(self, billed: int, bands: list[int]) -> tuple[int, Decimal | None]:
        top, bottom, low, at = 0, 1, 0, 0
        for at, (numerator, denominator) in enumerate(self.steps):
            high = bands[at] if at < len(bands) else billed
            quantity = min(billed, high) - low
            top, bottom = top * denominator + quantity * numerator * bottom, bottom * denominator
            low = high
            if billed <= high:
                break
        return divide_half_even(top, bottom), None if at else self.prices[0]


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
        self.rates = _resolve(card)
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
        partial = crossed = guessed = False
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
                if several and rate.crosses(billed, basis):
                    crossed = True
        # A float among the counts makes the sum one.
        if type(units) is not int:
            raise usage_error(record)
        return units, status_of(record, partial=partial, estimated=crossed or guessed)

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


def _resolve(card: RateCard) -> dict[str, CompiledRate]:
    graduated = card.tier_mode == TierMode.GRADUATED
    for_tokens = [multiplier.value for multiplier in card.multipliers]
    for_all = [multiplier.value for multiplier in card.multipliers if multiplier.all_meters]
    rates: dict[str, CompiledRate] = {}
    try:
        if any(ratio_of(value)[0] <= 0 for value in for_tokens):
            raise card_error(card)
        for rate in card.rates:
            meter = rate.meter.upper()
            rates[meter] = CompiledRate(
                rate,
                for_tokens if meter in TOKEN_METERS else for_all,
                1000 if meter == "AUDIO_SECONDS" else 1,
                graduated=graduated,
            )
    except (ValueError, TypeError):
        raise card_error(card) from None
    own = frozenset(rates)
    for meter, others in RATE_FALLBACKS.items():
        if meter not in own and (found := next((other for other in others if other in own), None)):
            rates[meter] = rates[found]
    return rates


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


def compile_card(card: RateCard) -> CompiledCard:
    """Make a card ready for arithmetic; ValidationError when its prices or factors are not valid.

    The card must not be changed afterwards.
    """
    return CompiledCard(card)


def meter_costs(compiled: CompiledCard, record: UsageRecord) -> dict[str, int | None]:
    """The cost of each meter in 10^-12 of the card's currency; None for one that has no rate.

    Together they are the total, to the unit. ValidationError when the record contradicts itself.
    """
    basis = compiled.basis(record)
    several = is_aggregate(record)
    costs: dict[str, int | None] = {}
    for meter, rate, count in compiled.charges(record):
        if rate is None:
            costs[meter] = None
            continue
        if rate.whole is not None:
            units = count * rate.whole
        else:
            units, _ = rate.amount(rate.billed(count), basis, base_only=several)
        costs[meter] = (costs.get(meter) or 0) + units
    return costs


def meters_used(record: UsageRecord) -> dict[str, int]:
    """What a record used by meter, zeros left out: tokens, and 0 for meters that are no tokens."""
    used = {meter: count for meter, count in split_tokens(record) if count > 0}
    used.update((meter, 0) for meter, count in split_units(record) if count)
    return used
