"""From a store's rows to totals and groups: exact sums, one currency apart from the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal

from msgspec.structs import replace

from llm_cost_ops._gen.messages import CurrencyTotal, GroupKey
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.ledger.types import Amounts, Filter
from llm_cost_ops.pricing.money import from_units, plain
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.currencies import CURRENCIES, CURRENCY_RULE
from llm_cost_ops.rules.limits import check_amounts

__all__ = [
    "TIME_DIMENSIONS",
    "Total",
    "average",
    "currency_of",
    "dimensions_of",
    "fraction",
    "key_list",
    "summed",
]

Rows = list[tuple[tuple[str, ...], int, Amounts]]

TIME_DIMENSIONS = ("hour", "day", "week", "month")
DIMENSIONS = (
    "provider",
    "model",
    "organization",
    "project",
    "user",
    "tag",
    "operation",
    "service_tier",
    "processing",
    "region",
    "status",
    "meter",
)
_SEVERAL_GROUPS = frozenset(("tag", "meter"))
_LABEL = re.compile(r"label:[^,]{1,255}")
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)


def dimensions_of(group_by: Iterable[str], *, allow_time: bool) -> tuple[list[str], str]:
    """The dimensions to group by, and the one of time among them, or ""."""
    wanted = list(dict.fromkeys(name for name in group_by if name and name != "none"))
    time = [name for name in wanted if name in TIME_DIMENSIONS]
    if len(time) > 1:
        raise invalid_argument(
            "group_by", f"can hold one of {', '.join(TIME_DIMENSIONS)}, not {' and '.join(time)}"
        )
    if time and not allow_time:
        raise invalid_argument("group_by", f"can't hold {time[0]} here: interval sets the buckets")
    for name in wanted:
        if name not in time and name not in DIMENSIONS and not _LABEL.fullmatch(name):
            known = ", ".join(("none", *DIMENSIONS, "label:<key>", *(TIME_DIMENSIONS if allow_time else ())))
            raise invalid_argument("group_by", f"must be one of {known}, not {name!r}")
    return [name for name in wanted if name not in time], time[0] if time else ""


class Total:
    """What several rows add up to, in one currency. Costs of other currencies are not in `units`."""

    __slots__ = (
        "_others",
        "cached_tokens",
        "input_tokens",
        "output_tokens",
        "reported_requests",
        "reported_units",
        "requests",
        "units",
        "unpriced_requests",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0
        self.unpriced_requests = 0
        self.reported_requests = 0
        self.units = 0
        self.reported_units = 0
        # By currency: 10^-12 of it, and priced calls.
        self._others: dict[str, list[int]] = {}

    def add(self, sums: Amounts, currency: str) -> None:
        """Add a row; its calls and tokens count whatever its currency."""
        self.requests += sums.requests
        self.input_tokens += sums.input_tokens
        self.output_tokens += sums.output_tokens
        self.cached_tokens += sums.cached_tokens
        self.unpriced_requests += sums.unpriced_requests
        self.reported_requests += sums.reported_requests
        if sums.currency == currency:
            self.units += sums.units
            self.reported_units += sums.reported_units
        elif priced := sums.requests - sums.unpriced_requests:
            other = self._others.setdefault(sums.currency, [0, 0])
            other[0] += sums.units
            other[1] += priced
        # Groups that are within bounds may come to more together.
        check_amounts(self)

    @property
    def tokens(self) -> int:
        """Input and output tokens."""
        return self.input_tokens + self.output_tokens

    @property
    def cost(self) -> Decimal:
        """The cost in the currency that was asked for."""
        return from_units(self.units)

    @property
    def average_cost(self) -> Decimal | None:
        """The cost of a call that has one in the currency that was asked for."""
        elsewhere = sum(requests for _, requests in self._others.values())
        return average(self.cost, self.requests - self.unpriced_requests - elsewhere)

    @property
    def reported_cost(self) -> Decimal:
        """The part of the cost that providers stated."""
        return from_units(self.reported_units)

    @property
    def other_currencies(self) -> list[CurrencyTotal]:
        """The costs in currencies other than the one asked for, by code."""
        return [
            CurrencyTotal(currency=code, cost=from_units(units), requests=requests)
            for code, (units, requests) in sorted(self._others.items())
        ]


async def summed(
    ledger: Ledger,
    where: Filter,
    dimensions: list[str],
    buckets: Sequence[tuple[datetime, datetime]] | None,
    context: CallContext,
) -> tuple[Rows, Rows]:
    """The rows of the groups, and those of the total: others where a call is in several groups."""
    group_by = tuple(dimensions)
    rows = await ledger.sums.summarize(where, group_by, buckets, context)
    if _SEVERAL_GROUPS.isdisjoint(group_by):
        return rows, rows
    if buckets and where.end is None:
        # Records may be later than the last bucket, as clocks differ: they are in no group.
        where = replace(where, end=buckets[-1][1])
    return rows, await ledger.sums.summarize(where, (), None, context)


def average(numerator: Decimal | int, count: int) -> Decimal | None:
    """A quotient to 12 places, half-even; None when there is nothing to divide by."""
    if count <= 0:
        return None
    quotient = _EXACT.divide(Decimal(numerator), Decimal(count))
    rounded = _EXACT.quantize(quotient, Decimal("1e-12"))
    return from_units(int(_EXACT.scaleb(rounded, 12)))


def fraction(part: int, whole: int) -> Decimal | None:
    """A part of a whole to 6 places, half-even; None of nothing. 1 means all, and 0 none."""
    if whole <= 0:
        return None
    rounded = _EXACT.quantize(_EXACT.divide(Decimal(part), Decimal(whole)), Decimal("1e-6"))
    if 0 < part < whole:
        rounded = min(max(rounded, Decimal("0.000001")), Decimal("0.999999"))
    return plain(rounded)


def key_list(dimensions: list[str], values: Iterable[str]) -> list[GroupKey]:
    """Dimensions and values, one by one."""
    return [
        GroupKey(dimension=dimension, value=value)
        for dimension, value in zip(dimensions, values, strict=True)
    ]


def currency_of(code: str) -> str:
    """The currency that a query is answered in: USD when it names none.

    Another code would be answered with 0. Raises INVALID_ARGUMENT.
    """
    if code and code not in CURRENCIES:
        raise invalid_argument("currency", CURRENCY_RULE)
    return code or "USD"
