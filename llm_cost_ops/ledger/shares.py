"""What each meter has of a record's tokens and of its cost: the same on every ledger."""

from __future__ import annotations

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.types import Amounts
from llm_cost_ops.pricing.calculator import meter_costs, meters_used
from llm_cost_ops.pricing.pricebook import CompiledCard
from llm_cost_ops.rules.meters import INPUT_METERS, OUTPUT_METERS

__all__ = ["Share", "add_share", "shares_of"]

_INPUT = frozenset(INPUT_METERS)
_OUTPUT = frozenset(OUTPUT_METERS)

Share = tuple[int, int, int, int, bool]
"""Of a meter: input, output and cached tokens, the cost in 10^-12, and whether it has none."""


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
