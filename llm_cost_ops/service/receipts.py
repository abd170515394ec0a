"""The cost of one record with its lines, and the proof: what was recorded beside the same calculated anew."""

from __future__ import annotations

from llm_cost_ops._gen.messages import CostRecord, CostStatus, CostVerification, RateCard
from llm_cost_ops.catalog import load_catalog
from llm_cost_ops.engine.calculator import CALCULATOR_VERSION, calculate_cost
from llm_cost_ops.engine.card_digest import card_digest
from llm_cost_ops.engine.ledger import Recorded
from llm_cost_ops.engine.money import from_units
from llm_cost_ops.exceptions import ValidationError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.prices import catalog_card
from llm_cost_ops.service.tenancy import admits
from llm_cost_ops.stores import Store

__all__ = ["verify"]


async def verify(store: Store, usage_id: str, context: CallContext) -> CostVerification:
    """What was recorded, with the lines where they explain it, and what was calculated anew.

    The card is the one that the store kept with the cost; for costs older than that, the card of the
    same id, version and origin that the store or the catalog has. NOT_FOUND without such a record.
    """
    found = await store.get_cost(usage_id, context)
    if found is None or not admits(context, found.record.organization_id):
        raise RpcError(StatusCode.NOT_FOUND, f"there is no usage record {usage_id!r}")
    recorded = _stored(found)
    card = found.card
    if card is None and found.card_id:
        card = await _look_up(store, found, context)
    recomputed, reason = _recomputed(found, card)
    if recomputed is not None:
        for name in ("id", "usage_id", "revision", "calculated_at"):
            setattr(recomputed, name, getattr(recorded, name))
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
    )


async def _look_up(store: Store, found: Recorded, context: CallContext) -> RateCard | None:
    card = await store.get_card(found.card_id, context)
    if card is not None and card.version == found.card_version:
        return card
    return catalog_card(found.card_id, found.card_version, found.origin_version)


def _recomputed(found: Recorded, card: RateCard | None) -> tuple[CostRecord | None, str]:
    """The cost by the card, or why there is none."""
    record = found.record
    if found.status == CostStatus.REPORTED:
        return calculate_cost(record, None, reported_providers={record.provider}), ""
    if not found.card_id:
        cost = calculate_cost(record, None)
        cost.currency = found.currency
        return cost, ""
    if card is None:
        origin = f", {found.origin_version}" if found.origin_version else ""
        return None, (
            f"the price card {found.card_id} (version {found.card_version}{origin}) is not known any more; "
            f"the catalog in force is {load_catalog().version}"
        )
    if found.digest and card_digest(card) != found.digest:
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
