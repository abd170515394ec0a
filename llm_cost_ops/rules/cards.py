"""The rules between the fields of a price card; those of single fields are generated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from zoneinfo import ZoneInfo

from llm_cost_ops._gen.messages import (
    CreatePriceRequest,
    PriceTier,
    Rate,
    RateCard,
    TimeWindow,
)
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.rpc.status import RpcError, Violation, violations_text
from llm_cost_ops.rules.currencies import CURRENCIES, CURRENCY_RULE
from llm_cost_ops.rules.meters import METER_NAME, METER_RULE, PRICE_FIELDS, TOKEN_METERS
from llm_cost_ops.rules.times import instant, parse_end, parse_start
from llm_cost_ops.wire.validation import check_between, no_member

__all__ = ["card_error", "check_card", "clock_seconds", "overlap_of"]

_CLOCK = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?", re.ASCII)
_URL = re.compile(r"https?://[^\s/?#]+([/?#]\S*)?", re.IGNORECASE)
_DAY = 86400
_EXACT = Context(prec=60)

_Found = Iterator[tuple[str, str]]


def check_card(card: RateCard | CreatePriceRequest, path: str, violations: list[Violation]) -> None:
    """Add every rule between fields that the card breaks; `path` is where the card stands, "" for alone."""
    groups = (
        _currency_rules,
        _name_rules,
        _source_rules,
        _interval_rules,
        _rates_rules,
        _tier_enum_rules,
        _windows_rules,
        _multiplier_rules,
    )
    check_between((rules(card) for rules in groups), path, violations)


def _currency_rules(card: RateCard | CreatePriceRequest) -> _Found:
    if card.currency and card.currency not in CURRENCIES:
        yield "currency", CURRENCY_RULE


def _name_rules(card: RateCard | CreatePriceRequest) -> _Found:
    names = [("model_id", card.model_id), *((f"aliases[{at}]", name) for at, name in enumerate(card.aliases))]
    for field, name in names:
        if "*" in name[:-1]:
            yield field, 'may have a "*" only at its end'


def _source_rules(card: RateCard | CreatePriceRequest) -> _Found:
    # For new cards only: a card that exists keeps its price, whatever its source_url is.
    if isinstance(card, CreatePriceRequest) and card.source_url and not _URL.fullmatch(card.source_url):
        yield "source_url", "must be a URL that begins with http:// or https://"


def _tier_enum_rules(card: RateCard | CreatePriceRequest) -> _Found:
    """How tiers count decides what is paid: what only a newer version knows can't be priced here."""
    for field, value in (("tier_mode", card.tier_mode), ("tier_basis", card.tier_basis)):
        if not value.known:
            yield field, no_member(value.value, type(value))


def _windows_rules(card: RateCard | CreatePriceRequest) -> _Found:
    for at, window in enumerate(card.windows):
        yield from _window_rules(f"windows[{at}].", window)
        if isinstance(card, CreatePriceRequest) and not window.time_zone:
            yield f"windows[{at}].time_zone", "must be given: the same hours are other times in other zones"


def _multiplier_rules(card: RateCard | CreatePriceRequest) -> _Found:
    before = after = 0
    for at, multiplier in enumerate(card.multipliers):
        field = f"multipliers[{at}].value"
        if (rule := _price_rule(multiplier.value)) is not None:
            yield field, rule
        elif multiplier.value <= 0:
            yield field, "must be above 0"
        else:
            exponent = multiplier.value.normalize(_EXACT).as_tuple().exponent
            before += max(multiplier.value.adjusted() + 1, 0)
            after += max(-int(exponent), 0)
    # A receipt's line shows the product of those that reach it.
    if before > 18 or after > 18:
        yield "multipliers", "must have at most 18 digits before the point and 18 after it, all together"


def _interval_rules(card: RateCard | CreatePriceRequest) -> _Found:
    if isinstance(card, RateCard):
        fields = ("effective_from", "effective_until")
        start, end = _instant(card.effective_from), _instant(card.effective_until)
    else:
        fields = ("effective_date", "end_date")
        start, end = _moment(card.effective_date), _moment(card.end_date, through=True)
    if start is not None and end is not None and end <= start:
        yield fields[1], f"must be after {fields[0]}"


def _instant(value: datetime | None) -> datetime | None:
    return None if value is None else instant(value)


def _moment(text: str, *, through: bool = False) -> datetime | None:
    try:
        return (parse_end if through else parse_start)(text) if text else None
    except RpcError:
        # The rules of single fields name it.
        return None


def _rates_rules(card: RateCard | CreatePriceRequest) -> _Found:
    seen: dict[str, int] = {}
    for at, rate in enumerate(card.rates):
        yield from _rate_rules(f"rates[{at}].", rate)
        meter = rate.meter.upper()
        if meter in seen:
            yield f"rates[{at}].meter", f"must not repeat rates[{seen[meter]}].meter ({meter})"
        seen.setdefault(meter, at)
    if isinstance(card, RateCard):
        if not card.rates:
            yield "rates", "must have at least one rate"
        return
    given: dict[str, str] = {}
    for field, meter, thousands in PRICE_FIELDS:
        price = getattr(card, field)
        if price is None:
            continue
        if (rule := _price_rule(price)) is not None:
            yield field, rule
        elif price.adjusted() >= 18 - thousands:
            yield field, f"must have at most {18 - thousands} digits before the point"
        if meter in given:
            yield given[meter], f"must not be given beside {field}"
            yield field, f"must not be given beside {given[meter]}"
        given[meter] = field
        if meter in seen:
            yield field, f"must not be given beside a rate of {meter}"


def _rate_rules(prefix: str, rate: Rate) -> _Found:
    if rate.meter and not METER_NAME.fullmatch(rate.meter):
        yield prefix + "meter", METER_RULE
    if (rule := _price_rule(rate.price)) is not None:
        yield prefix + "price", rule
    if not rate.per and rate.meter.upper() not in TOKEN_METERS:
        yield prefix + "per", "must say how many units the price buys: only token meters have a default"
    yield from _tier_rules(prefix, rate.tiers)


def _tier_rules(prefix: str, tiers: Sequence[PriceTier]) -> _Found:
    before: tuple[int, bool] | None = None
    for at, tier in enumerate(tiers):
        if (rule := _price_rule(tier.price)) is not None:
            yield f"{prefix}tiers[{at}].price", rule
        # At one bound, the price that holds there comes before the price that begins above it.
        bound = (tier.above, not tier.inclusive)
        if before is not None and bound <= before:
            yield f"{prefix}tiers[{at}].above", "must be greater than the bound of the tier before it"
        before = bound


def _price_rule(value: Decimal) -> str | None:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        return "must be a finite number"
    if value < 0:
        return "must be 0 or more"
    if value and (exponent < -18 or value.adjusted() >= 18):
        return "must have at most 18 digits before the point and 18 after it"
    return None


def clock_seconds(text: str) -> int | None:
    """The seconds from midnight to "HH:MM" or "HH:MM:SS", "24:00" included; None for any other text."""
    found = _CLOCK.fullmatch(text)
    if found is None:
        return None
    seconds = int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0)
    return seconds if seconds <= _DAY else None


def _window_rules(prefix: str, window: TimeWindow) -> _Found:
    if (start := clock_seconds(window.start)) is None or start == _DAY:
        yield prefix + "start", 'must be a time of day, "HH:MM" or "HH:MM:SS"'
    if clock_seconds(window.end) is None:
        yield prefix + "end", 'must be a time of day, "HH:MM" or "HH:MM:SS"'
    if window.time_zone and not _is_zone(window.time_zone):
        yield prefix + "time_zone", "must be a time zone of the IANA database, such as Europe/Berlin"
    if len(set(window.weekdays)) < len(window.weekdays):
        yield prefix + "weekdays", "must not repeat a day"
    if any(not 1 <= day <= 7 for day in window.weekdays):
        yield prefix + "weekdays", "must be ISO days from 1 (Monday) to 7 (Sunday)"


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def overlap_of(card: RateCard, others: Iterable[RateCard]) -> tuple[str, str] | None:
    """The field and the rule that a new card breaks beside others of its key; None where it breaks none.

    A card gives way to one that starts later, and to a higher version with its start. But where an end
    was stated, a card that starts before it leaves the price in doubt.
    """
    lowest = datetime.min.replace(tzinfo=UTC)
    start = _instant(card.effective_from) or lowest
    in_force: dict[datetime, RateCard] = {}
    for other in sorted(others, key=lambda other: other.version):
        if _key(other) == _key(card):
            in_force[_instant(other.effective_from) or lowest] = other
    until = _instant(card.effective_until)
    for since, other in sorted(in_force.items()):
        end = _instant(other.effective_until)
        if since < start and end is not None and end > start:
            return "effective_date", f"must not be before {end.isoformat()}, where the card {other.id} ends"
        if since > start and until is not None and until > since:
            return "end_date", f"must not be after {since.isoformat()}, where the card {other.id} begins"
    return None


def _key(card: RateCard) -> tuple[object, ...]:
    windows = tuple((w.start, w.end, w.time_zone, tuple(w.weekdays)) for w in card.windows)
    whose = (card.provider, card.model_id, card.organization_id, card.currency, card.origin)
    return (*whose, card.region, card.service_tier, card.processing, card.speed, windows)


def card_error(card: RateCard) -> ValidationError:
    """The error for a card that cannot be calculated with."""
    violations: list[Violation] = []
    check_card(card, "", violations)
    if not violations:
        violations.append(Violation("rates", "must hold valid prices and quantities"))
    text = violations_text(violations)
    return ValidationError(f"the price card {card.id!r} is not valid: {text}", violations=tuple(violations))
