"""What a record used, by meter: the whole of what prices are applied to."""

from __future__ import annotations

from decimal import Decimal

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.pricing.meters import split_tokens, split_units
from llm_cost_ops.pricing.money import thousandths

__all__ = ["split_meters"]


def split_meters(record: UsageRecord) -> dict[str, Decimal]:
    """What a record used, by meter, zeros left out: disjoint, so that the parts sum to the totals."""
    quantities = {meter: Decimal(count) for meter, count in split_tokens(record) if count}
    counts: dict[str, int] = {}
    for meter, count in split_units(record):
        counts[meter] = counts.get(meter, 0) + count
    for meter, count in counts.items():
        if count:
            quantities[meter] = thousandths(count) if meter == "AUDIO_SECONDS" else Decimal(count)
    return quantities
