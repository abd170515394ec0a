"""The catalog of public prices: looked into, compared and refreshed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_cost_ops.catalog import (
    Catalog,
    CatalogError,
    CatalogModel,
    PriceChange,
    load_catalog,
    price_diff,
    update_catalog,
)
from llm_cost_ops.cli.price_check import check_prices
from llm_cost_ops.cli.reports import money
from llm_cost_ops.pricing.selection import PriceQuery, select_card
from llm_cost_ops.types import Rate, RateCard

__all__ = ["prices"]

_SHOWN_METERS = ("INPUT", "CACHE_READ", "OUTPUT")
_MAX_CHANGES = 200


def prices(options: argparse.Namespace) -> int:
    """The `prices` command."""
    actions = {"list": _list, "show": _show, "diff": _diff, "update": _update, "check": check_prices}
    actions[options.action](options, Console())
    return 0


def _list(options: argparse.Namespace, console: Console) -> None:
    catalog = load_catalog()
    table = Table(box=SIMPLE_HEAD, caption=f"per million tokens; {_named(catalog)}", caption_justify="left")
    table.add_column("model", overflow="fold", ratio=1)
    for name in ("input", "cached", "output"):
        table.add_column(name, justify="right", overflow="fold", max_width=12)
    table.add_column("currency", no_wrap=True)
    for model in catalog.find(" ".join(options.words)):
        if options.provider and model.provider != options.provider:
            continue
        card = _standard(catalog, model)
        if card is not None:
            found = {rate.meter: rate for rate in card.rates}
            cells = [_per_million(found.get(meter)) for meter in _SHOWN_METERS]
            table.add_row(escape(f"{model.provider}/{model.id}"), *cells, card.currency)
    if table.row_count:
        console.print(table)
    else:
        console.print("No model of the catalog has such a name.")


def _standard(catalog: Catalog, model: CatalogModel) -> RateCard | None:
    """The card that prices an ordinary call today."""
    query = PriceQuery(provider=model.provider, model_id=model.id, at=datetime.now(UTC))
    found = select_card(catalog.cards(model.provider, model.id), query)
    return None if found is None else found.card


def _per_million(rate: Rate | None) -> str:
    if rate is None or rate.per not in (0, 1_000_000):
        return ""
    return money(rate.price) + ("+" if rate.tiers else "")


def _show(options: argparse.Namespace, console: Console) -> None:
    catalog = load_catalog()
    name = "/".join(options.model)
    provider, slash, model = name.partition("/")
    cards = catalog.cards(provider, model) if slash else ()
    if not cards:
        near = [f"{found.provider}/{found.id}" for found in catalog.find(model or provider)][:5]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise CatalogError(f"the catalog has no model {name!r}{hint}")
    for card in cards:
        table = Table(box=SIMPLE_HEAD, title=escape(card.id), title_justify="left", title_style="bold")
        table.add_column("meter", no_wrap=True)
        table.add_column(f"price, {card.currency}", justify="right", no_wrap=True)
        table.add_column("per", justify="right", no_wrap=True)
        for rate in card.rates:
            for name, price in _steps(rate):
                table.add_row(name, price, f"{rate.per or 1_000_000:,}")
        console.print(table)
        for line in _terms(card):
            console.print(f"  {line}", markup=False)
    console.print(f"{_named(catalog)}; {cards[0].source_url}", markup=False)


def _steps(rate: Rate) -> Iterator[tuple[str, str]]:
    yield rate.meter, money(rate.price)
    for tier in rate.tiers:
        yield f"  {'from' if tier.inclusive else 'above'} {tier.above:,} input tokens", money(tier.price)


def _terms(card: RateCard) -> Iterator[str]:
    """What a card holds for beyond its model."""
    if card.effective_from is not None or card.effective_until is not None:
        since = _moment(card.effective_from) if card.effective_from else "always"
        yield f"from {since}" + (f" until {_moment(card.effective_until)}" if card.effective_until else "")
    for window in card.windows:
        days = f", days {' '.join(map(str, window.weekdays))}" if window.weekdays else ""
        yield f"{window.start} to {window.end} {window.time_zone or 'UTC'}{days}"
    for multiplier in card.multipliers:
        yield f"times {multiplier.value} for {multiplier.kind}"


def _moment(at: datetime) -> str:
    """A date, with its time in UTC where that is not midnight."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d}" if at.time() == time.min else f"{at:%Y-%m-%d %H:%M} UTC"


def _diff(options: argparse.Namespace, console: Console) -> None:
    if len(options.files) > 2:
        raise CatalogError("`prices diff` takes one catalog or two")
    old = load_catalog(options.files[0]) if len(options.files) == 2 else load_catalog()
    new = load_catalog(options.files[-1])
    console.print(f"from {_named(old)} to {_named(new)}", markup=False)
    _print_changes(console, price_diff(old, new))


def _print_changes(console: Console, changes: list[PriceChange]) -> None:
    if not changes:
        console.print("No price differs.")
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("", "card", "what", "old", "new"):
        table.add_column(name, overflow="fold")
    for change in changes[:_MAX_CHANGES]:
        texts = (change.kind, change.card_id, change.field, change.old, change.new)
        table.add_row(*map(escape, texts))
    console.print(table)
    if len(changes) > _MAX_CHANGES:
        console.print(f"… and {len(changes) - _MAX_CHANGES:,} more")
    console.print(", ".join(_counts(changes)))


def _counts(changes: Iterable[PriceChange]) -> Iterator[str]:
    """How many cards there are of each kind of change."""
    for kind, found in groupby(
        sorted(changes, key=lambda change: change.kind), key=lambda change: change.kind
    ):
        yield f"{len({change.card_id for change in found}):,} cards {kind}"


def _update(options: argparse.Namespace, console: Console) -> None:
    done = update_catalog(
        options.source, path=options.path, sha256=options.sha256, allow_older=options.allow_older
    )
    if not done.changed:
        console.print(f"{_named(done.catalog)} was in force already.", markup=False)
        return
    _print_changes(console, price_diff(done.previous, done.catalog))
    console.print(
        f"{_named(done.catalog)} with {done.cards:,} cards is in force, kept in {done.path}", markup=False
    )


def _named(catalog: Catalog) -> str:
    return f"{catalog.version} of {catalog.published}"
