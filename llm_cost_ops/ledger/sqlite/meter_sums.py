"""Amounts by meter: of every record the lines are calculated again, since no table holds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import product

from llm_cost_ops._gen.messages import RateCard, UsageRecord
from llm_cost_ops.ledger.shares import add_share, shares_of
from llm_cost_ops.ledger.sqlite.cards import get_card, kept_card
from llm_cost_ops.ledger.sqlite.rows import decode_usage, units_of
from llm_cost_ops.ledger.sqlite.sums import (
    SERIES_PLACES,
    Keys,
    load_intervals,
    newest,
    per_record_conditions,
    pick_series,
    pieces_of,
)
from llm_cost_ops.ledger.types import Amounts, CardOf, Filter
from llm_cost_ops.pricing.compiled import CompiledCard, compile_card
from llm_cost_ops.rules.limits import check_amounts

__all__ = ["summarize_meters"]


def summarize_meters(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: tuple[str, ...],
    buckets: Sequence[tuple[datetime, datetime]] | None,
    card_of: CardOf,
) -> list[tuple[Keys, int, Amounts]]:
    """The sums of each group, bucket and currency that has any, by bucket and keys."""
    series = pick_series(connection, where)
    pieces = list(pieces_of(where, buckets))
    if not series or not pieces:
        return []
    load_intervals(connection, pieces)
    cards = _Cards(connection, card_of)
    totals: dict[tuple[int, Keys, str], Amounts] = {}
    for of_series, bucket, pricing, units, data in _rows(connection, where):
        record: UsageRecord = decode_usage(data)
        dimensions = series[of_series]
        currency = dimensions[-1]
        shares = shares_of(record, cards.compiled(pricing), units)
        for keys in product(*_values(group_by, record, dimensions, shares)):
            share = shares[keys[group_by.index("meter")]]
            place = (bucket, keys, currency)
            sums = totals.get(place)
            if sums is None:
                sums = totals[place] = Amounts(currency=currency)
            reported = dimensions[SERIES_PLACES["status"]] == "reported"
            add_share(sums, share, record.request_count or 1, reported=reported)
    for sums in totals.values():
        check_amounts(sums)
    return [(keys, bucket, totals[bucket, keys, currency]) for bucket, keys, currency in sorted(totals)]


def _rows(connection: sqlite3.Connection, where: Filter) -> Iterator[tuple[int, int, int, int | None, bytes]]:
    cost = newest(connection)
    conditions, parameters = per_record_conditions(where)
    more = "".join(f" AND {condition}" for condition in conditions)
    rows = connection.execute(
        f"SELECT {cost.series}, g.bucket, {cost.pricing}, {cost.micros}, {cost.picos}, u.record "
        f"FROM temp.piece g CROSS JOIN usage u{cost.join} "
        "WHERE u.org IN (SELECT org FROM temp.picked) AND u.ts >= g.low AND u.ts < g.high "
        f"AND {cost.series} IN (SELECT id FROM temp.picked){more}",
        parameters,
    )
    for of_series, bucket, pricing, micros, picos, data in rows:
        yield of_series, bucket, pricing, units_of(micros, picos), data


class _Cards:
    """The cards that priced what a query reads, each looked up once."""

    def __init__(self, connection: sqlite3.Connection, card_of: CardOf) -> None:
        self._connection = connection
        self._card_of = card_of
        self._found: dict[int, CompiledCard | None] = {}

    def compiled(self, pricing: int) -> CompiledCard | None:
        if pricing not in self._found:
            card = self._look_up(pricing)
            self._found[pricing] = None if card is None else compile_card(card)
        return self._found[pricing]

    def _look_up(self, pricing: int) -> RateCard | None:
        query = "SELECT card_id, card_version, origin_version, digest FROM pricing WHERE id = ?"
        card_id, version, origin, digest = self._connection.execute(query, (pricing,)).fetchone()
        if not card_id:
            return None
        if digest and (kept := kept_card(self._connection, digest)) is not None:
            return kept
        manual = get_card(self._connection, card_id)
        return manual if manual is not None else self._card_of(card_id, version, origin)


def _values(
    group_by: tuple[str, ...], record: UsageRecord, dimensions: tuple[str, ...], shares: Iterable[str]
) -> Iterator[Iterable[str]]:
    for name in group_by:
        if name in SERIES_PLACES:
            yield (dimensions[SERIES_PLACES[name]],)
        elif name == "meter":
            yield shares
        elif name == "user":
            yield (record.user_id,)
        elif name == "tag":
            yield dict.fromkeys(record.tags) or ("",)
        else:
            yield (record.labels.get(name.removeprefix("label:"), ""),)
