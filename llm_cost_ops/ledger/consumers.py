"""Work that follows a commit: alerts, webhooks, exports. A new consumer needs no change to a ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from llm_cost_ops.ledger.protocols import Ledger
from llm_cost_ops.ledger.types import Committed
from llm_cost_ops.rpc.context import CallContext

__all__ = ["Handle", "catch_up", "follow"]

Handle = Callable[[Sequence[Committed]], Awaitable[None]]
"""Does a consumer's work for some commits. What it raises leaves the position where it was."""


async def catch_up(
    ledger: Ledger, name: str, handle: Handle, context: CallContext, *, limit: int = 500
) -> int:
    """Hand the consumer `name` all that was committed since its position, and return how many.

    The position moves after the work, at most `limit` commits at a time: each is handled at least once, and
    again when the process ended in between. Two processes with one name may both handle the same.
    """
    done = 0
    position = await ledger.consumer_position(name, context)
    while True:
        found, position = await ledger.committed(position, limit, context)
        if not found or position is None:
            return done
        await handle(found)
        await ledger.move_consumer(name, position, context)
        done += len(found)


async def follow(
    ledger: Ledger, name: str, handle: Handle, context: CallContext, *, limit: int = 500, every: float = 1.0
) -> None:
    """`catch_up`, and look again `every` so many seconds, until cancelled or the context's deadline."""
    while True:
        await catch_up(ledger, name, handle, context, limit=limit)
        context.check_deadline()
        await context.runtime.sleep(every)
