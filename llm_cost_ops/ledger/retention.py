"""What can still be answered once records were removed: the same on every ledger.

A removed record leaves its id, so that it does not count again, and its part of the sums by what series hold,
in quarters of an hour. It names no user then, and has no tags, labels and meters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import CostStatus, SubmitStatus
from llm_cost_ops.ledger.encoding import from_micros
from llm_cost_ops.ledger.types import Appended
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.rules.times import QUARTER

if TYPE_CHECKING:
    from llm_cost_ops.ledger.pieces import Piece

__all__ = ["REMOVED_AT", "check_known", "removed_duplicate", "removed_error"]

REMOVED_AT = -(2**62) - 1
"""The time of what is left of a removed record, in microseconds: before every time that a query asks for."""


def check_known(removed: Mapping[str, int], pieces: Iterable[Piece], *, needs_rows: bool) -> None:
    """FAILED_PRECONDITION where an answer would lack removed records.

    `removed` has, by organization, the moment before which records were removed, in microseconds; `pieces`
    are the stretches of time that are asked for, and `needs_rows` says whether series don't hold all of it.
    """
    if not removed:
        return
    organization, moment = max(removed.items(), key=lambda item: item[1])
    for _, low, high in pieces:
        if low is not None and low >= moment:
            continue
        if needs_rows:
            raise removed_error(organization, moment, "by user, tag, label or meter")
        for edge in (low, high):
            if edge is not None and edge < moment and edge % QUARTER:
                raise removed_error(organization, moment, "from or to within a quarter of an hour")


def removed_error(organization: str, moment: int, how: str) -> RpcError:
    """That something is not known any more of records from before a moment."""
    since = f"{from_micros(moment):%Y-%m-%dT%H:%M:%SZ}"
    rule = f"must be {since} or later for {organization}: older records were removed by its retention, and "
    return RpcError(
        StatusCode.FAILED_PRECONDITION,
        f"start_date {rule}what is left of them is not known {how}",
        violations=[Violation("start_date", f"{rule}what is left of them is not known {how}")],
    )


def removed_duplicate(usage_id: str, ingested_at: datetime) -> Appended:
    """The answer to an entry whose record was removed; whether its content is the same is not known."""
    return Appended(SubmitStatus.DUPLICATE, usage_id, None, "", CostStatus.UNSPECIFIED, ingested_at)
