"""What a record costs by meter, in whole units and without a receipt."""

from __future__ import annotations

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.engine.compiled import CompiledCard, is_aggregate
from llm_cost_ops.engine.meters import split_tokens, split_units

__all__ = ["meter_costs", "meters_used"]


def meter_costs(compiled: CompiledCard, record: UsageRecord) -> dict[str, int | None]:
    """The cost of each meter in 10^-12 of the card's currency; None for one that has no rate.

    Together they are the total, to the unit. ValidationError when the record contradicts itself.
    """
    basis = compiled.basis(record)
    several = is_aggregate(record)
    costs: dict[str, int | None] = {}
    for meter, rate, count in compiled.charges(record):
        if rate is None:
            costs[meter] = None
            continue
        if rate.whole is not None:
            units = count * rate.whole
        else:
            units, _ = rate.amount(rate.billed(count), basis, base_only=several)
        costs[meter] = (costs.get(meter) or 0) + units
    return costs


def meters_used(record: UsageRecord) -> dict[str, int]:
    """What a record used by meter, zeros left out: tokens, and 0 for meters that are no tokens."""
    used = {meter: count for meter, count in split_tokens(record) if count > 0}
    used.update((meter, 0) for meter, count in split_units(record) if count)
    return used
