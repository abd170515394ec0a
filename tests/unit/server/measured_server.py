"""A server of both listeners that measures itself: run as a process, it prints its addresses as JSON, and for
each line on stdin how long its loop was held and how much memory it took at most since the line before.

A hold is the time between two ticks without that in which the loop could run and no core was free, and never
more than the process computed meanwhile: a machine that is busy with others adds nothing, and a thread that
keeps the interpreter's lock does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.ledger.sqlite.ledger import SqliteLedger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.server.app import HttpServer
from llm_cost_ops.server.grpc import GrpcServer
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.server.traces import TRACES_PATH, Traces
from llm_cost_ops.service import Service
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.keys import create_key

TICK = 0.002


def memory(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def waited_for_a_core() -> float:
    """Seconds in which the calling thread was ready to run and had to wait (the kernel's count)."""
    return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


class Held:
    """The longest hold of the loop."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            wall, computed, waited = time.monotonic(), time.process_time(), waited_for_a_core()
            await asyncio.sleep(TICK)
            passed = time.monotonic() - wall - TICK - (waited_for_a_core() - waited)
            held = min(passed, time.process_time() - computed)
            self.longest = max(self.longest, held)


async def main(path: str) -> None:
    store = SqliteLedger(path, group_commit=True)
    runtime = AsyncRuntime()
    context = CallContext(GET_HEALTH, runtime, Metadata(), runtime.monotonic() + 30)
    keys = {
        role: (await create_key(store.keys, context, organizations=["acme"], role=role))[1]
        for role in ("reader", "writer")
    }
    authentication = Authentication(store.keys, required=True)
    handler = Service(store, [authentication]).handler
    routes = {TRACES_PATH: Traces(handler)}
    http = HttpServer(AsgiApp(handler, admit=authentication.admit, routes=routes), port=0)
    grpc = GrpcServer(handler, port=0, admit=authentication.admit)
    addresses = {"http": await http.start(), "grpc": await grpc.start(), "keys": keys}
    say(addresses)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    held = Held()
    watching = asyncio.create_task(held.watch())
    gc.collect()
    base = memory("VmRSS")
    while await lines.readline():
        # The peak starts again from what is in use.
        peak = memory("VmHWM")
        say({"held": held.longest, "memory": peak - base, "kept": memory("VmRSS") - base})
        forget_peak()
        base, held.longest = memory("VmRSS"), 0.0
    watching.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
