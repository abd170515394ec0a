"""What commands show of costs and models: tables, bars, receipts, and the lines below them."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING

from llm_cost_ops.cli.output import Bar, Cell, Column, Output, Table, money
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.rules.times import bucket_label, buckets_between, parse_start
from llm_cost_ops.types import CostGroup, CostRecord, CostSummary, RepriceDifference

if TYPE_CHECKING:
    from llm_cost_ops.catalog import Catalog

__all__ = [
    "cost_bars",
    "cost_table",
    "differences_table",
    "is_elsewhere",
    "meant",
    "print_total",
    "receipt_table",
    "show_receipt",
]

_INTERVALS = ("hour", "day", "week", "month")
_MAX_BARS = 1000


def cost_table(title: str, summary: CostSummary, *, for_programs: bool = False) -> Table:
    """A row a group, and the total below; bars show the share of the dearest group.

    Costs in other currencies have columns of their own. A table for programs names its currency in each row.
    """
    names = [key.dimension for key in summary.breakdown[0].keys] if summary.breakdown else ["group"]
    others = [other.currency for other in summary.other_currencies]
    columns = [
        *(Column(name, fold=True) for name in names),
        Column("requests", right=True, optional=True),
        Column("tokens", right=True, optional=True),
        Column(f"cost, {summary.currency}", right=True, key="cost"),
        *([Column("currency")] if for_programs else []),
        *(Column(f"cost, {code}", right=True, key=f"cost_{code.lower()}") for code in others),
    ]
    if summary.unpriced_requests:
        columns.append(Column("unpriced", right=True, style="yellow"))

    def figures(requests: int, tokens: int, cost: Decimal, of: CostSummary | CostGroup) -> list[Cell]:
        costs = {other.currency: other.cost for other in of.other_currencies}
        row: list[Cell] = [requests, tokens, cost, *([summary.currency] if for_programs else [])]
        row += [costs.get(code, Decimal(0)) for code in others]
        return [*row, *([of.unpriced_requests] if summary.unpriced_requests else [])]

    total = figures(summary.total_requests, summary.total_tokens, summary.total_cost, summary)
    table = Table(title=title, columns=columns, footer=["total", *[""] * (len(names) - 1), *total])
    for group in summary.breakdown:
        row = figures(group.requests, group.tokens, group.cost, group)
        table.rows.append([*(key.value or "-" for key in group.keys), *row])
    dearest = max((group.cost for group in summary.breakdown), default=Decimal(0))
    if summary.additive and dearest > 0:
        table.shares = [float(max(group.cost, Decimal(0)) / dearest) for group in summary.breakdown]
    return table


def cost_bars(summary: CostSummary, time_zone: str) -> list[Bar]:
    """A bar a group; where groups are times, hours or days without a call are there as well, with 0."""
    found = {", ".join(key.value or "-" for key in group.keys): group for group in summary.breakdown}
    keys = summary.breakdown[0].keys
    labels = list(found)
    if len(keys) == 1 and keys[0].dimension in _INTERVALS:
        labels = _without_gaps(labels, keys[0].dimension, time_zone)
    bars = []
    for label in labels:
        group = found.get(label)
        if group is None:
            bars.append(Bar(label, Decimal(0), money(Decimal(0))))
            continue
        count = group.unpriced_requests
        elsewhere = sum(other.requests for other in group.other_currencies)
        notes = [f"{_requests(count)} without a price"] if count else []
        notes += [f"{money(other.cost)} {other.currency}" for other in group.other_currencies]
        nothing = "no price" if count else "-"
        shown = money(group.cost) if count + elsewhere < group.requests or group.cost else nothing
        bars.append(Bar(label, group.cost, shown, ", ".join(notes)))
    return bars


def _without_gaps(labels: list[str], interval: str, time_zone: str) -> list[str]:
    """The labels of every bucket from the first to the last; as they are where those would be too many."""
    day = "-01" if interval == "month" else ""
    try:
        start, end = (parse_start(label + day, time_zone) for label in (labels[0], labels[-1]))
        buckets = buckets_between(
            start, end + timedelta(microseconds=1), interval, time_zone, limit=_MAX_BARS
        )
    except RpcError:
        return labels
    made = [bucket_label(bucket, interval, time_zone) for bucket in buckets]
    return made if set(labels) <= set(made) else labels


def print_total(output: Output, summary: CostSummary) -> None:
    """The total, and what it does not cover."""
    if is_elsewhere(summary):
        output.line(f"nothing has a cost in {summary.currency}; there is:")
    else:
        calls = f"{_requests(summary.total_requests)} and {summary.total_tokens:,} tokens"
        output.line((f"{money(summary.total_cost)} {summary.currency}", "bold"), f" for {calls}")
    if summary.unpriced_requests:
        has, lacks = ("has", "It lacks") if summary.unpriced_requests == 1 else ("have", "They lack")
        count = _requests(summary.unpriced_requests)
        output.line(
            (f"{count} {has} no price: the total is a lower bound.", "yellow"),
            f" {lacks} a price (llm-cost-ops prices add), or counts (llm-cost-ops usage correct).",
        )
    if summary.reported_requests and not is_elsewhere(summary):
        of_them = f"{money(summary.reported_cost)} {summary.currency}"
        output.line(
            f"{of_them} of it is what providers reported, for {_requests(summary.reported_requests)}."
        )
    for other in summary.other_currencies:
        amount = f"{money(other.cost)} {other.currency}"
        if is_elsewhere(summary):
            output.line(f"    {amount} for {_requests(other.requests)}")
        else:
            output.line(f"and {amount} for {other.requests:,} of them")
    if is_elsewhere(summary):
        output.line(f"Ask with --currency {summary.other_currencies[0].currency}.")


def is_elsewhere(summary: CostSummary) -> bool:
    """Whether there are calls, but all of them cost in other currencies than the one asked for."""
    return 0 < summary.total_requests <= sum(other.requests for other in summary.other_currencies)


def _requests(count: int) -> str:
    return f"{count:,} request{'s' * (count != 1)}"


def show_receipt(output: Output, cost: CostRecord) -> None:
    """What each meter cost, and by which card."""
    if cost.total_cost is None and output.form == "text":
        output.line(("No price is known for this call.", "yellow"))
        return
    output.table(receipt_table(cost))
    if cost.rate_card_id:
        origin = f", {cost.origin_version}" if cost.origin_version else ""
        output.line(f"{cost.status.value}, by the card {cost.rate_card_id}{origin}")
    else:
        output.line(cost.status.value)
    if cost.fallback_dimensions:
        output.line(f"The card stands in for another {' and '.join(cost.fallback_dimensions)}.")


def receipt_table(cost: CostRecord) -> Table:
    """A row a meter, with the total below."""
    table = Table(
        columns=[
            Column("meter"),
            Column("quantity", right=True),
            Column("price", right=True),
            Column(f"cost, {cost.currency}", right=True, key="cost"),
        ],
        footer=["total", "", "", "" if cost.total_cost is None else cost.total_cost],
    )
    for line in cost.lines:
        price = "-" if line.unit_price is None else f"{money(line.unit_price)} / {line.per:,}"
        # A count as a decimal would be shown with two places.
        quantity: Cell = int(line.quantity) if line.quantity == int(line.quantity) else f"{line.quantity:f}"
        table.rows.append([line.meter, quantity, price, line.cost if line.priced else "no price"])
    return table


def differences_table(differences: list[RepriceDifference]) -> Table:
    """A row for each provider, model and currency whose costs a repricing changed."""
    counted = [Column("records", right=True, optional=True)]
    counted += [Column(name, right=True) for name in ("before", "after", "difference")]
    table = Table(
        columns=[
            Column("provider"),
            Column("model", fold=True),
            *counted,
            Column("currency", optional=True),
            Column("unpriced", right=True),
        ]
    )
    for row in differences:
        unpriced = f"{row.unpriced_before:,} → {row.unpriced_after:,}"
        cells: list[Cell] = [
            row.provider,
            row.model_id,
            row.records,
            row.before,
            row.after,
            row.difference,
            row.currency,
        ]
        table.rows.append([*cells, unpriced])
    return table


def meant(catalog: Catalog, name: str) -> str:
    """What follows a sentence about a model that is not there: the models that may be meant, if any."""
    # Those of just that id first, since many providers sell one model.
    near = sorted(catalog.find(name), key=lambda found: (found.id != name, len(found.id)))
    if not near:
        ids = {found.id: found for found in catalog.models()}
        near = [ids[each] for each in get_close_matches(name, ids, 5)]
    names = ", ".join(f"{found.provider}/{found.id}" for found in near[:5])
    return f"; did you mean {names}?" if names else ""
