"""The limits of what is recorded and summed. The protos state MAX_COUNT as the maximum of each count."""

from __future__ import annotations

from typing import Protocol

from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["MAX_COUNT", "MAX_RECORD_COST", "MAX_SUM", "check_amounts", "check_sum"]

MAX_COUNT = 10**12
"""The most tokens, calls or other units that one record may state."""

MAX_RECORD_COST = 10**6
"""The most that one record may cost, in its currency; more is a mistake in the counts or the price."""

MAX_SUM = 9 * 10**18
"""The largest sum that a query answers: of counts, or of a cost in millionths of its currency.

It lies 2 * 10^17 below what 64 bits hold. Every ledger answers OUT_OF_RANGE for a larger one, whatever its
own integers could hold.
"""


def check_sum(name: str, amount: int) -> None:
    """Refuse a sum above MAX_SUM: OUT_OF_RANGE."""
    if abs(amount) > MAX_SUM:
        raise RpcError(
            StatusCode.OUT_OF_RANGE,
            f"the sum of {name} is larger than {MAX_SUM:,}: ask for a shorter interval, or for groups",
        )


class _Amounts(Protocol):
    requests: int
    input_tokens: int
    output_tokens: int
    units: int


def check_amounts(sums: _Amounts) -> None:
    """Refuse sums of which one is above MAX_SUM: OUT_OF_RANGE. `units` are 10^-12 of a currency."""
    check_sum("requests", sums.requests)
    check_sum("input_tokens", sums.input_tokens)
    check_sum("output_tokens", sums.output_tokens)
    check_sum("costs, in millionths,", sums.units // 10**6)
