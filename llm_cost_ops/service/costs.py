"""Answers what usage cost."""

from __future__ import annotations

import copy

from llm_cost_ops._gen.messages import (
    CostGroup,
    CostRecord,
    CostStatus,
    CostSummary,
    CostVerification,
    EstimateCostRequest,
    EstimateCostResponse,
    GetCostRequest,
    GetCostResponse,
    GetCostSummaryRequest,
    GetCostSummaryResponse,
    RepriceDifference,
    RepriceReport,
    RepriceUsageRequest,
    RepriceUsageResponse,
    ResponseMeta,
    UsageRecord,
    VerifyCostRequest,
    VerifyCostResponse,
)
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.ledger import Ledger, Position
from llm_cost_ops.ledger.encoding import MAX_UNITS, check_record_cost
from llm_cost_ops.ledger.types import Change, Recorded
from llm_cost_ops.pricing.calculator import CALCULATOR_VERSION, calculate_cost, cost_by
from llm_cost_ops.pricing.cards import card_digest
from llm_cost_ops.pricing.money import from_units, to_units
from llm_cost_ops.pricing.types import Priced
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode, invalid_argument
from llm_cost_ops.rules.limits import MAX_RECORD_COST
from llm_cost_ops.rules.times import QUARTER, QUARTERS_A_DAY, bucket_label, buckets_around, parse_end
from llm_cost_ops.service.access.tenancy import actor_of, organization_of
from llm_cost_ops.service.pages import filter_of
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.service.retention import unknown_record
from llm_cost_ops.service.sums import (
    Total,
    currency_of,
    dimensions_of,
    fraction,
    key_list,
    summed,
)
from llm_cost_ops.wire.json import to_utc

__all__ = ["CostService", "reprice", "verify"]


class CostService:
    """Sums exactly, in total and by group; gives, checks and estimates single costs; prices again."""

    def __init__(self, ledger: Ledger, prices: Prices) -> None:
        self._ledger = ledger
        self._prices = prices

    async def get_cost(self, request: GetCostRequest, context: CallContext) -> GetCostResponse:
        """Give the cost in force of one record, with its lines where they can be made again."""
        organization = organization_of(request.organization_id, context)
        found = await verify(self._ledger, organization, request.usage_id, context)
        return GetCostResponse(data=found.recorded, meta=ResponseMeta(request_id=context.request_id))

    async def verify_cost(self, request: VerifyCostRequest, context: CallContext) -> VerifyCostResponse:
        """Calculate a recorded cost again, and compare."""
        organization = organization_of(request.organization_id, context)
        found = await verify(self._ledger, organization, request.usage_id, context)
        return VerifyCostResponse(data=found, meta=ResponseMeta(request_id=context.request_id))

    async def estimate_cost(self, request: EstimateCostRequest, context: CallContext) -> EstimateCostResponse:
        """Price a call that was not made."""
        assert request.usage is not None
        now = context.now()
        book = await self._prices.refresh(context)
        record = copy.copy(request.usage)
        record.timestamp = now if record.timestamp is None else to_utc(record.timestamp)
        cost = cost_by(book, record)
        if cost.total_cost is not None:
            check_record_cost(to_units(cost.total_cost), cost.currency)
        cost.usage_id = ""
        cost.calculated_at = now
        return EstimateCostResponse(data=cost, meta=ResponseMeta(request_id=context.request_id))

    async def reprice_usage(self, request: RepriceUsageRequest, context: CallContext) -> RepriceUsageResponse:
        """Price recorded usage again."""
        report = await reprice(self._ledger, self._prices, request, context)
        return RepriceUsageResponse(data=report, meta=ResponseMeta(request_id=context.request_id))

    async def get_cost_summary(
        self, request: GetCostSummaryRequest, context: CallContext
    ) -> GetCostSummaryResponse:
        """Sum a period."""
        dimensions, time = dimensions_of(request.group_by, allow_time=True)
        where = filter_of(request)
        currency = currency_of(request.currency)
        buckets = None
        if time:
            # Only where there are records: one with a wrong year does not fill the time up to the others.
            width = QUARTER if time == "hour" else QUARTER * QUARTERS_A_DAY
            numbers = await self._ledger.sums.occupied(where, width, context)
            buckets = buckets_around(numbers, width, time, request.time_zone)
        rows, plain = await summed(self._ledger, where, dimensions, buckets, context)
        total = Total()
        for _, _, sums in plain:
            total.add(sums, currency)
        groups: dict[tuple[str, ...], Total] = {}
        labels = [bucket_label(bucket, time, request.time_zone) for bucket in buckets or ()]
        for keys, bucket, sums in rows if dimensions or time else ():
            label = labels[bucket : bucket + 1]
            groups.setdefault((*label, *keys), Total()).add(sums, currency)
        return GetCostSummaryResponse(
            data=CostSummary(
                total_cost=total.cost,
                currency=currency,
                total_tokens=total.tokens,
                total_requests=total.requests,
                period_start=where.start,
                period_end=where.end,
                breakdown=_breakdown(groups, [time] * bool(time) + dimensions, labels),
                # A record counts once under each of its tags.
                additive="tag" not in dimensions,
                unpriced_requests=total.unpriced_requests,
                other_currencies=total.other_currencies,
                priced_fraction=fraction(total.requests - total.unpriced_requests, total.requests),
                reported_requests=total.reported_requests,
                reported_cost=total.reported_cost,
            ),
            meta=ResponseMeta(request_id=context.request_id),
        )


def _breakdown(
    groups: dict[tuple[str, ...], Total], dimensions: list[str], labels: list[str]
) -> list[CostGroup]:
    """The groups in the order of `labels` where they begin with one, and the dearest first."""
    # An hour that comes twice in autumn has two labels, of which the later may be the lower as text.
    places = {label: place for place, label in enumerate(labels)}
    ordered = sorted(
        groups.items(), key=lambda item: (places[item[0][0]] if places else 0, -item[1].units, item[0])
    )
    return [
        CostGroup(
            dimension=",".join(dimensions),
            value=",".join(values),
            cost=total.cost,
            tokens=total.tokens,
            requests=total.requests,
            keys=key_list(dimensions, values),
            input_tokens=total.input_tokens,
            output_tokens=total.output_tokens,
            cached_tokens=total.cached_tokens,
            unpriced_requests=total.unpriced_requests,
            other_currencies=total.other_currencies,
            reported_requests=total.reported_requests,
            reported_cost=total.reported_cost,
        )
        for values, total in ordered
    ]


async def verify(
    ledger: Ledger, organization_id: str, usage_id: str, context: CallContext
) -> CostVerification:
    """What was recorded, with the lines where they explain it, and what was calculated anew.

    The card is the one that the ledger kept with the cost. NOT_FOUND without such a record.
    """
    found = await ledger.get_cost(organization_id, usage_id, context)
    if found is None:
        raise await unknown_record(ledger, organization_id, usage_id, context)
    recorded = _stored(found)
    recomputed, reason = _recomputed(found)
    if recomputed is not None:
        for name in ("id", "usage_id", "revision", "calculated_at", "revision_kind", "revision_reason"):
            setattr(recomputed, name, getattr(recorded, name))
        if found.status == CostStatus.VOIDED:
            # Its cost is what it was before, however sure that is.
            recomputed.status = CostStatus.VOIDED
        reason = reason or _difference(recorded, recomputed)
        if not reason:
            recorded = recomputed
    return CostVerification(matches=not reason, recorded=recorded, recomputed=recomputed, reason=reason)


def _stored(found: Recorded) -> CostRecord:
    return CostRecord(
        id=f"{found.record.id}.{found.revision}",
        usage_id=found.record.id,
        revision=found.revision,
        status=found.status,
        currency=found.currency,
        total_cost=None if found.units is None else from_units(found.units),
        rate_card_id=found.card_id,
        rate_card_version=found.card_version,
        fallback_dimensions=list(found.fallbacks),
        calculator_version=CALCULATOR_VERSION,
        calculated_at=found.calculated_at,
        origin_version=found.origin_version,
        revision_kind=found.kind,
        revision_reason=found.reason,
    )


def _recomputed(found: Recorded) -> tuple[CostRecord | None, str]:
    """The cost by the card that was kept, or why there is none."""
    record, card = found.record, found.card
    was_reported = found.status == CostStatus.VOIDED and not found.card_id and found.units is not None
    if found.status == CostStatus.REPORTED or was_reported:
        return calculate_cost(record, None, reported_providers={record.provider}), ""
    if not found.card_id:
        cost = calculate_cost(record, None)
        cost.currency = found.currency
        return cost, ""
    if card is None:
        return None, f"the price card {found.card_id} was not kept with the record"
    if card_digest(card) != found.digest:
        return None, f"the price card {found.card_id} that was kept is not the one that priced the record"
    try:
        return calculate_cost(record, card, fallbacks=found.fallbacks), ""
    except ValidationError as error:
        return None, f"the cost can't be calculated: {error}"


def _difference(recorded: CostRecord, recomputed: CostRecord) -> str:
    differences = [
        f"{name} was recorded as {_shown(was)} and is {_shown(now)}"
        for name in ("status", "currency", "total_cost")
        if (was := getattr(recorded, name)) != (now := getattr(recomputed, name))
    ]
    return "; ".join(differences)


def _shown(value: object) -> str:
    return str(getattr(value, "value", value))


CHUNK = 250
"""Records of one transaction: other writers wait for one at most some milliseconds."""


async def reprice(
    ledger: Ledger, prices: Prices, request: RepriceUsageRequest, context: CallContext
) -> RepriceReport:
    """Go through the records in the order in which they came, and report what changed.

    A record that changes while this runs is seen as it is when its turn comes. DEADLINE_EXCEEDED says
    what was done: that stays.
    """
    where = filter_of(request)
    moment = parse_end(request.as_of, request.time_zone, field="as_of") if request.as_of else None
    book = await prices.book_as_of(moment, context)

    def price(record: UsageRecord) -> Priced:
        priced = book.price(record)
        if priced.units is not None and priced.units > MAX_UNITS:
            raise _too_dear(record, priced)
        return priced

    tally = _Tally(dry_run=request.dry_run)
    after: Position | None = None
    try:
        while True:
            step = await ledger.reprice(
                where, price, after, CHUNK, context, dry_run=request.dry_run, actor=actor_of(context)
            )
            tally.add(step.examined, step.changes)
            after = step.position
            if after is None:
                break
            context.check_deadline()
    except RpcError as error:
        if error.code is not StatusCode.DEADLINE_EXCEEDED or request.dry_run:
            raise
        done = f"{tally.changed:,} of {tally.examined:,} records were repriced and stay so"
        raise RpcError(
            error.code, f"{error.message}; {done}: the same call again goes on", maybe_applied=True
        ) from error
    return tally.report()


def _too_dear(record: UsageRecord, priced: Priced) -> RpcError:
    """The error that says which record stopped a repricing, and by which card."""
    assert record.timestamp is not None
    call = f"that of {record.organization_id} by {record.provider}/{record.model_id}"
    at = to_utc(record.timestamp).isoformat().replace("+00:00", "Z")
    limit = f"{MAX_RECORD_COST:,} {priced.by.currency}"
    rule = f"must cost at most {limit}, and {call} at {at} costs more by the card {priced.by.card_id}"
    return invalid_argument("a record", rule)


class _Sum:
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
