"""The catalog of public prices: looked into, compared and refreshed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal, InvalidOperation
from itertools import groupby

from llm_cost_ops.catalog import (
    Catalog,
    CatalogError,
    CatalogModel,
    PriceChange,
    load_catalog,
    price_diff,
    update_catalog,
)
from llm_cost_ops.cli.options import model_of, pairs
from llm_cost_ops.cli.output import Cell, Column, Output, Table, form_of, money
from llm_cost_ops.cli.price_check import check_prices
from llm_cost_ops.cli.tables import meant
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.pricing.selection import PriceQuery, select_card
from llm_cost_ops.types import Rate, RateCard

__all__ = ["SOURCE_VARIABLE", "prices"]

SOURCE_VARIABLE = "LLM_COST_OPS_PRICES_SOURCE"
"""The variable of the environment that names the catalog for `prices update`."""

_SHOWN_METERS = ("INPUT", "CACHE_READ", "OUTPUT")
_PRICES = ("input", "cached", "output")
_MAX_CHANGES = 200


def prices(options: argparse.Namespace) -> int:
    """The `prices` command."""
    output = Output(form_of(options))
    if options.action == "list":
        own = options.db or options.base_url
        return 0 if (_list_own if own else _list)(options, output) else 1
    if options.action == "update":
        return 0 if _update(options, output) else 1
    actions = {"show": _show, "diff": _diff, "check": check_prices, "add": _add}
    actions[options.action](options, output)
    return 0


def _list(options: argparse.Namespace, output: Output) -> bool:
    """List models; whether there was any."""
    catalog = load_catalog()
    prices = (Column(name, right=True) for name in _PRICES)
    table = Table(
        columns=[Column("model", fold=True), *prices, Column("currency")],
        caption=f"per million tokens; {_named(catalog)}",
    )
    for model in catalog.find(" ".join(options.words), options.provider or ""):
        card = _standard(catalog, model)
        if card is not None:
            table.rows.append([f"{model.provider}/{model.id}", *_prices_of(card), card.currency])
    if table.rows or output.form != "text":
        output.table(table)
    else:
        near = meant(catalog, " ".join(options.words))
        output.line(f"No model of the catalog has such a name{near or '.'}")
    return bool(table.rows)


def _list_own(options: argparse.Namespace, output: Output) -> bool:
    """List the cards that were added to a ledger; whether there was any."""
    table = Table(columns=[Column("model", fold=True), Column("organization", optional=True)])
    table.columns += [Column(name, right=True) for name in _PRICES]
    table.columns += [Column("currency"), Column("holds", fold=True), Column("card", optional=True)]
    table.caption = "per million tokens"
    with open_client(options) as client:
        for card in client.pricing.list(origin="manual", provider=options.provider, page_size=1000):
            if all(word.lower() in f"{card.provider}/{card.model_id}" for word in options.words):
                row: list[Cell] = [f"{card.provider}/{card.model_id}", card.organization_id]
                table.rows.append([*row, *_prices_of(card), card.currency, "; ".join(_terms(card)), card.id])
    if table.rows or output.form != "text":
        output.table(table)
    else:
        output.line("No price was added there: `llm-cost-ops prices add` adds one.")
    return bool(table.rows)


def _standard(catalog: Catalog, model: CatalogModel) -> RateCard | None:
    """The card that prices an ordinary call today."""
    query = PriceQuery(provider=model.provider, model_id=model.id, at=datetime.now(UTC))
    found = select_card(catalog.cards(model.provider, model.id), query)
    return None if found is None else found.card


def _prices_of(card: RateCard) -> list[Cell]:
    found = {rate.meter: rate for rate in card.rates}
    return [_per_million(found.get(meter)) for meter in _SHOWN_METERS]


def _per_million(rate: Rate | None) -> Cell:
    if rate is None or rate.per not in (0, 1_000_000):
        return ""
    return f"{money(rate.price)}+" if rate.tiers else rate.price


def _show(options: argparse.Namespace, output: Output) -> None:
    catalog = load_catalog()
    name = "/".join(options.model)
    provider, slash, model = name.partition("/")
    cards = catalog.cards(provider, model) if slash else ()
    if not cards:
        raise CatalogError(f"the catalog has no model {name!r}{meant(catalog, model or provider)}")
    if output.form != "text":
        output.table(_all_rates(cards))
        return
    for card in cards:
        table = _card_table(card)
        for rate in card.rates:
            table.rows += [[name, price, rate.per or 1_000_000] for name, price in _steps(rate)]
        output.table(table)
    output.line(f"{_named(catalog)}; {cards[0].source_url}")


def _card_table(card: RateCard) -> Table:
    """A table for a card's rates, without them yet, and what the card holds for."""
    return Table(
        title=card.id, columns=_rate_columns(f"price, {card.currency}"), caption="\n".join(_terms(card))
    )


def _rate_columns(price: str) -> list[Column]:
    return [Column("meter"), Column(price, right=True, key="price"), Column("per", right=True)]


def _all_rates(cards: Sequence[RateCard]) -> Table:
    """The rates of several cards, for programs."""
    names = ("card", "holds", "currency")
    table = Table(columns=[*(Column(name) for name in names), *_rate_columns("price")])
    for card in cards:
        holds = "; ".join(_terms(card))
        for rate in card.rates:
            for name, price in _steps(rate):
                table.rows.append([card.id, holds, card.currency, name.strip(), price, rate.per or 1_000_000])
    return table


def _steps(rate: Rate) -> Iterator[tuple[str, Decimal]]:
    yield rate.meter, rate.price
    for tier in rate.tiers:
        yield f"  {'from' if tier.inclusive else 'above'} {tier.above:,} input tokens", tier.price


def _terms(card: RateCard) -> Iterator[str]:
    """What a card holds for beyond its model."""
    since = f"from {_moment(card.effective_from)}" if card.effective_from else ""
    until = f"until {_moment(card.effective_until)}" if card.effective_until else ""
    if since or until:
        yield f"{since} {until}".strip()
    for window in card.windows:
        days = f", days {' '.join(map(str, window.weekdays))}" if window.weekdays else ""
        yield f"{window.start} to {window.end} {window.time_zone or 'UTC'}{days}"
    for multiplier in card.multipliers:
        yield f"times {multiplier.value} for {multiplier.kind}"


def _moment(at: datetime) -> str:
    """A date, with its time in UTC where that is not midnight."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d}" if at.time() == time.min else f"{at:%Y-%m-%d %H:%M} UTC"


def _diff(options: argparse.Namespace, output: Output) -> None:
    if len(options.files) > 2:
        raise CatalogError("`prices diff` takes one catalog or two")
    old = load_catalog(options.files[0]) if len(options.files) == 2 else load_catalog()
    new = load_catalog(options.files[-1])
    output.line(f"from {_named(old)} to {_named(new)}")
    _print_changes(output, price_diff(old, new))


def _print_changes(output: Output, changes: list[PriceChange]) -> None:
    if not changes and output.form == "text":
        output.line("No price differs.")
        return
    kind = Column("", key="kind")
    table = Table(columns=[kind, *(Column(name, fold=True) for name in ("card", "what", "old", "new"))])
    shown = changes[:_MAX_CHANGES] if output.form == "text" else changes
    for change in shown:
        table.rows.append([change.kind, change.card_id, change.field, change.old, change.new])
    output.table(table)
    if len(changes) > len(shown):
        output.line(f"… and {len(changes) - _MAX_CHANGES:,} more")
    output.line(", ".join(_counts(changes)))


def _counts(changes: Iterable[PriceChange]) -> Iterator[str]:
    """How many cards there are of each kind of change."""
    for kind, found in groupby(
        sorted(changes, key=lambda change: change.kind), key=lambda change: change.kind
    ):
        yield f"{len({change.card_id for change in found}):,} cards {kind}"


def _update(options: argparse.Namespace, output: Output) -> bool:
    """Show what a catalog changes, and put it in force once that is agreed to; whether it is in force."""
    source = options.source or os.environ.get(SOURCE_VARIABLE)
    if not source:
        raise ConfigurationError(
            f"give a file or a URL, or name one by {SOURCE_VARIABLE}: nothing is got by itself",
            parameter="source",
        )
    agreed = True

    def agree(old: Catalog, new: Catalog) -> bool:
        nonlocal agreed
        output.line(f"from {_named(old)} to {_named(new)}")
        _print_changes(output, price_diff(old, new))
        agreed = options.yes or _asked("Put it in force?")
        return agreed

    done = update_catalog(
        source, path=options.path, sha256=options.sha256, allow_older=options.allow_older, agree=agree
    )
    if not agreed:
        output.line("Nothing was changed: --yes puts it in force.")
    elif done.changed:
        output.line(f"{_named(done.catalog)} with {done.cards:,} cards is in force, kept in {done.path}")
    else:
        output.line(f"{_named(done.catalog)} was in force already.")
    return agreed


def _asked(question: str) -> bool:
    """Whether somebody at a terminal says yes; nobody is there for a script."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _add(options: argparse.Namespace, output: Output) -> None:
    provider, model = model_of(options)
    rates = _rates(options)
    with open_client(options, create=True) as client:
        card = client.pricing.create(
            provider=provider,
            model_id=model,
            rates=rates,
            currency=options.currency,
            effective_date=options.since or None,
            end_date=options.until or None,
            organization_id=options.organization,
            service_tier=options.service_tier,
            processing=options.processing,
            region=options.region,
            speed=options.speed,
            source_url=options.source_url,
        )
    table = _card_table(card)
    table.title = f"{card.provider}/{card.model_id}, card {card.id}"
    table.rows += [[rate.meter, rate.price, rate.per or 1_000_000] for rate in card.rates]
    output.table(table)
    if options.since:
        output.line("`llm-cost-ops reprice` applies it to calls that are recorded already.")
    else:
        output.line(
            "It prices calls from now on. For earlier ones give --from DATE, then `llm-cost-ops reprice`."
        )


def _rates(options: argparse.Namespace) -> list[Rate]:
    """The rates that the options give, each for a million unless it says for how many."""
    given = {
        "INPUT": options.input,
        "OUTPUT": options.output,
        "CACHE_READ": options.cached,
        "CACHE_WRITE": options.cache_write,
    }
    meters = {meter: text for meter, text in given.items() if text is not None}
    meters |= pairs(options.meter, "meter", "NAME=PRICE")
    if not meters:
        raise ConfigurationError("give at least one price: --input, --output or --meter", parameter="input")
    rates = []
    for meter, text in meters.items():
        price, slash, per = text.partition("/")
        try:
            rates.append(Rate(meter=meter, price=Decimal(price), per=int(per) if slash else 1_000_000))
        except (InvalidOperation, ValueError):
            raise ConfigurationError(
                f"the price of {meter} must be a number, or a number /N for another count than a million, "
                f"not {text!r}",
                parameter="meter",
            ) from None
    return rates


def _named(catalog: Catalog) -> str:
    return f"{catalog.version} of {catalog.published}"
