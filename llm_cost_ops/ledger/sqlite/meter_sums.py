"""Amounts by meter: of every record the lines are calculated again, since no row holds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import product

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.encoding import decode_usage
from llm_cost_ops.ledger.shares import Share, shares_of
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

Place = tuple[int, int, int]
"""A group of series, a bucket and a pricing."""

Counts = tuple[int, int, int, int]
"""Calls, and input, output and cached tokens."""


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
    plain = _PlainRows(cards) if len(group_by) == len(of_series) + 1 else None
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


# What the JSON of a record has where columns do not tell all its tokens and units.
_NOT_PLAIN = (b'"cache_write', b'"reasoning', b'"modality', b'"meters', b'"quality')


class _PlainRows:
    """Adds up what columns say of records that have text tokens alone, at prices for each of them.

    That takes a seventh of the time of calculating their lines, which come to the same.
    """

    def __init__(self, cards: _Cards) -> None:
        self._cards = cards
        self._prices: dict[int, tuple[int, int, int] | None] = {}
        self._sums: dict[Place, list[int]] = {}

    def add(self, place: Place, units: int | None, counts: Counts, data: bytes) -> bool:
        """Add a record, unless it is another kind of record."""
        requests, read, written, cached = counts
        pricing = place[2]
        if pricing not in self._prices:
            self._prices[pricing] = self._prices_of(pricing)
        prices = self._prices[pricing]
        text = read - cached
        if prices is None or text < 0 or not (read or written) or (requests != 1 and units is not None):
            return False
        if units is None:
            if prices != _NO_PRICES:
                return False
        elif prices == _NO_PRICES or units != text * prices[0] + cached * prices[1] + written * prices[2]:
            return False
        for word in _NOT_PLAIN:
            if word in data:
                return False
        sums = self._sums.get(place)
        if sums is None:
            sums = self._sums[place] = [0] * 9
        for at, count in ((0, text), (3, cached), (6, written)):
            if count:
                sums[at] += 1
                sums[at + 1] += requests
                sums[at + 2] += count
        return True

    def found(self) -> Iterator[tuple[Place, Share, str, int, int]]:
        """Of each place and meter the share, and the records and requests that it is of."""
        for place, sums in self._sums.items():
            prices = self._prices[place[2]] or _NO_PRICES
            for number, meter in enumerate(("INPUT", "CACHE_READ", "OUTPUT")):
                records, requests, count = sums[3 * number : 3 * number + 3]
                if records:
                    unpriced = prices == _NO_PRICES
                    cost = 0 if unpriced else count * prices[number]
                    tokens = (0, count, 0) if meter == "OUTPUT" else (count, 0, count * number)
                    yield place, (*tokens, cost, unpriced), meter, records, requests

    def _prices_of(self, pricing: int) -> tuple[int, int, int] | None:
        """What tokens cost in 10^-12 by the card of a pricing; None where that is not all there is to it."""
        compiled = self._cards.compiled(pricing)
        if compiled is None:
            return _NO_PRICES
        rates = compiled.rates
        found = [rates.get(meter) for meter in ("INPUT", "CACHE_READ", "OUTPUT")]
        prices = tuple(rate.whole for rate in found if rate is not None and rate.whole is not None)
        if len(prices) != len(found) or "REQUESTS" in rates or "TOTAL_TOKENS" in rates:
            return None
        return prices[0], prices[1], prices[2]


_NO_PRICES = (-1, -1, -1)


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
