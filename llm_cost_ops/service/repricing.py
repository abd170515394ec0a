"""Prices recorded usage again, a few records in each transaction."""

from __future__ import annotations

from llm_cost_ops._gen.messages import RepriceDifference, RepriceReport, RepriceUsageRequest
from llm_cost_ops.engine.ledger import Change
from llm_cost_ops.engine.money import from_units
from llm_cost_ops.engine.windows import parse_end
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.listing import filter_of
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.stores import Store

__all__ = ["reprice"]

CHUNK = 250
"""Records of one transaction: other writers wait for one at most some milliseconds."""


async def reprice(
    store: Store, prices: Prices, request: RepriceUsageRequest, context: CallContext
) -> RepriceReport:
    """Go through the records in the order in which they came, and report what changed.

    A record that changes while this runs is seen as it is when its turn comes. DEADLINE_EXCEEDED says
    what was done: that stays.
    """
    where = filter_of(request)
    moment = parse_end(request.as_of, request.time_zone, field="as_of") if request.as_of else None
    book = await prices.book_as_of(moment, context)
    tally = _Tally(dry_run=request.dry_run)
    after = 0
    try:
        while seqs := await store.matching(where, after, CHUNK, context):
            tally.add(len(seqs), await store.reprice(seqs, book.price, context, dry_run=request.dry_run))
            after = seqs[-1]
            context.check_deadline()
    except RpcError as error:
        if error.code is not StatusCode.DEADLINE_EXCEEDED or request.dry_run:
            raise
        done = f"{tally.changed:,} of {tally.examined:,} records were repriced and stay so"
        raise RpcError(
            error.code, f"{error.message}; {done}: the same call again goes on", maybe_applied=True
        ) from error
    return tally.report()


class _Sum:
    __slots__ = ("after", "before", "records", "unpriced_after", "unpriced_before")

    def __init__(self) -> None:
        self.records = self.before = self.after = self.unpriced_before = self.unpriced_after = 0


class _Tally:
    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.examined = 0
        self.changed = 0
        self._sums: dict[tuple[str, str, str], _Sum] = {}

    def add(self, examined: int, changes: list[Change]) -> None:
        self.examined += examined
        self.changed += len(changes)
        for change in changes:
            self._add(change)

    def _add(self, change: Change) -> None:
        before, after = change.units_before, change.units_after
        # A record without a price stands in the currency of its other cost, if that has one.
        old, new = change.currency_before, change.currency_after
        old = new if before is None and after is not None else old
        new = old if after is None else new
        for currency in dict.fromkeys((old, new)):
            self._sum(change, currency).records += 1
        first, second = self._sum(change, old), self._sum(change, new)
        first.before += before or 0
        first.unpriced_before += before is None
        second.after += after or 0
        second.unpriced_after += after is None

    def _sum(self, change: Change, currency: str) -> _Sum:
        return self._sums.setdefault((change.provider, change.model_id, currency), _Sum())

    def report(self) -> RepriceReport:
        return RepriceReport(
            dry_run=self.dry_run,
            examined=self.examined,
            changed=self.changed,
            differences=[
                RepriceDifference(
                    provider=provider,
                    model_id=model_id,
                    currency=currency,
                    records=found.records,
                    before=from_units(found.before),
                    after=from_units(found.after),
                    difference=from_units(found.after - found.before),
                    unpriced_before=found.unpriced_before,
                    unpriced_after=found.unpriced_after,
                )
                for (provider, model_id, currency), found in sorted(
                    self._sums.items(), key=lambda item: item[0]
                )
            ],
        )
