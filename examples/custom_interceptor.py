"""Something of your own around every call: here a team's header, and a count of slow calls. Runs as it is.

An interceptor is written once and works in both clients. It may await only `continuation` and
`context.runtime`, and is called concurrently; `check_interceptor` makes sure of that.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.testing import check_interceptor

Continuation = Callable[[Any, CallContext], Awaitable[Any]]


class TeamHeader:
    """Tells the server which team calls."""

    def __init__(self, team: str) -> None:
        self._team = team

    async def intercept_unary_unary(
        self, continuation: Continuation, request: Any, context: CallContext
    ) -> Any:
        context.metadata.set("x-team", self._team)
        return await continuation(request, context)


class SlowCalls:
    """Keeps the names of calls that took longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {}

    async def intercept_unary_unary(
        self, continuation: Continuation, request: Any, context: CallContext
    ) -> Any:
        started = context.runtime.monotonic()
        try:
            return await continuation(request, context)
        finally:
            if context.runtime.monotonic() - started > self._seconds:
                with self._lock:  # never around an await
                    self.counts[context.method.name] = self.counts.get(context.method.name, 0) + 1


def main() -> None:
    check_interceptor(TeamHeader("search"))
    check_interceptor(lambda: SlowCalls(0.5))
    print("both work in both clients")

    slow = SlowCalls(-1.0)  # every call counts as slow
    call: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}
    with CostOpsClient(base_url="sqlite://", interceptors=[TeamHeader("search"), slow]) as client:
        client.usage.submit(**call, input_tokens=10)
        client.costs.get()

    async def asynchronously() -> None:
        async with AsyncCostOpsClient(base_url="sqlite://", interceptors=[slow]) as client:
            await client.usage.submit(**call, input_tokens=10)

    asyncio.run(asynchronously())
    print(slow.counts)


if __name__ == "__main__":
    main()
