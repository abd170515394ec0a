"""Long computations in slices, so that an event loop can do other work between them."""

from __future__ import annotations

import time

from llm_cost_ops.rpc.runtime import Runtime

__all__ = ["Slices"]

SLICE = 0.005


class Slices:
    """Counts the time that a computation has held the event loop.

    `await slices.pause()` between its steps: once 5 ms have passed, others run before it goes on.
    """

    __slots__ = ("_runtime", "_since")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # Real time, whatever the runtime's clock says.
        self._since = time.monotonic()

    async def pause(self) -> None:
        """Let others run, where it is their turn."""
        if time.monotonic() - self._since >= SLICE:
            await self._runtime.sleep(0)
            self._since = time.monotonic()
