"""How records were priced: the values that a price book gives, and that a ledger keeps."""

from __future__ import annotations

import msgspec

from llm_cost_ops._gen.messages import CostStatus, RateCard

__all__ = ["Priced", "Pricing"]


class Pricing(msgspec.Struct, frozen=True, eq=False, gc=False):
    """How records were priced: the status, and the card that did it with its digest, if one did.

    All the records that a book prices alike share one object, which is compared by identity.
    """

    status: CostStatus
    currency: str
    card_id: str = ""
    card_version: int = 0
    fallbacks: tuple[str, ...] = ()
    origin_version: str = ""
    card: RateCard | None = None
    digest: bytes = b""


class Priced(msgspec.Struct, gc=False):
    """What a record costs, in 10^-12 of the currency that `by` names; None when unpriced."""

    units: int | None
    by: Pricing
