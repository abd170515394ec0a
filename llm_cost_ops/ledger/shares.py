"""What each meter has of a record's tokens and of its cost: the same on every ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.types import Amounts
from llm_cost_ops.pricing.calculator import meter_costs, meters_used
from llm_cost_ops.pricing.pricebook import CompiledCard
from llm_cost_ops.rules.meters import INPUT_METERS, OUTPUT_METERS

__all__ = ["Counts", "Place", "PlainShares", "Share", "add_share", "shares_of"]

_INPUT = frozenset(INPUT_METERS)
_OUTPUT = frozenset(OUTPUT_METERS)

Share = tuple[int, int, int, int, bool]
"""Of a meter: input, output and cached tokens, the cost in 10^-12, and whether it has none."""

Place = tuple[int, int, int]
"""A group of series, a bucket and a pricing."""

Counts = tuple[int, int, int, int]
"""Calls, and input, output and cached tokens."""


def shares_of(record: UsageRecord, compiled: CompiledCard | None, units: int | None) -> dict[str, Share]:
    """A record's tokens and cost by meter; they add up to the record's."""
    used = meters_used(record)
    costs: dict[str, int | None] = {}
    if compiled is not None and units is not None:
        costs = meter_costs(compiled, record)
        if sum(cost or 0 for cost in costs.values()) != units:
            # Not what was recorded, and that is what counts.
            costs = {}
    unexplained = units is not None and not costs and units != 0
    shares: dict[str, Share] = {}
    for meter in (*used, *(costs.keys() - used.keys())):
        tokens = used.get(meter, 0)
        cost = costs.get(meter)
        shares[meter] = (
            tokens if meter in _INPUT else 0,
            tokens if meter in _OUTPUT else 0,
            tokens if meter.startswith("CACHE_READ") else 0,
            cost or 0,
            cost is None and (units is None or meter in costs),
        )
    if unexplained or not shares:
        shares[""] = (0, 0, 0, (units or 0) if not costs else 0, units is None)
    return shares


def add_share(sums: Amounts, share: Share, requests: int, *, reported: bool) -> None:
    """Add a record's share to the sums of a group; `requests` is how many calls the record counts as.

    `reported` says that its cost is the one that its provider stated.
    """
    put_in, put_out, cached, units, unpriced = share
    sums.requests += requests
    sums.input_tokens += put_in
    sums.output_tokens += put_out
    sums.cached_tokens += cached
    sums.units += units
    if unpriced:
        sums.unpriced_requests += requests
    if reported:
        sums.reported_requests += requests
        sums.reported_units += units


# What the JSON of a record has where columns do not tell all its tokens and units.
_NOT_PLAIN = ('"cache_write', '"reasoning', '"modality', '"meters', '"quality')
_NOT_PLAIN_BYTES = tuple(word.encode() for word in _NOT_PLAIN)


class PlainShares:
    """Adds up what columns say of records that have text tokens alone, at prices for each of them.

    That takes a seventh of the time of calculating their lines, which come to the same.
    """

    def __init__(self, compiled: Callable[[int], CompiledCard | None]) -> None:
        self._compiled = compiled
        self._prices: dict[int, tuple[int, int, int] | None] = {}
        self._sums: dict[Place, list[int]] = {}

    def add(self, place: Place, units: int | None, counts: Counts, data: bytes | str) -> bool:
        """Add a record, which `data` is as JSON, unless it is another kind of record."""
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
        words: tuple[Any, ...] = _NOT_PLAIN if type(data) is str else _NOT_PLAIN_BYTES
        for word in words:
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
        compiled = self._compiled(pricing)
        if compiled is None:
            return _NO_PRICES
        rates = compiled.rates
        found = [rates.get(meter) for meter in ("INPUT", "CACHE_READ", "OUTPUT")]
        prices = tuple(rate.whole for rate in found if rate is not None and rate.whole is not None)
        if len(prices) != len(found) or "REQUESTS" in rates or "TOTAL_TOKENS" in rates:
            return None
        return prices[0], prices[1], prices[2]


_NO_PRICES = (-1, -1, -1)
