"""`prices check`: what the catalog makes of calls whose cost the provider stated, beside that cost."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec

from llm_cost_ops.catalog import load_catalog
from llm_cost_ops.cli.output import Cell, Column, Output, Table
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.imports import Item, UsageFile
from llm_cost_ops.pricing.calculator import cost_by
from llm_cost_ops.pricing.pricebook import DEFAULT_CURRENCY, PriceBook
from llm_cost_ops.types import CostStatus, UsageRecord

__all__ = ["check_prices"]

_STATUSES = (CostStatus.PRICED, CostStatus.ESTIMATED, CostStatus.PARTIAL, CostStatus.UNPRICED)


class _Model(msgspec.Struct):
    """The sums of one model's calls in one currency: stated, and by the price cards."""

    calls: int = 0
    differ: int = 0
    stated: Decimal = Decimal(0)
    priced: Decimal = Decimal(0)
    status: CostStatus = CostStatus.PRICED


class _Check:
    """Prices the calls of a file, and keeps sums of those whose cost is stated."""

    def __init__(self) -> None:
        self._book = PriceBook([load_catalog()])
        self.models: dict[tuple[str, str, str], _Model] = {}
        self.unstated = self.unread = 0

    def add(self, item: Item) -> None:
        record = item.record
        if isinstance(record, str):
            self.unread += 1
        elif record.reported_cost is None:
            self.unstated += 1
        else:
            self._compare(record, record.reported_cost)

    def _compare(self, record: UsageRecord, stated: Decimal) -> None:
        currency = record.reported_currency or DEFAULT_CURRENCY
        # The cards are asked as if nothing were stated: otherwise the statement would be the answer.
        asked = msgspec.structs.replace(record, reported_cost=None)
        try:
            cost = cost_by(self._book, asked, at=record.timestamp or datetime.now(UTC))
        except ValidationError:
            self.unread += 1
            return
        total, status = cost.total_cost, cost.status
        if total is None or cost.currency != currency:
            total, status = Decimal(0), CostStatus.UNPRICED
        sums = self.models.setdefault((record.provider, record.model_id, currency), _Model())
        sums.calls += 1
        sums.stated += stated
        sums.priced += total
        sums.status = max(sums.status, status, key=_STATUSES.index)
        # A statement may be rounded: it is compared in the digits that it has.
        sums.differ += total.quantize(stated) != stated

    def table(self) -> Table:
        """A row a model, those that differ most first."""
        numbers = [Column(name, right=True) for name in ("calls", "differ", "stated")]
        cards = [Column(name, right=True) for name in ("cards", "difference")]
        table = Table(
            columns=[Column("model", fold=True), *numbers, Column("currency"), *cards, Column("status")]
        )
        rows = sorted(self.models.items(), key=lambda row: (-abs(row[1].stated - row[1].priced), row[0]))
        for (provider, model, currency), sums in rows:
            known = sums.status is not CostStatus.UNPRICED
            made: list[Cell] = [sums.priced, (sums.priced - sums.stated).normalize()] if known else ["", ""]
            counts = (f"{provider}/{model}", sums.calls, sums.differ, sums.stated)
            table.rows.append([*counts, currency, *made, sums.status.value])
        return table


def check_prices(options: argparse.Namespace, output: Output) -> None:
    """Read a file of usage, and print how its stated costs differ from those of the catalog."""
    check = _Check()
    from_stdin = options.file == "-"
    path = Path(options.file)
    with nullcontext(sys.stdin.buffer) if from_stdin else path.open("rb") as stream:
        for item in UsageFile(stream, "" if from_stdin else path.name):
            check.add(item)
    if check.models or output.form != "text":
        output.table(check.table())
    calls = sum(sums.calls for sums in check.models.values())
    differ = sum(sums.differ for sums in check.models.values())
    output.line(
        f"{calls:,} calls state their cost, {differ:,} differ from the price cards; "
        f"{check.unstated:,} state none, {check.unread:,} lines are no valid calls",
    )
