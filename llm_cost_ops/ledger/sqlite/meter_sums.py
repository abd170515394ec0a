"""Amounts by meter: of every record the lines are calculated again, since no row holds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import product

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.encoding import decode_usage
from llm_cost_ops.ledger.shares import Counts, Place, PlainShares, Share, shares_of
from llm_cost_ops.ledger.sqlite.cards import kept_card
from llm_cost_ops.ledger.sqlite.rows import units_of
from llm_cost_ops.ledger.sqlite.sums import (
    SERIES_COLUMNS,
    Keys,
    Totals,
    add_amounts,
    newest,
    per_record_conditions,
    pick_series,
)
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.pricing.pricebook import CompiledCard

__all__ = ["add_meter_rows"]


def add_meter_rows(
    connection: sqlite3.Connection,
    where: Filter,
    group_by: Keys,
    belongs: str,
    totals: Totals,
) -> None:
    """Add what the rows hold that belong to the pieces in temp.piece (see sums.ANY_ORG)."""
    of_series = [name for name in group_by if name in SERIES_COLUMNS]
    groups = pick_series(connection, where, of_series)
    cards = _Cards(connection)
    plain = PlainShares(cards.compiled) if len(group_by) == len(of_series) + 1 else None
    for place, units, counts, data in _rows(connection, where, belongs):
        if plain is not None and plain.add(place, units, counts, data):
            continue
        group, bucket, pricing = place
        record: UsageRecord = decode_usage(data)
        picked = groups[group]
        dimensions = dict(zip(of_series, picked.values, strict=True))
        shares = shares_of(record, cards.compiled(pricing), units)
        for keys in product(*_values(group_by, record, dimensions, shares)):
            share = shares[keys[group_by.index("meter")]]
            to = (keys, bucket, picked.currency)
            add_amounts(totals, to, _amounts(share, 1, counts[0]), reported=picked.reported)
    for (group, bucket, _), share, meter, records, requests in plain.found() if plain is not None else ():
        values = list(groups[group].values)
        values.insert(group_by.index("meter"), meter)
        add_amounts(
            totals, (tuple(values), bucket, groups[group].currency), _amounts(share, records, requests)
        )


def _amounts(share: Share, records: int, requests: int) -> tuple[int, ...]:
    put_in, put_out, cached, units, unpriced = share
    return (records, requests, put_in, put_out, cached, requests if unpriced else 0, 0, units)


def _rows(
    connection: sqlite3.Connection, where: Filter, belongs: str
) -> Iterator[tuple[Place, int | None, Counts, bytes]]:
    cost = newest(connection)
    conditions, parameters = per_record_conditions(where)
    more = "".join(f" AND {condition}" for condition in conditions)
    rows = connection.execute(
        f"SELECT p.grp, g.bucket, {cost.pricing}, {cost.micros}, {cost.picos}, u.requests, u.input, "
        f"u.output, u.cached, u.record FROM temp.piece g CROSS JOIN usage u{cost.join} "
        f"CROSS JOIN temp.picked p WHERE {belongs} AND p.id = {cost.series}{more}",
        parameters,
    )
    for row in rows:
        yield row[:3], units_of(row[3], row[4]), row[5:9], row[9]


class _Cards:
    """The cards that priced what a query reads, each looked up once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._found: dict[int, CompiledCard | None] = {}

    def compiled(self, pricing: int) -> CompiledCard | None:
        if pricing not in self._found:
            query = "SELECT digest FROM pricing WHERE id = ?"
            (digest,) = self._connection.execute(query, (pricing,)).fetchone()
            card = kept_card(self._connection, digest) if digest else None
            self._found[pricing] = None if card is None else CompiledCard(card)
        return self._found[pricing]


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
