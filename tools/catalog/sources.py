"""Reads the data of genai-prices into rows. Used by the build only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC
from decimal import ROUND_HALF_EVEN, Context, Decimal

import genai_prices.types as genai
import msgspec

from llm_cost_ops.catalog.bundle import CardRow, CatalogError, Match, ModelRow, RateRow, WindowRow

__all__ = [
    "MAPPED_PRICES",
    "UNMAPPED_CONTEXTS",
    "Backdate",
    "Draft",
    "DraftModel",
    "exact_names",
    "read_provider",
]

MAPPED_PRICES: dict[str, tuple[str, int]] = {
    "input_mtok": ("INPUT", 1_000_000),
    "input_audio_mtok": ("INPUT_AUDIO", 1_000_000),
    "input_image_mtok": ("INPUT_IMAGE", 1_000_000),
    "input_video_mtok": ("INPUT_VIDEO", 1_000_000),
    "cache_read_mtok": ("CACHE_READ", 1_000_000),
    "cache_audio_read_mtok": ("CACHE_READ_AUDIO", 1_000_000),
    "cache_image_read_mtok": ("CACHE_READ_IMAGE", 1_000_000),
    "cache_video_read_mtok": ("CACHE_READ_VIDEO", 1_000_000),
    "cache_write_mtok": ("CACHE_WRITE", 1_000_000),
    "cache_write_1h_mtok": ("CACHE_WRITE_EXTENDED", 1_000_000),
    "output_mtok": ("OUTPUT", 1_000_000),
    "output_reasoning_mtok": ("REASONING", 1_000_000),
    "output_audio_mtok": ("OUTPUT_AUDIO", 1_000_000),
    "output_image_mtok": ("OUTPUT_IMAGE", 1_000_000),
    "output_video_mtok": ("OUTPUT_VIDEO", 1_000_000),
    "output_citation_mtok": ("CITATION_TOKENS", 1_000_000),
    "requests_kcount": ("REQUESTS", 1_000),
    "web_searches_kcount": ("WEB_SEARCHES", 1_000),
    "storage_searches_kcount": ("FILE_SEARCHES", 1_000),
    "social_searches_kcount": ("SOCIAL_SEARCHES", 1_000),
    "code_executions_kcount": ("CODE_EXECUTIONS", 1_000),
    "rerank_searches_kcount": ("SEARCH_UNITS", 1_000),
    "input_text_messages_kcount": ("TEXT_MESSAGES", 1_000),
    "input_document_kpages": ("PAGES", 1_000),
    "input_annotated_document_kpages": ("ANNOTATED_PAGES", 1_000),
    "input_mchars": ("CHARACTERS", 1_000_000),
    "audio_hours": ("AUDIO_SECONDS", 3_600),
}
"""The source's price keys, and the meter and units of each, in the order that a card lists them."""

UNMAPPED_CONTEXTS = frozenset({"search_type"})
"""Contexts of the source that no dimension of a card can express."""

_DIMENSIONS = {"service_tier": "tier", "processing": "processing", "speed": "speed", "route": "region"}
_STANDARD_TIER = ("service_tier", "default")
_REGIONS = {"mistral/eu": "eu"}

# Of the decimal digits of a float so many are certain.
_FLOAT_DIGITS = Context(prec=15, rounding=ROUND_HALF_EVEN)

Price = Decimal | genai.TieredPrices
Prices = dict[str, Price]
Backdate = Mapping[tuple[str, str], str]
"""The earliest dates that variants, by (context key, value), are taken to have been in force."""


Variant = tuple[tuple[str, str], str, Prices]
"""A context, the date from which it holds, and the prices that it changes."""


class DraftModel(msgspec.Struct):
    """A model on its way into the catalog: its rows, its pattern, and the card's sources by place."""

    row: ModelRow
    match: Match | None
    urls: list[str] = []


class Draft(msgspec.Struct):
    """A provider on its way into the catalog."""

    id: str
    name: str
    fallbacks: list[str]
    url: str
    models: list[DraftModel]


def read_provider(provider: genai.Provider, backdate: Backdate) -> Draft:
    """Reads one provider. Raises CatalogError for data that this build does not know."""
    url = next(iter(provider.pricing_urls or ()), "https://github.com/pydantic/genai-prices")
    models = [_model(model, backdate) for model in provider.models]
    return Draft(
        id=provider.id,
        name=provider.name,
        fallbacks=list(provider.fallback_model_providers or ()),
        url=url,
        models=models,
    )


def _model(model: genai.ModelInfo, backdate: Backdate) -> DraftModel:
    names = sorted({name for name in exact_names(model.match) if name != model.id})
    try:
        cards = _cards(model, backdate)
    except CatalogError as error:
        raise CatalogError(f"{model.id}: {error}") from error
    row = ModelRow(id=model.id, name=model.name or "", aliases=names, cards=cards)
    return DraftModel(row=row, match=_pattern(model.match))


def exact_names(match: object) -> Iterable[str]:
    """The names that a pattern equals outright."""
    if isinstance(match, genai.ClauseEquals):
        yield match.equals
    elif isinstance(match, genai.ClauseOr):
        for part in match.or_:
            yield from exact_names(part)


def _pattern(match: object) -> Match | None:
    """What is left of a pattern without its exact names."""
    match match:
        case genai.ClauseEquals():
            return None
        case genai.ClauseOr(or_=parts):
            kept = [pattern for part in parts if (pattern := _pattern(part)) is not None]
            return kept[0] if len(kept) == 1 else Match("or", parts=kept) if kept else None
        case _:
            return _clause(match)


def _clause(match: object) -> Match:
    match match:
        case genai.ClauseStartsWith(starts_with=text):
            return Match("starts_with", text.lower())
        case genai.ClauseEndsWith(ends_with=text):
            return Match("ends_with", text.lower())
        case genai.ClauseContains(contains=text):
            return Match("contains", text.lower())
        case genai.ClauseEquals(equals=text):
            return Match("equals", text.lower())
        case genai.ClauseRegex(regex=text):
            return Match("regex", text)
        case genai.ClauseOr(or_=parts):
            return Match("or", parts=[_clause(part) for part in parts])
        case genai.ClauseAnd(and_=parts):
            return Match("and", parts=[_clause(part) for part in parts])
    raise CatalogError(f"unknown pattern {type(match).__name__}")


def _cards(model: genai.ModelInfo, backdate: Backdate) -> list[CardRow]:
    entries = _entries(model)
    variants = _backdated(entries, model.price_variants or [], backdate)
    dates = {start for entry in entries if (start := _start(entry.constraint))}
    dates |= {start for _, start, _ in variants if start}
    edges = ["", *sorted(dates)]
    contexts: list[tuple[str, str]] = [("", ""), *dict.fromkeys(context for context, _, _ in variants)]
    cards: list[CardRow] = []
    for context in contexts:
        periods: list[CardRow] = []
        for since, until in zip(edges, [*edges[1:], ""], strict=True):
            for windows, prices in _standard(entries, since):
                changed = {} if context == ("", "") else _changed(context, variants, since)
                if changed is not None:
                    card = CardRow(rates=_rates(prices | changed), since=since, until=until, windows=windows)
                    periods.append(_placed(card, context))
        cards += _joined(periods)
    return [card for card in cards if card.rates]


def _entries(model: genai.ModelInfo) -> list[genai.ConditionalPrice]:
    if isinstance(model.prices, genai.ModelPrice):
        return [genai.ConditionalPrice(prices=model.prices)]
    return model.prices


def _start(constraint: object) -> str:
    return constraint.start_date.isoformat() if isinstance(constraint, genai.StartDateConstraint) else ""


def _backdated(
    entries: list[genai.ConditionalPrice], variants: list[genai.PriceVariant], backdate: Backdate
) -> list[Variant]:
    """The variants as (context, start, prices), begun earlier where the overrides know them to have been.

    A variant's figures hold for the standard price beside them: none reaches back past its start.
    """
    read: list[Variant] = []
    for variant in variants:
        (context,) = variant.when.items()
        # An empty variant says that the standard prices hold for it too: a card of its own says so.
        if context[0] not in UNMAPPED_CONTEXTS and context != _STANDARD_TIER:
            if isinstance(variant.constraint, genai.TimeOfDateConstraint):
                raise CatalogError("a variant by the time of day is not supported")
            read.append((context, _start(variant.constraint), _prices(variant.prices)))
    first = {context: min(start for other, start, _ in read if other == context) for context, _, _ in read}
    standard = sorted(_start(entry.constraint) for entry in entries)
    for place, (context, start, prices) in enumerate(read):
        if start and start == first[context] and context in backdate:
            begun = max(date for date in standard if date <= start)
            read[place] = (context, min(start, max(begun, backdate[context])), prices)
    return read


def _standard(entries: list[genai.ConditionalPrice], since: str) -> Iterable[tuple[list[WindowRow], Prices]]:
    """The standard prices of a period that begins at `since`: all day, then by parts of the day.

    The last entry that holds wins, so a window before the period's own entry never shows. A window
    of the same price as another is the same card.
    """
    held = [
        place
        for place, entry in enumerate(entries)
        if not isinstance(entry.constraint, genai.TimeOfDateConstraint) and _start(entry.constraint) <= since
    ]
    if not held:
        return
    yield [], _prices(entries[held[-1]].prices)
    grouped: list[tuple[list[WindowRow], Prices]] = []
    for entry in entries[held[-1] + 1 :]:
        if isinstance(entry.constraint, genai.TimeOfDateConstraint):
            prices = _prices(entry.prices)
            group = next((windows for windows, other in grouped if other == prices), None)
            if group is None:
                grouped.append((group := [], prices))
            group.append(_window(entry.constraint))
    yield from grouped


def _window(constraint: genai.TimeOfDateConstraint) -> WindowRow:
    times = (constraint.start_time, constraint.end_time)
    if any(time.tzinfo not in (None, UTC) or time.second or time.microsecond for time in times):
        raise CatalogError("a daily window is not in whole UTC minutes")
    start, end = (time.strftime("%H:%M") for time in times)
    return WindowRow(start, end)


def _changed(context: tuple[str, str], variants: list[Variant], since: str) -> Prices | None:
    """What a context changes, None where it does not hold; the first variant wins, price by price."""
    changed: Prices | None = None
    for other, start, prices in variants:
        if other == context and start <= since:
            changed = prices | (changed or {})
    return changed


def _placed(card: CardRow, context: tuple[str, str]) -> CardRow:
    key, value = context
    if key:
        if key not in _DIMENSIONS:
            raise CatalogError(f"no dimension of a card stands for the context {key!r}")
        setattr(card, _DIMENSIONS[key], _REGIONS[value] if key == "route" else value)
    return card


def _joined(periods: list[CardRow]) -> list[CardRow]:
    """Joins periods that follow each other at the same price."""
    joined: list[CardRow] = []
    for card in periods:
        same = (other for other in joined if (other.windows, other.rates) == (card.windows, card.rates))
        before = next((other for other in same if other.until and other.until == card.since), None)
        if before is None:
            joined.append(card)
        else:
            before.until = card.until
    return joined


def _prices(price: genai.ModelPrice) -> Prices:
    prices: Prices = {key: value for key, value in vars(price).items() if value is not None}
    # The source prices the same seconds under two names where a provider bills what goes in.
    if "input_audio_hours" in prices:
        if prices.get("audio_hours", prices["input_audio_hours"]) != prices["input_audio_hours"]:
            raise CatalogError("two prices for the same seconds of audio")
        prices["audio_hours"] = prices.pop("input_audio_hours")
    if unknown := prices.keys() - MAPPED_PRICES.keys():
        raise CatalogError(f"no meter stands for {', '.join(sorted(unknown))}")
    return prices


def _rates(prices: Prices) -> list[RateRow]:
    rates: list[RateRow] = []
    for key, (meter, per) in MAPPED_PRICES.items():
        price = prices.get(key)
        if isinstance(price, Decimal):
            rates.append(RateRow(meter, _plain(price), per))
        elif price is not None:
            tiers = [(tier.start, False, _plain(tier.price)) for tier in price.tiers]
            rates.append(RateRow(meter, _plain(price.base), per, tiers))
    return rates


def _plain(price: Decimal) -> str:
    # A float on the way to the source left its own digits: 0.18000000000000002 is 0.18. A third stays one.
    short = _FLOAT_DIGITS.plus(price).normalize()
    text = f"{short if len(short.as_tuple().digits) <= 10 else price:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
