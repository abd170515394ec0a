"""Amounts by meter: of every record the lines are calculated again, since no row holds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import product

from llm_cost_ops._gen.messages import RateCard, UsageRecord
from llm_cost_ops.ledger.shares import Share, shares_of
from llm_cost_ops.ledger.sqlite.cards import get_card, kept_card
from llm_cost_ops.ledger.sqlite.rows import decode_usage, units_of
from llm_cost_ops.ledger.sqlite.sums import (
    SERIES_COLUMNS,
    Keys,
    Totals,
    add_amounts,
    newest,
    per_record_conditions,
    pick_series,
)
from llm_cost_ops.ledger.types import CardOf, Filter
from llm_cost_ops.pricing.compiled import CompiledCard, compile_card

__all__ = ["add_meter_rows"]


def add_meter_rows(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: Keys,
    belongs: str,
    card_of: CardOf,
    totals: Totals,
) -> None:
    """Add what the rows hold that belong to the pieces in temp.piece (see sums.ANY_ORG)."""
    of_series = [name for name in group_by if name in SERIES_COLUMNS]
    groups = pick_series(connection, where, of_series)
    cards = _Cards(connection, card_of)
    for group, bucket, pricing, units, data in _rows(connection, where, belongs):
        record: UsageRecord = decode_usage(data)
        *values, currency = groups[group]
        dimensions = dict(zip(of_series, values, strict=True))
        shares = shares_of(record, cards.compiled(pricing), units)
        for keys in product(*_values(group_by, record, dimensions, shares)):
            share = shares[keys[group_by.index("meter")]]
            add_amounts(totals, (keys, bucket, currency), _amounts(share, record.request_count or 1))


def _amounts(share: Share, requests: int) -> tuple[int, ...]:
    put_in, put_out, cached, units, unpriced = share
    return (1, requests, put_in, put_out, cached, requests if unpriced else 0, 0, units)


def _rows(
    connection: sqlite3.Connection, where: Filter, belongs: str
) -> Iterator[tuple[int, int, int, int | None, bytes]]:
    cost = newest(connection)
    conditions, parameters = per_record_conditions(where)
    more = "".join(f" AND {condition}" for condition in conditions)
    rows = connection.execute(
        f"SELECT p.grp, g.bucket, {cost.pricing}, {cost.micros}, {cost.picos}, u.record "
        f"FROM temp.piece g CROSS JOIN usage u{cost.join} CROSS JOIN temp.picked p "
        f"WHERE {belongs} AND p.id = {cost.series}{more}",
        parameters,
    )
    for group, bucket, pricing, micros, picos, data in rows:
        yield group, bucket, pricing, units_of(micros, picos), data


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
    group_by: Keys, record: UsageRecord, dimensions: dict[str, str], shares: Iterable[str]
) -> Iterator[Iterable[str]]:
    for name in group_by:
        if name in dimensions:
            yield (dimensions[name],)
        elif name == "meter":
            yield shares
        elif name == "user":
            yield (record.user_id,)
        elif name == "tag":
            yield dict.fromkeys(record.tags) or ("",)
        else:
            yield (record.labels.get(name.removeprefix("label:"), ""),)
